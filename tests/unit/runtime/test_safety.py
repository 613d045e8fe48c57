"""Captures are safe: forked children, busy threads, damaged stores, two restores at once."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from roost.runtime.kernel.chunks import Reader, Writer
from roost.runtime.kernel.forks import ChildFailed, Forker
from roost.runtime.kernel.format import CHUNK_BYTES, Buffer, chunk_path, manifest_numbers, read
from roost.runtime.kernel.recorder import Recorder, Seal

HARD = os.environ.get("ROOST_BENCH_HARD")
ROUNDS = 500 if HARD else 25


def test_a_child_answers_raises_dies_and_hangs() -> None:
    forker = Forker()

    def child(work):
        made = forker.fork(work)
        assert made is not None
        return made

    assert child(lambda: {"big": b"x" * 3_000_000}).result(10) == {"big": b"x" * 3_000_000}
    with pytest.raises(ValueError, match="no"):
        child(lambda: (_ for _ in ()).throw(ValueError("no"))).result(10)
    with pytest.raises(ChildFailed, match="died"):
        child(lambda: os.kill(os.getpid(), signal.SIGKILL)).result(10)
    hanging = child(lambda: threading.Event().wait())
    begun = time.monotonic()
    with pytest.raises(ChildFailed, match="too long"):
        hanging.result(0.3)
    assert time.monotonic() - begun < 5
    twice = child(lambda: os.fork())
    assert twice.result(10) > 0
    for one in (hanging, twice):
        with pytest.raises(ChildProcessError):
            os.waitpid(one.pid, 0)  # reaped already: no zombies


def test_no_fork_beside_a_running_thread() -> None:
    forker = Forker()
    own = {thread.ident for thread in threading.enumerate() if thread.ident is not None}
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert not forker.safe(own)
    finally:
        stop.set()
        thread.join()
    assert not forker.safe(None)


def test_patched_memory_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    memory = bytearray(rng.bytes(3 * CHUNK_BYTES + 12_345))
    recorder = Recorder(tmp_path, None)
    known = ()
    for round_ in range(40):
        for _ in range(int(rng.integers(0, 4))):
            at = int(rng.integers(0, len(memory)))
            size = int(rng.choice([1, 70_000, CHUNK_BYTES]))
            memory[at : at + size] = rng.bytes(len(memory[at : at + size]))
        if round_ % 13 == 12:
            recorder = Recorder(tmp_path, None)
        known = recorder._extents(memoryview(memory), known, Seal())
        buffer = Buffer(known, len(memory), readonly=False)
        assert Reader(tmp_path).content(known) == memory
        assert bytes(memoryview(Reader(tmp_path).buffer(buffer))) == memory
    before = set((tmp_path / "chunks").iterdir())
    memory[5] ^= 1
    recorder._extents(memoryview(memory), known, Seal())
    new = set((tmp_path / "chunks").iterdir()) - before
    assert sum(path.stat().st_size for path in new) <= 65_536


def test_a_chunk_cut_short_is_damaged_not_deadly(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, None)
    memory = bytearray(os.urandom(2 << 20))
    extents = recorder._extents(memoryview(memory), (), Seal())
    path = chunk_path(tmp_path, extents[0].chunk)
    os.truncate(path, 4096)
    with pytest.raises(ValueError, match="cut short"):
        Reader(tmp_path).buffer(Buffer(extents, len(memory), readonly=False))
    assert Writer(tmp_path).put(memory) == extents[0].chunk  # written anew
    assert path.stat().st_size == len(memory)


@pytest.mark.e2e
def test_dear_state_is_captured_by_a_child_and_cells_go_on(bench) -> None:
    kernel = bench.session()
    kernel.run("import gc, os, threading\nmany = [[i] for i in range(400_000)]; n = 0")
    for step in range(5):
        kernel.run(f"n = {step}; many[{step}].append(n)")
    kernel.door.event("captured")
    children = kernel.door.demand("status")["children"]
    assert children["stored"] and not children["vain"]  # a child sees what its parent sees
    done = kernel.door.demand("capture", budget_s=60)
    kernel.kill()
    target = bench.session()
    bench.restore(target, done["manifest"])
    assert (
        target.run("print(n, len(many), many[4], sum(map(len, many)))")
        == "4 400000 [4, 4] 400005\n"
    )


@pytest.mark.e2e
def test_what_a_child_cannot_store_is_given_to_it_though_no_cell_names_it(bench) -> None:
    kernel = bench.session()
    kernel.run("many = [[i] for i in range(400_000)]; n = 0\nopen('/dev/null')")
    kernel.run("n = 1; many[1].append(n)")
    number = kernel.door.event("captured")["number"]
    assert number
    kernel.run("n = 2; many[2].append(n)")
    assert kernel.door.event("captured")["number"] > number


@pytest.mark.e2e
def test_captures_beside_busy_threads(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "import numpy as np, threading, queue\n"
        "stop = False\nm = np.random.default_rng(1).random((300, 300)); out = []\n"
        "def work():\n    while not stop: (m @ m).sum(); sorted(range(1000))\n"
        "pool = [threading.Thread(target=work, daemon=True) for _ in range(3)]\n"
        "for t in pool: t.start()\n"
        "big = np.zeros(1_000_000); rows = [[i] for i in range(50_000)]"
    )
    for number in range(ROUNDS):
        kernel.run(f"big[{number}] = {number}; rows[{number}].append(0); (m @ m).sum()")
        done = kernel.door.demand("capture", budget_s=60)
    assert kernel.run("stop = True\nfor t in pool: t.join(20)\nprint(len(rows))") == "50000\n"
    assert kernel.run("print(open('/proc/self/task/%d/children' % __import__('os').getpid()).read())") in (
        "\n", "\n\n",
    )  # fmt: skip
    assert read(Path(done["manifest"])).number


@pytest.mark.e2e
def test_damage_gives_the_state_before_and_says_so(bench) -> None:
    kernel = bench.session()
    kernel.run("import numpy as np\nbig = np.arange(1_000_000); small = [1]")
    kernel.door.demand("capture", budget_s=30)
    kernel.run("big = big * 2; small.append(2)")
    done = kernel.door.demand("capture", budget_s=30)
    kernel.kill()
    manifest = read(Path(done["manifest"]))
    group = next(g for g in manifest.groups if "big" in g.names)
    path = chunk_path(bench.captures, group.buffers[0].extents[0].chunk)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    targets = [bench.session(), bench.kernel()]
    asked = [
        t.door.send("restore", dir=str(bench.captures), manifest=done["manifest"]) for t in targets
    ]
    for target, number in zip(targets, asked, strict=True):  # two restores at once
        report = {e["name"]: e for e in target.door.answer(number)["report"]}
        assert report["big"]["outcome"] == "rebuilt"
        assert "damaged" in report["big"]["reason"]
        assert report["small"]["outcome"] == "kept"
        assert target.run("print(int(big[-1]), small)") == "999999 [1, 2]\n"
    assert len(manifest_numbers(bench.captures)) >= 2
