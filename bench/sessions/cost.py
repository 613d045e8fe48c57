"""``python -m bench.sessions.cost [--peers PYTHON] [--only TEXT]``: what saving a session costs.

Every figure is taken on real kernels, ours beside a plain one in turns. ``--peers`` names an interpreter that
has dill, cloudpickle and Kishu beside ipykernel, numpy and pandas: they do the same in the same run. Where
PyTorch is installed, a gigabyte of its tensors is measured too.
"""

import argparse
import contextlib
import importlib.util
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.sessions.kernels import Kernel, fresh
from bench.sessions.peers import WHOLE


@dataclass(frozen=True, slots=True)
class Big:
    """A session of one gigabyte."""

    imports: str
    make: str
    element: str
    """Changes one element."""
    check: str


FRAMES = Big(
    "import numpy as np, pandas as pd",
    """
import numpy as np, pandas as pd
rng = np.random.default_rng(1)
a = rng.random(50_000_000)
b = np.arange(25_000_000)
df = pd.DataFrame(rng.random((4_000_000, 8)), columns=list("abcdefgh"))
words = pd.DataFrame({"k": rng.integers(0, 9, 1_000_000), "s": (np.arange(1_000_000) % 5000).astype(str)})
words["c"] = words["s"].astype("category")
note = {"step": 1}
""",
    "a[12345] += 0.5",
    "print(float(a[:5].sum()), int(b[-1]), df.shape, float(df['h'].iloc[-1]), words['s'].iloc[-1], note)",
)
TENSORS = Big(
    "import torch, torch._dynamo, numpy",
    """
import torch
torch.manual_seed(0)
net = torch.nn.Sequential(*[torch.nn.Linear(4096, 4096) for _ in range(5)])
opt = torch.optim.Adam(net.parameters())
for p in net.parameters(): p.grad = torch.ones_like(p)
opt.step(); opt.zero_grad()
view = net[0].weight.detach()
note = {"step": 1}
""",
    "view[3, 45] += 0.5",
    "print(view[3, :50].sum(), net[4].bias[-1].item(), opt.state[net[4].weight]['exp_avg'][-1, -1], note)",
)
"""A model of 336 MB with the two averages that its optimizer keeps of each number."""
SETTLE_S = 60.0
GOALS = {
    "notice_s": 0.5, "peak_gb": 1.25, "restore_first_s": 0.3, "restore_all_s": 1.0, "small_s": 0.1,
    "small_mb": 0.1, "element_s": 0.1, "element_mb": 1.0, "empty_ms": 1.0, "one_of_200_ms": 2.0,
    "objects_ms": 20.0, "loop_ratio": 1.03,
}  # fmt: skip


class Memory:
    """The most memory (proportional share) of a process and its children while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self.peak = 0

    def __enter__(self) -> "Memory":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, sum(_share(pid) for pid in _family(self._pid)))
            self._stop.wait(0.02)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _share(pid: int) -> int:
    """Anonymous memory of a process: pages of files do not count against anybody."""
    with contextlib.suppress(OSError):
        found = re.search(r"Pss_Anon:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


class Door:
    """The engine's socket."""

    def __init__(self, store: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(json.loads((store / "engine.json").read_text())["socket"])
        self._socket.settimeout(SETTLE_S)
        self._lines = self._socket.makefile("rb")

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request, its answer."""
        self._socket.sendall(json.dumps({"id": 1, "op": op, **fields}).encode() + b"\n")
        while True:
            got: dict[str, Any] = json.loads(self._lines.readline())
            if got.get("id") == 1:
                if not got["ok"]:
                    raise RuntimeError(str(got))
                return got

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()


def size_of(store: Path) -> int:
    """Bytes of the files below a directory."""
    total = 0
    for path in store.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def tracked(folder: Path, store: Path, python: str = sys.executable) -> Kernel:
    """A kernel that tracks into ``store``."""
    kernel = Kernel(folder, python)
    told = kernel.run("%load_ext roost") + kernel.run(f"%roost track {store}")
    if not (store / "engine.json").exists():
        kernel.kill()
        raise RuntimeError(f"the engine does not track: {told}")
    return kernel


def settled(store: Path, kernel: Kernel) -> None:
    """Wait until captures have caught up: nothing is written for a while and no child runs."""
    quiet = 0
    until = time.monotonic() + SETTLE_S
    former = -1
    while quiet < 12 and time.monotonic() < until:
        time.sleep(0.25)
        size = size_of(store)
        busy = size != former or len(list(_family(kernel.pid))) > 1
        quiet = 0 if busy else quiet + 1
        former = size


# --- one gigabyte ------------------------------------------------------------------------------------


def ours_big(base: Path, big: Big = FRAMES) -> dict[str, float]:
    """Notice, changes, restore."""
    store = base / "store"
    kernel = tracked(fresh(base / "work"), store)
    found: dict[str, float] = {}
    try:
        kernel.run(big.imports)
        begun = time.perf_counter()
        kernel.run(big.make, 120)
        found["make_s"] = time.perf_counter() - begun
        settled(store, kernel)
        found["stored_mb"] = size_of(store) / 1e6
        door = Door(store)
        for name, code in (("small", "note['step'] += 1"), ("element", big.element)):
            times, cpu, sizes = [], [], []
            for _ in range(3):
                before = _chunks(store)
                begun, ran = time.perf_counter(), _ran(kernel.pid)[1]
                kernel.run(code)
                door.ask("capture", budget_s=60)
                times.append(time.perf_counter() - begun)
                cpu.append(1e-9 * (_ran(kernel.pid)[1] - ran))
                sizes.append(_written(store, before))
                settled(store, kernel)
            found[f"{name}_s"] = statistics.median(times)
            found[f"{name}_cpu_s"] = statistics.median(cpu)
            found[f"{name}_mb"] = statistics.median(sizes)
        # Before the notice: a cell after it would be run again by the restore, and be measured with it.
        expected = kernel.run(big.check)
        settled(store, kernel)
        with Memory(kernel.pid) as memory:
            begun, ran = time.perf_counter(), _ran(kernel.pid)[1]
            door.ask("notice", within_s=20)
            found["notice_s"] = time.perf_counter() - begun
            found["notice_cpu_s"] = 1e-9 * (_ran(kernel.pid)[1] - ran)
        found["peak_gb"] = memory.peak / 1e9
        door.close()
    finally:
        kernel.kill()
    found.update(_restored(base, store, big, expected))
    return found


def _chunks(store: Path) -> set[str]:
    return {path.name for path in (store / "chunks").iterdir()}


def _written(store: Path, before: set[str]) -> float:
    """Megabytes that are new: chunks, and the manifest."""
    new = _chunks(store) - before
    size = sum((store / "chunks" / name).stat().st_size for name in new)
    return (size + max(p.stat().st_size for p in store.glob("manifest-*.json"))) / 1e6


def _restored(base: Path, store: Path, big: Big, expected: list[str]) -> dict[str, float]:
    standby = Kernel(base / "work")
    try:
        standby.run(big.imports)
        if _arrow():
            standby.run("import pyarrow")
        standby.run("%load_ext roost")
        begun = time.perf_counter()
        told = standby.run(f"%roost restore {store}")
        standby.run("print(note)")
        first = time.perf_counter() - begun
        if standby.run(big.check) != expected:
            raise RuntimeError(f"not the same: {told}")
        return {"restore_first_s": first, "restore_all_s": time.perf_counter() - begun}
    finally:
        standby.kill()


def _arrow() -> bool:
    probe = [sys.executable, "-c", "import pyarrow"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


# --- the user's path ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds from a request to the end of its cell: by the clock, of CPU time of the main thread
    (what a cell waits for, on a busy machine too), of CPU time of all its threads and children."""

    wall: float = 0.0
    main: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.main + other.main, self.cpu + other.cpu)


def reply(kernel: Kernel, code: str) -> Cost:
    """What one cell costs."""
    main, cpu = _ran(kernel.pid)
    begun = time.perf_counter()
    kernel.run(code)
    wall = time.perf_counter() - begun
    main_after, cpu_after = _ran(kernel.pid)
    return Cost(1000 * wall, 1e-6 * (main_after - main), 1e-6 * (cpu_after - cpu))


def _ran(pid: int) -> tuple[int, int]:
    """Nanoseconds that a process's main thread, and all that belongs to it now, have run."""
    times = {
        task: int((task / "schedstat").read_text().split()[0])
        for one in _family(pid)
        for task in Path(f"/proc/{one}/task").glob("*")
        if (task / "schedstat").exists()
    }
    return times.get(Path(f"/proc/{pid}/task/{pid}"), 0), sum(times.values())


def _added(name: str, plain: list[Cost], other: list[Cost]) -> dict[str, float]:
    """Medians of what the other kernel takes longer, and how many times as long."""

    def middle(costs: list[Cost], field: str) -> float:
        return statistics.median(float(getattr(cost, field)) for cost in costs)

    found: dict[str, float] = {
        f"{name}{tag}_ms": middle(other, field) - middle(plain, field)
        for field, tag in (("wall", ""), ("main", "_main"), ("cpu", "_cpu"))
    }
    return {**found, f"{name}_ratio": middle(other, "wall") / middle(plain, "wall")}


@dataclass
class Pair:
    """A plain kernel and one of ours (or a peer's)."""

    plain: Kernel
    other: Kernel

    def both(self, code: str) -> None:
        """Run on each."""
        self.plain.run(code)
        self.other.run(code)

    def added(
        self, name: str, code: Callable[[int], str], count: int, pause_s: float = 0.0
    ) -> dict[str, float]:
        """What the other kernel takes longer, in turns."""
        plain: list[Cost] = []
        other: list[Cost] = []
        for index in range(count):
            for kernel, costs in ((self.plain, plain), (self.other, other))[:: 1 - 2 * (index % 2)]:
                costs.append(reply(kernel, code(index)))
            if pause_s:
                time.sleep(pause_s)
        return _added(name, plain, other)


LOOP = """
import time as _t
def spin():
    global total
    for i in range(2_000_000):
        total += step
total, step = 0, 1
_b = _t.perf_counter(); spin(); print(_t.perf_counter() - _b)
"""
TIMEIT = "get_ipython().run_line_magic('timeit', '-o -q -n 200 -r 5 sorted(range(5000))').best"
TOP_LOOP = """
import time as _t
total, step = 0, 1
_b = _t.perf_counter()
for i in range(2_000_000):
    total += step
print(_t.perf_counter() - _b)
"""


def path_costs(pair: Pair, count: int) -> dict[str, float]:
    """Empty cells, one of 200 variables, a million objects, a loop."""
    found: dict[str, float] = {}
    pair.both("pass")
    found.update(pair.added("empty", lambda _: "pass", count))
    found.update(pair.added("empty_apart", lambda _: "pass", max(5, count // 10), 0.2))
    pair.both("for i in range(200): globals()[f'v{i}'] = [i] * 50")
    time.sleep(1.5)
    some = max(10, count // 2)
    found.update(pair.added("one_of_200", lambda i: f"v{i % 200}.append({i})", some))
    found.update(pair.added("call_of_200", lambda i: f"v{i % 200}.sort(key=abs)", some))
    pair.both("del " + ", ".join(f"v{i}" for i in range(200)))
    time.sleep(1.5)
    many = "class P:\n    def __init__(s, i): s.i = i\n"
    pair.both(many)
    lists, instances = "[[j] for j in range(1_000_000)]", "[P(j) for j in range(300_000)]"
    found.update(_objects("objects", pair, lambda i: f"big{i} = {lists}"))
    found.update(_objects("instances", pair, lambda i: f"big{i} = {instances}"))
    found["loop_ratio"] = _ratio(pair, LOOP)
    found["top_loop_ratio"] = _ratio(pair, TOP_LOOP)
    found["timeit_ratio"] = _ratio(pair, TIMEIT)
    return found


def _objects(name: str, pair: Pair, code: Callable[[int], str]) -> dict[str, float]:
    """What making many objects and the three cells after it take longer."""
    plain: list[Cost] = []
    other: list[Cost] = []
    for index in range(4):
        for kernel, costs in ((pair.plain, plain), (pair.other, other)):
            took = reply(kernel, code(index))
            for _ in range(3):
                took += reply(kernel, "pass")
                time.sleep(0.03)
            costs.append(took)
            time.sleep(3)
            kernel.run(f"del big{index}")
            time.sleep(0.5)
    return _added(name, plain, other)


def _ratio(pair: Pair, code: str) -> float:
    plain: list[float] = []
    other: list[float] = []
    for _ in range(20):  # the clock of a shared machine changes from second to second
        plain.append(float(pair.plain.run(code)[0].partition(":")[2]))
        other.append(float(pair.other.run(code)[0].partition(":")[2]))
    return min(other) / min(plain)


def ours_path(base: Path, count: int) -> dict[str, float]:
    """Our kernel beside a plain one."""
    plain = Kernel(fresh(base / "plain"))
    other = tracked(fresh(base / "ours"), base / "pathstore")
    try:
        return path_costs(Pair(plain, other), count)
    finally:
        plain.kill()
        other.kill()


# --- peers -------------------------------------------------------------------------------------------


def pickled(base: Path, name: str, python: str) -> dict[str, float]:
    """dill or cloudpickle: the whole session each time."""
    bring, save, load = WHOLE[name]
    kernel = Kernel(fresh(base / name), python)
    path = str(base / f"{name}.pkl")
    found: dict[str, float] = {}
    try:
        kernel.run(f"{bring}\n{FRAMES.make}", 120)
        for label, code in (
            ("notice", "pass"),
            ("small", "note['step'] += 1"),
            ("element", "a[5] = 1.0"),
        ):
            kernel.run(code)
            with Memory(kernel.pid) as memory:
                begun = time.perf_counter()
                kernel.run(save.format(path) + "\nimport os; os.sync()", 180)
                found[f"{label}_s"] = time.perf_counter() - begun
            found[f"{label}_mb"] = Path(path).stat().st_size / 1e6
            found.setdefault("peak_gb", memory.peak / 1e9)
        expected = kernel.run(FRAMES.check)
    finally:
        kernel.kill()
    standby = Kernel(base / name, python)
    try:
        standby.run(f"{bring}\nimport numpy, pandas")
        begun = time.perf_counter()
        standby.run(load.format(path), 180)
        found["restore_all_s"] = found["restore_first_s"] = time.perf_counter() - begun
        if standby.run(FRAMES.check) != expected:
            raise RuntimeError(f"{name}: not the same")
    finally:
        standby.kill()
        Path(path).unlink(missing_ok=True)
    return found


def kishu_path(base: Path, python: str) -> dict[str, float]:
    """Kishu beside a plain kernel: what it adds to cells."""
    plain = Kernel(fresh(base / "kplain"), python)
    other = Kernel(fresh(base / "kishu"), python)
    try:
        (base / "kishu" / "n.ipynb").write_text(
            json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        )
        other.run("from kishu import init_kishu\ninit_kishu('n.ipynb')", 60)
        return path_costs(Pair(plain, other), 30)
    finally:
        plain.kill()
        other.kill()


# --- all ---------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Prints a table; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.sessions.cost", description=__doc__)
    parser.add_argument("--peers", metavar="PYTHON", default="")
    parser.add_argument("--only", default="big,path")
    parser.add_argument("--count", type=int, default=200, help="cells per figure")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    results: dict[str, dict[str, float]] = {"roost": {}}
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as folder:
        base = Path(folder)
        if "big" in options.only:
            results["roost"].update(ours_big(base))
            if importlib.util.find_spec("torch"):
                results["roost, torch"] = ours_big(base, TENSORS)
            for name in WHOLE if options.peers else ():
                results[name] = pickled(base, name, options.peers)
        if "path" in options.only:
            results["roost"].update(ours_path(base, options.count))
            if options.peers:
                with contextlib.suppress(TimeoutError, ValueError, IndexError):
                    results["kishu"] = kishu_path(base, options.peers)
    _print(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    ours = results["roost"]
    return int(any(ours[name] > goal for name, goal in GOALS.items() if name in ours))


def _print(results: dict[str, dict[str, float]]) -> None:
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    print(f"{'':18}{'goal':>8}" + "".join(f"{who:>22}" for who in results))
    for name in names:
        line = f"{name:18}{GOALS.get(name, ''):>8}"
        ours = results["roost"].get(name)
        for who, found in results.items():
            value = found.get(name)
            shown = "-" if value is None else f"{value:.3f}"
            if who != "roost" and value is not None and ours and ours > 0:
                shown += f" ({value / ours:.0f}x)"
            line += f"{shown:>22}"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
