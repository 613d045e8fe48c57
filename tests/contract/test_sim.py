"""The simulator's fakes keep the contracts of the real adapters, on virtual time."""

import asyncio
from dataclasses import replace

import pytest

from roost.adapters.store.sqlite.store import open_store
from roost.ports.provider import Order, Provider
from roost.ports.store import Store
from roost.ports.values import Image
from roost.sim.control import BreakingStore, DistantProvider
from roost.sim.faults import CALM
from roost.sim.loop import run_virtual
from roost.sim.market import OFFERS
from roost.sim.provider import SimProvider
from roost.sim.world import World
from roost.testing import provider as provider_contract
from roost.testing import store as store_contract


class Bench:
    """A world with one cloud, at the other end of a network without faults."""

    def __init__(self) -> None:
        self.world = World(0, replace(CALM, boot_s=10.0))
        self.cloud = SimProvider(self.world, "gcp", lambda machine: None, lambda machine: None)

    def open(self) -> Provider:
        return DistantProvider(self.world, self.world.life, self.cloud)

    def order(self, name: str) -> Order:
        return Order(
            token=f"token-{name}",
            host_id=f"i-{name}",
            offer=OFFERS[0],
            image=Image(name="none", python=""),
            join_token="secret",
            link_address="127.0.0.1:1",
        )

    def now_s(self) -> float:
        return self.world.now_s()


@pytest.mark.parametrize("check", provider_contract.CHECKS, ids=lambda check: check.__name__)
def test_simulated_provider(check: provider_contract.Check) -> None:
    async def main() -> None:
        await check(Bench())

    run_virtual(main)


KEPT_OPEN = (store_contract.check_closed_raises,)
"""The simulated control plane's store outlives it: closing the wrapper closes nothing."""


@pytest.mark.parametrize(
    "check",
    [check for check in store_contract.CHECKS if check not in KEPT_OPEN],
    ids=lambda check: check.__name__,
)
def test_store_of_the_simulated_control_plane(check: store_contract.Check) -> None:
    async def main() -> None:
        world = World(0, CALM)
        store: Store = open_store(None)
        await check(lambda: BreakingStore(world, world.life, store))
        await store.close()
        await asyncio.sleep(0)

    run_virtual(main)
