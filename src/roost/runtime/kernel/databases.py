"""Database connections: sqlite by content or by path, SQLAlchemy engines and sessions over them.

A connection is asked only what leaves no trace in it. An open transaction is refused: half of it may be
another program's business.
"""

import ctypes
import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild_data
from roost.runtime.kernel.files import SMALL_BYTES, in_temporary
from roost.runtime.kernel.refusal import Handler, Refusal, Storing

_PRAGMAS = (
    "foreign_keys", "synchronous", "cache_size", "busy_timeout", "recursive_triggers", "query_only",
    "temp_store", "case_sensitive_like", "ignore_check_constraints", "automatic_index",
)  # fmt: skip
_BEGIN = "commit or roll back before the move"
_AGAIN = "register it again after a move, in the cell that opens the connection"


def _rows(connection: Any, text: str) -> list[tuple[Any, ...]]:
    """Rows as plain tuples, whatever factories the connection has."""
    sqlite: Any = sys.modules["sqlite3"]
    cursor = sqlite.Cursor(connection)
    cursor.row_factory = None
    factory, connection.text_factory = connection.text_factory, str
    try:
        return [tuple(row) for row in cursor.execute(text)]
    finally:
        connection.text_factory = factory


def reduce_connection(pickler: Storing, value: Any) -> Any:
    """A connection of ``sqlite3``."""
    sqlite: Any = sys.modules["sqlite3"]
    _no_callbacks(value)
    try:
        busy = value.in_transaction
        bases = _rows(value, "pragma database_list")
    except sqlite.ProgrammingError as error:
        if "closed" not in str(error).lower():
            raise Refusal(f"a database connection ({error})", _BEGIN) from error
        return rebuild_data.closed_connection, (type(value),)
    if busy:
        raise Refusal("a database connection in an open transaction", _BEGIN)
    _no_functions(sqlite, value)
    stores = []
    for _number, name, path in bases:
        if name == "temp":
            if _rows(value, "select 1 from sqlite_temp_master limit 1"):
                raise Refusal("a database connection with temporary tables", "use plain tables")
            continue
        stores.append((name, *_store(pickler, value, name, path)))
    options = _options(value)
    pragmas = [(name, _rows(value, f"pragma {name}")) for name in _PRAGMAS]
    state = {
        "pragmas": [(name, rows[0][0]) for name, rows in pragmas if rows],
        "row_factory": value.row_factory,
        "text_factory": value.text_factory,
        "adapters": _own(sqlite.adapters),
        "converters": _own(sqlite.converters),
        "dict": getattr(value, "__dict__", None),
    }
    return (
        rebuild_data.connection, (type(value), stores, options), state, None, None,
        rebuild_data.fill_connection,
    )  # fmt: skip


def _store(pickler: Storing, value: Any, name: str, path: str) -> tuple[str, bool, bytes | None]:
    """Path, whether in the session's folder, and content of one database of a connection."""
    if not path:
        return "", False, _content(value, name)
    if Path(path).is_relative_to(pickler.root):
        return str(Path(path).relative_to(pickler.root)), True, None
    if in_temporary(path) and Path(path).stat().st_size <= SMALL_BYTES:
        return path, False, value.serialize(name=name)
    return path, False, None


def _content(value: Any, name: str) -> bytes:
    """A database in memory; one without a page cannot be asked for them."""
    empty = _rows(value, f'pragma "{name}".page_count') == [(0,)]
    return b"" if empty else bytes(value.serialize(name=name))


def _own(table: dict[Any, Any]) -> dict[Any, Any]:
    """Adapters and converters that the user has registered."""
    return {k: v for k, v in table.items() if getattr(v, "__module__", "") != "sqlite3.dbapi2"}


def _no_functions(sqlite: Any, value: Any) -> None:
    """Refuse what lives in the connection alone, where nobody can read it back."""
    fresh = sqlite.connect(":memory:")
    try:
        for what in ("function", "collation", "module"):
            ask = f"pragma {what}_list"
            # Collations are numbered, in the order of their registration.
            known = {row[what == "collation" :] for row in _rows(fresh, ask)}
            rows = [row[what == "collation" :] for row in _rows(value, ask)]
            extra = sorted({str(row[0]) for row in rows if row not in known})
            if extra:
                raise Refusal(
                    f"a database connection with its own {what}: {', '.join(extra[:5])}", _AGAIN
                )
    finally:
        fresh.close()


def _no_callbacks(value: Any) -> None:
    """Refuse trace and progress callbacks, before the connection is asked anything."""
    usual = {id(value.row_factory), id(value.text_factory)}
    for item in gc.get_referents(value):
        own = callable(item) and not isinstance(item, type) and id(item) not in usual
        if own and type(item).__module__ not in ("functools", "sqlite3"):
            raise Refusal("a database connection with a callback of its own", _AGAIN)


def _options(value: Any) -> dict[str, Any]:
    """Arguments of ``connect`` that the connection does not tell."""
    options: dict[str, Any] = {"isolation_level": value.isolation_level}
    if sys.version_info >= (3, 12):
        options["autocommit"] = value.autocommit
    # HEAD db state detect_types isolation_level [autocommit] check_same_thread initialized thread_ident
    words = (ctypes.c_int * 20).from_address(id(value))
    kinds = words[8]
    same = words[12 + (sys.version_info >= (3, 12))]
    ident = (ctypes.c_ulong * 10).from_address(id(value))
    if (
        not 0 <= kinds <= 3
        or same not in (0, 1)
        or threading.main_thread().ident not in ident[6:10]
    ):
        raise Refusal("a database connection of an unknown layout", "connect again after a move")
    return options | {"detect_types": kinds, "check_same_thread": bool(same)}


def reduce_cursor(_pickler: Storing, value: Any) -> Any:
    """A cursor whose rows are fetched: with its description, row count and last row."""
    if any(type(item).__name__ == "Statement" for item in gc.get_referents(value)):
        raise Refusal("a database cursor with rows to fetch", "fetch the rows before the move")
    described = value.description
    state = (
        [column[0] for column in described] if described else None,
        value.rowcount,
        value.lastrowid,
        value.arraysize,
        value.row_factory,
    )
    return (
        rebuild_data.cursor, (type(value), value.connection), state, None, None,
        rebuild_data.fill_cursor,
    )  # fmt: skip


def reduce_row(_pickler: Storing, value: Any) -> Any:
    """A row with its names."""
    return rebuild_data.row, (list(value.keys()), tuple(value))


# --- SQLAlchemy ----------------------------------------------------------------------------------


def reduce_engine(pickler: Storing, value: Any) -> Any:
    """An engine: its URL, pool and listeners; a database in memory with its content."""
    pool = value.pool
    options: dict[str, Any] = {"echo": value.echo, "poolclass": type(pool)}
    if type(pool).__name__ == "QueuePool":
        if pool.checkedout():
            raise Refusal("an engine with connections in use", "close them before the move")
        options |= {"pool_size": pool.size(), "max_overflow": pool._max_overflow}
        options |= {"pool_timeout": pool._timeout}
    options |= {"pool_recycle": pool._recycle, "pool_pre_ping": pool._pre_ping}
    options |= {"execution_options": dict(value._execution_options)}
    live = _driver(pool) if _in_memory(value.url) else None
    content = None
    if live is not None:
        if live.in_transaction:
            raise Refusal("an engine in an open transaction", _BEGIN)
        content = _content(live, "main")
    text = value.url.render_as_string(hide_password=False)
    path = value.url.database or ""
    inside = os.path.isabs(path) and Path(path).is_relative_to(pickler.root)  # noqa: PTH117
    short = str(Path(path).relative_to(pickler.root)) if inside else ""
    listeners = _listeners(value)
    return (
        rebuild_data.engine,
        (text, short, options, content),
        listeners,
        None,
        None,
        (rebuild_data.listen),
    )


def _in_memory(url: Any) -> bool:
    return url.get_backend_name() == "sqlite" and (
        url.database in (None, "", ":memory:") or "mode=memory" in str(url.database)
    )


def _driver(pool: Any) -> Any:
    """The connection of a pool that has but one."""
    record = getattr(getattr(pool, "_conn", None), "current", None)
    record = record() if callable(record) else record
    if record is None:
        record = pool.__dict__.get("connection")
    return getattr(record, "dbapi_connection", None)


def _listeners(value: Any) -> list[tuple[str, str, Any]]:
    found = []
    for where, owner in (("engine", value), ("pool", value.pool)):
        for name in dir(owner.dispatch):
            if name.startswith("_"):
                continue
            for function in getattr(owner.dispatch, name, None) or ():
                home = getattr(function, "__module__", None) or ""
                if not home.startswith("sqlalchemy"):
                    found.append((where, name, function))
    return found


def reduce_session(_pickler: Storing, value: Any) -> Any:
    """A session: the same objects, attached to the same engine."""
    engine = value.bind
    if value.in_transaction() and value._transaction is not None:
        for held in value._transaction._connections:
            driver = getattr(getattr(held, "connection", None), "driver_connection", None)
            if getattr(driver, "in_transaction", False):
                raise Refusal("a session in an open transaction", _BEGIN)
    if value.deleted:
        raise Refusal("a session with deletions not flushed", _BEGIN)
    options = {
        "autoflush": value.autoflush,
        "expire_on_commit": value.expire_on_commit,
        "info": dict(value.info),
    }
    held = [*value.identity_map.values(), *value.new]
    return (
        rebuild_data.session, (type(value), engine, options), held, None, None,
        rebuild_data.fill_session,
    )  # fmt: skip


LATE: dict[tuple[str, str], Handler] = {
    ("sqlite3", "Connection"): reduce_connection,
    ("sqlite3", "Cursor"): reduce_cursor,
    ("sqlite3", "Row"): reduce_row,
    ("sqlalchemy.engine.base", "Engine"): reduce_engine,
    ("sqlalchemy.orm.session", "Session"): reduce_session,
}
