"""Which hosts go first, and which can."""

from roost.placement.consolidate import Worth
from roost.placement.hosts import Hosts
from roost.placement.leaving import order, release
from tests.unit.placement.fleets import ask, facts, fleet


def test_booting_and_empty_first_then_empty_then_the_least_used_and_the_least_lasting() -> None:
    hosts = Hosts(
        [
            facts("busy"),
            facts("safe-light"),
            facts("spot-light", survival=0.8),
            facts("empty"),
            facts("dear-empty", price_usd_hour=2.0),
            facts("spot-empty", survival=0.9),
            facts("boots", ready_in_s=30.0),
            facts("boots-longer", ready_in_s=90.0),
            facts("guarded", protected=True),
        ]
    )
    for n in range(4):
        hosts.put(ask(), hosts.row("busy"), f"b{n}")
    hosts.put(ask(), hosts.row("safe-light"), "s")
    hosts.put(ask(), hosts.row("spot-light"), "p")
    assert order(hosts) == [
        "boots-longer",
        "boots",
        "spot-empty",
        "dear-empty",
        "empty",
        "spot-light",
        "safe-light",
        "busy",
    ]
    assert order(hosts, ["busy", "empty"]) == ["empty", "busy"]


def test_only_hosts_whose_containers_fit_elsewhere_are_given_back() -> None:
    hosts = fleet(3)
    hosts.put(ask(), 0, "a")
    hosts.put(ask(vcpus=8.0), 1, "full")
    found = release(hosts, 3)
    assert [one.host for one in found.hosts] == ["h2"]
    reasons = {kept.host: kept.reason for kept in found.kept}
    assert "a fits nowhere else" in reasons["h0"] and "full fits nowhere else" in reasons["h1"]
    found = release(hosts, 1, among=["h0"])
    assert [(m.container, m.target) for m in found.hosts[0].moves] == [("a", "h2")]
    hosts.containers["a"].movable = False
    assert release(hosts, 1, among=["h0"]).kept[0].reason == "a must not be moved"


def test_a_host_stays_while_its_moves_cost_more_than_they_save() -> None:
    hosts = fleet(3, launched_s=1_000.0)
    for n in range(2):
        hosts.put(ask(), hosts.row("h1"), f"c{n}", since_s=1_000.0)
    worth = Worth(move_hours=60 / 3600)

    def after(seconds: float) -> tuple[list[str], list[str]]:
        found = release(hosts, 2, among=["h1", "h2"], now_s=1_000.0 + seconds, worth=worth)
        return [one.host for one in found.hosts], [one.reason for one in found.kept]

    assert after(100) == (
        ["h2"],
        ["to move its 2 containers costs 0.0333 USD, it saves 0.0278 so far"],
    )
    assert after(121) == (["h2", "h1"], [])


def test_a_host_without_a_price_costs_nothing_to_empty() -> None:
    hosts = fleet(2, launched_s=1_000.0, price_usd_hour=0.0)
    hosts.put(ask(), hosts.row("h1"), "c", since_s=1_000.0)
    found = release(hosts, 1, among=["h1"], now_s=1_001.0, worth=Worth(move_hours=1.0))
    assert [one.host for one in found.hosts] == ["h1"]
