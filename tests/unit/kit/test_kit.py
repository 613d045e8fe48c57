"""The small building blocks."""

import asyncio
from collections.abc import Callable

import pytest

from roost.kit.ids import ALPHABET, ID_LENGTH, SeededIds, SystemIds
from roost.kit.money import NANO, charge_nano_usd, nano_usd, usd
from roost.kit.queue import KeyedQueue
from roost.kit.retry import RetryPolicy
from roost.kit.story import story_digest


def test_ids_have_a_prefix_and_safe_letters() -> None:
    for ids in (SystemIds(), SeededIds(1)):
        made = ids.new("s")
        prefix, _, rest = made.partition("-")
        assert prefix == "s"
        assert len(rest) == ID_LENGTH
        assert set(rest) <= set(ALPHABET)
        assert len(ids.secret()) >= 43
    assert len({SystemIds().new("s") for _ in range(1000)}) == 1000


def test_seeded_ids_repeat() -> None:
    a, b, c = SeededIds(7), SeededIds(7), SeededIds(8)
    made = [[ids.new("x") for _ in range(5)] + [ids.secret()] for ids in (a, b, c)]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_money_is_exact() -> None:
    assert nano_usd(0.1) * 3 == nano_usd(0.3)
    assert charge_nano_usd(3.6, 3600) == nano_usd(3.6)
    assert charge_nano_usd(3.6, 1) == NANO // 1000
    assert charge_nano_usd(0.0001, 0) == 0
    assert usd(nano_usd(1.25)) == 1.25


def test_retry_grows_to_its_ceiling_and_jitters_upwards() -> None:
    policy = RetryPolicy(first_s=0.1, factor=2.0, ceiling_s=1.0)
    assert [policy.delay_s(n) for n in range(1, 6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])
    assert policy.delay_s(100) == 1.0
    assert policy.delay_s(1, draw=1.0) == pytest.approx(0.125)


def test_the_digest_depends_on_order_and_on_every_part() -> None:
    lines = [("a", "Started", "why"), ("b", "Ended", "")]
    digest = story_digest(lines)
    assert digest == story_digest(iter(lines))
    assert len(digest) == 32
    assert digest != story_digest(lines[::-1])
    assert digest != story_digest([("a", "Started", "whyb"), ("", "Ended", "")])
    assert story_digest([("ab", "c", "")]) != story_digest([("a", "bc", "")])


async def _until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.001)


def _fail(key: str, error: Exception) -> None:
    raise AssertionError(f"{key}: {error}")


async def test_a_key_is_never_handled_twice_at_once_and_once_more_if_woken_meanwhile() -> None:
    running = peak = 0
    gate = asyncio.Event()
    handled: list[str] = []

    async def handle(key: str) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await gate.wait()
        handled.append(key)
        running -= 1

    queue = KeyedQueue(handle, on_error=_fail)
    queue.wake("a")
    await asyncio.sleep(0)
    for _ in range(5):
        queue.wake("a")
    gate.set()
    await _until(lambda: len(handled) == 2 and not running)
    await asyncio.sleep(0)
    assert (handled, peak) == (["a", "a"], 1)
    await queue.stop()


async def test_parallelism_is_bounded() -> None:
    running = peak = done = 0

    async def handle(key: str) -> None:
        nonlocal running, peak, done
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        done += 1

    queue = KeyedQueue(handle, on_error=_fail, parallel=3)
    for n in range(20):
        queue.wake(str(n))
    await _until(lambda: done == 20)
    assert peak == 3
    await queue.stop()


async def test_a_returned_delay_and_a_failure_bring_the_key_back() -> None:
    errors: list[str] = []
    calls = 0

    async def handle(key: str) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            return 0.001
        if calls == 2:
            raise ValueError("once")
        return None

    policy = RetryPolicy(first_s=0.001)
    queue = KeyedQueue(handle, on_error=lambda k, e: errors.append(f"{k} {e}"), retry=policy)
    queue.wake("a")
    await _until(lambda: calls == 3)
    assert errors == ["a once"]
    await queue.stop()


async def test_stop_cancels_and_ignores_later_wakes() -> None:
    cancelled = asyncio.Event()

    async def handle(key: str) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    queue = KeyedQueue(handle, on_error=_fail)
    queue.wake("a")
    await asyncio.sleep(0)
    await queue.stop()
    assert cancelled.is_set()
    queue.wake("b")
    await asyncio.sleep(0)
