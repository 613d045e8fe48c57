"""The process driver keeps the contract of drivers."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.process import ProcessDriver
from roost.ports.driver import Driver, TaskOrder
from roost.testing.driver import CHECKS, Check

STUBBORN = "import signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"


class Bench:
    """A folder as a host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> Driver:
        return ProcessDriver(self.folder / "tasks", clock=SystemClock())

    def order(self, task_id: str) -> TaskOrder:
        return TaskOrder(task_id=task_id, argv=("sleep", "600"), cwd=str(self.folder))

    def stubborn(self, task_id: str) -> TaskOrder:
        return TaskOrder(task_id=task_id, argv=(sys.executable, "-c", STUBBORN))

    def brief(self, task_id: str) -> TaskOrder:
        return TaskOrder(task_id=task_id, argv=("true",))


@pytest.fixture
def bench() -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    yield Bench(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_process_driver(check: Check, bench: Bench) -> None:
    await check(bench)
    assert await bench.open().recover() == []
