"""The contract of ``ports.provider.Provider``: what every implementation must do.

``CHECKS`` are coroutine functions that take a ``Bench``. An implementation's test runs each on a fresh
bench. Waiting is polling with ``asyncio.sleep``, so the checks run in virtual time as well. Never knows
which implementation it checks; what a provider says it cannot do (``Never``, ``can_stop``) is skipped.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from roost.ports.errors import Gone, Never
from roost.ports.provider import InstanceState, LedgerLine, Order, Provider, ProviderInstance
from roost.ports.values import Notice, NoticeKind

ROUNDS = 400
PAUSE_S = 0.05


class Bench(Protocol):
    """A world of its own with one provider."""

    def open(self) -> Provider:
        """Another handle on the same world, as after a restart of the control plane."""

    def order(self, name: str) -> Order:
        """A valid order; the same name gives the same order."""

    def now_s(self) -> float:
        """The world's wall clock."""


Check = Callable[[Bench], Awaitable[None]]


async def _find(provider: Provider, provider_id: str) -> ProviderInstance:
    for seen in await provider.instances():
        if seen.provider_id == provider_id:
            return seen
    raise AssertionError(f"{provider_id} is not listed")


async def _until(provider: Provider, provider_id: str, state: InstanceState) -> ProviderInstance:
    for _ in range(ROUNDS):
        seen = await _find(provider, provider_id)
        if seen.state is state:
            return seen
        await asyncio.sleep(PAUSE_S)
    raise AssertionError(f"{provider_id} is {seen.state}, expected {state}")


async def _lines(provider: Provider, provider_id: str) -> list[LedgerLine]:
    return [line for line in await provider.ledger() if line.provider_id == provider_id]


async def same_token_is_same_instance(bench: Bench) -> None:
    """A repeated launch returns the first instance, also on a new handle."""
    provider = bench.open()
    first = await provider.launch(bench.order("a"))
    again = await provider.launch(bench.order("a"))
    afterwards = await bench.open().launch(bench.order("a"))
    assert first.provider_id == again.provider_id == afterwards.provider_id
    assert len(await provider.instances()) == 1


async def list_shows_a_launch_whose_reply_was_lost(bench: Bench) -> None:
    """The list has token and host id of an instance whose launch nobody heard about."""
    order = bench.order("a")
    await bench.open().launch(order)
    seen = await bench.open().instances()
    assert [(i.token, i.host_id, i.ended_s) for i in seen] == [(order.token, order.host_id, None)]


async def comes_up(bench: Bench) -> None:
    """Pending becomes running by itself; the times make sense."""
    provider, began = bench.open(), bench.now_s()
    launched = await provider.launch(bench.order("a"))
    assert launched.state in (InstanceState.PENDING, InstanceState.RUNNING)
    seen = await _until(provider, launched.provider_id, InstanceState.RUNNING)
    assert began - 1 <= seen.launched_s <= bench.now_s()
    assert seen.ended_s is None


async def list_is_ordered(bench: Bench) -> None:
    """Instances come ordered by id."""
    provider = bench.open()
    for name in ("c", "a", "b"):
        await provider.launch(bench.order(name))
    ids = [seen.provider_id for seen in await provider.instances()]
    assert len(ids) == 3
    assert ids == sorted(ids)


async def terminate_twice(bench: Bench) -> None:
    """Ending twice is fine, at any age; the ended instance stays listed with its reason."""
    provider = bench.open()
    launched = await provider.launch(bench.order("a"))
    await provider.terminate(launched.provider_id)
    await provider.terminate(launched.provider_id)
    seen = await _until(provider, launched.provider_id, InstanceState.TERMINATED)
    await bench.open().terminate(launched.provider_id)
    assert seen.reason == "terminated"
    assert seen.ended_s is not None
    assert seen.ended_s >= seen.launched_s


async def ended_token_starts_nothing(bench: Bench) -> None:
    """The token of an ended instance still means that instance."""
    provider = bench.open()
    launched = await provider.launch(bench.order("a"))
    await provider.terminate(launched.provider_id)
    again = await provider.launch(bench.order("a"))
    assert again.provider_id == launched.provider_id
    await _until(provider, launched.provider_id, InstanceState.TERMINATED)
    assert len(await _lines(provider, launched.provider_id)) == 1


async def unknown_id_is_gone(bench: Bench) -> None:
    """Every call about an id never seen raises ``Gone`` (or ``Never`` where it is not supported)."""
    provider = bench.open()
    notice = Notice(kind=NoticeKind.INTERRUPTION, seen_s=bench.now_s())
    calls: tuple[Awaitable[None], ...] = (
        provider.terminate("no-such-instance"),
        provider.stop("no-such-instance"),
        provider.start("no-such-instance"),
        provider.kill("no-such-instance"),
        provider.interrupt("no-such-instance", notice),
    )
    for number, call in enumerate(calls):
        try:
            await call
        except Gone:
            continue
        except Never:
            assert number > 0, "terminate is always supported"
            continue
        raise AssertionError(f"call {number} accepted an unknown id")


async def ledger_follows_the_instance(bench: Bench) -> None:
    """One interval, open while it runs, closed at its end, at the price of the order."""
    provider, order = bench.open(), bench.order("a")
    launched = await provider.launch(order)
    await _until(provider, launched.provider_id, InstanceState.RUNNING)
    (line,) = await _lines(provider, launched.provider_id)
    assert line.ended_s is None
    assert line.price_usd_hour == order.offer.price_usd_hour
    await provider.terminate(launched.provider_id)
    seen = await _until(provider, launched.provider_id, InstanceState.TERMINATED)
    (line,) = await _lines(bench.open(), launched.provider_id)
    assert line.ended_s is not None
    assert line.started_s <= line.ended_s == seen.ended_s


async def nothing_is_charged_while_stopped(bench: Bench) -> None:
    """Stop closes the interval, start opens another; both may be repeated."""
    provider = bench.open()
    if not provider.capabilities.can_stop:
        return
    name = (await provider.launch(bench.order("a"))).provider_id
    await _until(provider, name, InstanceState.RUNNING)
    await provider.stop(name)
    await provider.stop(name)
    await _until(provider, name, InstanceState.STOPPED)
    (first,) = await _lines(provider, name)
    assert first.ended_s is not None
    await asyncio.sleep(PAUSE_S)
    provider = bench.open()
    await provider.start(name)
    await provider.start(name)
    await _until(provider, name, InstanceState.RUNNING)
    closed, opened = await _lines(provider, name)
    assert closed == first
    assert opened.ended_s is None
    assert opened.started_s >= first.ended_s
    await provider.stop(name)
    await provider.terminate(name)
    await _until(provider, name, InstanceState.TERMINATED)
    assert all(line.ended_s is not None for line in await _lines(provider, name))


async def killed_is_lost(bench: Bench) -> None:
    """A machine taken without notice ends with reason ``lost``; its interval is closed."""
    provider = bench.open()
    name = (await provider.launch(bench.order("a"))).provider_id
    await _until(provider, name, InstanceState.RUNNING)
    try:
        await provider.kill(name)
    except Never:
        return
    seen = await _until(provider, name, InstanceState.TERMINATED)
    (line,) = await _lines(provider, name)
    assert seen.reason == "lost"
    assert line.ended_s == seen.ended_s


async def interrupted_at_the_deadline(bench: Bench) -> None:
    """The notice's deadline takes the machine, not sooner."""
    provider = bench.open()
    name = (await provider.launch(bench.order("a"))).provider_id
    await _until(provider, name, InstanceState.RUNNING)
    deadline = bench.now_s() + 1.0
    notice = Notice(kind=NoticeKind.INTERRUPTION, seen_s=bench.now_s(), deadline_s=deadline)
    try:
        await provider.interrupt(name, notice)
        await provider.interrupt(name, notice)
    except Never:
        return
    seen = await _until(provider, name, InstanceState.TERMINATED)
    assert seen.reason == "interrupted"
    assert seen.ended_s is not None
    assert deadline <= seen.ended_s <= deadline + 2.0


async def recommendation_takes_nothing(bench: Bench) -> None:
    """A rebalance recommendation alone leaves the instance running."""
    provider = bench.open()
    name = (await provider.launch(bench.order("a"))).provider_id
    await _until(provider, name, InstanceState.RUNNING)
    try:
        await provider.interrupt(name, Notice(kind=NoticeKind.REBALANCE, seen_s=bench.now_s()))
    except Never:
        return
    for _ in range(10):
        await asyncio.sleep(PAUSE_S)
        assert (await _find(provider, name)).state is InstanceState.RUNNING


CHECKS: tuple[Check, ...] = (
    same_token_is_same_instance,
    list_shows_a_launch_whose_reply_was_lost,
    comes_up,
    list_is_ordered,
    terminate_twice,
    ended_token_starts_nothing,
    unknown_id_is_gone,
    ledger_follows_the_instance,
    nothing_is_charged_while_stopped,
    killed_is_lost,
    interrupted_at_the_deadline,
    recommendation_takes_nothing,
)
