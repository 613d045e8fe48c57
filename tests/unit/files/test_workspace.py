"""The workspace on real sockets: saves through a move, re-sending, escapes, big files, journal crashes."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.agent.files import (
    TreeCache,
    applied_seq,
    capture_tree,
    read_chunk,
    restore_tree,
    set_applied_seq,
    set_durable_seq,
)
from roost.client.files import FilesClient
from roost.notebooks.workspace import Journal, Workspace
from roost.ports.errors import Conflict, Denied, Gone, Never, Retry, RoostError
from roost.ports.files import CHUNK, Limits
from roost.ports.kernels import FileChange
from tests.unit.files.conftest import Hosts, WallClock


async def eventually(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def move(old: Path, new: Path) -> None:
    """What the agents do: capture, restore with the applied seq."""
    seq = applied_seq(old)
    captured = capture_tree(old, TreeCache())

    async def fetch(digest: str) -> bytes:
        content = read_chunk(old, captured, digest)
        assert content is not None
        return content

    await restore_tree(new, captured.entries, fetch)
    set_applied_seq(new, seq)


async def test_changes_and_reads(hosts: Hosts, workspace: Workspace) -> None:
    root = await hosts.add("a")
    hosts.point("a")
    entry = await workspace.write("data/x.csv", b"a,b\n1,2\n", mtime_s=1_700_000_000.1239)
    assert entry.mtime_ns == 1_700_000_000_124_000_000
    assert (root / "data/x.csv").read_bytes() == b"a,b\n1,2\n"
    assert await workspace.read("data/x.csv") == (b"a,b\n1,2\n", entry)
    hashed = await workspace.stat("data/x.csv", hash=True)
    assert hashed is not None
    assert hashed.hash == hashlib.sha256(b"a,b\n1,2\n").hexdigest()
    await workspace.rename("data/x.csv", "y.csv")
    await workspace.make_dir("empty")
    assert [(e.path, e.kind) for e in await workspace.list("")] == [
        ("data", "dir"),
        ("empty", "dir"),
        ("y.csv", "file"),
    ]
    await workspace.delete("data")
    assert not (root / "data").exists()
    assert applied_seq(root) == 4
    assert await workspace.stat("nothing") is None
    with pytest.raises(Gone):
        await workspace.read("nothing")
    with pytest.raises(Gone):
        await workspace.delete("nothing")
    with pytest.raises(Conflict):
        await workspace.write("empty", b"")
    (root / "other").write_bytes(b"")
    with pytest.raises(Conflict):
        await workspace.rename("other", "y.csv")
    assert (await workspace.write("after-refusals", b"")).size == 0


async def test_nothing_leads_out(hosts: Hosts, workspace: Workspace, short: Path) -> None:
    root = await hosts.add("a")
    hosts.point("a")
    (short / "secret").write_text("no")
    (root / "out").symlink_to(short)
    (root / "file").symlink_to(short / "secret")
    for path in ("../secret", "/etc/passwd", "a/../../secret", "out/secret", "file", "a\0b"):
        with pytest.raises(Denied):
            await workspace.read(path)
        with pytest.raises(Denied):
            await workspace.write(path, b"x")
    assert (short / "secret").read_text() == "no"
    await workspace.delete("out")  # the link goes, not what it points to
    assert (short / "secret").exists()
    assert [e.path for e in await workspace.list("")] == []
    for path in ("", "."):
        with pytest.raises(RoostError):
            await workspace.delete(path)


async def test_a_save_waits_through_a_move_and_nothing_changes(
    hosts: Hosts, workspace: Workspace
) -> None:
    old, new = await hosts.add("a"), await hosts.add("b")
    hosts.point("a")
    before = await workspace.write("n.ipynb", b"one")
    (old / "result.txt").write_text("by a cell")
    hosts.point(None)
    await hosts.fence("a")
    save = asyncio.create_task(workspace.write("n.ipynb", b"two", mtime_s=1_700_000_001.5))
    read = asyncio.create_task(workspace.read("n.ipynb"))
    await eventually(lambda: len(Journal(workspace.directory).changes) == 2)
    await move(old, new)
    restored = (new / "n.ipynb").stat()
    assert restored.st_mtime_ns == before.mtime_ns
    assert not save.done()
    shutil.rmtree(old)
    hosts.point("b")
    entry = await save
    assert entry.mtime_ns == 1_700_000_001_500_000_000
    assert (await read)[0] == b"two"  # a read after the reconnect sees what was saved
    assert (new / "n.ipynb").read_bytes() == b"two"
    assert (new / "result.txt").read_text() == "by a cell"


async def test_later_changes_are_sent_again_to_an_older_restore(
    hosts: Hosts, workspace: Workspace
) -> None:
    old, new = await hosts.add("a"), await hosts.add("b")
    hosts.point("a")
    await workspace.write("a", b"1")
    await workspace.write("b", b"2")
    await move(old, new)  # the checkpoint is from here
    await workspace.write("a", b"3")
    await workspace.rename("b", "c")
    await workspace.make_dir("d")
    await workspace.write("d/e", b"4")
    await workspace.delete("d/e")
    await hosts.fence("a")  # lost without notice
    shutil.rmtree(old.parent)
    hosts.point("b")
    assert (await workspace.read("a"))[0] == b"3"
    assert [e.path for e in await workspace.list("")] == ["a", "c", "d"]
    assert await workspace.list("d") == ()
    assert applied_seq(new) == 7


async def test_a_server_killed_before_sending_sends_after_its_restart(
    short: Path, hosts: Hosts
) -> None:
    first = Workspace(short / "journal", hosts.connect, WallClock())
    await first.start()
    save = asyncio.create_task(first.write("x", b"kept"))
    await eventually(lambda: bool(Journal(short / "journal").changes))
    save.cancel()
    await first.stop()
    with (short / "journal/journal.jsonl").open("ab") as file:
        file.write(b'{"change":{"seq":9')  # torn by a crash: was never answered
    root = await hosts.add("a")
    hosts.point("a")
    second = Workspace(short / "journal", hosts.connect, WallClock())
    await second.start()
    assert (await second.read("x"))[0] == b"kept"
    assert (await second.write("y", b"")).size == 0
    assert applied_seq(root) == 2
    await second.stop()


async def test_the_journal_forgets_what_a_checkpoint_has(
    short: Path, hosts: Hosts, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.notebooks.workspace._IDLE_S", 0.02)
    root = await hosts.add("a")
    hosts.point("a")
    await workspace.write("a", b"1")
    await workspace.write("b", b"2")
    await workspace.write("c", b"3")
    set_durable_seq(root, 2)
    blobs = workspace.directory / "blobs"
    await eventually(lambda: len(list(blobs.iterdir())) == 1)
    assert [c.path for c in Journal(workspace.directory).changes.values()] == ["c"]
    set_durable_seq(root, 3)
    await eventually(lambda: not list(blobs.iterdir()))
    reopened = Journal(workspace.directory)
    assert (reopened.changes, reopened.last) == ({}, 3)


async def test_a_lost_journal_goes_on_after_the_host(short: Path, hosts: Hosts) -> None:
    root = await hosts.add("a")
    set_applied_seq(root, 41)
    hosts.point("a")
    made = Workspace(short / "journal", hosts.connect, WallClock())
    await made.start()
    await made.list("")
    await made.write("x", b"new")
    assert applied_seq(root) == 42
    assert (root / "x").read_bytes() == b"new"
    await made.stop()


async def test_big_files_go_in_parts(short: Path, hosts: Hosts, workspace: Workspace) -> None:
    root = await hosts.add("a")
    hosts.point("a")
    content = os.urandom(CHUNK * 2 + 17)
    staged = short / "staged"
    staged.write_bytes(content)
    await workspace.write("big", staged)
    assert (root / "big").read_bytes() == content
    assert (await workspace.read("big"))[0] == content
    exact = content[:CHUNK]
    await workspace.write("exact", exact)
    assert (await workspace.read("exact"))[0] == exact
    assert not list(root.parent.glob(".s-1.part*"))


async def test_reads_give_up_clearly(short: Path, hosts: Hosts) -> None:
    made = Workspace(short / "journal", hosts.connect, WallClock(), wait_s=0.05)
    await made.start()
    with pytest.raises(Retry, match="did not answer within"):
        await made.read("x")
    await made.stop()


async def test_garbage_ends_the_stream_only(hosts: Hosts) -> None:
    root = await hosts.add("a")
    hosts.point("a")
    reader, writer = await hosts.connect()
    writer.write((1 << 30).to_bytes(4, "big") + b"garbage")
    assert await reader.read() == b""
    writer.close()
    client = FilesClient(await hosts.connect())
    (root / "x").write_bytes(b"1")
    assert [e.path for e in await client.list("")] == ["x"]
    await client.close()


def test_capture_names_what_it_leaves_out(short: Path) -> None:
    root = short / "w"
    (root / "sub/__pycache__").mkdir(parents=True)
    (root / "sub/__pycache__/x.pyc").write_bytes(b"1")
    (root / "sub/small").write_bytes(b"12")
    (root / "big").write_bytes(b"x" * 100)
    (root / "out").symlink_to("../elsewhere")
    (root / "in").symlink_to("sub/small")
    os.mkfifo(root / "pipe")
    cache = TreeCache()
    tree = capture_tree(root, cache, Limits(file_bytes=50))
    assert sorted(tree.entries) == ["in", "sub", "sub/small"]
    assert {left.path: left.reason for left in tree.left_out} == {
        "big": "larger than 50 bytes",
        "out": "a link that leads out of the workspace",
        "pipe": "not a regular file",
    }
    assert tree.size == 2
    total = capture_tree(root, cache, Limits(total_bytes=50))
    assert [left.path for left in total.left_out if "workspace is larger" in left.reason] == ["big"]


def test_a_file_changed_within_the_same_tick_is_read_again(short: Path) -> None:
    root = short / "w"
    root.mkdir()
    cache = TreeCache()
    for round_ in range(20):
        (root / "x").write_bytes(b"%02d" % round_)
        os.utime(root / "x", ns=(5, 5))  # same size, same time
        tree = capture_tree(root, cache)
        assert read_chunk(root, tree, tree.entries["x"].digests[0]) == b"%02d" % round_


async def test_restore_is_exact_and_checks_content(short: Path) -> None:
    root, new = short / "w", short / "v"
    (root / "d").mkdir(parents=True)
    (root / "d/run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "d/run.sh").chmod(0o755)
    (root / "link").symlink_to("d/run.sh")
    os.utime(root / "d", ns=(7_000, 7_000))
    tree = capture_tree(root, TreeCache())

    async def fetch(digest: str) -> bytes:
        return b"#!/bin/sh\n"

    assert await restore_tree(new, tree.entries, fetch) == 10
    assert (new / "link").readlink() == Path("d/run.sh")
    assert capture_tree(new, TreeCache()).entries.keys() == tree.entries.keys()
    assert capture_tree(new, TreeCache()).entries["d"] == tree.entries["d"]
    assert capture_tree(new, TreeCache()).entries["d/run.sh"] == tree.entries["d/run.sh"]
    assert await restore_tree(new, tree.entries, fetch) == 0

    async def damaged(digest: str) -> bytes:
        return b"?"

    with pytest.raises(Never, match="damaged"):
        await restore_tree(short / "u", tree.entries, damaged)


def test_journal_compacts(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.notebooks.workspace._COMPACT_LINES", 5)
    journal = Journal(short / "j")
    for seq in range(1, 11):
        journal.add(FileChange(seq=seq, op="mkdir", path=str(seq)))
    journal.drop(9)
    journal.forget(8)
    assert (short / "j/journal.jsonl").read_bytes().count(b"\n") == 2
    assert list(Journal(short / "j").changes) == [10]
    assert Journal(short / "j").last == 10
