"""The gateway beside nginx, HAProxy and Envoy: CPU per request, and what clients see when things go wrong."""
