"""Instances by claim: somebody claims a host, fleet finds the offer, launches, watches and ends it."""
