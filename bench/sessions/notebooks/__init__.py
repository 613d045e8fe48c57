"""Whole notebooks, moved at each cell boundary."""
