"""The wire between hosts and the cell: control connections, data connections, certificates."""
