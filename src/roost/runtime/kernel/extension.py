"""``%load_ext roost``: the engine in any plain ipykernel, by hand.

Nothing is captured until a line of ``%roost`` asks for it.
"""

import asyncio
from pathlib import Path
from typing import Any

from roost.runtime.kernel.engine import Engine
from roost.runtime.kernel.format import KEPT, manifest_numbers, manifest_path
from roost.runtime.kernel.restore import CannotRestore

USAGE = """%roost status            what the engine knows
%roost track DIR         capture into DIR after each cell
%roost checkpoint DIR    capture into DIR now
%roost restore DIR       restore the newest capture in DIR
%roost report            the report of the last restore"""


def load(shell: Any) -> Engine:
    """Load the engine and its magic. Loading twice gives the same engine."""
    known = getattr(shell, "_roost_engine", None)
    if isinstance(known, Engine):
        return known
    engine = Engine(shell, _loop_of(shell))
    shell._roost_engine = engine
    shell.register_magic_function(Magic(engine).roost, "line", "roost")
    return engine


def _loop_of(shell: Any) -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        loop = getattr(getattr(shell, "kernel", None), "io_loop", None)
        found: asyncio.AbstractEventLoop | None = getattr(loop, "asyncio_loop", None)
        return found


class Magic:
    """``%roost``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def roost(self, line: str) -> None:
        """Move this session's state. Without an argument: the list of what it can do."""
        verb, _, rest = line.strip().partition(" ")
        where = Path(rest.strip() or ".").expanduser()
        if verb == "status":
            for name, value in self._engine.status().items():
                print(f"{name}: {value}")
        elif verb == "track" and rest:
            self._engine.track(where)
            print(f"capturing into {where} after each cell")
        elif verb == "checkpoint" and rest:
            self._checkpoint(where)
        elif verb == "restore" and rest:
            self._restore(where)
        elif verb == "report":
            self._report()
        else:
            print(USAGE)

    def _checkpoint(self, where: Path) -> None:
        try:
            done = self._engine.capture_here(where)
        except OSError as error:
            print(f"not captured: {error.strerror or error}")
            return
        size = done["bytes_total"] / 1e6
        print(f"captured as number {done['number']} in {where}: {size:.1f} MB")
        for entry in done["report"]:
            print(_told(entry["name"], entry["outcome"], entry["reason"], entry["advice"]))

    def _restore(self, where: Path) -> None:
        numbers = manifest_numbers(where)
        if not numbers:
            print(f"nothing to restore in {where}: first run %roost checkpoint {where}")
            return
        try:
            done = self._engine.restore(where, manifest_path(where, numbers[-1]), in_cell=True)
        except CannotRestore as error:
            print(f"not restored: {error}")
            return
        print(f"restored number {numbers[-1]} in {done.seconds:.2f} s")
        self._report()

    def _report(self) -> None:
        report = self._engine.report
        kept = sum(1 for entry in report if entry.outcome == KEPT)
        print(f"{kept} kept")
        for entry in report:
            if entry.outcome != KEPT:
                print(_told(entry.name, entry.outcome, entry.reason, entry.advice))


def _told(name: str, outcome: str, reason: str, advice: str) -> str:
    return f"{name}: {outcome}: {reason}" + (f" ({advice})" if advice else "")
