"""Detached processes found again by pid and start time. Never waits for a process it did not start."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from roost.main.settings import write_atomic


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat, or None when the process is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


class ProcessFile:
    """The record of one detached process: ``<run>/<name>.json`` with pid and start ticks."""

    def __init__(self, run: Path, name: str) -> None:
        self.name = name
        self.path = run / f"{name}.json"

    def pid(self) -> int | None:
        """The pid while that very process runs, else None."""
        try:
            found = json.loads(self.path.read_text())
            pid, ticks = int(found["pid"]), int(found["started_ticks"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if start_ticks(pid) == ticks else None

    def write(self, pid: int) -> None:
        """Record a running process."""
        ticks = start_ticks(pid)
        if ticks is not None:
            content = {"pid": pid, "started_ticks": ticks}
            write_atomic(self.path, json.dumps(content).encode())

    def signal(self, number: signal.Signals) -> bool:
        """Signal the recorded process; False when it does not run."""
        pid = self.pid()
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def forget(self) -> None:
        """Remove the record."""
        self.path.unlink(missing_ok=True)


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in its own session with its output in ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            env=dict(env),
            close_fds=True,
        )


def marked(variable: str, value: str) -> list[int]:
    """Pids of all processes (but this one) whose environment has ``variable=value``."""
    mark = f"{variable}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
