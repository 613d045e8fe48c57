"""Which hosts go first, and that a drain never breaks a service's minimum."""

from hypothesis import given, settings
from hypothesis import strategies as st

from roost.placement.hosts import Hosts
from roost.placement.leaving import evacuate, moves, order, release
from roost.placement.model import By, Spread
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


def test_who_can_least_be_missed_leaves_first_and_waits_for_its_replacement() -> None:
    hosts = fleet(2)
    hosts.put(ask("spare"), 0, "x")
    hosts.put(ask("tight"), 0, "y")
    steps = evacuate("h0", hosts, ready={"spare": 3, "tight": 2}, minimum={"spare": 1, "tight": 2})
    assert [(s.container, s.target, s.at_once) for s in steps] == [
        ("y", "h1", False),
        ("x", "h1", True),
    ]
    assert steps[0].reason == (
        "tight has 2 ready, its minimum is 2: stays until replaced; replaced on h1"
    )
    assert [m.container for m in moves(steps, "h0")] == ["y", "x"]
    assert hosts.takes[0] and hosts.containers["x"].host == 0


def test_without_room_the_step_says_so_and_nothing_stops() -> None:
    hosts = Hosts([facts("h0"), facts("h1", vcpus=0.5)])
    hosts.put(ask(), 0, "x")
    (step,) = evacuate("h0", hosts, ready={"web": 1}, minimum={"web": 1})
    assert step.target is None and not step.at_once and "too little vcpus" in step.reason
    assert moves([step], "h0") == ()


def test_the_replacement_may_take_the_place_in_the_spread_of_what_it_replaces() -> None:
    hosts = Hosts([facts("h0"), facts("h1")])
    rule = (Spread(by=By.ZONE, share=0.5),)
    hosts.put(ask(wanted=2, spread=rule), 0, "x")
    (step,) = evacuate("h0", hosts, ready={"web": 1}, minimum={"web": 1})
    assert step.target == "h1"


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(("a", "b", "c")), max_size=8),
    st.dictionaries(st.sampled_from(("a", "b", "c")), st.integers(0, 10)),
    st.dictionaries(st.sampled_from(("a", "b", "c")), st.integers(0, 10)),
)
def test_what_may_stop_at_once_leaves_every_service_its_minimum(
    services: list[str], ready: dict[str, int], minimum: dict[str, int]
) -> None:
    hosts = fleet(2)
    for n, service in enumerate(services):
        hosts.put(ask(service), 0, f"c{n}")
    steps = evacuate("h0", hosts, ready=ready, minimum=minimum)
    assert sorted(s.container for s in steps) == sorted(hosts.on[0])
    for service in "abc":
        stopped = sum(s.at_once for s in steps if s.service == service)
        if stopped:
            assert ready.get(service, 0) - stopped >= minimum.get(service, 0)
