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
SERVE = """
import os, socket, time
server = socket.create_server((os.environ["HOST"], int(os.environ["PORT"])))
time.sleep(600)
"""
BURN = "while True: pass"


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

    def telling(self, task_id: str, text: str) -> TaskOrder:
        log = str(self.folder / f"{task_id}.log")
        return TaskOrder(task_id=task_id, argv=("sh", "-c", f"echo {text}; exit 3"), log_path=log)

    def serving(self, task_id: str, address: str, port: int) -> TaskOrder:
        argv = (sys.executable, "-c", SERVE)
        return TaskOrder(task_id=task_id, argv=argv, address=address, port=port)

    def absent(self, task_id: str) -> TaskOrder:
        return TaskOrder(task_id=task_id, argv=("/no/such/program",))

    def burning(self, task_id: str) -> TaskOrder:
        return TaskOrder(task_id=task_id, argv=(sys.executable, "-c", BURN))


@pytest.fixture
def bench() -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    yield Bench(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_process_driver(check: Check, bench: Bench) -> None:
    await check(bench)
    assert await bench.open().recover() == []
