"""Placement: which of the ranked offers and ready hosts a workload gets, and why."""
