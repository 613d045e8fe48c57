"""Replicas of services on this host: started, checked, started again, measured, stopped."""
