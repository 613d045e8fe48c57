"""Which hosts go first, and which can."""

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
