"""Virtual time keeps asyncio's promises."""

import asyncio
import time

import pytest

from roost.sim.faults import CALM, Streams, draw_swarm
from roost.sim.loop import START_S, NothingLeft, VirtualClock, run_virtual


def test_a_day_passes_at_once_and_in_order() -> None:
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, asyncio.get_running_loop().time()))

    async def main() -> float:
        clock = VirtualClock(asyncio.get_running_loop())
        await asyncio.gather(sleeper("day", 86_400.0), sleeper("second", 1.0), sleeper("b", 1.0))
        assert clock.now_s() == START_S + clock.monotonic_s()
        return clock.monotonic_s()

    began = time.perf_counter()
    assert run_virtual(main) == pytest.approx(86_400.0)
    assert time.perf_counter() - began < 5.0
    assert [name for name, _ in seen] == ["second", "b", "day"]
    assert [at for _, at in seen] == pytest.approx([1.0, 1.0, 86_400.0])


def test_timeouts_work() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30.0):
                await asyncio.get_running_loop().create_future()
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == pytest.approx(30.0)


def test_waiting_for_nothing_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(NothingLeft):
        run_virtual(main)


def test_what_is_left_running_is_ended() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            ended.append("yes")

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(forever())
        await asyncio.sleep(1.0)
        assert not task.done()

    run_virtual(main)
    assert ended == ["yes"]


def test_streams_are_independent_and_repeat() -> None:
    first, second = Streams(7), Streams(7)
    first("other").random()
    assert [first("a").random() for _ in range(3)] == [second("a").random() for _ in range(3)]
    assert Streams(8)("a").random() != Streams(7)("a").random()


def test_each_seed_draws_other_faults() -> None:
    drawn = [draw_swarm(Streams(seed)("swarm")) for seed in range(50)]
    assert drawn[3] == draw_swarm(Streams(3)("swarm"))
    on = [swarm.names() for swarm in drawn]
    assert len(set(on)) > 40
    for name in draw_swarm(Streams(0)("swarm")).names():
        share = sum(name in names for names in on) / len(on)
        assert 0.3 < share < 0.9, name
    assert CALM.names() == ()
