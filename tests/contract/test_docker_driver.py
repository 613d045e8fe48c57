"""The Docker driver keeps the contract of drivers, on a real engine."""

import secrets
from collections.abc import AsyncIterator

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.docker import DockerDriver
from roost.ports.driver import TaskOrder
from roost.testing.driver import CHECKS, Check
from tests.contract.test_driver import BURN, SERVE, STUBBORN
from tests.support.docker import need_engine


class Bench:
    """A host of its own on the engine: its name is in the label of its containers."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.owner = f"test-{secrets.token_hex(4)}"
        self.opened: list[DockerDriver] = []

    def open(self) -> DockerDriver:
        self.opened.append(DockerDriver(self.owner, clock=SystemClock(), pull_s=20.0))
        return self.opened[-1]

    def _order(self, task_id: str, *argv: str) -> TaskOrder:
        return TaskOrder(task_id=task_id, argv=argv, image=self.image)

    def order(self, task_id: str) -> TaskOrder:
        return self._order(task_id, "sleep", "600")

    def stubborn(self, task_id: str) -> TaskOrder:
        return self._order(task_id, "python3", "-c", STUBBORN)

    def brief(self, task_id: str) -> TaskOrder:
        return self._order(task_id, "true")

    def telling(self, task_id: str, text: str) -> TaskOrder:
        return self._order(task_id, "sh", "-c", f"echo {text}; exit 3")

    def serving(self, task_id: str, address: str, port: int) -> TaskOrder:
        argv = ("python3", "-c", SERVE)
        return TaskOrder(task_id=task_id, argv=argv, image=self.image, address=address, port=port)

    def absent(self, task_id: str) -> TaskOrder:
        return TaskOrder(task_id=task_id, argv=("true",), image="roost.invalid/no/such:image")

    def burning(self, task_id: str) -> TaskOrder:
        return self._order(task_id, "python3", "-c", BURN)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench(need_engine())
    yield made
    driver = made.open()
    for name in ("a", "b"):
        await driver.stop(name, grace_s=0.0)
    for opened in made.opened:
        await opened.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_docker_driver(check: Check, bench: Bench) -> None:
    await check(bench)
    assert await bench.open().recover() == []
