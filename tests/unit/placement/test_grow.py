"""How many hosts are missing, of which kind, and what no kind can take."""

from hypothesis import given, settings
from hypothesis import strategies as st

from roost.placement.grow import Kind, grow
from roost.placement.hosts import Hosts
from roost.placement.model import By, Spread
from roost.placement.place import place_many
from tests.unit.placement.fleets import ask, facts, fleet

SMALL = Kind(facts=facts("small", vcpus=2.0, slots=4, price_usd_hour=0.3))
LARGE = Kind(facts=facts("large", price_usd_hour=1.0))
GPU = Kind(facts=facts("gpu", gpus=2, price_usd_hour=3.0))


def test_what_there_is_is_filled_first() -> None:
    found = grow([ask()] * 10, fleet(1), [LARGE], containers=[f"c{n}" for n in range(10)])
    assert found.launch == {"large": 1}
    assert [c.host for c in found.choices].count("h0") == 8
    assert found.choices[9].host == "large/1" and not found.unplaced
    assert grow([ask()] * 8, fleet(1), [LARGE]).launch == {}


def test_the_cheaper_kind_for_the_work() -> None:
    assert grow([ask()] * 8, Hosts(), [LARGE, SMALL]).launch == {"large": 1}
    assert grow([ask()] * 2, Hosts(), [LARGE, SMALL]).launch == {"small": 1}


def test_each_goes_on_a_kind_that_can_have_it() -> None:
    found = grow([ask(), ask("train", gpus=2.0)], Hosts(), [SMALL, GPU])
    assert not found.unplaced
    assert found.launch == {"gpu": 1}
    found = grow([ask()] * 9 + [ask("train", gpus=2.0)], Hosts(), [SMALL, GPU])
    assert not found.unplaced and found.launch["gpu"] >= 1


def test_what_no_kind_can_have_is_told() -> None:
    found = grow([ask(vcpus=64.0), ask()], Hosts(), [SMALL, LARGE])
    assert found.launch == {"small": 1}
    (no,) = found.unplaced
    assert "too little vcpus free (asked: 64)" in no.reason


def test_no_more_of_a_kind_than_there_may_be() -> None:
    kind = Kind(facts=facts("large"), most=2)
    found = grow([ask()] * 30, Hosts(), [kind])
    assert found.launch == {"large": 2} and len(found.unplaced) == 14


def test_spread_asks_for_a_host_elsewhere() -> None:
    rule = (Spread(by=By.ZONE, share=0.5),)
    kinds = [Kind(facts=facts("a", zone="a")), Kind(facts=facts("b", zone="b"))]
    found = grow([ask(wanted=4, spread=rule)] * 4, Hosts(), kinds)
    assert found.launch == {"a": 1, "b": 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from((0.25, 0.5, 1.0, 2.0, 7.0)), max_size=40))
def test_the_hosts_asked_for_are_enough_and_all_used(sizes: list[float]) -> None:
    asks = [ask(vcpus=size) for size in sizes]
    found = grow(asks, Hosts(), [LARGE])
    assert not found.unplaced
    hosts = fleet(found.launch.get("large", 0))
    assert all(c.host for c in place_many(asks, hosts))
    assert all(hosts.on[row] for row in hosts.rows())
