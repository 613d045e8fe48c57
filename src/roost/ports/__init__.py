"""Protocols for the outside and the value types they speak. Holds no rules and does no I/O."""
