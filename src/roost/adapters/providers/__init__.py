"""Providers of instances, one package each. They see ports and kit, never each other."""
