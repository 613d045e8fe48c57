"""CPU and memory of the host and of each task, read from ``/proc`` through psutil. Never waits."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import psutil

from roost.agent.model import Task

MIB = 1 << 20


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Of a task: its keeper with everything below it."""

    cpu_percent: float = 0.0
    """Since the last look; 100 = one core."""
    memory_mib: float = 0.0


class HostUsage(msgspec.Struct, frozen=True, kw_only=True):
    cpu_percent: float
    """Of the whole machine, 0 to 100."""
    memory_used_mib: float
    memory_total_mib: float
    network_bytes: float
    """Received and sent since boot, loopback left out; 0 = not measured."""


class Measure:
    """Keeps the last look, so that CPU is a difference."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        psutil.cpu_percent(None)

    def host(self) -> HostUsage:
        """The machine as this instance sees it."""
        memory = psutil.virtual_memory()
        return HostUsage(
            cpu_percent=psutil.cpu_percent(None),
            memory_used_mib=(memory.total - memory.available) / MIB,
            memory_total_mib=memory.total / MIB,
            network_bytes=_network(),
        )

    def tasks(self, tasks: Iterable[Task]) -> dict[str, Usage]:
        """Usage per living task."""
        seen: dict[int, psutil.Process] = {}
        usage: dict[str, Usage] = {}
        for task in tasks:
            pids = _family((task.keeper_pid, task.kernel_pid))
            cpu, memory = 0.0, 0.0
            for pid in pids:
                process = self._process(pid)
                if process is None:
                    continue
                try:
                    with process.oneshot():
                        cpu += process.cpu_percent(None)
                        memory += process.memory_info().rss / MIB
                except psutil.Error:
                    continue
                seen[pid] = process
            usage[task.task_id] = Usage(cpu_percent=round(cpu, 1), memory_mib=round(memory, 1))
        self._processes = seen
        return usage

    def _process(self, pid: int) -> psutil.Process | None:
        known = self._processes.get(pid)
        if known is not None:
            return known
        try:
            return psutil.Process(pid)
        except psutil.Error:
            return None


def _network() -> float:
    try:
        counts = psutil.net_io_counters(pernic=True)
    except OSError:
        return 0.0
    return float(
        sum(one.bytes_recv + one.bytes_sent for name, one in counts.items() if name != "lo")
    )


def _family(roots: tuple[int, ...]) -> list[int]:
    """These processes and all below them."""
    found: list[int] = []
    waiting = [pid for pid in roots if pid > 0]
    while waiting:
        pid = waiting.pop()
        if pid in found:
            continue
        found.append(pid)
        waiting.extend(_children(pid))
    return found


def _children(pid: int) -> list[int]:
    # The kernel's own list of children: psutil would read every process of the machine for it.
    children: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children.extend(int(child) for child in (thread / "children").read_text().split())
    except OSError:
        return children
    return children
