"""A restore maps big memory and verifies it behind: whatever looks at it waits, damage is never seen."""

import json
import pickle
import types
from pathlib import Path

import numpy as np
import pytest

from roost.runtime.kernel import rebuild
from roost.runtime.kernel.chunks import DamagedChunk, Reader
from roost.runtime.kernel.format import (
    CHUNK_BYTES,
    Buffer,
    Entry,
    Group,
    chunk_path,
    manifest_numbers,
    manifest_path,
    read,
)
from roost.runtime.kernel.proving import Opening, Unproven
from roost.runtime.kernel.recorder import Recorder, Seal

MEGABYTES = 100
SLOW = """
import sys, time
_chunks = sys.modules["roost.runtime.kernel.chunks"]
_look = _chunks._Check._look
def _slowly(self, look=_look):
    time.sleep(0.02)
    return look(self)
_chunks._Check._look = _slowly
del _chunks, _look, _slowly
"""
"""So that whoever does not wait is found out."""


def stored(folder: Path, size: int) -> tuple[Buffer, bytearray]:
    memory = bytearray(np.random.default_rng(3).bytes(size))
    extents = Recorder(folder, None)._extents(memoryview(memory), (), Seal())
    return Buffer(extents, size, readonly=False), memory


def flip(path: Path, at: int = 1000) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


# --- in this process -----------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["flipped", "missing", "empty", "other"])
def test_every_damage_is_found_before_use(tmp_path: Path, harm: str) -> None:
    buffer, memory = stored(tmp_path, 3 * CHUNK_BYTES + 5)
    reader = Reader(tmp_path)
    seen = reader.buffer(buffer, proven=False)
    assert bytes(memoryview(seen)) == memory
    path = chunk_path(tmp_path, buffer.extents[1].chunk)
    if harm == "flipped":
        flip(path)
    elif harm == "missing":
        path.unlink()
    elif harm == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(chunk_path(tmp_path, buffer.extents[0].chunk).read_bytes())
    reader.begin([buffer])
    with pytest.raises(DamagedChunk):
        reader.prove([buffer])
    with pytest.raises(DamagedChunk):
        Reader(tmp_path).buffer(buffer)


def test_settling_waits_for_what_is_asked_and_amends_once(tmp_path: Path) -> None:
    groups = {}
    for name in ("good", "bad"):
        buffer, _ = stored(tmp_path / name, 2 * CHUNK_BYTES)
        groups[name] = Group((name, f"{name}_too"), name, (), (buffer,))
    for path in (tmp_path / "good" / "chunks").iterdir():  # one store for both
        path.rename(tmp_path / "bad" / "chunks" / path.name)
    flip(chunk_path(tmp_path / "bad", groups["bad"].buffers[0].extents[1].chunk))
    amended = []

    def amend(group: Group) -> list[Entry]:
        amended.append(group.names)
        return [Entry(name, "refused") for name in group.names]

    # The same bytes are damaged for both: each group is amended once, and only when it is asked for.
    unproven = Unproven(Reader(tmp_path / "bad"), amend)
    for group in groups.values():
        unproven.add(group)
    assert unproven.names == ["bad", "bad_too", "good", "good_too"]
    assert unproven.settle({"else"}) == []
    assert [e.name for e in unproven.settle({"bad_too"})] == ["bad", "bad_too"]
    assert unproven.settle({"bad"}) == []
    unproven.settle()
    assert not unproven
    assert amended == [("bad", "bad_too"), ("good", "good_too")]


@pytest.mark.parametrize(
    ("source", "needed"),
    [
        ("print(note)", set()),
        ("note['a'] += 1\nn = math.sqrt(2)", set()),
        ("big.sum()", {"big"}),
        ("df = other; other", {"df"}),
        ("reads()", {"big"}),
        ("calls()", {"big"}),
        ("[reads][0]()", {"big"}),
        ("plain()", set()),
        ("for name in dir(): pass", set()),
        ("holder['f']()", None),
        ("closed()", None),
        ("defaults()", None),
        ("thing.method()", None),
        ("wide()", None),
        ("globals()['big']", None),
        ("vars()", None),
        ("eval('big')", None),
        ("exec('big')", None),
        ("get_ipython().run_line_magic('who', '')", None),
        ("__import__('__main__').big", None),
        ("sys.modules['__main__'].big", None),
        ("sys._getframe().f_globals", None),
        ("from os import *", None),
        ("not python at all", None),
    ],
)
def test_what_a_cell_can_reach(source: str, needed: set[str] | None) -> None:
    space: dict[str, object] = {"note": {"a": 1}, "big": 0, "df": 0, "other": (1, "b")}
    exec(
        "import math, sys\n"
        "def reads(): return big\n"
        "def calls(): return reads()\n"
        "def plain(): return note\n"
        "def wide(): return globals()\n"
        "def closing(x):\n    def f(): return x\n    return f\n"
        "closed = closing(big)\n"
        "def defaults(x=big): return x\n"
        "holder = {'f': reads}\n"
        "class Thing:\n    def method(self): return big\n"
        "thing = Thing()\n",
        space,
    )
    unproven = Unproven(Reader(Path("nowhere")), lambda _: [])
    unproven.add(Group(("big",), "", ()))
    unproven.add(Group(("df",), "", ()))
    assert unproven.needs(source, space, "/nowhere") == needed


class Looks:
    """Looks at its memory while it is opened."""

    def __reduce__(self) -> tuple[object, ...]:
        return types.SimpleNamespace, ()


def test_memory_is_proven_before_a_stranger_gets_it() -> None:
    for value, proven in (
        (np.arange(10), False),
        ([np.arange(10), {"a": {1, 2}}, slice(1)], False),
        ([np.arange(10), Looks()], True),
    ):
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(value, 5, buffer_callback=buffers.append)
        asked: list[int] = []
        opening = Opening(content, buffers, lambda asked=asked: asked.append(1))
        opening.load()
        assert (opening.proven, bool(asked)) == (proven, proven)
    indirect = pickle.dumps(_Attribute())
    opening = Opening(indirect, [], lambda: None)
    assert opening.load() is types.SimpleNamespace
    assert opening.proven


class _Attribute:
    def __reduce__(self) -> tuple[object, ...]:
        return rebuild.module_attribute, ("types", "SimpleNamespace")


# --- in kernels ----------------------------------------------------------------------------------


def captured(bench, damage: bool) -> None:
    """A store with a session of two big variables; the newer state of one may be damaged."""
    kernel = bench.session()
    kernel.run(
        f"import numpy as np, pandas as pd\nbig = np.zeros({MEGABYTES // 2} * 125_000)\n"
        f"df = pd.DataFrame({{'a': np.arange({MEGABYTES // 2} * 125_000)}})\nnote = [1]\n"
        "def f(): return float(big[-1])\n"
    )
    kernel.door.demand("capture", budget_s=60)
    kernel.run("big += 1.0; note.append(2)")
    kernel.door.demand("capture", budget_s=60)
    kernel.kill()
    if damage:
        newest = read(manifest_path(bench.captures, manifest_numbers(bench.captures)[-1]))
        group = next(g for g in newest.groups if "big" in g.names)
        flip(chunk_path(bench.captures, group.buffers[0].extents[-1].chunk))


PATHS = [
    "big[-1]",
    "f()",
    "globals()['big'][-1]",
    "[v for k, v in list(vars().items()) if k == 'big'][0][-1]",
    "get_ipython().user_ns['big'][-1]",
    "eval('big')[-1]",
    "sys.modules['__main__'].big[-1]",
    "__import__('copy').deepcopy(big)[-1]",
    "__import__('pickle').loads(__import__('pickle').dumps(big))[-1]",
    "(lambda: big[-1])()",
    "[*map(lambda x: x, [big])][0][-1]",
    "pool.submit(f).result()",
]


@pytest.mark.e2e
def test_damage_is_seen_by_nobody(bench) -> None:
    captured(bench, damage=True)
    target = bench.kernel()
    target.run(f"{SLOW}import sys\nfrom concurrent.futures import ThreadPoolExecutor")
    target.run("pool = ThreadPoolExecutor(1)\nget_ipython().history_manager.enabled = False")
    for path in PATHS:
        told = target.run(f"%roost restore {bench.captures}")
        assert "still verified" in told
        assert "[1, 2]" in target.run("print(note)")
        lines = target.run(f"print(float({path}), df['a'].iloc[-1], len(note))").splitlines()
        assert f"0.0 {MEGABYTES // 2 * 125_000 - 1} 2" in lines, path
        assert any(line.startswith("big: rebuilt: as it was in") for line in lines), path
    told = target.run(f"%roost restore {bench.captures}\nprint(float(big[-1]))")  # the same cell
    assert "big: rebuilt" in told
    assert "\n0.0\n" in told
    assert target.run(f"%roost restore {bench.captures}")
    assert target.eval("float(big[-1])") == "0.0"  # an expression of the client
    entries = json.loads((bench.captures / "restore-report.json").read_text())["entries"]
    assert {e["name"]: e["outcome"] for e in entries}["note"] == "kept"


@pytest.mark.e2e
def test_the_report_is_final_once_all_is_verified(bench) -> None:
    captured(bench, damage=True)
    target = bench.kernel()
    target.run(f"%roost restore {bench.captures}")
    target.run("get_ipython()")  # waits for all
    target.run("pass")
    assert "big: rebuilt: as it was in checkpoint" in target.run("%roost report")


@pytest.mark.e2e
def test_a_capture_right_after_a_restore_has_all_and_writes_nothing_again(bench) -> None:
    captured(bench, damage=False)
    target = bench.session()
    target.run(SLOW)
    target.run(f"%roost restore {bench.captures}")
    target.run("note.append(3)")
    done = target.door.demand("capture", budget_s=60)
    assert done["bytes_new"] < 1 << 20
    target.kill()
    last = bench.session()
    report = bench.restore(last, done["manifest"])
    assert {e["outcome"] for e in report["report"]} == {"kept"}
    assert last.run("print(f(), int(df['a'].sum()) > 0, note)") == "1.0 True [1, 2, 3]\n"


@pytest.mark.e2e
def test_two_restores_at_once_by_hand(bench) -> None:
    captured(bench, damage=False)
    targets = [bench.kernel(), bench.kernel()]
    sent = [t.client.execute(f"%roost restore {bench.captures}") for t in targets]
    assert len(set(sent)) == 2
    for target in targets:
        assert target.run("print(f(), df.shape, note)") == (
            f"1.0 ({MEGABYTES // 2 * 125_000}, 1) [1, 2]\n"
        )


@pytest.mark.e2e
def test_a_lost_pack_gives_older_values_by_name(bench) -> None:
    kernel = bench.session()
    kernel.run("a = [1]; b = {'x': 1}; n = 5")
    kernel.door.demand("capture", budget_s=30)
    kernel.run("a.append(2); b['x'] = 2; n = 6; c = [3]")
    done = kernel.door.demand("capture", budget_s=30)
    kernel.kill()
    manifests = [read(manifest_path(bench.captures, n)) for n in manifest_numbers(bench.captures)]
    packs = [{e.chunk for g in m.groups for e in g.extents} for m in manifests]
    for digest in packs[-1] - set().union(*packs[:-1]):
        chunk_path(bench.captures, digest).unlink()
    target = bench.session()
    report = {e["name"]: e for e in bench.restore(target, done["manifest"])["report"]}
    assert {n: report[n]["outcome"] for n in "abcn"} == {
        "a": "rebuilt", "b": "rebuilt", "n": "rebuilt", "c": "refused",
    }  # fmt: skip
    assert target.run("print(a, b, n, 'c' in globals())") == "[1] {'x': 1} 5 False\n"
