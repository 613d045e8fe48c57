"""The capture engine that lives in a Python kernel. Importing it imports nothing."""
