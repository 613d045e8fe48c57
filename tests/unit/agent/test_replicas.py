"""Replicas as real processes on one host: started, checked, restarted, drained, adopted."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from .replicas import Bench, bench, orders


@pytest.fixture
async def host() -> AsyncIterator[Bench]:
    async with bench() as made:
        yield made


async def test_replicas_start_serve_and_end(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2"))
        await host.ready("r-1", "r-2")
        said = {(await host.ask("/")).text for _ in range(4)}
        assert said == {"r-1", "r-2"}
        answer = await host.ask("/")
        assert answer.load["slots"] == 2
        await host.set(2)
        await asyncio.sleep(2)
        assert host.states() == {}
        print(host.host.services())
