"""A session on a simulated cluster in a recorded market: it leaves a pool that turns bad, between two cells,
and says why."""

import asyncio
from collections.abc import Callable

import pytest

from roost.market.play import play
from roost.notebooks.model import Cause, Session
from roost.ports.values import Ask, Image, Offer
from roost.sim import market
from roost.sim.faults import CALM
from roost.sim.loop import run_virtual
from roost.sim.scenario import Scenario
from roost.sim.user import TypingUser

TICK_S = 300.0
BAD, DOWN, UP = 3, 6, 12
"""Ticks: when the forecast turns, when the pool goes down, when it is up again."""


class Recorded:
    """A recording of two pools, one of which goes down, with what a forecast said of it before."""

    def __init__(self, now_s: float) -> None:
        up = [[True, not DOWN <= tick < UP] for tick in range(48)]
        self.market = play("two", ("r1", "r2"), ("r1", "r2"), TICK_S, up, began_s=now_s, speed=1.0)
        self.now_s: Callable[[], float] = lambda: now_s

    def bad(self, offer: Offer) -> bool:
        return self.market.pool_of(offer).zone == "r2"

    def hazard_hour(self, offer: Offer) -> float:
        at_s = self.now_s() - self.market.began_s
        return 3.0 if self.bad(offer) and BAD * TICK_S <= at_s < UP * TICK_S else 0.001


class Stage:
    """A scenario with people who type, and no disturbers."""

    def __init__(self) -> None:
        self.scenario = Scenario(1, 1.0, CALM)
        self._second = 0

    async def begin(self, name: str, *, stay: bool) -> str:
        control = self.scenario.control
        made = await control.notebooks.start(
            name=name,
            ask=Ask(vcpus=4.0, memory_gib=16.0),
            image=Image(name="python", python="3.11"),
            stay=stay,
        )
        self.scenario.standby[made.id] = True
        self.scenario.scene.users[made.id] = TypingUser(
            self.scenario.world, self.scenario.hub, self.scenario.edge, made.id, self.scenario.scene
        )
        return made.id

    async def session(self, session_id: str) -> Session:
        return await self.scenario.control.notebooks.get(session_id)

    async def offer(self, session_id: str) -> Offer:
        session = await self.session(session_id)
        return (await self.scenario.control.fleet.instance(session.host_id)).offer

    async def pass_(self, seconds: float) -> None:
        """Let time pass; everything that must hold is looked at now and then."""
        for _ in range(round(seconds / 10.0)):
            self._second += 10
            await asyncio.sleep(10.0)
            await self.scenario._check(self._second)
            assert not self.scenario.world.violations


def test_it_leaves_a_pool_before_it_is_taken_and_stays_when_told_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        stage = Stage()
        world = stage.scenario.world
        recorded = Recorded(world.now_s())
        recorded.now_s = world.now_s
        monkeypatch.setattr(market, "hazard_hour", recorded.hazard_hour)
        for cloud in stage.scenario.providers.values():
            cloud.conditions = recorded.market
        stage.scenario.control.start()
        moving = await stage.begin("moving", stay=False)
        staying = await stage.begin("staying", stay=True)
        await stage.pass_(BAD * TICK_S - 60.0)
        first = await stage.offer(moving)
        assert recorded.bad(first)
        assert recorded.bad(await stage.offer(staying))
        assert (await stage.session(moving)).moves == ()

        await stage.pass_(60.0 + (DOWN - BAD) * TICK_S)
        (record,) = (await stage.session(moving)).moves
        assert (record.cause, record.from_offer, record.rerun) == (Cause.MARKET, first.key, False)
        assert "USD/h" in record.reason
        assert not recorded.bad(await stage.offer(moving))
        told = [(x.event, x.reason) for x in await stage.scenario.store.story(moving)]
        assert ("MoveBegun", record.reason) in told

        await stage.pass_(0.5 * 3600.0)
        assert {m.cause for m in (await stage.session(staying)).moves} == {Cause.NOTICE}
        assert len((await stage.session(moving)).moves) == 1, "it is calm there"
        for user in stage.scenario.scene.users.values():
            assert user.acknowledged > 50, "they typed on"
        await stage.scenario.close()

    run_virtual(main)
