"""``%load_ext roost``: the engine in any plain ipykernel, by hand.

Nothing is captured until a line of ``%roost`` asks for it.
"""

import asyncio
import contextlib
import os
import tempfile
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

from roost.runtime.kernel import history
from roost.runtime.kernel.engine import Engine
from roost.runtime.kernel.format import KEPT, Entry, Manifest, manifest_numbers, manifest_path
from roost.runtime.kernel.restore import CannotRestore, Restored, checked
from roost.runtime.kernel.server import Server
from roost.runtime.kernel.workfiles import Return

USAGE = """%roost track DIR         capture into DIR after each cell, and answer `roost capture DIR`
%roost save DIR          capture into DIR now
%roost restore DIR       restore the newest capture in DIR, then go on with what ran and waited there
%roost report            the report of the last restore
%roost history           the moments that are stored: number, cell, time, size
%roost undo [N]          back to the moment before the last cell, or to number N
%roost branch DIR [N]    copy the newest moment, or number N, into DIR: another kernel restores it there
%roost status            what the engine knows"""

DOOR = "engine.json"
"""In a tracked directory: where the kernel that tracks into it answers."""
REPORT = "restore-report.json"
VERIFY_BYTES = 64 << 20
"""So much is verified before a restore says that it is done; of more, cells wait for what they use."""
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
                self._say(f"{name}: {value}")
        elif verb == "track" and rest:
            self._track(where)
        elif verb == "save" and rest:
            self._save(where)
        elif verb == "restore" and rest:
            self._restore(where)
        elif verb == "report":
            self._report()
        elif verb in ("history", "undo", "branch"):
            self._travel(verb, rest.split())
        else:
            self._say(USAGE)

    def _say(self, text: str) -> None:
        """Print, wherever the notebook has its own output go."""
        print(text, file=self._engine.base.streams["stdout"])

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
            (where / f"{DOOR}.part").write_text(dumps(content))
            (where / f"{DOOR}.part").rename(where / DOOR)
        except OSError as error:
            self._say(f"not tracking into {where}: {error.strerror or error}")
            return
        self._say(f"capturing into {where} after each cell")

    def _save(self, where: Path) -> None:
        try:
            done = self._engine.capture_here(where)
        except OSError as error:
            self._say(f"not captured: {error.strerror or error}")
            return
        size = done["bytes_total"] / 1e6
        self._say(f"captured as number {done['number']} in {where}: {size:.1f} MB")
        for entry in done["report"]:
            self._say(_told(entry["name"], entry["outcome"], entry["reason"], entry["advice"]))

    def _restore(self, where: Path) -> None:
        number = self._engine.newest(where)
        if not number:
            self._say(f"nothing to restore in {where}: first run %roost save {where}")
            return
        try:
            number, manifest = _readable(where, number)
            path = manifest_path(where, number)
            # Before the variables: files that were open are opened again.
            files = Return(where.absolute(), Path(self._engine.base.root))
            before = self._engine.facts(where).files_before(manifest.finished, number)
            if before is None:
                files.missing()
            else:
                files.before(*before)
            done = self._engine.restore(where, path, in_cell=True)
        except CannotRestore as error:
            self._say(f"not restored: {error}")
            return
        done.report += files.report
        if done.unproven and done.unproven.bytes <= VERIFY_BYTES:
            self._engine.prove_told()
        _keep_report(where, number, done)
        self._engine.proven = lambda: _keep_report(where, number, done)
        self._engine.again.told = lambda after: self._ended(where, number, done, after)
        self._say(f"restored number {number} in {done.seconds:.2f} s")
        self._report()
        if done.unproven:
            names = done.unproven.names
            self._say(f"{len(names)} of them still verified, cells wait for that: {_few(names)}")

    def _ended(self, where: Path, number: int, done: Restored, after: list[Entry]) -> None:
        """The cells that ran or waited have ended in this kernel: what became of them."""
        names = {entry.name for entry in after}
        done.report[:] = [entry for entry in done.report if entry.name not in names] + after
        _keep_report(where, number, done)

    # --- time travel ---------------------------------------------------------------------------------

    def _travel(self, verb: str, words: list[str]) -> None:
        where = self._engine.directory
        if where is None:
            self._say("no history: first run %roost track DIR")
            return
        self._engine.settle()
        numbers = [int(word) for word in words if word.isdecimal()]
        try:
            if verb == "history":
                self._say("\n".join(history.table(where)))
            elif verb == "undo":
                self._undo(where, numbers[0] if numbers else 0)
            elif words:
                number = numbers[-1] if numbers and len(words) > 1 else max(manifest_numbers(where))
                target = Path(words[0]).expanduser().absolute()
                history.branch(where, number, target)
                self._say(
                    f"number {number} is in {target}: run %roost restore {target} in another kernel"
                )
            else:
                self._say(USAGE)
        except (OSError, ValueError) as error:
            self._say(f"not done: {getattr(error, 'strerror', None) or error}")

    def _undo(self, where: Path, number: int) -> None:
        number = number or history.before_last(where, self._engine.log)
        if number not in manifest_numbers(where):
            self._say("nothing to go back to: see %roost history")
            return
        try:
            left = history.go_back(self._engine, where, number)
        except CannotRestore as error:
            self._say(f"not undone: {error}")
            return
        self._say(
            f"back at number {number}; files and what is outside this kernel stay as they are"
        )
        if left:
            self._say(f"as they are now, for they cannot go back: {', '.join(left)}")
        self._report()

    def _report(self) -> None:
        report = self._engine.report
        kept = sum(1 for entry in report if entry.outcome == KEPT)
        self._say(f"{kept} kept")
        for entry in report:
            if entry.outcome != KEPT:
                self._say(_told(entry.name, entry.outcome, entry.reason, entry.advice))


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _told(name: str, outcome: str, reason: str, advice: str) -> str:
    return f"{name}: {outcome}: {reason}" + (f" ({advice})" if advice else "")


def _readable(where: Path, number: int) -> tuple[int, Manifest]:
    """The newest moment up to this one that can be read. Raises ``CannotRestore``."""
    while True:
        try:
            return number, checked(manifest_path(where, number))
        except CannotRestore as error:
            older = [n for n in manifest_numbers(where) if n < number]
            if error.code not in ("damaged", "unreadable") or not older:
                raise
            print(f"number {number} cannot be used ({error}): trying number {older[-1]}")
            number = older[-1]


def _keep_report(where: Path, number: int, done: Restored) -> None:
    """The report beside the capture; a folder one may not write to costs only that."""
    content = {
        "number": number,
        "seconds": done.seconds.__round__(3),
        "verifying": done.unproven.names if done.unproven else [],
        "entries": [asdict(entry) for entry in done.report],
    }
    with contextlib.suppress(OSError):
        part = where / f"{REPORT}.{os.getpid()}.part"
        part.write_text(dumps(content, indent=1))
        part.rename(where / REPORT)
