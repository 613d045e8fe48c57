"""Implementations of ports. They see ports and kit, never each other; only main names them."""
