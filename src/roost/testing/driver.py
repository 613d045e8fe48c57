"""The contract of ``ports.driver.Driver``: what every implementation must do.

``CHECKS`` are coroutine functions that take a ``Bench``; its orders run until they are stopped. An
implementation's test runs each on a fresh bench and ends what is left. Never knows how tasks are run.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from roost.ports.driver import Driver, TaskOrder

ROUNDS = 400
PAUSE_S = 0.05


class Bench(Protocol):
    """A host of its own."""

    def open(self) -> Driver:
        """Another driver on the same host, as after a restart of the agent."""

    def order(self, task_id: str) -> TaskOrder:
        """A task that runs until SIGTERM."""

    def stubborn(self, task_id: str) -> TaskOrder:
        """A task that ignores SIGTERM (once it has begun)."""

    def brief(self, task_id: str) -> TaskOrder:
        """A task that ends at once by itself."""


Check = Callable[[Bench], Awaitable[None]]


async def _ends(driver: Driver, task_id: str) -> None:
    for _ in range(ROUNDS):
        if not await driver.alive(task_id):
            return
        await asyncio.sleep(PAUSE_S)
    raise AssertionError(f"{task_id} still runs")


async def same_id_is_same_task(bench: Bench) -> None:
    """Starting twice starts once, also by another driver."""
    driver = bench.open()
    first = await driver.start(bench.order("a"))
    assert await driver.start(bench.order("a")) == first
    assert await bench.open().start(bench.order("a")) == first
    await driver.stop("a", grace_s=5.0)


async def recovered_by_another(bench: Bench) -> None:
    """A task outlives its driver's knowledge and is found by the next one."""
    first = await bench.open().start(bench.order("a"))
    second = await bench.open().start(bench.order("b"))
    driver = bench.open()
    assert sorted(await driver.recover(), key=lambda handle: handle.task_id) == [first, second]
    assert await driver.alive("a")
    await driver.stop("a", grace_s=5.0)
    assert [handle.task_id for handle in await driver.recover()] == ["b"]
    await driver.stop("b", grace_s=5.0)


async def stop_kills_after_the_grace(bench: Bench) -> None:
    """A task that does not listen is killed."""
    driver = bench.open()
    await driver.start(bench.stubborn("a"))
    await asyncio.sleep(10 * PAUSE_S)
    await driver.stop("a", grace_s=0.2)
    assert not await driver.alive("a")


async def stopping_the_unknown_is_fine(bench: Bench) -> None:
    """Unknown and ended tasks may be stopped."""
    driver = bench.open()
    await driver.stop("never-seen", grace_s=0.1)
    await driver.start(bench.order("a"))
    await driver.stop("a", grace_s=5.0)
    await driver.stop("a", grace_s=5.0)
    assert not await driver.alive("a")
    assert not await driver.alive("never-seen")


async def ended_task_is_not_alive(bench: Bench) -> None:
    """A task that ended by itself is neither alive nor recovered, and its id may be started again."""
    driver = bench.open()
    first = await driver.start(bench.brief("a"))
    await _ends(driver, "a")
    assert await driver.recover() == []
    assert await bench.open().recover() == []
    again = await driver.start(bench.order("a"))
    assert (again.pid, again.started_ticks) != (first.pid, first.started_ticks)
    await driver.stop("a", grace_s=5.0)


CHECKS: tuple[Check, ...] = (
    same_id_is_same_task,
    recovered_by_another,
    stop_kills_after_the_grace,
    stopping_the_unknown_is_fine,
    ended_task_is_not_alive,
)
