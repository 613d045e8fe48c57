"""``python -m bench.sessions.notebooks [--every N] [--chain] [--only TEXT] [--jobs N] [--json FILE]``.

Each notebook runs once undisturbed. Then, for each cell boundary, it runs up to there, is told of a notice,
killed with SIGKILL, restored into a new kernel, and goes on: everything shown later (text, HTML, the bytes of
pictures, errors with their source lines, execution counts) must be what the undisturbed run shows.
``--chain`` moves one run at every boundary, one move after the other.
"""

import argparse
import concurrent.futures
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from bench.sessions.kernels import Kernel, fresh

BOOKS = Path(__file__).parent / "books"
WITHIN_S = 12
CELL_S = 120.0
LOAD = "%load_ext roost"
_CELL = re.compile(r"^# %%.*\n", re.MULTILINE)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PROCESS = re.compile(r"ipykernel_\d+/\d+")

Shown = list[str]


@dataclass(frozen=True)
class Book:
    """One notebook."""

    name: str
    cells: tuple[str, ...]


@dataclass
class Difference:
    """A later cell that showed something else after a move."""

    cell: int
    code: str
    expected: Shown
    found: Shown


@dataclass
class Outcome:
    """One notebook moved at one boundary (0: a chain of all): before which cell."""

    book: str
    boundary: int
    verdict: str
    """``right``, ``refused`` (differs, and the report names something), ``wrong`` or ``error``."""
    differences: list[Difference] = field(default_factory=list)
    report: list[str] = field(default_factory=list)
    detail: str = ""
    seconds: float = 0.0


def books(directory: Path = BOOKS) -> list[Book]:
    """All notebooks, by name."""
    return [read(path) for path in sorted(directory.glob("*.cells"))]


def read(path: Path) -> Book:
    """A notebook out of its file: cells between lines of ``# %%``."""
    parts = _CELL.split(path.read_text())[1:]
    return Book(path.stem, tuple(part.strip("\n") for part in parts))


class Session:
    """A kernel that runs a notebook's cells."""

    def __init__(self, folder: Path) -> None:
        self.kernel = Kernel(folder)

    def cell(self, code: str) -> Shown:
        """Run a cell; everything a page would show of it, its count last."""
        client = self.kernel.client
        message = self.kernel.send(code)
        until = time.monotonic() + CELL_S
        shown: Shown = []
        for kind, content in _messages(client, message, until):
            shown += _one(kind, content)
        while True:
            reply = client.get_shell_msg(timeout=max(0.1, until - time.monotonic()))
            if reply["parent_header"].get("msg_id") == message:
                break
        content = reply["content"]
        return [*_merged(shown), f"{content['status']} [{content.get('execution_count')}]"]

    def quietly(self, code: str) -> None:
        """Run something that leaves no trace in the history."""
        message = self.kernel.client.execute(code, silent=True)
        while True:
            reply = self.kernel.client.get_shell_msg(timeout=CELL_S)
            if reply["parent_header"].get("msg_id") == message:
                return

    def kill(self) -> None:
        """SIGKILL."""
        self.kernel.kill()


def _messages(client: Any, message: str, until: float) -> Iterator[tuple[str, dict[str, Any]]]:
    while True:
        try:
            got = client.get_iopub_msg(timeout=max(0.01, until - time.monotonic()))
        except Empty:
            raise TimeoutError(f"no end of the cell within {CELL_S:.0f} s") from None
        if got["parent_header"].get("msg_id") != message:
            continue
        kind, content = got["msg_type"], got["content"]
        if kind == "status" and content["execution_state"] == "idle":
            return
        yield kind, content


def _one(kind: str, content: dict[str, Any]) -> Shown:
    if kind == "stream":
        return [f"{content['name']}:{_PROCESS.sub('ipykernel', content['text'])}"]
    if kind == "execute_input":
        return [f"[{content['execution_count']}]"]
    if kind in ("execute_result", "display_data", "update_display_data"):
        return [f"{kind}:{name}:{_value(name, data)}" for name, data in content["data"].items()]
    if kind == "error":
        return ["error:" + _plain("\n".join(content["traceback"]))]
    return [f"{kind}:"] if kind in ("clear_output", "comm_open", "comm_msg") else []


def _value(name: str, data: Any) -> str:
    if name.startswith("image/"):
        return hashlib.sha256(str(data).encode()).hexdigest()[:16]
    return _plain(data if isinstance(data, str) else json.dumps(data, sort_keys=True))


def _plain(text: str) -> str:
    return _PROCESS.sub("ipykernel", _ADDRESS.sub("0x", _COLOUR.sub("", text)))


def _merged(shown: Shown) -> Shown:
    found: Shown = []
    for line in shown:
        name = line.partition(":")[0]
        if found and name in ("stdout", "stderr") and found[-1].startswith(f"{name}:"):
            found[-1] += line.partition(":")[2]
        else:
            found.append(line)
    return [_ADDRESS.sub("0x", line) for line in found]


def undisturbed(book: Book, folder: Path) -> list[Shown]:
    """What each cell shows on a kernel left alone; two empty cells stand for loading the engine."""
    session = Session(fresh(folder / "work"))
    try:
        session.cell("pass")
        session.cell("pass")
        return [session.cell(code) for code in book.cells]
    finally:
        session.kill()


def moved(
    book: Book, folder: Path, boundaries: set[int]
) -> tuple[list[Shown], dict[int, list[str]]]:
    """What each cell shows when the session moves before each cell in ``boundaries``, and the reports."""
    store = folder / "store"
    session = Session(fresh(folder / "work"))
    reports: dict[int, list[str]] = {}
    shown: list[Shown] = []
    try:
        session.cell(LOAD)
        session.cell(f"%roost track {store}")
        for place, code in enumerate(book.cells):
            if place in boundaries:
                try:
                    notice(store)
                finally:
                    session.kill()
                session = Session(folder / "work")
                reports[place] = _restore(session, store)
                if place < max(boundaries):
                    store = folder / f"store{place}"
                    session.quietly(f"get_ipython().run_line_magic('roost', 'track {store}')")
            shown.append(session.cell(code))
        return shown, reports
    finally:
        session.kill()


def _restore(session: Session, store: Path) -> list[str]:
    """Restore into a new kernel; what the report says, except of what was kept."""
    session.cell(LOAD)
    told = session.cell(f"%roost restore {store}")
    path = store / "restore-report.json"
    if not path.exists():
        raise RuntimeError(f"not restored: {told}")
    entries = json.loads(path.read_text())["entries"]
    return [
        f"{e['name']}: {e['outcome']}: {e['reason']}" for e in entries if e["outcome"] != "kept"
    ]


def notice(store: Path) -> None:
    """``roost capture``; raises ``RuntimeError`` with its words."""
    command = [sys.executable, "-m", "roost.runtime.kernel", "capture", str(store)]
    done = subprocess.run(
        [*command, "--within", str(WITHIN_S)],
        capture_output=True,
        text=True,
        timeout=WITHIN_S + 60,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"capture ended with {done.returncode}: {done.stderr[-400:]}")


def compare(
    book: Book, expected: list[Shown], folder: Path, name: int, boundaries: set[int]
) -> Outcome:
    """Move a notebook and compare everything it shows."""
    begun = time.monotonic()
    try:
        found, reports = moved(book, folder, boundaries)
    except Exception as error:
        return Outcome(book.name, name, "error", detail=f"{type(error).__name__}: {error}"[:600])
    made = Outcome(book.name, name, "right", seconds=round(time.monotonic() - begun, 1))
    made.report = [f"{place}: {line}" for place, lines in reports.items() for line in lines]
    for place, (was, now) in enumerate(zip(expected, found, strict=True)):
        if was != now:
            made.differences.append(Difference(place, book.cells[place][:200], was, now))
    if made.differences:
        made.verdict = "refused" if _said(made) else "wrong"
    return made


def _said(outcome: Outcome) -> bool:
    """Whether the report names what a differing cell asks for: a variable of it, or its kind of state."""
    code = " ".join(difference.code for difference in outcome.differences)
    for line in outcome.report:
        name, _, rest = line.partition(": ")[2].partition(": refused:")
        if rest and (name in code or name.startswith(("process: log", "figure", "output", "Out["))):
            return True
    return False


def judge(book: Book, folder: Path, every: int, *, chain: bool) -> Iterator[Outcome]:
    """One notebook at its boundaries."""
    try:
        expected = undisturbed(book, fresh(folder / "plain"))
    except Exception as error:
        yield Outcome(book.name, 0, "error", detail=f"undisturbed: {error}"[:600])
        return
    boundaries = list(range(1, len(book.cells), every))
    if chain:
        yield compare(book, expected, fresh(folder / "chain"), 0, set(boundaries))
        return
    for place in boundaries:
        yield compare(book, expected, fresh(folder / f"at{place}"), place, {place})


def told(outcome: Outcome) -> str:
    """An outcome for a person."""
    where = f"before cell {outcome.boundary}" if outcome.boundary else "at every boundary"
    lines = [f"{outcome.verdict:8} {outcome.book}, moved {where} ({outcome.seconds:.0f} s)"]
    if outcome.detail:
        lines.append(f"    {outcome.detail}")
    if outcome.verdict == "right":
        return lines[0]
    for difference in outcome.differences[:3]:
        lines.append(f"    cell {difference.cell}: {difference.code[:100]!r}")
        lines.append(f"      expected {str(difference.expected)[:400]}")
        lines.append(f"      found    {str(difference.found)[:400]}")
    lines += [f"    report: {line[:300]}" for line in outcome.report[:8]]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 when something differs silently or failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.sessions.notebooks", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="move at each so-manieth boundary")
    parser.add_argument("--chain", action="store_true", help="one run moved at all boundaries")
    parser.add_argument(
        "--only", default="", help="notebooks whose name contains this (comma: any)"
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all outcomes here")
    options = parser.parse_args(argv)
    words = options.only.split(",")
    chosen = [book for book in books() if any(word in book.name for word in words)]
    outcomes: list[Outcome] = []

    def one(book: Book, folder: Path) -> None:
        for outcome in judge(book, folder, options.every, chain=options.chain):
            outcomes.append(outcome)
            print(told(outcome), flush=True)

    with (
        tempfile.TemporaryDirectory(prefix="rn-", dir="/tmp") as base,
        concurrent.futures.ThreadPoolExecutor(options.jobs) as pool,
    ):
        jobs = [pool.submit(one, b, fresh(Path(base) / str(n))) for n, b in enumerate(chosen)]
        for job in jobs:
            job.result()
    count = Counter(outcome.verdict for outcome in outcomes)
    print(", ".join(f"{number} {verdict}" for verdict, number in count.most_common()))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return 1 if count["wrong"] or count["error"] else 0
