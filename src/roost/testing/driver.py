"""The contract of ``ports.driver.Driver``: what every implementation must do.

``CHECKS`` are coroutine functions that take a ``Bench``; its orders run until they are stopped. An
implementation's test runs each on a fresh bench and ends what is left. Never knows how tasks are run.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from roost.ports.driver import Driver, TaskOrder, TaskUsage
from roost.ports.errors import Gone, Never

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

    def telling(self, task_id: str, text: str) -> TaskOrder:
        """A task that prints the text and ends with status 3."""

    def serving(self, task_id: str, address: str, port: int) -> TaskOrder:
        """A task that listens where its variables ``HOST`` and ``PORT`` say, until SIGTERM."""

    def absent(self, task_id: str) -> TaskOrder:
        """A task whose program, or image, is not on this host."""

    def burning(self, task_id: str) -> TaskOrder:
        """A task that takes all the processor it gets, until SIGTERM."""


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


async def status_and_output_are_told(bench: Bench) -> None:
    """How a task ended and what it said, until it is stopped; a driver that did not start it may not know."""
    driver = bench.open()
    assert await driver.ended("a") == -1
    await driver.start(bench.telling("a", "said at the end"))
    await _ends(driver, "a")
    assert await driver.ended("a") == 3
    assert "said at the end" in await driver.logs("a", tail_bytes=1000)
    assert "said" not in await driver.logs("a", tail_bytes=8)
    other = bench.open()
    assert await other.ended("a") in (3, -1)
    assert "said at the end" in await other.logs("a", tail_bytes=1000)
    await driver.stop("a", grace_s=0.1)
    await driver.start(bench.order("b"))
    assert await driver.ended("b") is None
    assert await driver.logs("never-seen", tail_bytes=1000) == ""
    await driver.stop("b", grace_s=5.0)


async def killed_is_told(bench: Bench) -> None:
    """128 and the number of the signal."""
    driver = bench.open()
    handle = await driver.start(bench.order("a"))
    os.kill(handle.pid, signal.SIGKILL)
    await _ends(driver, "a")
    assert await driver.ended("a") == 128 + signal.SIGKILL
    await driver.stop("a", grace_s=0.1)


async def reached_where_it_was_told(bench: Bench) -> None:
    """A task listens at its address; the same port at another address is somebody else's."""
    driver = bench.open()
    port = _free_port()
    orders = [bench.serving(name, f"127.77.201.{n}", port) for n, name in ((1, "a"), (2, "b"))]
    for order in orders:
        await driver.start(order)
    for order in orders:
        await _answers(order.address, port)
    await driver.stop("a", grace_s=5.0)
    await _answers(orders[1].address, port)
    try:
        await _connect(orders[0].address, port)
    except OSError:
        pass
    else:
        raise AssertionError("a stopped task still listens")
    await driver.stop("b", grace_s=5.0)


async def absent_is_never(bench: Bench) -> None:
    """What is not on this host is refused for good, and leaves nothing behind."""
    driver = bench.open()
    for _ in range(2):
        try:
            await driver.start(bench.absent("a"))
        except Never:
            pass
        else:
            raise AssertionError("it was started")
    assert not await driver.alive("a")
    assert await driver.recover() == []
    await driver.start(bench.order("a"))
    await driver.stop("a", grace_s=5.0)


async def usage_is_measured(bench: Bench) -> None:
    """Processor time grows and memory is not nothing; of a task that does not run nothing is known."""
    driver = bench.open()
    assert await driver.usage("a") == TaskUsage()
    await driver.start(bench.burning("a"))
    for _ in range(ROUNDS):
        used = await driver.usage("a")
        if used.cpu_s is not None and used.cpu_s > 0.2 and used.memory_mib:
            break
        await asyncio.sleep(PAUSE_S)
    else:
        raise AssertionError(f"a busy task uses {used}")
    again = await bench.open().usage("a")
    assert again.cpu_s is not None and used.cpu_s is not None and again.cpu_s >= used.cpu_s
    await driver.stop("a", grace_s=5.0)
    assert await driver.usage("a") == TaskUsage()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _connect(address: str, port: int) -> None:
    _, writer = await asyncio.open_connection(address, port)
    writer.close()


async def _answers(address: str, port: int) -> None:
    for _ in range(ROUNDS):
        try:
            await _connect(address, port)
        except OSError:
            await asyncio.sleep(PAUSE_S)
        else:
            return
    raise AssertionError(f"nothing listens at {address}:{port}")


async def a_command_runs_beside_a_task(bench: Bench) -> None:
    """With its output and exit status; one whose time is over gets 124; nothing runs beside no task."""
    driver = bench.open()
    await driver.start(bench.order("beside"))
    done = await driver.execute(
        "beside", ("sh", "-c", "echo out; echo err >&2; exit 3"), timeout_s=30
    )
    assert (done.exit_code, sorted(done.output.split())) == (3, ["err", "out"])
    late = await driver.execute("beside", ("sh", "-c", "echo first; sleep 30"), timeout_s=1)
    assert (late.exit_code, late.output) == (124, "first\n")
    await driver.stop("beside", grace_s=5)
    try:
        await driver.execute("beside", ("true",), timeout_s=5)
    except Gone:
        return
    raise AssertionError("nothing runs beside a task that has ended")


CHECKS: tuple[Check, ...] = (
    same_id_is_same_task,
    recovered_by_another,
    stop_kills_after_the_grace,
    stopping_the_unknown_is_fine,
    ended_task_is_not_alive,
    status_and_output_are_told,
    killed_is_told,
    reached_where_it_was_told,
    absent_is_never,
    usage_is_measured,
    a_command_runs_beside_a_task,
)
