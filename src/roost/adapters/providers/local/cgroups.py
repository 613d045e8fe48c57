"""CPU weight and memory limit of an instance: cgroup v1 or v2, where permitted. Never raises for a refusal.

Under version 1 each controller is a tree of its own; under version 2 a folder may have children only
while it holds no process, the root excepted, so the own folder is tried first and the root second.
"""

import contextlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from roost.ports.values import Resources

GIB = 1 << 30
SHARE_OF_MACHINE = 0.9
"""The most an instance may have of this machine's memory: the machine must survive its instances."""
SHARES_PER_VCPU = 128
"""8 vCPUs weigh as much as everything outside (1024), so the control plane always gets its turn."""
WEIGHT_PER_VCPU = 12
"""The same under version 2, where the default is 100."""


@dataclass(slots=True)
class Limits:
    """What could be set, and what could not, with the reason."""

    held_by: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    memory_limit_bytes: int = 0
    memory_usage_file: str = ""
    cpu_weight: int = 0


def memory_limit(resources: Resources) -> int:
    """Bytes: what the offer promises, or 90 % of this machine where that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(resources.memory_gib * GIB, machine * SHARE_OF_MACHINE))


def apply(name: str, resources: Resources, pid: int) -> Limits:
    """Put process ``pid`` (before it has children) under limits in cgroups called ``name``."""
    limits = Limits()
    trees = _trees()
    if "memory" in trees or "cpu" in trees:
        _memory_v1(limits, trees.get("memory"), name, resources, pid)
        _cpu_v1(limits, trees.get("cpu"), name, resources, pid)
    elif "" in trees:
        _version_2(limits, trees[""], name, resources, pid)
    else:
        limits.missing.append("cgroup: none is mounted here")
    return limits


def remove(folders: tuple[str, ...] | list[str]) -> None:
    """Remove the cgroups of an ended instance; waits up to a second for its last process to leave."""
    pause = threading.Event()
    for folder in folders:
        for _ in range(50):
            try:
                for inner in Path(folder).glob("*/"):  # of its tasks, whose agent was killed
                    inner.rmdir()
                Path(folder).rmdir()
            except FileNotFoundError:
                break
            except OSError:
                pause.wait(0.02)
            else:
                break


def _trees() -> dict[str, tuple[Path, str]]:
    """Controller name (empty for version 2) to (mount point, own path within it)."""
    own: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                own[name] = path
    trees: dict[str, tuple[Path, str]] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(" ", 2)
            point = Path(left.split()[4])
            if kind == "cgroup2" and "" in own:
                trees[""] = (point, own[""])
            elif kind == "cgroup":
                for name in options.split()[-1].split(","):
                    if name in own:
                        trees[name] = (point, own[name])
    return trees


def _places(tree: tuple[Path, str]) -> list[Path]:
    """Where a child may be made: below the own folder, else below the root of the mount."""
    point, own = tree
    return list(dict.fromkeys([point / own.lstrip("/"), point]))


def _make(tree: tuple[Path, str], name: str) -> Path:
    error: OSError | None = None
    for place in _places(tree):
        try:
            (place / name).mkdir(exist_ok=True)
        except OSError as refused:
            error = refused
        else:
            return place / name
    raise error or FileNotFoundError(str(tree[0]))


def _memory_v1(
    limits: Limits, tree: tuple[Path, str] | None, name: str, resources: Resources, pid: int
) -> None:
    if tree is None:
        limits.missing.append("memory limit: the controller is not mounted")
        return
    limit = memory_limit(resources)
    try:
        folder = _make(tree, name)
        limits.folders.append(str(folder))
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        with contextlib.suppress(OSError):  # absent without swap accounting
            (folder / "memory.memsw.limit_in_bytes").write_text(str(limit))
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        limits.missing.append(f"memory limit: {error}")
        return
    limits.held_by.append("cgroup-v1-memory")
    limits.memory_limit_bytes = limit
    limits.memory_usage_file = str(folder / "memory.usage_in_bytes")


def _cpu_v1(
    limits: Limits, tree: tuple[Path, str] | None, name: str, resources: Resources, pid: int
) -> None:
    if tree is None:
        limits.missing.append("CPU weight: the controller is not mounted")
        return
    shares = max(2, int(resources.vcpus * SHARES_PER_VCPU))
    try:
        folder = _make(tree, name)
        limits.folders.append(str(folder))
        (folder / "cpu.shares").write_text(str(shares))
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        limits.missing.append(f"CPU weight: {error}")
        return
    limits.held_by.append("cgroup-v1-cpu")
    limits.cpu_weight = shares


def _version_2(
    limits: Limits, tree: tuple[Path, str], name: str, resources: Resources, pid: int
) -> None:
    refused = ""
    for place in _places(tree):
        folder = place / name
        try:
            (place / "cgroup.subtree_control").write_text("+cpu +memory")
            folder.mkdir(exist_ok=True)
            limits.folders.append(str(folder))
            _fill_v2(limits, folder, resources, pid)
        except OSError as error:
            refused = refused or str(error)
            continue
        return
    limits.missing.append(f"memory limit and CPU weight: {refused}")


def _fill_v2(limits: Limits, folder: Path, resources: Resources, pid: int) -> None:
    limit = memory_limit(resources)
    weight = min(10_000, max(1, int(resources.vcpus * WEIGHT_PER_VCPU)))
    (folder / "memory.max").write_text(str(limit))
    with contextlib.suppress(OSError):  # absent without swap
        (folder / "memory.swap.max").write_text("0")
    (folder / "cpu.weight").write_text(str(weight))
    (folder / "cgroup.procs").write_text(str(pid))
    limits.held_by += ["cgroup-v2-memory", "cgroup-v2-cpu"]
    limits.memory_limit_bytes = limit
    limits.memory_usage_file = str(folder / "memory.current")
    limits.cpu_weight = weight
