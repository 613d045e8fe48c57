"""Groups over a small cloud: sizes, losses, notices, the scaler and the person."""

from collections.abc import AsyncIterator

import pytest

from roost.fleet.groups.model import HostState, HostUse
from roost.ports.errors import Conflict, Gone, Invalid
from tests.support.groups import GroupWorld


@pytest.fixture
async def world() -> AsyncIterator[GroupWorld]:
    made = GroupWorld()
    yield made
    await made.store.close()


async def test_a_group_is_kept_at_what_the_scaler_wants(world: GroupWorld) -> None:
    await world.groups.ensure("web")
    assert (await world.groups.ensure("web")).id == "g-web", "safe to repeat"
    await world.groups.set_desired("web", 3, "12 slots needed")
    await world.after(70)
    ready = await world.ready()
    assert len(ready) == 3
    assert world.cloud.launched == 3
    assert {h.slots for h in await world.hosts()} == {4}
    for host in ready[1:]:
        world.used[host] = HostUse(slots_used=3)
    await world.groups.set_desired("web", 2, "8 slots needed")
    await world.after(10)
    assert await world.ready() == ready[1:], "the empty one went"
    assert sorted(world.cloud.live()) == sorted(ready[1:])
    assert any("Draining" in line and "0 of 4 slots" in line for line in await world.told())
    assert "g-web" in world.changes


async def test_a_lost_host_and_one_under_notice_are_replaced(world: GroupWorld) -> None:
    await world.create(min=2, max=5)
    await world.after(70)
    first, second = await world.ready()
    await world.cloud.kill(first)
    world.cloud.notice(second)
    await world.after(20)
    states = {h.host_id: h.state for h in await world.hosts()}
    assert first not in states
    assert states[second] is HostState.NOTICED
    assert list(states.values()).count(HostState.BOOTING) == 2
    await world.after(110)
    assert len(await world.ready()) == 2
    assert len(world.cloud.live()) == 2
    assert world.cloud.launched == 4
    pools = [world.cloud.offers[h].key for h in await world.ready()]
    assert "aws/r1a/m/spot" not in pools, "the pools that took hosts are left alone for a while"


async def test_the_same_gap_is_filled_once(world: GroupWorld) -> None:
    await world.create(min=4)
    for _ in range(5):
        await world.after(1, step_s=0.5)
    assert world.cloud.launched == 4
    pools = [world.cloud.offers[h].key for h in world.cloud.live()]
    assert max(pools.count(p) for p in pools) == 1, "evenly over pools of one price"


async def test_bounds_and_a_persons_number_come_first(world: GroupWorld) -> None:
    name = await world.create(min=1, max=3)
    group = await world.groups.set_desired(name, 9, "a burst")
    assert group.wanted == 3
    assert "held at 3" in group.reason
    await world.groups.pin(name, 2)
    await world.after(70)
    assert len(await world.ready()) == 2
    await world.groups.set_desired(name, 3, "more")
    await world.after(70)
    assert len(await world.ready()) == 2
    with pytest.raises(Invalid, match="within 1 and 3"):
        await world.groups.pin(name, 4)
    await world.groups.pin(name, None)
    await world.after(70)
    assert len(await world.ready()) == 3


async def test_hosts_the_scaler_named_go_first(world: GroupWorld) -> None:
    name = await world.create(min=0, max=5)
    await world.groups.set_desired(name, 3, "load")
    await world.after(70)
    ready = await world.ready()
    world.used[ready[1]] = HostUse(slots_used=2)
    await world.groups.set_desired(name, 2, "emptied by consolidation", release=[ready[1]])
    await world.after(30)
    states = {h.host_id: h for h in await world.hosts()}
    assert states[ready[1]].state is HostState.DRAINING
    assert "consolidation" in states[ready[1]].reason
    del world.used[ready[1]]
    await world.after(10)
    assert await world.ready() == [ready[0], ready[2]]


async def test_what_stays_is_spread_over_pools(world: GroupWorld) -> None:
    name = await world.create(max=6)
    await world.groups.set_desired(name, 6, "load")
    await world.after(70)
    await world.groups.set_desired(name, 2, "calm")
    await world.after(20)
    pools = {world.cloud.offers[h].key for h in world.cloud.live()}
    assert len(pools) == 2


async def test_one_that_boots_goes_before_one_that_serves(world: GroupWorld) -> None:
    name = await world.create(max=5)
    await world.groups.set_desired(name, 2, "load")
    await world.after(70)
    await world.groups.set_desired(name, 4, "burst")
    await world.after(20)
    await world.groups.set_desired(name, 2, "over")
    await world.after(20)
    assert len(await world.ready()) == 2
    assert len(world.cloud.live()) == 2


async def test_one_that_is_drained_is_taken_back(world: GroupWorld) -> None:
    name = await world.create(max=5)
    await world.groups.set_desired(name, 2, "load")
    await world.after(70)
    for host in await world.ready():
        world.used[host] = HostUse(slots_used=1)
    await world.groups.set_desired(name, 1, "less")
    await world.after(20)
    assert len(await world.ready()) == 1
    await world.groups.set_desired(name, 2, "more again")
    await world.after(10)
    assert len(await world.ready()) == 2
    assert world.cloud.launched == 2


async def test_a_drain_ends_when_its_time_is_over(world: GroupWorld) -> None:
    name = await world.create(max=5, drain_s=60.0)
    await world.groups.set_desired(name, 1, "load")
    await world.after(70)
    (host,) = await world.ready()
    world.used[host] = HostUse(slots_used=4)
    await world.groups.set_desired(name, 0, "none")
    await world.after(50)
    assert world.cloud.live() == [host]
    await world.after(20)
    assert world.cloud.live() == []
    assert any("did not leave in time" in line for line in await world.told())


async def test_a_silent_host_is_replaced_before_it_is_given_up(world: GroupWorld) -> None:
    name = await world.create(min=1)
    await world.after(70)
    (host,) = await world.ready()
    world.cloud.silent.add(host)
    await world.after(50)
    assert len(world.cloud.live()) == 2
    await world.after(70)
    assert host not in world.cloud.live()
    assert len(await world.ready(name)) == 1


async def test_a_deleted_group_leaves_nothing(world: GroupWorld) -> None:
    name = await world.create(min=2)
    await world.after(70)
    await world.groups.delete(name)
    await world.after(20)
    assert world.cloud.live() == []
    assert await world.open_claims() == []
    with pytest.raises(Gone):
        await world.groups.get(name)
    assert (await world.groups.ensure(name)).id == "g-web", "the name may be used again"


async def test_a_group_with_containers_is_not_deleted_by_mistake(world: GroupWorld) -> None:
    name = await world.create(min=1)
    await world.after(70)
    (host,) = await world.ready()
    world.used[host] = HostUse(slots_used=2)
    with pytest.raises(Conflict, match="2 containers stand"):
        await world.groups.delete(name)
    await world.groups.delete(name, force=True)
    await world.after(20)
    assert world.cloud.live() == []


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0])
async def test_a_clock_that_jumps_changes_nothing(world: GroupWorld, jump_s: float) -> None:
    await world.create(min=2, max=4, spares=1)
    await world.after(70)
    ready = await world.ready()
    world.used[ready[0]] = HostUse(slots_used=1)
    world.clock.at_s += jump_s
    await world.settle()
    await world.after(30)
    assert await world.ready() == ready
    assert world.cloud.launched == 2
    assert all(host.idle_s >= 0.0 for host in await world.hosts())


async def test_a_name_is_taken_once(world: GroupWorld) -> None:
    await world.create()
    with pytest.raises(Conflict, match="there is a group web"):
        await world.create()
