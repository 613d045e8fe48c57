"""The local provider keeps the contract of providers, with namespaces and with the mark alone."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.providers.local import LocalProvider
from roost.ports.provider import Order, Provider
from roost.ports.values import Image, Offer, PurchaseOption, Resources
from roost.testing.provider import CHECKS, Check

AGENT = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
CLOCK = SystemClock()


class Bench:
    """A state directory as a world."""

    def __init__(self, folder: Path, force_mark: bool) -> None:
        self.folder = folder
        self.force_mark = force_mark

    def open(self) -> Provider:
        return LocalProvider(
            self.folder, clock=CLOCK, agent_argv=AGENT, uv="/bin/false", force_mark=self.force_mark
        )

    def order(self, name: str) -> Order:
        offer = Offer(
            provider="gcp",
            region="europe-west4",
            zone="europe-west4-a",
            instance_type="e2-standard-2",
            purchase_option=PurchaseOption.SPOT,
            price_usd_hour=0.02,
            on_demand_usd_hour=0.07,
            resources=Resources(vcpus=2, memory_gib=8),
        )
        return Order(
            token=f"token-{name}",
            host_id=f"i-{self.folder.name.removeprefix('rt-').replace('_', '-')}-{name}",
            offer=offer,
            image=Image(name="none", python=""),
            join_token="secret",
            link_address="127.0.0.1:1",
        )

    def now_s(self) -> float:
        return CLOCK.now_s()


@pytest.fixture(params=[False, True], ids=["namespaces", "mark"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    bench = Bench(folder, request.param)
    yield bench

    async def end() -> None:
        provider = bench.open()
        for seen in await provider.instances():
            await provider.terminate(seen.provider_id)

    asyncio.run(end())
    shutil.rmtree(folder)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_local_provider(check: Check, bench: Bench) -> None:
    await check(bench)
