"""What runs inside the user's processes. Imports nothing else of Roost."""
