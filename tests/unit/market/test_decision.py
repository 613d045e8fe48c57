"""The money rule for stay or move."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.market.decision import (
    best_place,
    down_s,
    hazard_hour,
    loss_usd,
    may_move_for_price,
    move_usd,
    pays_to_move,
    rate,
    region_cap,
    spread_out,
)

REGIONS = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}


def test_a_loss_costs_what_the_notice_does_not_cover_and_never_less_than_the_freeze() -> None:
    assert down_s(2.0, 150.0, 30.0, 120.0) == 60.0
    assert down_s(2.0, 60.0, 20.0, 120.0) == 2.0
    assert loss_usd(36.0, 100.0) == pytest.approx(1.0)


def test_on_demand_is_the_pool_without_hazard() -> None:
    loss = loss_usd(10.0, 60.0)
    on_demand = rate(1.0, 1.0, 0.0, loss)
    assert rate(0.3, 1.0, 1.0, loss) < on_demand < rate(0.3, 1.0, 10.0, loss)


@given(st.floats(0.0, 0.99), st.floats(0.1, 48.0))
def test_the_hazard_gives_its_probability_back(p: float, hours: float) -> None:
    assert 1.0 - exp(-hazard_hour(p, hours) * hours) == pytest.approx(p, abs=1e-9)


def test_stay_unless_the_saving_is_clearly_more_than_the_move() -> None:
    move = move_usd(10.0, 2.0, 150.0, 30.0, 0.3)
    assert move == pytest.approx((20.0 + 54.0) / 3600.0)
    assert not pays_to_move(0.40, 0.37, 1.0, move)  # more than it costs, but a forecast may err
    assert pays_to_move(0.40, 0.35, 1.0, move)
    assert pays_to_move(0.40, 0.39, 24.0, move)


def test_after_a_loss_another_region_unless_clearly_dearer() -> None:
    assert best_place({"a2": 0.300, "b1": 0.303}, REGIONS, lost_region="a") == "b1"
    assert best_place({"a2": 0.300, "b1": 0.303}, REGIONS) == "a2"
    assert best_place({"a2": 0.300, "b1": 0.400}, REGIONS, lost_region="a") == "a2"
    assert best_place({"a2": 0.300, "b1": 0.400}, REGIONS, refused={"a2"}) == "b1"
    assert best_place({"a2": 0.300}, REGIONS, refused={"a2"}) is None


def test_price_alone_moves_only_while_many_cheaper_types_remain() -> None:
    assert not may_move_for_price(14)
    assert may_move_for_price(15)


def test_replicas_spread_over_pools_and_regions() -> None:
    rates = {"a1": 0.1, "a2": 0.2, "b1": 0.3, "c1": 0.4}
    same = dict.fromkeys(rates, 0.1)
    assert spread_out(3, rates, same, REGIONS) == ["a1", "b1", "c1"]  # a third a region
    assert spread_out(4, rates, same, REGIONS) == ["a1", "a2", "b1", "c1"]
    assert spread_out(1, rates, same, REGIONS, standing=["a1", "a2", "b1"]) == ["c1"]
    one = {"a1": 0.1}
    assert spread_out(4, one, same, REGIONS) == ["a1"] * 4  # rather there than nowhere
    assert spread_out(4, one, same, REGIONS, room=lambda place: 2) == ["a1"] * 2
    assert spread_out(2, {}, same, REGIONS) == []
    two = {"a1": 0.1, "b1": 0.9}
    found = spread_out(4, two, same, REGIONS)
    assert sorted(found) == ["a1", "a1", "b1", "b1"]  # a pool is lost as a whole


def test_pools_that_cost_more_are_not_paid_for_evenness() -> None:
    rates = {"a1": 0.10, "b1": 0.105, "c1": 0.15}
    assert spread_out(3, rates, rates, dict.fromkeys(rates, "x")) == ["a1", "b1", "a1"]


@given(st.integers(1, 12), st.permutations(sorted(REGIONS)))
def test_no_region_holds_more_than_a_third_while_others_have_room(
    replicas: int, order: list[str]
) -> None:
    rates = {place: 0.1 * number for number, place in enumerate(order)}
    chosen = spread_out(min(replicas, 3), rates, dict.fromkeys(rates, 1.0), REGIONS)
    most = max(sum(REGIONS[p] == region for p in chosen) for region in "abc")
    assert most <= region_cap(min(replicas, 3))
