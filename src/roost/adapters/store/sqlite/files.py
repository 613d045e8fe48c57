"""The database file before it is opened for writing: may we, and which Roost made it.

Everything here reads only, so that a file made by a newer Roost is left exactly as it was.
"""

import contextlib
import os
import sqlite3
from pathlib import Path

from roost.adapters.store.sqlite.schema import VERSION
from roost.ports.errors import Invalid

VERSION_OFFSET = 60
"""Where SQLite's file header keeps ``user_version``: four bytes, big-endian."""
MAGIC = b"SQLite format 3\x00"


def prepare(path: Path) -> None:
    """Make sure that ``path`` can be opened and written by this Roost; raises ``Invalid`` if not."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made_by = schema_version(path)
        if made_by > VERSION:
            raise Invalid(
                f"{path} was made by a newer Roost (schema {made_by}, this one knows {VERSION})",
                hint="upgrade Roost, or set ROOST_STATE_DIR to another folder; nothing was changed",
            )
        # Created by us first: SQLite would create it readable for everybody.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {path.parent}")
    except OSError as error:
        raise Invalid(
            f"the state database {path} is not writable: {error.strerror or error}",
            hint="make the folder writable for this user or set ROOST_STATE_DIR to another one",
        ) from error


def schema_version(path: Path) -> int:
    """The schema version of the file at ``path``, 0 when there is none. ``Invalid`` if it is no database."""
    try:
        with path.open("rb") as file:
            header = file.read(VERSION_OFFSET + 4)
    except FileNotFoundError:
        return 0
    if not header:
        return 0
    if not header.startswith(MAGIC) or len(header) < VERSION_OFFSET + 4:
        raise Invalid(
            f"{path} is not a Roost database",
            hint="move the file away or set ROOST_STATE_DIR to another folder",
        )
    in_file = int.from_bytes(header[VERSION_OFFSET:], "big")
    wal = path.with_name(path.name + "-wal")
    return in_file if in_file > VERSION or not wal.exists() else _version_with_log(path, in_file)


def _version_with_log(path: Path, in_file: int) -> int:
    """The version as the write-ahead log has it (a migration may not have reached the file yet)."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        try:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.Error:
            return in_file
