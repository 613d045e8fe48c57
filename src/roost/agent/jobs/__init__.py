"""Jobs on this host: their runs, the parent of their scripts, what is saved of them."""
