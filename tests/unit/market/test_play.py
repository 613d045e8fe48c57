"""A recorded market played as if it were now."""

import sys
from pathlib import Path

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.providers.local import LocalProvider
from roost.adapters.providers.local.records import notices
from roost.market.play import Play, play
from roost.ports.errors import Invalid, NoCapacity
from roost.ports.provider import Order
from roost.ports.values import Image, Offer, PurchaseOption, Resources

UP, DOWN = True, False


def recorded(*rows: tuple[bool, ...], speed: float = 1.0, began_s: float = 1000.0) -> Play:
    zones = ("us-east-1a", "us-west-2a")[: len(rows[0])]
    regions = ("us-east-1", "us-west-2")[: len(rows[0])]
    return play("set", zones, regions, 10.0, rows, began_s=began_s, speed=speed)


def offer(zone: str = "us-east-1a", option: PurchaseOption = PurchaseOption.SPOT) -> Offer:
    return Offer(
        provider="aws",
        region=zone[:-1],
        zone=zone,
        instance_type="m5.large",
        purchase_option=option,
        price_usd_hour=0.1,
        on_demand_usd_hour=0.3,
        resources=Resources(vcpus=2, memory_gib=8),
        notice_s=120.0,
    )


def test_a_pool_is_up_when_it_was_and_takes_its_instances_when_it_went_down() -> None:
    market = recorded((UP,), (UP,), (DOWN,), (UP,))
    seen = [market.refuses(offer(), 1000.0 + t) for t in (0, 15, 25, 35, 41, 65)]
    assert seen == [False, False, True, False, False, True]  # the recording begins again after 40 s
    assert market.taken_at_s(offer(), 1005.0) == 1020.0
    assert market.taken_at_s(offer(), 1033.0) == 1060.0
    assert market.taken_at_s(offer(), 1025.0) == 1025.0


def test_speed_is_recorded_seconds_in_one() -> None:
    market = recorded((UP,), (UP,), (DOWN,), speed=10.0)
    assert market.taken_at_s(offer(), 1000.5) == 1002.0
    assert market.refuses(offer(), 1002.5)


def test_on_demand_is_never_refused_or_taken_and_a_pool_always_up_never_takes() -> None:
    market = recorded((DOWN, UP), (DOWN, UP))
    on_demand = offer(option=PurchaseOption.ON_DEMAND)
    assert not market.refuses(on_demand, 1000.0)
    assert market.taken_at_s(on_demand, 1000.0) is None
    assert market.taken_at_s(offer("us-west-2a"), 1000.0) is None


def test_an_offer_nobody_recorded_has_a_stand_in_that_never_changes() -> None:
    market = recorded((UP, UP), (DOWN, UP))
    assert market.pool_of(offer("us-west-2c")).region == "us-west-2"
    assert market.pool_of(offer("eu-north-1a")) == market.pool_of(offer("eu-north-1a"))


def test_nothing_to_play_is_said() -> None:
    with pytest.raises(Invalid, match="no ticks"):
        play("set", ("a",), ("a",), 10.0, [], began_s=0.0, speed=1.0)
    with pytest.raises(Invalid, match="no speed"):
        recorded((UP,), speed=0.0)


async def test_the_local_provider_lives_in_it(tmp_path: Path) -> None:
    clock = SystemClock()
    soon = recorded((UP, DOWN), (DOWN, DOWN), began_s=clock.now_s())
    host = (sys.executable, "-c", "import time; time.sleep(60)")
    provider = LocalProvider(tmp_path, clock=clock, host_argv=host, conditions=soon)

    def order(zone: str) -> Order:
        return Order(
            token=zone,
            host_id=f"h-{zone}",
            offer=offer(zone),
            image=Image(name="minimal", python="3.11"),
            join_token="t",
            link_address="127.0.0.1:1",
        )

    with pytest.raises(NoCapacity, match="us-west-2a"):
        await provider.launch(order("us-west-2a"))
    launched = await provider.launch(order("us-east-1a"))
    try:
        await provider.instances()
        await provider.instances()
        told = notices(tmp_path / "instances" / launched.host_id)
        assert [n.source for n in told] == ["market"]  # once, within its two minutes of notice
        assert told[0].deadline_s == pytest.approx(soon.began_s + 10.0)
    finally:
        await provider.kill(launched.provider_id)
