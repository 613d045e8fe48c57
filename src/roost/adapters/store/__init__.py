"""Implementations of ``ports.store.Store``. Each passes the contract in ``roost.testing.store``."""
