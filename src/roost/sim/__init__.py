"""The deterministic simulator: the real controllers, on virtual time, in a world that breaks."""
