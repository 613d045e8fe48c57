"""The command line: rich tables for people, ``--json`` for programs. A client of the REST door."""
