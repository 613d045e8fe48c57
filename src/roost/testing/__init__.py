"""Contract checks that anyone can run on an implementation of a port. Never imported by the product."""
