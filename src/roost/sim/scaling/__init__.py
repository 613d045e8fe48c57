"""Scaling on two levels, simulated: recorded load, hosts that boot, containers that start, an oracle."""
