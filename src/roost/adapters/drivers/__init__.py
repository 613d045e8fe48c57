"""Drivers of tasks on a host, one package each."""
