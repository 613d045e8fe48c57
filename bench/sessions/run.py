"""``python -m bench.sessions.run [--only TEXT] [--jobs N] [--json FILE] [--peer NAME]``: every case, moved.

Each case runs on a plain kernel left alone, and on a kernel with the engine that is told of a notice (or is
killed without one) and continued in a new process after SIGKILL. Right: the outputs of the checks are equal.
Refused: they differ and the restore report, or an error of ours, names what they ask for. Wrong: they differ
silently.
"""

import argparse
import concurrent.futures
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.sessions import peers
from bench.sessions.cases import Case, load
from bench.sessions.kernels import Kernel, fresh

WITHIN_S = 12
_SAID = ("error:GraphLeftBehind:", "error:DeviceMissing:")
"""Errors of our own that say by name what was left behind, where it is asked for."""
RUN_S = 1.2
"""How long the running cell has run when the notice comes."""


@dataclass
class Outcome:
    """What became of a case."""

    name: str
    verdict: str
    detail: str = ""
    expected: list[list[str]] = field(default_factory=list)
    found: list[list[str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    seconds: float = 0.0


def plain(case: Case, folder: Path, python: str = sys.executable) -> list[list[str]]:
    """The outputs of the checks on a kernel left alone."""
    kernel = Kernel(fresh(folder / "work"), python)
    try:
        for code in ("pass", "pass", *case.setup):
            kernel.run(code)
        for message in [kernel.send(code) for code in (*case.running, *case.queued)]:
            kernel.outputs(message)
        return [kernel.run(code) for code in case.check]
    finally:
        kernel.kill()


def moved(case: Case, folder: Path, within_s: float) -> tuple[list[list[str]], dict[str, Any]]:
    """The outputs of the checks after a move, and the report."""
    store = folder / "store"
    first = Kernel(fresh(folder / "work"))
    try:
        first.run("%load_ext roost")
        first.run(f"%roost track {store}")
        for code in case.setup:
            first.run(code)
        for code in (*case.running, *case.queued):
            first.send(code)
        if case.running:
            time.sleep(RUN_S)
        if case.kind == "death":
            time.sleep(1.5)
        else:
            _notice(store, within_s)
    finally:
        first.kill()
    second = Kernel(folder / "work")
    try:
        second.run("%load_ext roost")
        told = second.run(f"%roost restore {store}")
        found = [second.run(code, 90) for code in case.check]
        return found, _report(store, told)
    finally:
        second.kill()


def _notice(store: Path, within_s: float) -> None:
    command = [sys.executable, "-m", "roost.runtime.kernel", "capture", str(store)]
    done = subprocess.run(
        [*command, "--within", str(within_s)], capture_output=True, text=True, timeout=within_s + 30
    )
    if done.returncode:
        raise RuntimeError(
            f"capture ended with {done.returncode}: {done.stderr[-300:]}{done.stdout[-300:]}"
        )


def _report(store: Path, told: list[str]) -> dict[str, Any]:
    path = store / "restore-report.json"
    if not path.exists():
        return {"entries": [], "told": told}
    return {"entries": json.loads(path.read_text())["entries"], "told": told}


def judge(case: Case, folder: Path) -> Outcome:
    """Run one case both ways."""
    begun = time.monotonic()
    try:
        expected = plain(case, folder / "plain")
        within_s = 3.0 if "long" in case.name or "rerun" in case.name else WITHIN_S
        found, report = moved(case, folder / "moved", within_s)
    except Exception as error:
        return Outcome(case.name, "error", f"{type(error).__name__}: {error}"[:400])
    refused = [e["name"] for e in report["entries"] if e["outcome"] == "refused"]
    made = Outcome(case.name, "right", "", expected, found, refused, time.monotonic() - begun)
    if expected != found:
        said = any(
            n in case.asked or n.startswith(("process", "figure", "output", "task", "timer"))
            for n in refused
        ) or any(line.startswith(_SAID) for lines in found for line in lines)
        made.verdict = "refused" if said else "wrong"
        made.detail = (
            "; ".join(
                f"{e['name']}: {e['reason']}"
                for e in report["entries"]
                if e["outcome"] == "refused"
            )[:300]
            or "; ".join(report["told"])[:300]
        )
    return made


def judge_peer(case: Case, folder: Path, name: str, python: str) -> Outcome:
    """The same with dill or cloudpickle. What raises an error, anywhere, is refused."""
    try:
        expected = plain(case, folder / "plain", python)
        found, why = peers.moved(case, folder / "moved", name, python, WITHIN_S)
    except Exception as error:
        return Outcome(case.name, "error", f"{type(error).__name__}: {error}"[:400])
    new = [
        line
        for before, after in zip(expected, found, strict=False)
        for line in after
        if line.startswith("error:") and line not in before
    ]
    why = why or " ".join(new)[:300]
    verdict = "right" if expected == found else "refused" if why else "wrong"
    return Outcome(case.name, verdict, why, expected, found)


Judge = Callable[[Case, Path], Outcome]


def judged(cases: Sequence[Case], jobs: int, json_file: Path | None, judge: Judge = judge) -> int:
    """Run cases, so many at once, and say what became of them; 1 when one is silently wrong."""
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as base,
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
    ):
        waiting = [pool.submit(judge, case, Path(base) / str(n)) for n, case in enumerate(cases)]
        for job in waiting:
            made = job.result()
            outcomes.append(made)
            if made.verdict != "right":
                print(f"{made.verdict:8} {made.name}: {made.detail}", flush=True)
                if made.verdict == "wrong":
                    print(
                        f"         expected {made.expected}\n         found    {made.found}",
                        flush=True,
                    )
    count = Counter(made.verdict for made in outcomes)
    print(", ".join(f"{number} {verdict}" for verdict, number in count.most_common()))
    if json_file:
        json_file.write_text(json.dumps([asdict(made) for made in outcomes], indent=1))
    return 1 if count["wrong"] else 0


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 when a case is silently wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.sessions.run", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this (comma: any)")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all outcomes here")
    parser.add_argument("--peer", choices=sorted(peers.WHOLE), help="move them with this instead")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has it")
    options = parser.parse_args(argv)
    words = options.only.split(",")
    found = [case for case in load() if any(word in case.name for word in words)]
    for case in (case for case in found if case.missing):
        print(f"skipped  {case.name}: {', '.join(case.missing)} not installed", flush=True)
    cases = [case for case in found if not case.missing]
    if not options.peer:
        return judged(cases, options.jobs, options.json)
    judge_one = functools.partial(judge_peer, name=options.peer, python=options.python)
    return judged(cases, options.jobs, options.json, judge_one)


if __name__ == "__main__":
    sys.exit(main())
