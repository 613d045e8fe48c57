"""What a container uses: from its cgroup where this machine's files show it, else from the engine's samples.

The engine looks once a second, so its answer takes up to one; the files answer at once. Never raises.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.ports.driver import TaskUsage

ROOT = Path("/sys/fs/cgroup")
MIB = 1 << 20
_PARENTS = ("docker/{id}", "system.slice/docker-{id}.scope")
"""Where an engine puts its containers: with cgroupfs, with systemd."""


def from_cgroup(container_id: str, root: Path = ROOT) -> TaskUsage:
    """Version 1 has a tree for each controller, version 2 has one; all None where neither shows it."""
    for parent in _PARENTS:
        path = parent.format(id=container_id)
        cpu, memory = root / "cpuacct" / path, root / "memory" / path
        with contextlib.suppress(OSError, ValueError, KeyError):
            used = int((memory / "memory.usage_in_bytes").read_text())
            cache = _fields(memory / "memory.stat")["total_inactive_file"]
            cpu_s = int((cpu / "cpuacct.usage").read_text()) / 1e9
            return _usage(cpu_s, used, cache)
        with contextlib.suppress(OSError, ValueError, KeyError):
            used = int((root / path / "memory.current").read_text())
            cache = _fields(root / path / "memory.stat")["inactive_file"]
            cpu_s = _fields(root / path / "cpu.stat")["usage_usec"] / 1e6
            return _usage(cpu_s, used, cache)
    return TaskUsage()


def from_engine(stats: Mapping[str, Any]) -> TaskUsage:
    """The engine's sample; all None for a container that does not run."""
    memory = stats.get("memory_stats") or {}
    if "usage" not in memory:
        return TaskUsage()
    detail = memory.get("stats") or {}
    cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))
    return _usage(stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, memory["usage"], cache)


def _usage(cpu_s: float, used: int, cache: int) -> TaskUsage:
    # The page cache is given back when somebody needs it: the engine's own tools leave it out too.
    return TaskUsage(cpu_s=cpu_s, memory_mib=max(0, used - cache) / MIB)


def _fields(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2}
