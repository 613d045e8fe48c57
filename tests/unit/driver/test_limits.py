"""Limits of processes: by cgroups where this machine permits them; what is counted either way."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.process import ProcessDriver
from roost.adapters.drivers.process.limits import Groups, Trees, find_trees
from roost.ports.driver import TaskLimits, TaskOrder, TaskUsage

CLOCK = SystemClock()
HELD = Groups("probe").held


@pytest.fixture
def folder() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    yield found
    shutil.rmtree(found)


def order(folder: Path, code: str, **limits: float) -> TaskOrder:
    return TaskOrder(
        task_id=f"t-{folder.name}",
        argv=(sys.executable, "-c", code),
        log_path=str(folder / "out.log"),
        limits=TaskLimits(**limits),
    )


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def used(driver: ProcessDriver, task_id: str, most_s: float) -> TaskUsage:
    """Its usage once it has used some processor time."""
    async with asyncio.timeout(20):
        while True:
            found = await driver.usage(task_id)
            if found.cpu_s is not None and found.cpu_s > most_s:
                return found
            await asyncio.sleep(0.02)


@pytest.mark.skipif("memory_mib" not in HELD, reason="no memory cgroup may be made here")
async def test_memory_over_the_limit_ends_the_task_and_says_so(folder: Path) -> None:
    driver = ProcessDriver(folder / "tasks", clock=CLOCK)
    eat = "x = bytearray(80 << 20); x[::4096] = b'x' * len(x[::4096]); print('survived')"
    task = order(folder, eat, memory_mib=40)
    await driver.start(task)
    await eventually(lambda: driver.exit_code(task.task_id) is not None)
    assert await driver.ended(task.task_id) == 137
    assert "more than its 40 MiB" in await driver.logs(task.task_id, tail_bytes=1000)
    places = [place for place in find_trees().places.values() if place.is_dir()]
    assert any(p.name.endswith(task.task_id) for place in places for p in place.iterdir())
    await driver.stop(task.task_id, grace_s=0.0)
    assert not any(p.name.endswith(task.task_id) for place in places for p in place.iterdir())


@pytest.mark.skipif("vcpus" not in HELD, reason="no CPU cgroup may be made here")
async def test_half_a_core_is_half_a_core(folder: Path) -> None:
    driver = ProcessDriver(folder / "tasks", clock=CLOCK)
    task = order(folder, "while True: pass", vcpus=0.25)
    await driver.start(task)
    first = await used(driver, task.task_id, 0.1)
    began_s = CLOCK.monotonic_s()
    last = await used(driver, task.task_id, (first.cpu_s or 0.0) + 0.3)
    passed_s = CLOCK.monotonic_s() - began_s
    assert last.cpu_s is not None
    assert first.cpu_s is not None
    # Never more than its quota and one period of it; a busy machine only makes it less.
    assert last.cpu_s - first.cpu_s <= 0.25 * passed_s + 0.1
    await driver.stop(task.task_id, grace_s=0.0)


async def test_without_groups_usage_is_read_from_its_processes(folder: Path) -> None:
    driver = ProcessDriver(folder / "tasks", clock=CLOCK, groups=Groups("x", Trees({})))
    assert driver.held == ()
    code = "import subprocess, sys; x = bytearray(b'x' * (30 << 20)); " + (
        "subprocess.run([sys.executable, '-c', 'while True: pass'])"
    )
    task = order(folder, code, vcpus=1, memory_mib=40)
    await driver.start(task)
    found = await used(driver, task.task_id, 0.3)
    assert found.memory_mib is not None
    assert found.memory_mib > 30
    await driver.stop(task.task_id, grace_s=0.0)
    assert await driver.usage(task.task_id) == TaskUsage()


def test_trees_of_both_versions_are_found(folder: Path) -> None:
    one = folder / "one"
    (one / "cpu" / "mine").mkdir(parents=True)
    (one / "memory").mkdir()
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text("2:cpuacct:/\n1:cpu:/mine\n4:memory:/gone\n0::/\n")
    mounts = [f"30 20 0:2{n} / {one / n} rw - cgroup cgroup rw,{n}" for n in ("cpu", "memory")]
    (proc / "mountinfo").write_text("\n".join(mounts) + "\n")
    found = find_trees(proc)
    assert found == Trees({"cpu": one / "cpu" / "mine", "memory": one / "memory"})
    two = folder / "two"
    (two / "host" / "agent").mkdir(parents=True)
    (proc / "cgroup").write_text("0::/host/agent\n")
    (proc / "mountinfo").write_text(f"30 20 0:20 / {two} rw - cgroup2 cgroup rw\n")
    found = find_trees(proc)
    assert found.unified
    assert set(found.places.values()) == {two / "host"}
    groups = Groups("p", found)
    assert groups.held == ("vcpus", "memory_mib")
    groups.hold("t", TaskLimits(vcpus=0.5, memory_mib=64), 4242)
    made = two / "host" / "roost-p-t"
    assert (made / "cpu.max").read_text() == "50000 100000"
    assert (made / "memory.max").read_text() == str(64 << 20)
    assert (made / "cgroup.procs").read_text() == "4242"


def test_where_nothing_may_be_made_nothing_is_held(folder: Path) -> None:
    proc = folder / "proc"
    proc.mkdir()
    assert find_trees(proc) == Trees({})
    assert Groups("p", Trees({})).held == ()
