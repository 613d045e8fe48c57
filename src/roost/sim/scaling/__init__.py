"""The two-level scaling simulator: recorded load, hosts that boot, containers that start, policies, an oracle."""
