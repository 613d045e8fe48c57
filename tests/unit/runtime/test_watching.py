"""Which memory a capture reads, and which cells make a look at the process unnecessary."""

import contextlib
import mmap
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roost.runtime.kernel.calm import calm
from roost.runtime.kernel.cells import tree_of
from roost.runtime.kernel.chunks import Reader
from roost.runtime.kernel.forks import Forker
from roost.runtime.kernel.pages import PAGE, Pages, Unwatched, address_of, pages
from roost.runtime.kernel.pickling import Dump
from roost.runtime.kernel.recorder import Facts, Learned, Overtaken, Recorder, Seal, Written
from roost.runtime.kernel.snapshot import Fresh, Snapshot
from roost.runtime.kernel.watched import Copy

FACTS = Facts("s", "/", (), frozenset())
system = pytest.mark.skipif(not pages.works, reason="this kernel tells nothing about pages")


class Memory:
    """Arrays that are captured again and again; the stored bytes are compared with what they held."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.recorder = Recorder(folder, None)
        self.arrays = {name: self.made() for name in "abc"}
        self.arrays["within"] = self.arrays["c"][100:-1000]

    def made(self) -> Any:
        size = self.random.choice([700_000, 1_300_000, 5_000_001, 9_437_184])
        return np.frombuffer(bytearray(self.random.randbytes(1 << 16) * 200)[:size], dtype="u1")

    def change(self) -> None:
        name = self.random.choice("abc")
        array = self.arrays[name]
        kind = self.random.randrange(6)
        if kind == 0:
            self.arrays[name] = self.made()
            if name == "c" and self.random.random() < 0.5:
                self.arrays["within"] = self.arrays["c"][5000:-1]
        elif kind == 1:
            array += 1
        elif kind == 2:
            start = self.random.randrange(len(array))
            array[start : start + self.random.choice([1, 300, 70_000, 2_000_000])] += 3
        elif kind == 3:
            array[[0, -1]] += 1
        elif kind == 4:
            source = self.folder / "bytes"
            source.write_bytes(self.random.randbytes(5000))
            with source.open("rb", buffering=0) as file:
                file.readinto(memoryview(array)[self.random.randrange(600_000) :])

    def capture(self) -> None:
        fresh = []
        held = {name: array.tobytes() for name, array in self.arrays.items()}
        for name in self.random.sample(sorted(self.arrays), len(self.arrays)):
            array = self.arrays[name]
            one = Dump(name.encode(), [array.data], [], 0.0, [array])
            fresh.append(Fresh((name,), one, ()))
        snapshot = Snapshot(fresh=fresh)
        self.recorder.look(snapshot)
        seal = Seal()
        if self.recorder.own_memory(snapshot, self.random.choice([0, 1 << 20, 1 << 30])):
            seal.close()
        elif self.random.random() < 0.3:
            seal.overtake()
        try:
            written = self.write(snapshot, seal)
        except Overtaken:
            return
        reader = Reader(self.folder)
        for group in written.manifest.groups:
            stored = b"".join(reader.content((extent,)) for extent in group.buffers[0].extents)
            same = stored == held[group.names[0]]
            assert same  # a difference of megabytes would be explained for minutes

    def write(self, snapshot: Snapshot, seal: Seal) -> Written:
        return self.recorder.write(snapshot, FACTS, seal, sync=False)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_stored_is_what_was_held(tmp_path: Path, seed: int) -> None:
    memory = Memory(tmp_path, seed)
    for _ in range(25):
        for _ in range(memory.random.randrange(3)):
            memory.change()
        memory.capture()


@system
def test_only_written_blocks_are_read(tmp_path: Path) -> None:
    array = np.zeros(8 << 20, dtype="u1")
    array[:] = 7
    recorder = Recorder(tmp_path, None)

    def unread() -> bool:
        one = Dump(b"a", [array.data], [], 0.0, [array])
        snapshot = Snapshot(fresh=[Fresh(("a",), one, ())])
        recorder.look(snapshot)
        small = recorder.own_memory(snapshot, 1 << 20)
        recorder.write(snapshot, FACTS, Seal(), sync=False)
        return small

    assert [unread(), unread(), unread()] == [False, False, True]
    array[5_000_000] = 1
    assert unread()
    array += 1  # too much of it: read as a whole, and not watched for a while
    assert [unread(), unread()] == [False, False]


@system
def test_a_copy_that_lies_where_memory_is_watched_is_not_taken_for_it(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, None)
    former, user = np.full(8 << 20, 7, dtype="u1"), np.full(8 << 20, 8, dtype="u1")
    for _ in range(3):
        stored(recorder, former)
    former[:] = 9
    snapshot = Snapshot(fresh=[Fresh(("a",), Dump(b"a", [user.data], [], 0.0, [user]), ())])
    recorder.look(snapshot)
    snapshot.fresh[0].dump.buffers = [Copy(former.data, (address_of(user.data), user.nbytes))]
    assert content(recorder.write(snapshot, FACTS, Seal(), sync=False), tmp_path) == bytes(former)


@system
@pytest.mark.parametrize("written", [0, 1, 8 << 20])
def test_a_child_that_wrote_where_its_parent_watches(tmp_path: Path, written: int) -> None:
    recorder = Recorder(tmp_path, None)
    array = np.full(8 << 20, 7, dtype="u1")
    for _ in range(3):
        stored(recorder, array)
    before = bytes(array)
    recorder.look(None)

    def work() -> tuple[Written, Learned, bytes]:
        array[5_000_000 : 5_000_000 + written] = 9
        recorder.here()
        return stored(recorder, array, look=False), recorder.learned(), bytes(array)

    child = Forker().fork(work)
    assert child is not None
    done, learned, held = child.result(20)
    assert content(done, tmp_path) == held
    recorder.learn(learned)
    # What it may trust is not read again.
    snapshot = Snapshot(fresh=[Fresh(("a",), Dump(b"a", [array.data], [], 0.0, [array]), ())])
    recorder.look(snapshot)
    assert recorder.own_memory(snapshot, 1 << 20) == (written < 2 << 20)
    assert content(recorder.write(snapshot, FACTS, Seal(), sync=False), tmp_path) == before
    array[3_000_000] = 1
    assert content(stored(recorder, array), tmp_path) == bytes(array)


def stored(recorder: Recorder, array: Any, *, look: bool = True) -> Written:
    one = Dump(b"a", [array.data], [], 0.0, [array])
    snapshot = Snapshot(fresh=[Fresh(("a",), one, ())])
    if look:
        recorder.look(snapshot)
    return recorder.write(snapshot, FACTS, Seal(), sync=False)


def content(written: Written, folder: Path) -> bytes:
    return Reader(folder).content(written.manifest.groups[0].buffers[0].extents)


@system
def test_pages(tmp_path: Path) -> None:
    watcher = Pages()
    memory = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"x" * len(memory)
    start = address_of(memory) + 100
    size = len(memory) - 200
    assert watcher.watch(start, size)
    edges = [(0, PAGE - 100), (size + 100 - PAGE, size)]
    assert watcher.changed(start, size) == edges
    memory[10 * PAGE] = 1
    assert watcher.changed(start, size) == [
        edges[0], (10 * PAGE - 100, 11 * PAGE - 100), edges[1],
    ]  # fmt: skip
    child = os.fork()
    if not child:
        try:
            watcher.changed(start, size)
        except Unwatched:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    memory[20 * PAGE] = 1
    assert (20 * PAGE - 100, 21 * PAGE - 100) in watcher.changed(start, size)
    memory.resize(128 * PAGE)  # it may lie elsewhere now
    with pytest.raises(Unwatched):
        watcher.changed(address_of(memory), len(memory))
    again = np.arange(1_000_000)
    assert pages.watch(address_of(again.data), again.nbytes)
    again.resize(4_000_000, refcheck=False)
    assert (again[:1_000_000] == np.arange(1_000_000)).all()
    assert watcher.alone()
    with contextlib.closing(DirectFile(tmp_path / "direct")):
        assert not watcher.alone()
    shared = mmap.mmap(-1, 64 * PAGE)
    assert not watcher.watch(address_of(shared), len(shared))


class DirectFile:
    """A file that is read past the page cache."""

    def __init__(self, path: Path) -> None:
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        except OSError:
            pytest.skip("this file system has no direct access")

    def close(self) -> None:
        os.close(self._handle)


class Thing:
    def append(self, other: object) -> None: ...


SPACE = {
    "n": 1, "text": "a", "row": [1, 2], "rows": [[1], [2]], "table": {"step": 1}, "bag": {1},
    "thing": Thing(), "things": [Thing()], "long": list(range(2000)),
}  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "", "pass", "# nothing", "1", "n = 2", "n += 1", "new = [n, text, [1]]", "row.append(thing)",
        "rows.append([1])", "table['step'] += n * 2", "row[0] = len(text)", "other = thing",
        "new = [0] * 50\nnew2 = {'a': new}", "bag.add(3)", "n = -n",
        "long.append(1)", "a = b = n < 2",
    ],
)  # fmt: skip
def test_calm(code: str) -> None:
    tree = tree_of(code)
    assert tree is not None
    assert calm(tree, dict(SPACE))


@pytest.mark.parametrize(
    "code",
    [
        "thing.append(1)", "thing.x = 1", "thing = 1", "things = 1", "row.append(f())", "import os", "f()",
        "thing + 1", "thing[0]", "things[0] = 1", "len(thing)", "print(1)", "del n", "n", "row",
        "for i in row: pass", "row.sort(key=f)", "def f(): pass", "class A: pass", "bag.add(thing)",
        "table[thing] = 1", "n = thing\nn += 1", "n = thing\nn = 1", "f'{thing}'", "row += thing",
        "rows[0] += 1",
        "long = 1", "_ = 1", "x: int = 1", "unknown + 1", "lambda: 1", "x = (y := 1)", "a, b = thing",
        "len = f\nx = len(n)", "row.append(1)\nrow = 2", "raise E", "%time 1", "row.pop()", "exit = 1",
        "thing.real = 2", "with thing: pass", "assert thing", "x = [*thing]", "x = {**thing}", "int(thing)",
    ],
)  # fmt: skip
def test_not_calm(code: str) -> None:
    tree = tree_of(code)
    assert tree is None or not calm(tree, dict(SPACE))
