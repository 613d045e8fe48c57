"""The store in one SQLite file (WAL). Runs inline: it starts no thread and never yields to the loop."""
