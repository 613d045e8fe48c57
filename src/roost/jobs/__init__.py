"""Jobs: work that ends, on hosts that may go away."""
