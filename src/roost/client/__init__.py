"""Clients of Roost's own doors, used by commands, the bridge and the Jupyter server. Holds no state."""
