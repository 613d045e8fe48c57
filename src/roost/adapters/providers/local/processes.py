"""Processes by pid and start time, and the sweep of what bears an instance's mark. Never starts any."""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

MARK = "ROOST_INSTANCE"
"""The environment variable that every process of an instance inherits."""

_SWEEP_ROUNDS = 200


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None when the process is gone or a zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in ("Z", "X") else int(fields[19])


def running(pid: int, ticks: int) -> bool:
    """Whether that very process runs (a recycled pid has another start time)."""
    return pid > 0 and start_ticks(pid) == ticks


def end(pid: int, ticks: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal that very process, if it still runs."""
    if running(pid, ticks):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def pids() -> set[int]:
    """All processes that this process's /proc shows."""
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def marked(host_id: str) -> list[int]:
    """Pids of the processes of an instance, by the mark in their environment, but not this process."""
    mark = f"{MARK}={host_id}".encode()
    found = []
    for pid in pids() - {os.getpid()}:
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def descendants(root: int) -> set[int]:
    """Pids of all living processes below ``root``."""
    parents: dict[int, list[int]] = {}
    for pid in pids():
        fields = _stat(pid)
        if fields is not None and fields[0] not in ("Z", "X"):
            parents.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def sweep(host_id: str) -> None:
    """Kill everything that bears the mark, again and again until nothing is found: forks are raced."""
    for _ in range(_SWEEP_ROUNDS):
        found = marked(host_id)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def wake_on(*numbers: signal.Signals, on_term: Callable[[], None]) -> int:
    """A descriptor that becomes readable at these signals."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda got, _frame: on_term() if got == signal.SIGTERM else None)
    return reader


def drain(descriptor: int) -> None:
    """Read away what woke us."""
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 4096):
            pass


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat after the name: state, parent, ... (start time at 19)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
