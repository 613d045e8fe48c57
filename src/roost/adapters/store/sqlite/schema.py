"""The tables and the ordered migrations that lead to them.

A migration is never edited once released: a new one is appended. The schema's version lives in the
file's header (``PRAGMA user_version``) and changes in the same transaction as the tables. This module
only describes; it never opens a file.
"""

from sqlalchemy import (
    REAL,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

METADATA = MetaData()

ROWS = Table(
    "rows",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("parent", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("rows_by_state", "kind", "state"),
    Index("rows_by_parent", "kind", "parent"),
)

STORY = Table(
    "story",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("at_s", REAL, nullable=False),
    Column("event", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("data", Text, nullable=False),
    Index("story_by_object", "object_id", "seq"),
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE rows (
            kind TEXT NOT NULL, id TEXT NOT NULL, tenant TEXT NOT NULL, version INTEGER NOT NULL,
            epoch INTEGER NOT NULL, state TEXT NOT NULL, parent TEXT NOT NULL, body BLOB NOT NULL,
            PRIMARY KEY (kind, id)
        ) WITHOUT ROWID""",
        "CREATE INDEX rows_by_state ON rows (kind, state)",
        "CREATE INDEX rows_by_parent ON rows (kind, parent)",
        # AUTOINCREMENT: a seq is never given twice, whatever is deleted later.
        """CREATE TABLE story (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, object_id TEXT NOT NULL,
            at_s REAL NOT NULL, event TEXT NOT NULL, reason TEXT NOT NULL, data TEXT NOT NULL
        )""",
        "CREATE INDEX story_by_object ON story (object_id, seq)",
    ),
)
"""Statements per version, from version 1."""

VERSION = len(MIGRATIONS)
"""The version this Roost reads and writes."""
