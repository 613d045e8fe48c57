"""``SqliteStore``: the store port over one SQLite connection, through SQLAlchemy Core.

Every call runs to its end inline (a commit is one short transaction), so nothing here awaits, starts a
thread or retries: a lock or a full disk becomes a typed error and the caller decides.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, bindparam, create_engine, insert, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DatabaseError, ResourceClosedError
from sqlalchemy.pool import StaticPool

from roost.adapters.store.sqlite.files import prepare
from roost.adapters.store.sqlite.schema import MIGRATIONS, ROWS, STORY, VERSION
from roost.ports.errors import Conflict, Invalid, Never, Retry, RoostError, StaleEpoch
from roost.ports.store import Row, StoryLine

LOCK_WAIT_S = 0.05
"""How long SQLite waits for another process's lock; short, because the event loop waits with it."""

# The primary result codes of SQLite (sqlite.org/rescode.html).
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 26

_GET = select(ROWS).where(ROWS.c.kind == bindparam("k"), ROWS.c.id == bindparam("i"))
_HEAD = select(ROWS.c.version, ROWS.c.epoch).where(
    ROWS.c.kind == bindparam("k"), ROWS.c.id == bindparam("i")
)


def _text(statement: Select[Any]) -> str:
    """``statement`` as SQL with named parameters.

    Controllers read all the time: run by the driver itself, a read costs a fifth of what it costs through
    an SQLAlchemy result, and the SQL is Core's all the same.
    """
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named")))


_FIND = select(ROWS).where(ROWS.c.kind == bindparam("k")).order_by(ROWS.c.id)
_BY_STATE = _FIND.where(ROWS.c.state == bindparam("s"))
_BY_PARENT = _FIND.where(ROWS.c.parent == bindparam("p"))
_FIND_SQL = {
    (False, False): _text(_FIND),
    (True, False): _text(_BY_STATE),
    (False, True): _text(_BY_PARENT),
    (True, True): _text(_BY_STATE.where(ROWS.c.parent == bindparam("p"))),
}
"""By (state given, parent given)."""
_GET_SQL = _text(_GET)
_COLUMNS = tuple(ROWS.c.keys())
_INSERT = insert(ROWS)
_UPDATE = (
    update(ROWS)
    .where(ROWS.c.kind == bindparam("k"), ROWS.c.id == bindparam("i"))
    .values({name: bindparam(name) for name in ("version", "epoch", "state", "parent", "body")})
)
_TELL = insert(STORY)
_STORY = (
    select(STORY)
    .where(STORY.c.seq > bindparam("after"))
    .order_by(STORY.c.seq)
    .limit(bindparam("most"))
)
_STORY_OF = _STORY.where(STORY.c.object_id == bindparam("o"))


def open_store(path: Path | None) -> "SqliteStore":
    """Open (and create or migrate) the database at ``path``; None keeps it in memory.

    ``Invalid`` when it cannot be written or was made by a newer Roost.
    """
    if path is not None:
        prepare(path)
    return SqliteStore(path)


class SqliteStore:
    """Implements ``ports.store.Store``."""

    _driver: sqlite3.Connection

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._engine = create_engine(
            "sqlite://" if path is None else f"sqlite:///{path}",
            connect_args={"timeout": LOCK_WAIT_S, "isolation_level": None},
            poolclass=StaticPool,
        )
        with self._typed():
            # Autocommit: transactions are begun here by name, so that a write takes its lock at once
            # (BEGIN IMMEDIATE) and a read takes none.
            self._db: Connection = self._engine.connect().execution_options(
                isolation_level="AUTOCOMMIT"
            )
            driver = self._db.connection.dbapi_connection
            assert isinstance(driver, sqlite3.Connection), "the engine is SQLite's"
            self._driver = driver
            self._pragmas()
            self._migrate()

    async def get(self, kind: str, id: str) -> Row | None:
        with self._typed():
            found = self._driver.execute(_GET_SQL, {"k": kind, "i": id}).fetchone()
        return None if found is None else _row(found)

    async def find(
        self, kind: str, *, state: str | None = None, parent: str | None = None
    ) -> list[Row]:
        text = _FIND_SQL[state is not None, parent is not None]
        with self._typed():
            found = self._driver.execute(text, {"k": kind, "s": state, "p": parent})
            return [_row(values) for values in found]

    async def commit(self, rows: Sequence[Row], story: Sequence[StoryLine] = ()) -> None:
        with self._typed(), self._transaction():
            for row in rows:
                self._write(row)
            if story:
                self._db.execute(_TELL, [_told(line) for line in story])

    async def story(
        self, object_id: str | None = None, *, after: int = 0, limit: int = 10_000
    ) -> list[StoryLine]:
        wanted: dict[str, Any] = {"after": after, "most": limit}
        if object_id is not None:
            wanted["o"] = object_id
        with self._typed():
            found = self._db.execute(_STORY if object_id is None else _STORY_OF, wanted)
            return [_line(dict(row._mapping)) for row in found]

    async def close(self) -> None:
        self._db.close()
        self._engine.dispose()

    def _write(self, row: Row) -> None:
        head = self._db.execute(_HEAD, {"k": row.kind, "i": row.id}).first()
        if head is not None and head.epoch > row.epoch:
            raise StaleEpoch(
                f"{row.kind} {row.id} is at epoch {head.epoch}, the write was of epoch {row.epoch}"
            )
        stored = 0 if head is None else head.version
        if stored != row.version:
            raise Conflict(f"{row.kind} {row.id} is at version {stored}, not {row.version}")
        new = msgspec.structs.asdict(row) | {"version": row.version + 1}
        if head is None:
            self._db.execute(_INSERT, new)
        else:
            # The tenant of an object never changes.
            del new["tenant"]
            self._db.execute(_UPDATE, new | {"k": new.pop("kind"), "i": new.pop("id")})

    def _pragmas(self) -> None:
        if self._path is not None:
            self._db.exec_driver_sql("PRAGMA journal_mode=WAL")
            # FULL: a commit is on the disk before it returns, through a power cut as well.
            self._db.exec_driver_sql("PRAGMA synchronous=FULL")

    def _migrate(self) -> None:
        if self._version() == VERSION:
            return
        with self._transaction():
            # Read again under the lock: another process may just have migrated.
            for version, statements in enumerate(MIGRATIONS, start=1):
                if version > self._version():
                    for statement in statements:
                        self._db.exec_driver_sql(statement)
                    self._db.exec_driver_sql(f"PRAGMA user_version={version}")

    def _version(self) -> int:
        return int(self._db.exec_driver_sql("PRAGMA user_version").scalar_one())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
            self._db.exec_driver_sql("COMMIT")
        except BaseException:
            # After SQLITE_FULL or an I/O error SQLite may have rolled back by itself.
            if self._driver.in_transaction:
                self._db.exec_driver_sql("ROLLBACK")
            raise

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except (ResourceClosedError, sqlite3.ProgrammingError) as error:
            raise Never("the store is closed") from error
        except DatabaseError as error:
            raise _typed_error(error.orig, self._path) from error
        except sqlite3.Error as error:
            raise _typed_error(error, self._path) from error


def _row(values: tuple[Any, ...]) -> Row:
    return Row(**dict(zip(_COLUMNS, values, strict=True)))


def _typed_error(error: BaseException | None, path: Path | None) -> RoostError:
    """The port's error for what SQLite said."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    where = str(path or "in memory")
    if code in (_BUSY, _LOCKED):
        return Retry(f"the database {where} is locked by another process", after_s=0.1)
    if code in (_FULL, _IOERR):
        return Retry(
            f"the database {where} could not be written: {error}",
            after_s=5.0,
            hint="free some disk space; nothing that was stored is lost",
        )
    if code in (_READONLY, _CANTOPEN):
        return Invalid(
            f"the state database {where} is not writable: {error}",
            hint="make the folder writable for this user or set ROOST_STATE_DIR to another one",
        )
    if code in (_CORRUPT, _NOTADB):
        return Never(f"the database {where} is damaged: {error}", hint="restore a backup")
    return Never(f"the database {where} refused: {error}")


def _told(line: StoryLine) -> dict[str, Any]:
    told = msgspec.structs.asdict(line)
    del told["seq"]
    return told | {"data": msgspec.json.encode(line.data).decode()}


def _line(found: dict[str, Any]) -> StoryLine:
    return StoryLine(**found | {"data": msgspec.json.decode(found["data"])})
