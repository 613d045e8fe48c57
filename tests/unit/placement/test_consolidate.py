"""Which hosts are emptied: only where everything fits elsewhere and the saving pays for the moves."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from roost.placement.consolidate import Consolidation, Worth, consolidate
from roost.placement.hosts import Hosts
from roost.placement.model import Affinity, By, Spread
from roost.placement.place import place_many
from tests.unit.placement.fleets import ask, facts, fleet
from tests.unit.placement.test_columns import ASKS, HOSTS, _hosts, _state

HOUR = 3_600.0
CHEAP = Worth(move_hours=0.0, young_s=0.0)


def _two(**given: Any) -> Hosts:
    """``h0`` with seven containers, ``h1`` with one."""
    hosts = fleet(2, **{"launched_s": -10 * HOUR, **given})
    for n in range(7):
        hosts.put(ask(), 0, f"a{n}", since_s=-5 * HOUR)
    hosts.put(ask("other"), 1, "b", since_s=-5 * HOUR)
    return hosts


def _why(found: Consolidation, host: str) -> str:
    assert not found.emptied
    return {kept.host: kept.reason for kept in found.kept}[host]


def test_the_least_used_host_is_emptied_and_the_sum_is_told() -> None:
    hosts = _two()
    found = consolidate(hosts, 0.0, worth=Worth(move_usd=0.1, move_hours=0.25))
    (one,) = found.emptied
    assert one.host == "h1"
    assert [(m.container, m.source, m.target) for m in found.moves] == [("b", "h1", "h0")]
    assert (one.saves_usd, round(one.costs_usd, 3)) == (5.0, 0.35)
    assert one.reason == "1 moves free h1: saves 5.0000 USD for 0.3500"


def test_what_is_given_stays_as_it_is() -> None:
    hosts = _two()
    before = _state(hosts)
    assert consolidate(hosts, 0.0).emptied
    assert hosts.containers["b"].host == 1 and hosts.takes[:2].all()
    for ours, theirs in zip(_state(hosts), before, strict=True):
        assert (ours == theirs).all()


def test_nothing_moves_where_the_saving_is_less_than_the_cost() -> None:
    hosts = _two()
    dear = Worth(move_usd=6.0)
    assert _why(consolidate(hosts, 0.0, worth=dear), "h1") == (
        "it would save 5.0000 USD, the moves cost 6.2500"
    )
    free = _two(price_usd_hour=0.0)  # a machine of one's own costs nothing more while it idles
    assert "would save 0.0000" in _why(consolidate(free, 0.0), "h1")


def test_what_ends_soon_anyway_is_not_moved() -> None:
    hosts = _two()
    hosts.take("b")
    hosts.put(ask("other"), 1, "b", since_s=-5 * HOUR, ends_s=60.0)
    assert "would save 0.0167" in _why(consolidate(hosts, 0.0), "h1")


def test_right_after_a_launch_another_one_is_likely() -> None:
    hosts = _two()
    found = consolidate(hosts, 0.0, last_launch_s=-60.0)
    assert "would save 0.0167" in _why(found, "h1")


def test_one_that_does_not_fit_keeps_its_host_and_undoes_the_others() -> None:
    hosts = _two()
    hosts.put(ask("big", memory_mib=15_000.0), 1, "big", since_s=-5 * HOUR)
    found = consolidate(hosts, 0.0, worth=Worth(below=2.0, move_hours=0.0))
    reasons = {kept.host: kept.reason for kept in found.kept}
    assert "big fits nowhere else" in reasons["h1"] and "memory_mib" in reasons["h1"]
    assert "fits nowhere else" in reasons["h0"]


def test_what_is_moved_twice_in_a_round_moves_once() -> None:
    hosts = fleet(4, launched_s=-10 * HOUR)
    for row in range(4):
        hosts.put(ask(), row, f"c{row}", since_s=-5 * HOUR)
    found = consolidate(hosts, 0.0)
    assert len(found.emptied) == 3 and len(found.moves) == 3
    (left,) = hosts.index.keys() - {one.host for one in found.emptied}
    assert {(m.container, m.target) for m in found.moves} == {
        (f"c{row}", left) for row in range(4) if f"h{row}" != left
    }


def test_empty_hosts_are_no_place_to_move_to() -> None:
    hosts = fleet(3, launched_s=-10 * HOUR)
    hosts.put(ask(), 0, "a", since_s=-5 * HOUR)
    assert "fits nowhere else" in _why(consolidate(hosts, 0.0), "h0")


def test_protected_young_fixed_and_busy_hosts_stay() -> None:
    assert _why(consolidate(_two(protected=True), 0.0), "h1") == "protected from disruption"
    young = Hosts([facts("h0"), facts("h1", launched_s=-100.0)])
    young.put(ask(), 0, "a", since_s=-5 * HOUR)
    young.put(ask("b", vcpus=0.5), 1, "b", since_s=-5 * HOUR)
    found = consolidate(young, 0.0, worth=Worth(move_hours=0.0), last_launch_s=-9 * HOUR)
    assert "launched 100 s ago" in {k.host: k.reason for k in found.kept}.get("h1", "")
    hosts = _two()
    hosts.containers["b"].movable = False
    assert _why(consolidate(hosts, 0.0, worth=Worth(below=0.2)), "h1") == "b must not be moved"
    busy = _why(consolidate(hosts, 0.0, worth=Worth(below=0.2)), "h0")
    assert busy == "88% in use, only hosts below 20% are emptied"


def test_a_budget_bounds_the_moves_of_a_service() -> None:
    hosts = fleet(4, launched_s=-10 * HOUR)
    for row in range(4):
        hosts.put(ask(), row, f"c{row}", since_s=-5 * HOUR)
    assert len(consolidate(hosts, 0.0, worth=CHEAP).moves) == 3
    found = consolidate(hosts, 0.0, worth=CHEAP, budgets={"web": 1})
    assert len(found.moves) == 1
    assert "1 replicas of web, of which 0 may move" in {k.reason for k in found.kept}
    assert len(consolidate(hosts, 0.0, worth=Worth(most_moves=2, move_hours=0.0)).moves) == 2
    tried = consolidate(hosts, 0.0, worth=Worth(most_tries=1, move_hours=0.0))
    assert len(tried.emptied) == 1


def test_spread_is_kept() -> None:
    hosts = Hosts(facts(f"h{n}", zone="ab"[n], launched_s=-10 * HOUR) for n in range(2))
    rule = (Spread(by=By.ZONE, share=0.5),)
    for row in range(2):
        hosts.put(ask(wanted=2, spread=rule), row, f"c{row}", since_s=-5 * HOUR)
    assert "in a zone that has its 1 of 2" in _why(consolidate(hosts, 0.0), "h0")


def test_companions_move_together() -> None:
    hosts = _two()
    hosts.take("a0")
    side = ask("side", vcpus=0.5, affinity=(Affinity(service="other"),))
    hosts.put(side, 1, "a", since_s=-5 * HOUR)
    moves = {m.container: m.target for m in consolidate(hosts, 0.0, worth=CHEAP).moves}
    assert moves == {"a": "h0", "b": "h0"}


@settings(max_examples=60, deadline=None)
@given(HOSTS, ASKS, st.floats(0.1, 1.1))
def test_after_the_moves_everything_is_somewhere_and_nothing_overcommitted(
    rows: list[dict[str, Any]], asks: list[Any], below: float
) -> None:
    hosts = _hosts([{**row, "price_usd_hour": 1.0, "takes": True} for row in rows])
    for choice in place_many(asks, hosts):
        if choice.host is not None:
            hosts.containers[choice.container].since_s = -HOUR
    count = len(hosts.containers)
    found = consolidate(hosts, 0.0, worth=Worth(below=below, move_hours=0.0), last_launch_s=-HOUR)
    for one in found.emptied:
        for move in one.moves:
            old = hosts.take(move.container)
            hosts.put(old.ask, hosts.row(move.target), move.container)
        hosts.remove(one.host)  # raises where anything is left on it
    assert len(hosts.containers) == count
    assert all((free >= -1e-9).all() for free in hosts.free) and all(
        free >= -1e-9 for here in hosts.devices for free in here
    )
