"""The data plane: strict HTTP/1.1 framing, exchanges with backends, tunnels. Never knows Roost."""
