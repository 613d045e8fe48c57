"""The pure parts of groups: pools by share and tier, budgets by time, floors, what a spec may say."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.fleet.groups.allocation import allocate
from roost.fleet.groups.budget import applies, share
from roost.fleet.groups.checks import check
from roost.fleet.groups.machine import TRANSITIONS, step
from roost.fleet.groups.model import (
    Budget,
    GroupSpec,
    Hook,
    Member,
    MemberState,
    Tier,
    WarmPool,
)
from roost.fleet.groups.size import on_demand_floor
from roost.fleet.machine import InvalidTransition
from roost.fleet.model import RankedOffer
from roost.ports.errors import Invalid
from roost.ports.values import Allocation, Ask
from tests.support.groups import IMAGE, offer

HOUR_S = 3600.0
MONDAY_S = 4 * 86_400.0
"""1970-01-05 was one."""


def spec(**fields: Any) -> GroupSpec:
    return GroupSpec(**{"name": "web", "image": IMAGE, **fields})


def ranked(*zones: str, provider: str = "aws") -> list[RankedOffer]:
    return [RankedOffer(offer=offer(z, provider=provider), reason="") for z in zones]


def zones(found: list[RankedOffer]) -> list[str]:
    return [r.offer.zone for r in found]


def test_pools_and_regions_have_their_share() -> None:
    pools = ranked("r1a", "r1b", "r2a")
    one = spec(pool_share=0.5, region_share=1.0)
    assert zones(allocate(one, pools, [], 4)) == ["r1a", "r1b", "r2a", "r1a"]
    halves = spec(pool_share=0.5, region_share=0.5)
    assert zones(allocate(halves, pools, [], 4)) == ["r1a", "r1b", "r2a", "r2a"]
    held = [offer("r1a"), offer("r1a")]
    assert zones(allocate(one, pools, held, 2)) == ["r1b", "r2a"]
    assert zones(allocate(spec(), pools, held, 2)) == ["r2a", "r2a"], "by default two regions"


def test_even_over_pools_that_cost_about_the_same_in_order_where_an_order_was_asked_for() -> None:
    prices = {"r1a": 1.0, "r2a": 1.05, "r3a": 1.5}
    pools = [
        msgspec.structs.replace(entry, usd_undisturbed_hour=prices[entry.offer.zone])
        for entry in ranked(*prices)
    ]
    one = spec(pool_share=0.5, region_share=1.0)
    assert zones(allocate(one, pools, [], 4)) == ["r1a", "r2a", "r1a", "r2a"]
    alone = [pools[0], pools[2]]
    assert zones(allocate(one, alone, [], 4)) == ["r1a", "r1a", "r3a", "r3a"], "by its share"
    for order in (Allocation.LOWEST_PRICE, Allocation.PRIORITIZED):
        first = spec(pool_share=0.5, region_share=1.0, allocation=order)
        assert zones(allocate(first, pools, [], 4)) == ["r1a", "r1a", "r2a", "r2a"]


def test_a_share_gives_way_before_a_host_is_missing_and_a_tier_does_not() -> None:
    assert zones(allocate(spec(pool_share=0.25), ranked("r1a", "r1b"), [], 4)) == [
        "r1a",
        "r1b",
        "r1a",
        "r1b",
    ]
    tiers = (Tier(clouds=("gcp",), most=1), Tier(clouds=("aws",), most=1))
    both = [*ranked("r1a"), *ranked("p1a", provider="gcp")]
    found = allocate(spec(tiers=tiers, pool_share=1.0), both, [], 5)
    assert [r.offer.provider for r in found] == ["gcp", "aws"]


@given(
    st.integers(0, 8),
    st.integers(1, 8),
    st.floats(0.1, 1.0),
    st.lists(st.integers(0, 3), max_size=6),
)
def test_as_many_offers_as_asked_and_no_pool_above_its_share(
    pools: int, count: int, most: float, held: list[int]
) -> None:
    names = [f"r{n}a" for n in range(pools)]
    has = [offer(f"r{n}a") for n in held]
    found = allocate(spec(pool_share=most), ranked(*names), has, count)
    assert len(found) == (count if pools else 0)
    cap = max(1, -(-int((count + len(held)) * most * 1e6) // 10**6) + 1)
    if pools * cap >= count + len(held):
        chosen = zones(found)
        for name in set(chosen):
            assert chosen.count(name) <= max(cap, count)


def test_the_floor_of_on_demand_hosts() -> None:
    quarter = spec(on_demand_base=2, on_demand_percent=25)
    assert [on_demand_floor(quarter, n) for n in (0, 1, 2, 3, 6, 10)] == [0, 1, 2, 3, 3, 4]
    assert on_demand_floor(spec(on_demand_percent=30), 10) == 3


@pytest.mark.parametrize(
    ("budget", "reason", "at_s", "counts"),
    [
        (Budget(), "refresh", MONDAY_S, True),
        (Budget(reasons=("refresh",)), "scale-in", MONDAY_S, False),
        (Budget(days=(0,)), "refresh", MONDAY_S, True),
        (Budget(days=(0,)), "refresh", MONDAY_S + 24 * HOUR_S, False),
        (Budget(from_hour=9, to_hour=17), "refresh", MONDAY_S + 9 * HOUR_S, True),
        (Budget(from_hour=9, to_hour=17), "refresh", MONDAY_S + 17 * HOUR_S, False),
        (Budget(from_hour=22, to_hour=6), "refresh", MONDAY_S + 23 * HOUR_S, True),
        (Budget(from_hour=22, to_hour=6), "refresh", MONDAY_S + 12 * HOUR_S, False),
        (Budget(days=(0,), from_hour=22, to_hour=6), "refresh", MONDAY_S + 29 * HOUR_S, True),
        (Budget(days=(0,), from_hour=22, to_hour=6), "refresh", MONDAY_S + 5 * HOUR_S, False),
    ],
)
def test_when_a_budget_counts(budget: Budget, reason: str, at_s: float, counts: bool) -> None:
    assert applies(budget, reason, at_s) is counts


def test_shares_are_rounded_up_and_numbers_are_numbers() -> None:
    assert [share("10%", n) for n in (0, 1, 10, 11)] == [0, 1, 1, 2]
    assert share("0%", 50) == 0
    assert share("3", 50) == 3


@dataclass(frozen=True)
class Bad:
    fields: dict[str, Any]
    says: str


@pytest.mark.parametrize(
    "bad",
    [
        Bad({"name": "g-x"}, "no name"),
        Bad({"name": "A group"}, "no name"),
        Bad({"min": 3, "max": 2}, "min 3 and max 2"),
        Bad({"min": -1}, "leave no size"),
        Bad({"max": 1_000_000}, "too large"),
        Bad({"slots": 0}, "0 slots"),
        Bad({"on_demand_percent": 101}, "no percentage"),
        Bad({"pool_share": 0.0}, "pool share"),
        Bad({"drain_s": -1.0}, "drain"),
        Bad({"ask": Ask(vcpus=0)}, "above zero"),
        Bad({"warm": WarmPool(state="asleep")}, "asleep"),
        Bad({"warm": WarmPool(size=-1)}, "below zero"),
        Bad({"hooks": (Hook(name="a"), Hook(name="a"))}, "same name"),
        Bad({"hooks": (Hook(name="a", on="sunday"),)}, "sunday"),
        Bad({"hooks": (Hook(name="a", timeout_s=0.0),)}, "cannot wait"),
        Bad({"hooks": (Hook(name="a", default="panic"),)}, "panic"),
        Bad({"budgets": (Budget(most="many"),)}, "no budget"),
        Bad({"budgets": (Budget(most="120%"),)}, "no budget"),
        Bad({"budgets": (Budget(reasons=("fun",)),)}, "fun"),
        Bad({"budgets": (Budget(days=(7,)),)}, "Monday"),
        Bad({"tiers": (Tier(clouds=()),)}, "tier"),
        Bad({"tiers": (Tier(clouds=("aws",)), Tier(clouds=("aws",)))}, "two tiers"),
    ],
    ids=lambda bad: bad.says,
)
def test_what_makes_no_sense_is_refused(bad: Bad) -> None:
    with pytest.raises(Invalid, match=bad.says):
        check(spec(**bad.fields))


def test_the_table_of_members_is_closed() -> None:
    assert set(TRANSITIONS) == set(MemberState)
    member = Member(id="c-1", parent="g-web", state=MemberState.ENDED)
    for to in MemberState:
        with pytest.raises(InvalidTransition):
            step(member, to, 0.0, "")
    reached = {to for edges in TRANSITIONS.values() for to in edges}
    assert reached == set(MemberState)
