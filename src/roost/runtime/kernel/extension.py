"""``%load_ext roost``: the engine in any plain ipykernel, by hand.

Nothing is captured until a line of ``%roost`` asks for it.
"""

import asyncio
import contextlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roost.runtime.kernel.engine import Engine
from roost.runtime.kernel.format import KEPT, manifest_path
from roost.runtime.kernel.restore import CannotRestore, Restored, checked
from roost.runtime.kernel.server import Server
from roost.runtime.kernel.workfiles import Return

USAGE = """%roost track DIR         capture into DIR after each cell, and answer `roost capture DIR`
%roost save DIR          capture into DIR now
%roost restore DIR       restore the newest capture in DIR, then go on with what ran and waited there
%roost report            the report of the last restore
%roost status            what the engine knows"""

DOOR = "engine.json"
"""In a tracked directory: where the kernel that tracks into it answers."""
REPORT = "restore-report.json"
LONGEST_SOCKET = 100
"""Bytes of a unix socket's path; the system's limit is 107."""


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
        self._server: Path | None = None

    def roost(self, line: str) -> None:
        """Move this session's state. Without an argument: the list of what it can do."""
        verb, _, rest = line.strip().partition(" ")
        where = Path(rest.strip() or ".").expanduser()
        if verb == "status":
            for name, value in self._engine.status().items():
                print(f"{name}: {value}")
        elif verb == "track" and rest:
            self._track(where)
        elif verb == "save" and rest:
            self._save(where)
        elif verb == "restore" and rest:
            self._restore(where)
        elif verb == "report":
            self._report()
        else:
            print(USAGE)

    def _track(self, where: Path) -> None:
        where = where.absolute()
        try:
            where.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._engine.track(where, alone=True)
            door = where / "engine.sock"
            if len(os.fsencode(door)) > LONGEST_SOCKET:
                door = Path(tempfile.mkdtemp(prefix="roost-")) / "engine.sock"
            if self._server is None:
                self._server = door
                Server(self._engine, door).start()
            content = {"pid": os.getpid(), "socket": str(self._server)}
            (where / f"{DOOR}.part").write_text(json.dumps(content))
            (where / f"{DOOR}.part").rename(where / DOOR)
        except OSError as error:
            print(f"not tracking into {where}: {error.strerror or error}")
            return
        print(f"capturing into {where} after each cell")

    def _save(self, where: Path) -> None:
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
        number = self._engine.newest(where)
        if not number:
            print(f"nothing to restore in {where}: first run %roost save {where}")
            return
        path = manifest_path(where, number)
        try:
            manifest = checked(path)
            # Before the variables: files that were open are opened again.
            files = Return(where.absolute(), Path(self._engine.base.root))
            before = self._engine.facts(where).files_before(manifest.finished, number)
            if before is None:
                files.missing()
            else:
                files.before(*before)
            done = self._engine.restore(where, path, in_cell=True)
        except CannotRestore as error:
            print(f"not restored: {error}")
            return
        done.report += files.report
        _keep_report(where, number, done)
        print(f"restored number {number} in {done.seconds:.2f} s")
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


def _keep_report(where: Path, number: int, done: Restored) -> None:
    """The report beside the capture; a folder one may not write to costs only that."""
    content = {
        "number": number,
        "seconds": round(done.seconds, 3),
        "entries": [asdict(entry) for entry in done.report],
    }
    with contextlib.suppress(OSError):
        (where / REPORT).write_text(json.dumps(content, indent=1))
