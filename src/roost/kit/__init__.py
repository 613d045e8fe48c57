"""Small standard-library building blocks every layer may use. Never does I/O on its own."""
