"""Services: replicas of a task behind an endpoint, on two levels."""
