"""What was used, by whom, and what it cost while it idled. See README.md."""
