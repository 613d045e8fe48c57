"""An interruption told to the provider is heard on the instance in its cloud's dialect, then comes true."""

import pytest

from roost.adapters.notices import notice_source
from roost.ports.provider import InstanceState
from roost.ports.values import Notice, NoticeKind

from .conftest import World, eventually


@pytest.mark.parametrize("cloud", ["aws", "azure", "gcp"])
async def test_heard_and_true(world: World, cloud: str) -> None:
    provider, order = world.provider(), world.order(cloud=cloud)
    await provider.launch(order)
    (seen,) = await world.agents(order)
    source = notice_source(cloud, seen["env"]["ROOST_METADATA"], clock=world.clock)
    assert await source.poll() is None
    now = world.clock.now_s()
    deadline = now + 2.0
    await provider.interrupt(
        order.host_id, Notice(kind=NoticeKind.INTERRUPTION, seen_s=now, deadline_s=deadline)
    )
    notice = await source.poll()
    assert notice is not None
    assert notice.kind is NoticeKind.INTERRUPTION
    if cloud != "gcp":  # which never says when
        assert notice.deadline_s == pytest.approx(deadline, abs=1.0)

    async def ended() -> bool:
        return (await provider.instances())[0].state is InstanceState.TERMINATED

    await eventually(ended)
    (instance,) = await provider.instances()
    assert instance.reason == "interrupted"
    assert instance.ended_s == pytest.approx(deadline, abs=0.5)
    assert await source.poll() is None
    world.assert_nothing_left(order)


async def test_without_a_deadline_it_is_the_offers_notice(world: World) -> None:
    provider, order = world.provider(), world.order()
    await provider.launch(order)
    (seen,) = await world.agents(order)
    now = world.clock.now_s()
    await provider.interrupt(order.host_id, Notice(kind=NoticeKind.INTERRUPTION, seen_s=now))
    notice = await notice_source("aws", seen["env"]["ROOST_METADATA"], clock=world.clock).poll()
    assert notice is not None
    assert notice.deadline_s == pytest.approx(now + order.offer.notice_s, abs=2.0)


async def test_a_notice_before_the_boot_is_not_lost(world: World) -> None:
    provider, order = world.provider(), world.order()
    await provider.launch(order)
    now = world.clock.now_s()
    notice = Notice(kind=NoticeKind.INTERRUPTION, seen_s=now, deadline_s=now + 60)
    await provider.interrupt(order.host_id, notice)
    (seen,) = await world.agents(order)
    source = notice_source("aws", seen["env"]["ROOST_METADATA"], clock=world.clock)
    assert await source.poll() is not None
