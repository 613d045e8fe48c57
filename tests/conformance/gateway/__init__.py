"""A conformance harness for HTTP/1.1 reverse proxies: ``python -m tests.conformance.gateway --help``."""
