"""Which host gets the next container, which one is emptied.

Pure: values and arrays in, choices with their reasons out; no clock, no input or output.
"""
