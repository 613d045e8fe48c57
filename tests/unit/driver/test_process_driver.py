"""What the contract of drivers leaves open: crashes of the starter, descendants, logs, secrets."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.process import ProcessDriver
from roost.adapters.drivers.process.driver import _marked
from roost.ports.driver import TaskOrder
from roost.ports.errors import Invalid, Never

CLOCK = SystemClock()


@pytest.fixture
def folder() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    yield found
    shutil.rmtree(found)


def name(folder: Path) -> str:
    """A task id that no other test uses: the mark is looked for on the whole machine."""
    return f"t-{folder.name}"


async def eventually(condition: Callable[[], object]) -> None:
    until = CLOCK.monotonic_s() + 20
    while not condition():
        assert CLOCK.monotonic_s() < until, "waited in vain"
        await asyncio.sleep(0.02)


async def test_environment_folder_log_and_secrets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_JOIN_TOKEN", "secret")
    driver = ProcessDriver(folder / "tasks", clock=CLOCK)
    code = "import os, json; print(json.dumps([dict(os.environ), os.getcwd(), os.getsid(0)]))"
    await driver.start(
        TaskOrder(
            task_id=name(folder),
            argv=(sys.executable, "-c", code),
            env={"COLOUR": "blue"},
            cwd=str(folder),
            log_path=str(folder / "logs" / "task.log"),
        )
    )
    await eventually(lambda: driver.exit_code(name(folder)) == 0)
    environ, cwd, session = json.loads((folder / "logs" / "task.log").read_text())
    assert environ["COLOUR"] == "blue"
    assert environ["ROOST_TASK"] == name(folder)
    assert "ROOST_JOIN_TOKEN" not in environ
    assert cwd == str(folder)
    assert session != os.getsid(0)


async def test_descendants_in_other_sessions_end_too(folder: Path) -> None:
    driver = ProcessDriver(folder / "tasks", clock=CLOCK)
    code = (
        "import subprocess, time\n"
        "subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "time.sleep(600)"
    )
    await driver.start(TaskOrder(task_id=name(folder), argv=(sys.executable, "-c", code)))
    await eventually(lambda: len(_marked(name(folder))) == 2)
    await driver.stop(name(folder), grace_s=1.0)
    assert _marked(name(folder)) == []


async def test_descendants_of_a_task_that_died_end_at_its_stop(folder: Path) -> None:
    driver = ProcessDriver(folder / "tasks", clock=CLOCK)
    code = "import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)"
    await driver.start(TaskOrder(task_id=name(folder), argv=(sys.executable, "-c", code)))
    await eventually(lambda: driver.exit_code(name(folder)) == 0)
    assert len(_marked(name(folder))) == 1
    await driver.stop(name(folder), grace_s=1.0)
    assert _marked(name(folder)) == []


async def test_a_start_without_its_record_is_found(folder: Path) -> None:
    """The starter was killed between the start and the record of the pid."""
    driver = ProcessDriver(folder / "tasks", clock=CLOCK)
    order = TaskOrder(task_id=name(folder), argv=("sleep", "600"))
    first = await driver.start(order)
    path = folder / "tasks" / f"{name(folder)}.json"
    path.write_text(json.dumps({"task_id": name(folder), "argv": ["sleep", "600"]}))
    other = ProcessDriver(folder / "tasks", clock=CLOCK)
    assert await other.recover() == [first]
    assert await other.start(order) == first
    await other.stop(name(folder), grace_s=5.0)


async def test_a_task_outlives_its_starter(folder: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n"
        "import asyncio, os, signal, pathlib\n"
        "from roost.adapters.clock import SystemClock\n"
        "from roost.adapters.drivers.process import ProcessDriver\n"
        "from roost.ports.driver import TaskOrder\n"
        f"driver = ProcessDriver(pathlib.Path({str(folder / 'tasks')!r}), clock=SystemClock())\n"
        f"order = TaskOrder(task_id={name(folder)!r}, argv=('sleep', '600'))\n"
        "asyncio.run(driver.start(order))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    starter = subprocess.run([sys.executable, "-c", code], check=False, start_new_session=True)
    assert starter.returncode == -signal.SIGKILL
    driver = ProcessDriver(folder / "tasks", clock=CLOCK)
    (found,) = await driver.recover()
    assert found.task_id == name(folder)
    await driver.stop(name(folder), grace_s=5.0)
    assert not Path(f"/proc/{found.pid}").exists() or not await driver.alive(name(folder))


async def test_a_recycled_pid_is_another_process(folder: Path) -> None:
    driver = ProcessDriver(folder / "tasks", clock=CLOCK)
    file = {"task_id": "old", "argv": ["x"], "pid": os.getpid(), "started_ticks": 1}
    (folder / "tasks" / "old.json").write_text(json.dumps(file))
    assert await driver.recover() == []
    await driver.stop("old", grace_s=0.1)  # and this process lives on
    assert not (folder / "tasks" / "old.json").exists()


async def test_refusals(folder: Path) -> None:
    driver = ProcessDriver(folder / "tasks", clock=CLOCK)
    for task_id in ("", "../x", "a/b", "x" * 80):
        with pytest.raises(Invalid):
            await driver.start(TaskOrder(task_id=task_id, argv=("true",)))
        await driver.stop(task_id, grace_s=0.1)
        assert not await driver.alive(task_id)
    with pytest.raises(Invalid):
        await driver.start(TaskOrder(task_id="a", argv=()))
    with pytest.raises(Never, match="cannot be started"):
        await driver.start(TaskOrder(task_id="a", argv=("/no/such/program",)))
    assert await driver.recover() == []


async def test_drivers_leave_each_others_tasks_of_one_name_alone(folder: Path) -> None:
    one, two = (ProcessDriver(folder / n, clock=CLOCK) for n in ("one", "two"))
    order = TaskOrder(task_id=name(folder), argv=("sleep", "600"))
    await one.start(order)
    await two.start(order)
    await one.stop(order.task_id, grace_s=0.0)
    assert not await one.alive(order.task_id)
    assert await two.alive(order.task_id)
    await two.stop(order.task_id, grace_s=0.0)
