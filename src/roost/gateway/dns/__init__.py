"""The authoritative DNS server of one zone: names that follow routes, the nearest healthy place."""
