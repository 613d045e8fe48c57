"""Services in the words of placement: where replicas go, what waits and why, which hosts can go."""

from typing import Any

import msgspec
import pytest

from roost.fleet.groups.model import GroupHost, HostState, Protection
from roost.placement.model import Affinity, By, Spread
from roost.ports.errors import Invalid
from roost.ports.replicas import ReplicaSpec
from roost.ports.values import Offer, PurchaseOption, Resources
from roost.services.checks import check
from roost.services.model import (
    Outcome,
    Pool,
    Replica,
    ReplicaState,
    Revision,
    Service,
    ServiceState,
    Where,
    Wish,
)
from roost.services.placing import assign, missing, releasable, room, slots, told

R = ReplicaState


def host(name: str, *, zone: str = "a", **given: Any) -> GroupHost:
    offer = Offer(
        provider="aws",
        region="r",
        zone=zone,
        instance_type="m5.xlarge",
        purchase_option=PurchaseOption.SPOT,
        price_usd_hour=0.1,
        on_demand_usd_hour=0.2,
        resources=Resources(vcpus=4.0, memory_gib=8.0, gpus=given.pop("gpus", 0.0)),
    )
    some = {"state": HostState.READY, "slots": 4, "connected": True, **given}
    return GroupHost(host_id=name, member_id=f"m-{name}", offer=offer, **some)


def pool(*hosts: GroupHost, **given: Any) -> Pool:
    some = {"vcpus": 4.0, "memory_mib": 8192.0, "slots": 4, **given}
    return Pool(id="default", hosts=hosts, **some)


def service(
    name: str = "web", *, wanted: int = 4, where: Where | None = None, **spec: Any
) -> Service:
    made = ReplicaSpec(command=("x",), **{"vcpus": 0.5, "memory_mib": 256.0, **spec})
    revision = Revision(number=1, spec=made, created_s=0.0, outcome=Outcome.GOOD)
    return Service(
        id=f"s-{name}",
        name=name,
        state=ServiceState.RUNNING,
        token="",
        revision=1,
        revisions=(revision,),
        wish=Wish(spec=made, min=0, max=100, where=where or Where()),
        planned=wanted,
        needed=wanted,
    )


def replicas(of: Service, *on: str, state: ReplicaState = R.READY) -> list[Replica]:
    """One on each host named; an empty name waits."""
    return [
        Replica(
            id=f"{of.name}-{n}",
            service_id=of.id,
            revision=1,
            state=state if name else R.WANTED,
            host_id=name,
            created_s=float(n),
        )
        for n, name in enumerate(on)
    ]


def test_half_of_a_service_at_most_stands_on_one_host_while_there_are_others() -> None:
    web = service(wanted=4)
    made = assign([web], replicas(web, "", "", "", ""), pool(host("h1"), host("h2")))
    assert sorted(str(c.host) for c in made.values()) == ["h1", "h1", "h2", "h2"]
    made = assign([web], replicas(web, "", "", "", ""), pool(host("h1")))
    assert {c.host for c in made.values()} == {"h1"} and not told(made)


def test_only_hosts_that_serve_and_stay_get_anything() -> None:
    web = service(wanted=1)
    hosts = pool(
        host("boots", state=HostState.BOOTING),
        host("goes", state=HostState.NOTICED),
        host("drains", state=HostState.DRAINING),
        host("silent", connected=False),
    )
    (choice,) = assign([web], replicas(web, ""), hosts).values()
    assert choice.host is None
    assert choice.reason == "s-web: none of 4 hosts: 4 not taking new containers"


def test_memory_and_cpu_are_limits_beside_slots() -> None:
    big = service("big", wanted=3, memory_mib=4096.0)
    made = assign([big], replicas(big, "", "", ""), pool(host("h1")))
    assert [c.host for c in made.values()] == ["h1", "h1", None]
    assert "too little memory_mib free (asked: 4096)" in told(made)["big-2"]
    busy = service("busy", wanted=3, vcpus=3.0)
    other = [*replicas(busy, "h1"), *replicas(big, "")]
    assert assign([big, busy], other, pool(host("h1")))["big-0"].host == "h1"
    heavy = service("heavy", wanted=1, vcpus=2.0)
    assert assign([heavy, busy], [*replicas(busy, "h1"), *replicas(heavy, "")], pool(host("h1")))[
        "heavy-0"
    ].reason.endswith("1 too little vcpus free (asked: 2)")


def test_gpus_are_given_by_device() -> None:
    one = service("one", wanted=3, gpus=0.6)
    made = assign([one], replicas(one, "", "", ""), pool(host("h1", gpus=2.0), gpus=2.0))
    assert [c.host for c in made.values()] == ["h1", "h1", None]


def test_rules_of_the_service_name_other_services() -> None:
    db = service("db", wanted=1)
    rules = Where(affinity=(Affinity(service="db", by=By.ZONE, apart=True),), zones=("a", "b"))
    web = service("web", wanted=2, where=rules)
    hosts = pool(host("h1"), host("h2", zone="b"), host("h3", zone="c"))
    made = assign([db, web], [*replicas(db, "h1"), *replicas(web, "", "")], hosts)
    assert {c.host for c in made.values()} == {"h2"}


def test_a_new_revision_is_spread_by_itself() -> None:
    rules = Where(spread=(Spread(by=By.HOST, most=1),))
    web = service(wanted=2, where=rules)
    old = replicas(web, "h1", "h2")
    new = [
        Replica(id="new", service_id=web.id, revision=2, state=R.WANTED, created_s=9.0),
    ]
    assert assign([web], [*old, *new], pool(host("h1"), host("h2")))["new"].host


def test_as_many_more_hosts_as_give_room() -> None:
    web = service(wanted=9)
    waiting = replicas(web, *[""] * 9)
    assert missing([web], waiting, pool(host("h1"))) == 2
    assert missing([web], waiting, pool(host("h1"), host("b", state=HostState.BOOTING))) == 1
    # What only fills free slots is no reason for another host.
    filled = msgspec.structs.replace(web, needed=4)
    assert missing([filled], waiting, pool(host("h1"))) == 0
    # No number of hosts helps where a zone is asked for that the group has none in.
    stuck = service("stuck", wanted=1, where=Where(zones=("z",)))
    assert missing([stuck], replicas(stuck, ""), pool(host("h1"))) == 0


def test_only_what_finds_a_place_fills_free_slots() -> None:
    alone = service(wanted=2, where=Where(spread=(Spread(by=By.HOST, most=1),)))
    hosts = pool(host("h1"), host("h2"), host("h3", state=HostState.BOOTING))
    assert room(alone, [alone], replicas(alone, "h1"), hosts, 8) == 3
    assert room(service(), [service()], [], hosts, 8) == 8


def test_large_replicas_leave_fewer_slots() -> None:
    empty = pool()
    assert slots([service(wanted=8)], empty) == 4
    assert slots([service(wanted=8, memory_mib=4096.0)], empty) == 2
    assert slots([service(wanted=8, vcpus=4.0)], empty) == 1
    mixed = [service("a", wanted=4, memory_mib=4096.0), service("b", wanted=8)]
    assert slots(mixed, empty) == 3
    assert slots([service(wanted=8, memory_mib=4096.0)], pool(vcpus=0.0, memory_mib=0.0)) == 4


def test_a_host_goes_when_what_is_still_wanted_fits_elsewhere() -> None:
    web = service(wanted=4)
    hosts = pool(host("h1"), host("h2"), host("h3"))
    mine = replicas(web, "h1", "h1", "h1", "h2", "h2", "h3")
    assert releasable([web], mine, hosts, ["h3", "h2"]) == (["h3", "h2"], "")
    full = service(wanted=6)
    gone, why = releasable([full], replicas(full, *["h1"] * 4, "h2", "h3"), hosts, ["h3", "h2"])
    assert gone == ["h2"] and why.startswith("h3 stays: web-")
    assert "fits nowhere else" in why


def test_a_host_is_not_emptied_before_that_pays() -> None:
    web = service(wanted=3)
    hosts = pool(host("h1", created_s=1_000.0), host("h2", created_s=1_000.0))
    mine = replicas(web, "h1", "h1", "h2")
    kept, why = releasable([web], mine, hosts, ["h2"], now_s=1_010.0, start_s=20.0)
    assert kept == [] and why.startswith("h2 stays: to move its 1 containers costs")
    assert releasable([web], mine, hosts, ["h2"], now_s=1_021.0, start_s=20.0) == (["h2"], "")
    over = service(wanted=2)  # what is on it is not wanted any more: nothing moves
    gone = replicas(over, "h1", "h1", "h2")
    assert releasable([over], gone, hosts, ["h2"], now_s=1_010.0, start_s=20.0) == (["h2"], "")


def test_a_protected_host_is_never_given_back() -> None:
    web = service(wanted=0)
    hosts = pool(host("h1", protection=Protection.DISRUPTION))
    assert releasable([web], [], hosts, ["h1"])[0] == []


def test_what_is_drained_holds_no_host_back() -> None:
    web = service(wanted=4)
    mine = [*replicas(web, "h1", "h1", "h1", "h1")]
    gone = Replica(id="old", service_id=web.id, revision=1, state=R.DRAINING, host_id="h2")
    assert releasable([web], [*mine, gone], pool(host("h1"), host("h2")), ["h2"])[0] == ["h2"]


def test_rules_that_cannot_be_meant_are_refused_when_they_are_given() -> None:
    both = (Affinity(service="db"), Affinity(service="db", apart=True))
    for where in (
        Where(affinity=both),
        Where(spread=(Spread(by=By.ZONE, share=2.0),)),
        Where(min_survival=95.0),
    ):
        with pytest.raises(Invalid) as caught:
            check("web", service(where=where).wish)
        assert caught.value.hint
    with pytest.raises(Invalid, match="GPUs"):
        check("web", service(gpus=1.5).wish)
