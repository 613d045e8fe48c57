"""What only the SQLite store has: the file, its versions, its errors."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from roost.adapters.store.sqlite.schema import METADATA, MIGRATIONS, VERSION
from roost.adapters.store.sqlite.store import SqliteStore, open_store
from roost.ports.errors import Invalid, Retry
from roost.ports.store import Row, StoryLine


def _row(id: str, size: int = 2) -> Row:
    return Row(kind="thing", id=id, body=b"x" * size)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextmanager
def _raw(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


async def test_the_file_is_private_in_wal_mode_and_of_this_version(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "control.sqlite"
    store = open_store(path)
    await store.commit([_row("a")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await store.close()
    with _raw(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)


async def test_the_migrations_lead_to_the_described_tables(tmp_path: Path) -> None:
    path = tmp_path / "control.sqlite"
    await open_store(path).close()
    described = create_engine("sqlite://")
    METADATA.create_all(described)
    migrated = create_engine(f"sqlite:///{path}")
    seen = [inspect(described), inspect(migrated)]
    for name in METADATA.tables:
        columns = [[(c["name"], str(c["type"])) for c in i.get_columns(name)] for i in seen]
        assert columns[0] == columns[1]
        indices = [{i["name"]: i["column_names"] for i in s.get_indexes(name)} for s in seen]
        assert indices[0] == indices[1]
    described.dispose()
    migrated.dispose()


@pytest.mark.parametrize("logged", [False, True], ids=["in the file", "in the log only"])
async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path, logged: bool) -> None:
    path = tmp_path / "control.sqlite"
    store = open_store(path)
    await store.commit([_row("a")])
    await store.close()
    with _raw(path) as connection:
        connection.execute(f"PRAGMA user_version={VERSION + 1}")
        if logged:
            # A newer Roost that was killed: its migration is in the write-ahead log only.
            copy = tmp_path / "killed"
            copy.mkdir()
            for name, content in _content_of_database(path).items():
                (copy / name).write_bytes(content)
            path = copy / path.name
    before = _content(path.parent)
    with pytest.raises(Invalid, match="made by a newer Roost") as caught:
        open_store(path)
    assert "nothing was changed" in caught.value.hint
    after = _content(path.parent)
    assert {n: c for n, c in after.items() if not n.endswith("-shm")} == {
        n: c for n, c in before.items() if not n.endswith("-shm")
    }


def _content_of_database(path: Path) -> dict[str, bytes]:
    return {
        other.name: other.read_bytes()
        for other in sorted(path.parent.iterdir())
        if other.name.startswith(path.name) and not other.name.endswith("-shm")
    }


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "control.sqlite"
    path.write_bytes(b"hello" * 100)
    with pytest.raises(Invalid, match="not a Roost database"):
        open_store(path)
    assert path.read_bytes() == b"hello" * 100


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="not writable") as caught:
        open_store(tmp_path / "file" / "state" / "control.sqlite")
    assert "ROOST_STATE_DIR" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o500)
    with pytest.raises(Invalid, match="not writable"):
        open_store(folder / "control.sqlite")


def test_a_database_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "control.sqlite").mkdir()
    with pytest.raises(Invalid, match="not writable"):
        open_store(tmp_path / "control.sqlite")


async def test_a_lock_held_elsewhere_is_a_retry(tmp_path: Path) -> None:
    path = tmp_path / "control.sqlite"
    store = open_store(path)
    await store.commit([_row("a")])
    with _raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Retry, match="locked"):
            await store.commit([_row("b")])
        assert await store.get("thing", "a") is not None, "readers do not wait for a writer"
        other.execute("ROLLBACK")
    await store.commit([_row("b")])
    await store.close()


async def test_a_full_disk_is_a_retry_and_loses_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "control.sqlite")
    await store.commit([_row("a")], [StoryLine(object_id="a", at_s=0.0, event="Kept")])
    _limit_pages(store, 24)
    with pytest.raises(Retry) as caught:
        await store.commit(
            [_row("b"), _row("c", size=1 << 20)], [StoryLine(object_id="b", at_s=0.0, event="Lost")]
        )
    assert "disk space" in caught.value.hint
    assert await store.get("thing", "b") is None
    assert [line.event for line in await store.story()] == ["Kept"]
    _limit_pages(store, 1_000_000)
    await store.commit([_row("b"), _row("c", size=1 << 20)])
    await store.close()


def _limit_pages(store: SqliteStore, pages: int) -> None:
    """SQLite's own way to a real SQLITE_FULL."""
    store._db.exec_driver_sql(f"PRAGMA max_page_count={pages}")


async def test_an_older_file_is_migrated_with_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control.sqlite"
    store = open_store(path)
    await store.commit([_row("a")])
    await store.close()
    added = (*MIGRATIONS, ("CREATE TABLE later (x INTEGER)",))
    monkeypatch.setattr("roost.adapters.store.sqlite.store.MIGRATIONS", added)
    monkeypatch.setattr("roost.adapters.store.sqlite.store.VERSION", len(added))
    again = open_store(path)
    assert await again.get("thing", "a") is not None
    await again.close()
    with _raw(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(added),)
        assert connection.execute("SELECT count(*) FROM later").fetchone() == (0,)


async def test_a_failed_migration_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control.sqlite"
    await open_store(path).close()
    added = (*MIGRATIONS, ("CREATE TABLE later (x INTEGER)", "CREATE NONSENSE"))
    monkeypatch.setattr("roost.adapters.store.sqlite.store.MIGRATIONS", added)
    monkeypatch.setattr("roost.adapters.store.sqlite.store.VERSION", len(added))
    with pytest.raises(Exception, match="refused"):
        open_store(path)
    with _raw(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert (
            connection.execute("SELECT name FROM sqlite_master WHERE name='later'").fetchall() == []
        )
