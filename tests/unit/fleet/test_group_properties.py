"""Whatever happens to a group, in any order: it comes to rest at its size and never hurts itself."""

import asyncio
import contextlib
from collections.abc import Awaitable

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roost.fleet.groups.model import Group, GroupSpec, HostUse, MemberState, WarmPool
from roost.fleet.groups.service import RefreshWish
from roost.fleet.groups.size import on_demand_floor
from roost.ports.errors import Conflict, Invalid
from tests.support.groups import IMAGE, ON_DEMAND, SPOT, GroupWorld

EVENTS = st.one_of(
    st.tuples(st.just("desired"), st.integers(0, 6)),
    st.tuples(st.just("pin"), st.integers(0, 6)),
    st.tuples(st.just("unpin"), st.just(0)),
    st.tuples(st.just("bounds"), st.integers(0, 4)),
    st.tuples(st.just("floor"), st.integers(0, 3)),
    st.tuples(st.just("warm"), st.integers(0, 2)),
    st.tuples(st.just("use"), st.integers(0, 5)),
    st.tuples(st.just("free"), st.just(0)),
    st.tuples(st.just("refresh"), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 130)),
    st.tuples(st.just("kill"), st.integers(0, 5)),
    st.tuples(st.just("notice"), st.integers(0, 5)),
    st.tuples(st.just("advise"), st.integers(0, 5)),
    st.tuples(st.just("silent"), st.integers(0, 5)),
    st.tuples(st.just("full"), st.integers(0, 3)),
)
HURTS = ("kill", "notice", "silent")


async def _asked(world: GroupWorld, kind: str, number: int) -> None:
    """What people and scalers do."""
    groups = world.groups
    ready = await world.ready()

    def changed(**fields: object) -> Awaitable[Group]:
        return groups.change("web", lambda spec: msgspec.structs.replace(spec, **fields))

    match kind:
        case "desired":
            await groups.set_desired("web", number, "a test", ready[:1])
        case "pin" | "unpin":
            with contextlib.suppress(Invalid):
                await groups.pin("web", number if kind == "pin" else None)
        case "bounds":
            await changed(min=number)
        case "floor":
            await changed(on_demand_base=number)
        case "warm":
            state = "stopped" if number == 1 else "running"
            await changed(warm=WarmPool(size=number, state=state, reuse=True))
        case "refresh":
            with contextlib.suppress(Conflict):
                await groups.refresh("web", RefreshWish(all_hosts=True))


async def _befallen(world: GroupWorld, kind: str, number: int) -> None:
    """What the world does."""
    ready = await world.ready()
    live = world.cloud.live()
    match kind:
        case "use":
            world.used.update({h: HostUse(slots_used=1) for h in ready[:number]})
        case "free":
            world.used.clear()
        case "kill" if live:
            await world.cloud.kill(live[number % len(live)])
        case "notice" if ready:
            world.cloud.notice(ready[number % len(ready)])
        case "advise" if ready:
            world.cloud.notice(ready[number % len(ready)], None)
        case "silent" if ready:
            world.cloud.silent.add(ready[number % len(ready)])
        case "full":
            world.cloud.full.add(world.offers[number].key)


async def _run(events: list[tuple[str, int]]) -> None:
    world = GroupWorld()
    await world.groups.create(GroupSpec(name="web", image=IMAGE, min=1, max=6, drain_s=60.0))
    for kind, number in events:
        before = set(await world.ready())
        await _asked(world, kind, number)
        await _befallen(world, kind, number)
        await world.after(number if kind == "wait" else 1, step_s=15)
        group = await world.groups.get("web")
        after = set(await world.ready())
        if kind not in (*HURTS, "wait"):
            # Of our own will no host that serves goes while too few others do.
            assert len(after) >= min(len(before), group.wanted), (kind, before, after)
    world.cloud.full.clear()
    world.cloud.silent.clear()
    world.used.clear()
    await world.after(4500, step_s=30)
    await _at_rest(world)
    await world.store.close()


async def _at_rest(world: GroupWorld) -> None:
    group = await world.groups.get("web")
    assert len(await world.ready()) == group.wanted
    states = [view.member.state for view in await world.members()]
    warm = group.spec.warm
    assert states.count(MemberState.WARM) == warm.size
    assert len(states) == group.wanted + warm.size
    running = group.wanted + (warm.size if warm.state == "running" else 0)
    assert len(world.cloud.live()) == running
    assert len(await world.open_claims()) == len(states), "every claim has its member"
    serving = [v for v in await world.members() if v.member.state is MemberState.SERVING]
    steady = sum(1 for v in serving if v.member.option is ON_DEMAND)
    assert steady >= on_demand_floor(group.spec, group.wanted)
    assert {v.member.revision for v in serving} <= {group.revision}
    for view in serving:
        assert view.claim is not None
        assert view.claim.instance is not None
        bought = view.claim.instance.offer.purchase_option
        assert bought is view.member.option or bought not in (SPOT, ON_DEMAND)


@settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.lists(EVENTS, min_size=1, max_size=14))
def test_a_group_comes_to_rest_at_its_size(events: list[tuple[str, int]]) -> None:
    asyncio.run(_run(events))
