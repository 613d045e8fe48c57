"""What else a group does: purchase options, warm hosts, hooks, refreshes, budgets, protection, risk."""

from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from roost.fleet.groups.members import GroupMembers
from roost.fleet.groups.model import (
    Budget,
    GroupSpec,
    Hook,
    HostState,
    HostUse,
    Protection,
    RefreshState,
    Tier,
    WarmPool,
)
from roost.fleet.groups.service import RefreshWish
from roost.ports.errors import Conflict, Invalid
from roost.ports.provider import InstanceState
from roost.ports.values import Allocation, Image
from tests.support.groups import ON_DEMAND, SPOT, GroupWorld, offer


@pytest.fixture
async def world() -> AsyncIterator[GroupWorld]:
    made = GroupWorld()
    yield made
    await made.store.close()


def members(world: GroupWorld) -> GroupMembers:
    return GroupMembers(world.store, world.clock, world.fleet, world.groups, lambda key: None)


def image(name: str) -> Callable[[GroupSpec], GroupSpec]:
    return lambda spec: msgspec.structs.replace(spec, image=Image(name=name, python="3.11"))


def images(world: GroupWorld) -> list[str]:
    return sorted(world.cloud.images[h].name for h in world.cloud.live())


def options(world: GroupWorld) -> list[str]:
    return sorted(world.cloud.offers[h].purchase_option for h in world.cloud.live())


# --- purchase options -------------------------------------------------------------------------------


async def test_the_on_demand_floor_and_percentage_are_kept(world: GroupWorld) -> None:
    name = await world.create(min=5, on_demand_base=1, on_demand_percent=25)
    await world.after(70)
    assert options(world) == [ON_DEMAND] * 2 + [SPOT] * 3
    await world.groups.change(name, lambda s: msgspec.structs.replace(s, on_demand_base=3))
    await world.after(30)
    assert options(world).count(SPOT) == 3, "nothing goes before the other is ready"
    await world.after(70)
    assert options(world) == [ON_DEMAND] * 4 + [SPOT]
    await world.groups.change(name, lambda s: msgspec.structs.replace(s, min=1))
    await world.groups.set_desired(name, 1, "calm")
    await world.after(30)
    assert options(world) == [ON_DEMAND], "the floor is what stays"


async def test_spot_that_is_not_to_be_had_is_stood_in_for_and_returned_to(
    world: GroupWorld,
) -> None:
    spot = {o.key for o in world.offers if o.purchase_option is SPOT}
    world.cloud.full = set(spot)
    await world.create(min=2, fallback_s=60.0)
    await world.after(50)
    assert world.cloud.live() == []
    await world.after(100)
    assert options(world) == [ON_DEMAND] * 2
    assert len(await world.ready()) == 2
    world.cloud.full = set()
    await world.after(4000, step_s=60)
    assert options(world) == [SPOT] * 2, "back to spot once a pool gives it"
    assert len(await world.ready()) == 2
    story = await world.told()
    assert any("in the place of spot" in line for line in story)
    assert any("spot is to be had again" in line for line in story)


async def test_private_comes_first_then_public(world: GroupWorld) -> None:
    own = [offer("p1a", price=0.5, provider="gcp"), offer("p1b", price=0.5, provider="gcp")]
    world.offers += own
    tiers = (Tier(clouds=("gcp",), most=2), Tier(clouds=("aws",)))
    await world.create(min=3, tiers=tiers)
    await world.after(70)
    clouds = sorted(world.cloud.offers[h].provider for h in world.cloud.live())
    assert clouds == ["aws", "gcp", "gcp"]


async def test_regions_are_shared_out(world: GroupWorld) -> None:
    await world.create(min=4, region_share=0.5, pool_share=1.0)
    await world.after(70)
    regions = sorted(world.cloud.offers[h].region for h in world.cloud.live())
    assert regions == ["r1", "r1", "r2", "r2"]


# --- risk -------------------------------------------------------------------------------------------


async def test_spares_stand_by_while_the_risk_is_high(world: GroupWorld) -> None:
    await world.create(min=3, spares=1)
    await world.after(70)
    assert len(world.cloud.live()) == 3
    world.lasts = {o.key: 0.9 for o in world.offers}
    await world.after(70)
    assert len(await world.ready()) == 4
    world.lasts = {}
    await world.after(30)
    assert len(await world.ready()) == 3
    assert any("summed risk" in line for line in await world.told())


async def test_as_many_spares_as_stand_in_for_a_whole_pool(
    world: GroupWorld,
) -> None:
    risky = {o.key: 0.92 for o in world.offers}
    await world.create(min=4)
    await world.after(70)
    pools = {world.cloud.offers[h].key for h in world.cloud.live()}
    assert len(pools) == 4, "one in each"
    world.lasts = risky
    await world.after(70)
    assert len(await world.ready()) == 6, "four pools: two stand in for any"
    told = [line for line in await world.told() if "Spares" in line or "spare" in line]
    assert any("60 s of boot" in line for line in told)


async def test_no_spares_where_the_notice_covers_the_boot(world: GroupWorld) -> None:
    world.offers = [msgspec.structs.replace(o, notice_s=120.0) for o in world.offers]
    await world.create(min=4)
    world.lasts = {o.key: 0.8 for o in world.offers}
    await world.after(140)
    assert len(await world.ready()) == 4


async def test_a_spare_stands_by_while_a_sibling_is_taken(world: GroupWorld) -> None:
    await world.create(
        min=4, spares=1, region_share=1.0, pool_share=1.0, allocation=Allocation.LOWEST_PRICE
    )
    await world.after(70)
    ready = await world.ready()
    regions = {h: world.cloud.offers[h].region for h in ready}
    taken = ready[0]
    world.cloud.notice(taken)
    await world.after(20)
    coming = [h for h in await world.hosts() if h.state is HostState.BOOTING]
    assert len(coming) == 2, "its replacement and a spare"
    beside = {h.host_id: h.survival for h in await world.hosts()}
    assert all(beside[h] <= 0.9 for h in ready if regions[h] == regions[taken])
    await world.after(8000, step_s=60)
    assert len(world.cloud.live()) == 4, "calm again"


async def test_a_rebalance_recommendation_is_followed_when_the_next_is_ready(
    world: GroupWorld,
) -> None:
    await world.create(min=2)
    await world.after(70)
    first, _ = await world.ready()
    world.cloud.notice(first, None)
    world.used[first] = HostUse(slots_used=2)
    await world.after(30)
    states = {h.host_id: h.state for h in await world.hosts()}
    assert states[first] is HostState.READY, "it serves until the next one does"
    await world.after(40)
    states = {h.host_id: h.state for h in await world.hosts()}
    assert states[first] is HostState.DRAINING
    del world.used[first]
    await world.after(10)
    assert first not in world.cloud.live()
    assert len(await world.ready()) == 2


# --- warm -------------------------------------------------------------------------------------------


async def test_a_warm_host_serves_at_once(world: GroupWorld) -> None:
    name = await world.create(min=1, warm=WarmPool(size=1))
    await world.after(70)
    assert len(world.cloud.live()) == 2
    assert len(await world.hosts()) == 1, "warm ones are not for containers"
    await world.groups.set_desired(name, 2, "burst")
    await world.settle()
    assert len(await world.ready()) == 2
    await world.after(70)
    assert len(world.cloud.live()) == 3, "the warm pool is filled again"


async def test_a_stopped_warm_host_costs_nothing_and_starts_again(world: GroupWorld) -> None:
    name = await world.create(min=1, warm=WarmPool(size=1, state="stopped", reuse=True))
    await world.after(80)
    assert len(world.cloud.live()) == 1
    stopped = [m for m in world.cloud.machines.values() if m.state is InstanceState.STOPPED]
    assert len(stopped) == 1
    await world.groups.set_desired(name, 2, "burst")
    await world.settle()
    assert stopped[0].host_id in world.cloud.live()
    await world.after(70)
    assert stopped[0].host_id in await world.ready()
    launched = world.cloud.launched
    await world.groups.change(
        name,
        lambda s: msgspec.structs.replace(s, warm=WarmPool(size=2, state="stopped", reuse=True)),
    )
    await world.after(80)
    await world.groups.set_desired(name, 1, "calm")
    await world.after(30)
    assert len(world.cloud.live()) == 1
    assert world.cloud.launched == launched + 1
    spans = [i.spans for i in await world.fleet.instances() if i.id == stopped[0].host_id]
    assert len(spans[0]) == 2, "billed twice, not in between"


async def test_a_host_that_is_not_needed_returns_to_the_warm_pool(world: GroupWorld) -> None:
    name = await world.create(min=0, warm=WarmPool(size=1, reuse=True))
    await world.after(70)
    await world.groups.set_desired(name, 1, "load")
    await world.settle()
    (host,) = await world.ready()
    await world.after(70)
    await world.groups.change(
        name, lambda s: msgspec.structs.replace(s, warm=WarmPool(size=2, reuse=True))
    )
    await world.groups.set_desired(name, 0, "calm")
    await world.settle()
    assert host in world.cloud.live()


# --- hooks ------------------------------------------------------------------------------------------


async def test_a_launch_hook_has_a_word_before_a_host_serves(world: GroupWorld) -> None:
    await world.create(min=1, hooks=(Hook(name="bake", timeout_s=300, default="abandon"),))
    await world.after(70)
    (host,) = [h.host_id for h in await world.hosts()]
    assert await world.ready() == []
    with pytest.raises(Invalid, match="no hook other waits"):
        await members(world).answer(host, "other", "continue")
    await members(world).extend(host, "bake")
    await members(world).answer(host, "bake", "continue")
    await world.settle()
    assert await world.ready() == [host]


async def test_hosts_a_hook_refuses_are_launched_ever_more_slowly(world: GroupWorld) -> None:
    await world.create(min=1, hooks=(Hook(name="bake", timeout_s=5, default="abandon"),))
    await world.after(1200)
    assert 4 <= world.cloud.launched <= 12
    group = await world.groups.get("web")
    assert group.setbacks >= 4
    assert any("the next launch waits" in line for line in await world.told())
    await world.groups.change("web", lambda s: msgspec.structs.replace(s, hooks=()))
    await world.after(800)
    assert len(await world.ready()) == 1
    assert (await world.groups.get("web")).setbacks == 0


async def test_a_termination_hook_has_a_word_before_a_host_ends(world: GroupWorld) -> None:
    name = await world.create(max=2, hooks=(Hook(name="logs", on="terminate", timeout_s=100),))
    await world.groups.set_desired(name, 1, "load")
    await world.after(70)
    (host,) = await world.ready()
    await world.groups.set_desired(name, 0, "calm")
    await world.after(50)
    assert world.cloud.live() == [host]
    await members(world).answer(host, "logs", "continue")
    await world.settle()
    assert world.cloud.live() == []
    await world.groups.set_desired(name, 1, "load")
    await world.after(70)
    await world.groups.delete(name)
    await world.after(90)
    assert len(world.cloud.live()) == 1
    await world.after(30)
    assert world.cloud.live() == [], "its time is over"


# --- protection and budgets -------------------------------------------------------------------------


async def test_protected_hosts_stay(world: GroupWorld) -> None:
    name = await world.create(max=5)
    await world.groups.set_desired(name, 3, "load")
    await world.after(70)
    ready = await world.ready()
    await members(world).protect(ready[:2], Protection.SCALE_IN)
    world.used[ready[2]] = HostUse(slots_used=1, keep="web asks not to be disturbed")
    await world.groups.set_desired(name, 0, "calm")
    await world.after(30)
    assert await world.ready() == ready
    world.used[ready[2]] = HostUse()
    await members(world).protect(ready[:1], Protection.NONE)
    await world.after(30)
    assert await world.ready() == [ready[1]]


async def test_new_hosts_may_be_protected_from_the_start(world: GroupWorld) -> None:
    name = await world.create(protect_new=True)
    await world.groups.set_desired(name, 1, "load")
    await world.after(70)
    await world.groups.set_desired(name, 0, "calm")
    await world.after(30)
    assert len(await world.ready()) == 1


async def test_a_budget_bounds_how_many_go_at_once(world: GroupWorld) -> None:
    name = await world.create(max=8, budgets=(Budget(most="25%", reasons=("scale-in",)),))
    await world.groups.set_desired(name, 8, "load")
    await world.after(70)
    for host in await world.ready():
        world.used[host] = HostUse(slots_used=1)
    await world.groups.set_desired(name, 2, "calm")
    await world.settle()
    draining = [h.host_id for h in await world.hosts() if h.state is HostState.DRAINING]
    assert len(draining) == 2
    noticed = (await world.ready())[0]
    world.cloud.notice(noticed, 3600.0)
    await world.settle()
    world.used.pop(draining[0])
    await world.settle()
    draining = [h.host_id for h in await world.hosts() if h.state is HostState.DRAINING]
    assert len(draining) == 1, "what its cloud takes counts as well"
    world.used.clear()
    await world.cloud.kill(noticed)
    await world.after(30)
    assert len(await world.ready()) == 2


async def test_a_person_takes_a_host_out(world: GroupWorld) -> None:
    name = await world.create(min=1, max=3)
    await world.groups.set_desired(name, 2, "load")
    await world.after(70)
    first, second = await world.ready()
    await members(world).drain(first, smaller=False)
    await world.after(70)
    ready = await world.ready()
    assert first not in ready
    assert len(ready) == 2
    await members(world).drain(second, smaller=True)
    await world.after(70)
    assert len(await world.ready()) == 1
    with pytest.raises(Invalid, match="must have 1 hosts"):
        await members(world).drain((await world.ready())[0], smaller=True)


# --- refresh ----------------------------------------------------------------------------------------


async def test_a_refresh_replaces_all_within_its_bounds(world: GroupWorld) -> None:
    name = await world.create(min=4)
    await world.after(70)
    await world.groups.change(name, image("new"))
    await world.after(30)
    assert images(world) == ["minimal"] * 4, "a change alone replaces nothing"
    await world.groups.refresh(name, RefreshWish(min_healthy=1.0, max_healthy=1.25))
    with pytest.raises(Conflict, match="a refresh of web runs"):
        await world.groups.refresh(name)
    with pytest.raises(Conflict, match="a refresh of web runs"):
        await world.groups.change(name, image("newer"))
    for _ in range(60):
        await world.after(10)
        assert len(await world.ready()) >= 4
        assert len(world.cloud.live()) <= 5
    assert images(world) == ["new"] * 4
    group = await world.groups.get(name)
    assert group.refresh is not None
    assert group.refresh.state is RefreshState.SUCCESSFUL


async def test_a_refresh_may_go_below_desired_when_told(world: GroupWorld) -> None:
    name = await world.create(min=4)
    await world.after(70)
    await world.groups.refresh(name, RefreshWish(min_healthy=0.5, max_healthy=1.0, all_hosts=True))
    fewest = 4
    for _ in range(30):
        await world.after(10)
        fewest = min(fewest, len(await world.ready()))
        assert len(world.cloud.live()) <= 4
    assert fewest == 2
    assert world.cloud.launched == 8


async def test_a_refresh_whose_hosts_fail_is_rolled_back(world: GroupWorld) -> None:
    name = await world.create(min=3)
    await world.after(70)
    world.cloud.broken.add("bad")
    await world.groups.change(name, image("bad"))
    await world.groups.refresh(name, RefreshWish(boot_limit_s=100, most_failures=1))
    for _ in range(60):
        await world.after(10)
        assert len(await world.ready()) >= 3
    assert images(world) == ["minimal"] * 3
    group = await world.groups.get(name)
    assert group.spec.image.name == "minimal"
    assert group.refresh is not None
    assert group.refresh.state is RefreshState.ROLLED_BACK
    assert "2 hosts failed" in " ".join(await world.told())
    await world.groups.change(name, image("good"))
    changed = await world.groups.get(name)
    assert changed.revision == 3, "a revision number is never used twice"


async def test_a_person_turns_a_refresh_back(world: GroupWorld) -> None:
    name = await world.create(min=2)
    await world.after(70)
    await world.groups.change(name, image("new"))
    await world.groups.refresh(name)
    await world.after(100)
    assert "new" in images(world)
    await world.groups.end_refresh(name, roll_back=True)
    await world.after(300)
    assert images(world) == ["minimal"] * 2
    with pytest.raises(Invalid, match="no refresh of web runs"):
        await world.groups.end_refresh(name)


async def test_a_refresh_that_is_cancelled_leaves_both(world: GroupWorld) -> None:
    name = await world.create(min=2)
    await world.after(70)
    await world.groups.change(name, image("new"))
    await world.groups.refresh(name)
    await world.after(80)
    await world.groups.end_refresh(name)
    await world.after(300)
    assert set(images(world)) == {"minimal", "new"}
    assert len(world.cloud.live()) == 2
