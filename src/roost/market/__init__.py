"""The market: what can be bought, how long it lasts, which offer is best and why."""
