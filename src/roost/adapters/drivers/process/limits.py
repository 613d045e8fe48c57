"""A cgroup for each task with limits: CPU quota and memory, version 1 or 2, where permitted.

Under version 1 a group is a child of the starter's own, so an instance's limit holds its tasks too. Under
version 2 a group that holds processes can have no children, so it is a sibling. What cannot be made is left
out: ``held`` says what holds. It never kills and never moves a process that is not the task's.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from roost.ports.driver import TaskLimits, TaskUsage

MIB = 1 << 20
PERIOD_US = 100_000
"""Of the CPU quota: a task with half a core may run 50 ms of every 100."""
LEAST_US = 1_000
"""The least quota the system takes."""
SHARES = 1024
"""Weight of one vCPU against others (version 1)."""
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Trees:
    """Where groups are made, by controller: ``cpu``, ``cpuacct``, ``memory``; under version 2 all are one."""

    places: dict[str, Path]
    unified: bool = False


def find_trees(proc: Path = Path("/proc/self")) -> Trees:
    """Of this process, as far as they can be written; empty where there are none."""
    own = {}
    with contextlib.suppress(OSError):
        for line in (proc / "cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            own.update(dict.fromkeys(names.split(","), path))
    found: dict[str, Path] = {}
    unified: Path | None = None
    with contextlib.suppress(OSError):
        for line in (proc / "mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(" ", 2)
            point = Path(left.split()[4])
            if kind == "cgroup2" and "" in own:
                unified = point / own[""].lstrip("/")
            elif kind == "cgroup":
                for name in {"cpu", "cpuacct", "memory"} & set(options.split()[-1].split(",")):
                    place = point / own.get(name, "").lstrip("/")
                    found[name] = place if place.is_dir() else point
    if "cpu" in found or "memory" in found:
        # Nobody removes what an instance that was lost leaves at the root of a tree it has no group in.
        if own.get("cpuacct") == "/" and found.get("cpuacct") != found.get("cpu"):
            found.pop("cpuacct", None)
        return Trees({name: place for name, place in found.items() if _writable(place)})
    if unified is not None and _writable(unified.parent) and unified.parent != Path("/sys/fs"):
        return Trees(dict.fromkeys(("cpu", "cpuacct", "memory"), unified.parent), unified=True)
    return Trees({})


def _writable(folder: Path) -> bool:
    """Tried, not asked: a mount may be read-only for root too."""
    probe = folder / f"roost-probe-{os.getpid()}"
    try:
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError:
        return False
    return True


class Groups:
    """The groups of one driver's tasks. ``prefix`` keeps drivers apart."""

    def __init__(self, prefix: str, trees: Trees | None = None) -> None:
        self._prefix = prefix
        self._found = trees

    @property
    def _trees(self) -> Trees:
        if self._found is None:  # looked for at the first task that has limits
            self._found = find_trees()
        return self._found

    @property
    def held(self) -> tuple[str, ...]:
        """What the system holds a task to here."""
        names = (("vcpus", "cpu"), ("memory_mib", "memory"))
        return tuple(limit for limit, name in names if name in self._trees.places)

    def hold(self, task_id: str, limits: TaskLimits, pid: int) -> None:
        """Put a task's first process, which has no children yet, under its limits."""
        for name, folder in self._folders(task_id).items():
            with contextlib.suppress(OSError):  # one controller refused: the others still hold
                folder.mkdir(exist_ok=True)
                self._limit(name, folder, limits)
                (folder / "cgroup.procs").write_text(str(pid))

    def _limit(self, name: str, folder: Path, limits: TaskLimits) -> None:
        quota = max(LEAST_US, int(limits.vcpus * PERIOD_US))
        size = int(limits.memory_mib * MIB)
        if name == "cpu" and limits.vcpus > 0:
            if self._trees.unified:
                (folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")
                return
            (folder / "cpu.shares").write_text(str(max(2, int(limits.vcpus * SHARES))))
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
        elif name == "memory" and limits.memory_mib > 0:
            if self._trees.unified:
                (folder / "memory.max").write_text(str(size))
                with contextlib.suppress(OSError):  # absent without swap
                    (folder / "memory.swap.max").write_text("0")
                return
            (folder / "memory.limit_in_bytes").write_text(str(size))
            with contextlib.suppress(OSError):  # absent without swap accounting
                (folder / "memory.memsw.limit_in_bytes").write_text(str(size))

    def usage(self, task_id: str) -> TaskUsage:
        """What the group has used; None for what it does not count."""
        folders = self._folders(task_id)
        cpu_s = memory = None
        with contextlib.suppress(OSError, ValueError, KeyError):
            if self._trees.unified:
                cpu_s = _fields(folders["cpu"] / "cpu.stat")["usage_usec"] / 1e6
            else:
                cpu_s = int((folders["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        with contextlib.suppress(OSError, ValueError, KeyError):
            # The page cache is given back when somebody needs it.
            name = "memory.current" if self._trees.unified else "memory.usage_in_bytes"
            cache = "inactive_file" if self._trees.unified else "total_inactive_file"
            used = int((folders["memory"] / name).read_text())
            used -= _fields(folders["memory"] / "memory.stat")[cache]
            memory = max(0, used) / MIB
        return TaskUsage(cpu_s=cpu_s, memory_mib=memory)

    def overran(self, task_id: str) -> bool:
        """The system has ended one of its processes for its memory."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            name = "memory.events" if self._trees.unified else "memory.oom_control"
            return _fields(self._folders(task_id)["memory"] / name)["oom_kill"] > 0
        return False

    def remove(self, task_id: str) -> bool:
        """Forget a task's groups. False while one of its processes is not quite gone."""
        folders = self._folders(task_id).values()
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        return not any(folder.exists() for folder in folders)

    def _folders(self, task_id: str) -> dict[str, Path]:
        name = f"roost-{self._prefix}-{task_id}"
        return {controller: place / name for controller, place in self._trees.places.items()}


def usage_of(pid: int) -> TaskUsage:
    """Of a process with all below it, where no group counts: what ended children used is in their parents."""
    ticks = pages = 0
    waiting, seen = [pid], set[int]()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(int(field) for field in fields[11:15])
            pages += int(fields[21])
            for thread in Path(f"/proc/{one}/task").iterdir():
                waiting.extend(int(child) for child in (thread / "children").read_text().split())
        except (OSError, IndexError, ValueError):
            continue
    return TaskUsage(cpu_s=ticks * _TICK_S, memory_mib=pages * _PAGE / MIB)


def _fields(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2}
