"""Every constraint by itself, what wins among hosts that fit, what a refusal says."""

import pytest

from roost.placement.hosts import Hosts
from roost.placement.model import Affinity, Ask, By, Spread, Weights
from roost.placement.place import explain, place, place_many
from roost.ports.errors import Conflict, Gone, Invalid
from tests.unit.placement.fleets import ask, facts, fleet


def test_the_fullest_host_that_fits_wins_and_of_equals_the_first() -> None:
    hosts = fleet(3)
    hosts.put(ask(vcpus=4.0), 1, "there")
    assert place(ask(), hosts).host == "h1"
    assert place(ask(vcpus=5.0), hosts).host == "h0"


def test_with_no_weight_on_packing_it_is_first_fit() -> None:
    hosts = fleet(3)
    hosts.put(ask(vcpus=4.0), 1, "there")
    assert place(ask(), hosts, weights=Weights(pack=0.0)).host == "h0"


@pytest.mark.parametrize(
    ("wants", "words"),
    [
        ({"vcpus": 9.0}, "2 too little vcpus free (asked: 9)"),
        ({"memory_mib": 20_000.0}, "2 too little memory_mib free"),
        ({"gpus": 1.0}, "2 fewer than 1 GPUs entirely free"),
        ({"gpus": 0.25}, "2 no GPU with 0.25 of it free"),
        ({"groups": ("other",)}, "2 not of group other"),
        ({"regions": ("s", "t")}, "2 not of region s, t"),
        ({"zones": ("b",)}, "2 not of zone b"),
        ({"pools": ("q",)}, "2 not of pool q"),
        ({"labels": ("ssd",)}, "2 without the label ssd"),
        ({"min_survival": 0.95}, "2 likely to go"),
        ({"max_wait_s": 30.0}, "2 not ready within 30 s"),
        ({"affinity": (Affinity(service="db"),)}, "2 not in a host with db"),
    ],
)
def test_what_is_in_the_way_is_told_with_the_number_of_hosts(
    wants: dict[str, object], words: str
) -> None:
    hosts = fleet(2, survival=0.9, ready_in_s=60.0)
    choice = place(ask(**wants), hosts, container="c1")
    assert choice.host is None and choice.container == "c1"
    assert choice.reason.startswith("web: none of 2 hosts: ") and words in choice.reason
    assert not hosts.containers


def test_each_host_is_counted_at_the_first_condition_it_fails() -> None:
    hosts = Hosts([facts("h0", takes=False), facts("h1", zone="b"), facts("h2", vcpus=0.5)])
    why = explain(hosts, ask(zones=("a",)))
    assert why == (
        "web: none of 3 hosts: 1 not taking new containers, 1 not of zone a, "
        "1 too little vcpus free (asked: 1)"
    )
    assert explain(Hosts(), ask()) == "web: there is no host"


def test_slots_are_a_limit_of_their_own() -> None:
    hosts = fleet(2, slots=2)
    made = place_many([ask(vcpus=0.1)] * 5, hosts)
    assert [c.host for c in made] == ["h0", "h0", "h1", "h1", None]
    assert "slots" in made[4].reason


def test_spread_by_share_and_by_count() -> None:
    hosts = Hosts(facts(f"h{n}", zone="aab"[n % 3]) for n in range(6))
    rules = (Spread(by=By.ZONE, share=0.5), Spread(by=By.HOST, most=2))
    made = place_many([ask(wanted=6, spread=rules)] * 6, hosts)
    assert [c.host for c in made] == ["h0", "h0", "h1", "h2", "h2", "h5"]


def test_a_strict_spread_refuses_and_a_wish_gives_way_and_says_so() -> None:
    hosts = fleet(2)
    strict = ask(wanted=4, spread=(Spread(by=By.ZONE, share=0.5),))
    made = place_many([strict] * 4, hosts)
    assert [c.host is None for c in made] == [False, False, True, True]
    assert "2 in a zone that has its 2 of 4" in made[2].reason
    wish = ask("b", wanted=4, spread=(Spread(by=By.ZONE, share=0.5, strict=False),))
    made = place_many([wish] * 4, hosts)
    assert all(c.host for c in made)
    assert not made[1].relaxed and "gave up: in a zone that has its 2 of 4" in made[2].reason


def test_spread_counts_peers_where_a_revision_is_named() -> None:
    hosts = fleet(1)
    rule = (Spread(by=By.HOST, most=1),)
    assert place(ask(peers="web@1", spread=rule), hosts).host
    assert place(ask(peers="web@1", spread=rule), hosts).host is None
    assert place(ask(peers="web@2", spread=rule), hosts).host


def test_what_is_leaving_takes_room_but_is_not_counted() -> None:
    hosts = fleet(1)
    hosts.put(ask(), 0, "old", counts=False)
    assert place(ask(spread=(Spread(by=By.HOST, most=1),)), hosts).host
    assert hosts.free[0][0] == 6.0


def test_together_and_apart() -> None:
    hosts = Hosts(facts(f"h{n}", zone="ab"[n % 2]) for n in range(4))
    hosts.put(ask("db"), 1, "db")
    near = ask("cache", affinity=(Affinity(service="db", by=By.ZONE),))
    assert {c.host for c in place_many([near] * 12, hosts)} == {"h1", "h3"}
    far = ask("batch", affinity=(Affinity(service="db", by=By.ZONE, apart=True),))
    assert {c.host for c in place_many([far] * 12, hosts)} == {"h0", "h2"}
    # Who stays apart keeps the other one away as well, although that one did not ask for it.
    assert place(ask("db", zones=("a",)), hosts).host is None


def test_a_service_that_stays_with_itself_begins_anywhere() -> None:
    hosts = Hosts(facts(f"h{n}", zone="ab"[n % 2], slots=2) for n in range(4))
    one = ask(affinity=(Affinity(service="web", by=By.ZONE),))
    made = place_many([one] * 5, hosts)
    assert [c.host for c in made] == ["h0", "h0", "h2", "h2", None]


def test_a_service_apart_from_itself_has_one_a_domain() -> None:
    hosts = fleet(3)
    one = ask(affinity=(Affinity(service="web", apart=True),))
    assert [c.host for c in place_many([one] * 4, hosts)] == ["h0", "h1", "h2", None]


def test_who_follows_another_service_is_placed_after_it() -> None:
    hosts = fleet(2)
    follows = ask("sidecar", vcpus=4.0, affinity=(Affinity(service="web"),))
    made = place_many([follows, ask()], hosts)
    assert made[0].host == made[1].host


def test_a_share_of_a_gpu_needs_one_device_that_has_it() -> None:
    hosts = fleet(1, gpus=2)
    place_many([ask(gpus=0.6)] * 2, hosts)
    choice = place(ask(gpus=0.6), hosts)  # 0.8 are free in sum, 0.4 on each
    assert choice.host is None and "no GPU with 0.6 of it free" in choice.reason
    assert place(ask(gpus=0.4), hosts).host
    assert place(ask(gpus=1.0), hosts).host is None


def test_shares_gather_on_one_device_so_that_whole_ones_stay_free() -> None:
    hosts = fleet(1, gpus=4)
    place_many([ask(gpus=0.25)] * 4, hosts)
    assert place(ask(gpus=3.0), hosts).host
    assert place(ask(gpus=0.1), hosts).host is None


def test_what_needs_no_gpu_leaves_hosts_with_gpus_alone() -> None:
    hosts = Hosts([facts("gpu", gpus=4), facts("plain")])
    hosts.put(ask(vcpus=4.0), 0, "there")
    assert place(ask(), hosts).host == "plain"
    assert place(ask(gpus=1.0), hosts).host == "gpu"


def test_a_ready_host_before_one_that_boots() -> None:
    hosts = Hosts([facts("boots", ready_in_s=90.0), facts("ready")])
    hosts.put(ask(vcpus=2.0), 0, "there")
    assert place(ask(), hosts).host == "ready"
    choice = place(ask(vcpus=8.0, memory_mib=1.0), Hosts([facts("boots", ready_in_s=90.0)]))
    assert choice.reason == "62% of boots left free, ready in 90 s"


def test_what_is_dear_to_lose_goes_where_it_lasts_the_rest_leaves_that_alone() -> None:
    hosts = Hosts([facts("spot", survival=0.9), facts("lasts")])
    for service in ("dear", "cheap"):
        hosts.put(ask(service, vcpus=0.01, memory_mib=16.0), 1, service)
        hosts.put(ask(vcpus=0.01, memory_mib=16.0), 0, f"beside {service}")
    assert place(ask("cheap", loss=0.0), hosts, container="c").host == "spot"
    hosts.take("c")
    assert place(ask("dear", loss=1.0), hosts).host == "lasts"


def test_the_only_replica_is_not_put_on_a_host_that_may_go() -> None:
    hosts = Hosts([facts("spot", survival=0.9), facts("lasts")])
    hosts.put(ask("other", vcpus=4.0), 0, "other")
    made = place_many([ask(loss=0.0)] * 3, hosts)
    assert [c.host for c in made] == ["lasts", "spot", "spot"]
    only = place(ask(loss=0.0), Hosts([facts("spot", survival=0.9)]))
    assert only.host == "spot" and "only replica" in only.reason


def test_further_resources_by_name() -> None:
    hosts = Hosts([facts("h0", extra=(("disk", 10.0),))], extra=("disk",))
    assert place(ask(extra=(("disk", 6.0),)), hosts).host
    assert "disk" in place(ask(extra=(("disk", 6.0),)), hosts).reason
    with pytest.raises(Invalid, match="rdma"):
        place(ask(extra=(("rdma", 1.0),)), hosts)


def test_choices_come_in_the_order_of_the_asks_with_their_names() -> None:
    hosts = fleet(1)
    asks = [ask("small"), ask("big", vcpus=7.5), ask("small")]
    made = place_many(asks, hosts, containers=["a", "b", "c"])
    assert [c.container for c in made] == ["a", "b", "c"]
    # The biggest is placed first, whatever its place among the asks.
    assert [c.host for c in made] == [None, "h0", None]


@pytest.mark.parametrize(
    "bad",
    [
        {"vcpus": -1.0},
        {"vcpus": float("nan")},
        {"memory_mib": float("inf")},
        {"gpus": 1.5},
        {"wanted": 0},
        {"spread": (Spread(by=By.ZONE, share=0.0),)},
        {"spread": (Spread(by=By.ZONE, share=1.5),)},
        {"affinity": (Affinity(service="db"), Affinity(service="db", apart=True))},
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(bad: dict[str, object]) -> None:
    with pytest.raises(Invalid) as caught:
        place_many([ask(**bad)], fleet(1))
    assert caught.value.hint


def test_the_same_name_twice_is_refused_before_anything_is_placed() -> None:
    hosts = fleet(1)
    with pytest.raises(Conflict):
        place_many([ask(), ask()], hosts, containers=["a", "a"])
    assert not hosts.containers
    hosts.put(ask(), 0, "a")
    with pytest.raises(Conflict):
        place_many([ask()], hosts, containers=["a"])
    with pytest.raises(Gone):
        hosts.take("b")
    with pytest.raises(Conflict):
        hosts.add(facts("h0"))
    with pytest.raises(Conflict):
        hosts.remove("h0")


def test_a_row_is_used_again_and_the_columns_grow() -> None:
    hosts = fleet(8, labels=("ssd",))
    hosts.label("ssd")
    row = hosts.row("h3")
    hosts.remove("h3")
    assert place(ask(), hosts).host != "h3"
    assert hosts.add(facts("new", gpus=2)) == row
    for n in range(20):
        hosts.add(facts(f"more{n}", labels=("ssd",) if n % 2 else ()))
    assert place(ask(gpus=2.0), hosts).host == "new"
    assert hosts.height == 28 and int(hosts.label("ssd").sum()) == 17


def test_alike_asks_may_be_different_objects() -> None:
    hosts = fleet(2, slots=2)
    made = place_many([Ask(service="s", vcpus=1.0) for _ in range(4)], hosts)
    assert [c.host for c in made] == ["h0", "h0", "h1", "h1"]
