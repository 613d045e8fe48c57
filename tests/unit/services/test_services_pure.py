"""The tables and checks of services."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.ports.errors import Invalid
from roost.ports.replicas import Health, ReplicaReport, ReplicaSpec
from roost.services import machine
from roost.services.checks import check
from roost.services.model import (
    REVISIONS_KEPT,
    Endpoint,
    Goal,
    Outcome,
    Replica,
    ReplicaState,
    Revision,
    Rollout,
    Service,
    ServiceState,
    Wish,
)

SPEC = ReplicaSpec(command=("server",))


def service() -> Service:
    return Service(
        id="svc-1",
        name="web",
        state=ServiceState.STARTING,
        token="t",
        revision=1,
        revisions=(Revision(number=1, spec=SPEC, created_s=0.0),),
        wish=Wish(spec=SPEC),
    )


def test_every_state_is_reached_and_only_deleted_is_the_end() -> None:
    reached = {to for edges in machine.TRANSITIONS.values() for to in edges}
    assert reached | {ServiceState.STARTING} == set(ServiceState)
    assert [s for s, edges in machine.TRANSITIONS.items() if not edges] == [ServiceState.DELETED]
    with pytest.raises(machine.InvalidTransition):
        machine.step(service(), ServiceState.ROLLING_BACK)


@given(st.lists(st.sampled_from(["update", "proven", "failed"]), max_size=120))
def test_whatever_happens_the_good_revision_is_kept(steps: list[str]) -> None:
    now = service()
    proven: int | None = None
    for number, one in enumerate(steps):
        try:
            if one == "update":
                spec = msgspec.structs.replace(SPEC, command=(f"server {number}",))
                now = machine.update(now, spec, float(number))
                assert now.current.spec == spec
            elif one == "proven":
                now = machine.proven(now)
                proven = max(proven or 0, now.revision)
                assert now.current.outcome is Outcome.GOOD
            else:
                before = now.revision
                now = machine.failed(now, "why", float(number))
                if now.state is ServiceState.ROLLING_BACK:
                    assert now.current.outcome is Outcome.GOOD
                    assert now.revision != before
                    assert now.wish.spec == now.current.spec
        except machine.InvalidTransition:
            continue
        assert len(now.revisions) <= REVISIONS_KEPT
        assert len({r.number for r in now.revisions}) == len(now.revisions)
        if proven is not None:
            assert now.last_good is not None
            assert now.last_good.number == proven


@given(st.integers(0, 5), st.integers(1, 20), st.integers(0, 40), st.none() | st.integers(0, 40))
def test_limits_come_last_and_a_person_before_the_plan(
    least: int, more: int, planned: int, person: int | None
) -> None:
    wish = Wish(spec=SPEC, min=least, max=least + more)
    now = msgspec.structs.replace(
        service(), wish=wish, planned=planned, person=person, state=ServiceState.RUNNING
    )
    assert least <= now.wanted() <= least + more
    asked = planned if person is None else person
    if least <= asked <= least + more:
        assert now.wanted() == asked
    assert machine.deleting(now).wanted() == 0


def test_a_replica_follows_its_host_and_a_draining_one_stays_so() -> None:
    wanted = Replica(id="r", service_id="s", revision=1, state=ReplicaState.WANTED)
    report = ReplicaReport(replica_id="r", service_id="s", revision=1, state="ready")
    assert machine.observe(wanted, report, 1.0) == wanted
    placed = machine.place(wanted, "i-1", 1.0)
    ready = machine.observe(placed, report, 3.0)
    assert (ready.state, ready.ready_s, ready.first_ready_s) == (ReplicaState.READY, 3.0, 3.0)
    failing = machine.observe(ready, msgspec.structs.replace(report, state="backing_off"), 4.0)
    assert failing.state is ReplicaState.FAILING
    again = machine.observe(failing, report, 9.0)
    assert (again.ready_s, again.first_ready_s) == (9.0, 3.0)
    draining = machine.drain(again, 10.0)
    assert machine.observe(draining, report, 11.0) == draining
    ended = machine.remove(draining, "over", 12.0)
    assert ended.parent == ""
    assert draining.parent == "s"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(spec=ReplicaSpec()), "a command or an image"),
        (Wish(spec=ReplicaSpec(image="a b")), "no image"),
        (Wish(spec=ReplicaSpec(command=("x",), vcpus=0)), "no size"),
        (Wish(spec=ReplicaSpec(command=("x",), vcpus=float("nan"))), "no size"),
        (Wish(spec=ReplicaSpec(command=("x",), memory_mib=-1)), "no size"),
        (Wish(spec=ReplicaSpec(command=("x",), port=70_000)), "port 70000"),
        (Wish(spec=ReplicaSpec(command=("x",), env={"A B": ""})), "no name of a variable"),
        (Wish(spec=ReplicaSpec(command=("x",), health=Health(path="x"))), "does not begin with /"),
        (Wish(spec=ReplicaSpec(command=("x",), health=Health(interval_s=0))), "health interval"),
        (Wish(spec=SPEC, min=3, max=2), "max 2 is below min 3"),
        (Wish(spec=SPEC, min=-1), "between -1 and 10"),
        (Wish(spec=SPEC, max=10**9), "10000 replicas at most"),
        (Wish(spec=SPEC, rollout=Rollout(max_surge=0)), "could ever be replaced"),
        (Wish(spec=SPEC, goal=Goal(late=0)), "share of late"),
        (Wish(spec=SPEC, goal=Goal(bound_s=-1)), "latency bound"),
        (Wish(spec=SPEC, endpoint=Endpoint(hosts=("a b",))), "no host name"),
        (Wish(spec=SPEC, endpoint=Endpoint(hosts=("127.0.0.1",))), "everything here"),
        (Wish(spec=SPEC, endpoint=Endpoint(hosts=("LocalHost",))), "everything here"),
    ],
)
def test_what_can_never_work_is_refused_with_what_to_do(wish: Wish, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        check("web", wish)
    assert said in str(caught.value)
    assert caught.value.hint or "not between" in str(caught.value)
