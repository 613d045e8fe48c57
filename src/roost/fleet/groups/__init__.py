"""Hosts kept between min and max: groups of claims. Pure planning, one loop, what others call."""
