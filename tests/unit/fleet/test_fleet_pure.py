"""The pure half of fleet: transitions, observation, planning, avoidance."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.fleet import plan as planning
from roost.fleet.machine import TRANSITIONS, InvalidTransition, observe, step
from roost.fleet.model import (
    ENDED,
    Claim,
    ClaimState,
    Instance,
    InstanceState,
    Pool,
    RankedOffer,
    Spread,
)
from roost.fleet.service import join_token, token_hash
from roost.ports.provider import InstanceState as Seen
from roost.ports.provider import ProviderInstance
from roost.ports.values import (
    Ask,
    HostReport,
    Image,
    Notice,
    NoticeKind,
    Offer,
    PurchaseOption,
    Resources,
)

S = InstanceState


def offer(provider: str = "aws", zone: str = "apne2-az1", type_: str = "m5.xlarge") -> Offer:
    return Offer(
        provider=provider,
        region="ap-northeast-2",
        zone=zone,
        instance_type=type_,
        purchase_option=PurchaseOption.SPOT,
        price_usd_hour=0.09,
        on_demand_usd_hour=0.236,
        resources=Resources(vcpus=4, memory_gib=16),
    )


def instance(state: InstanceState = S.REQUESTED, **fields: object) -> Instance:
    base = Instance(
        id="i-1",
        state=state,
        parent="c-1",
        owner="s-1",
        role="active",
        offer=offer(),
        image=Image(name="minimal", python="3.11"),
        launch_token="l-1",
    )
    return msgspec.structs.replace(base, **fields)


def seen(state: Seen = Seen.RUNNING, **fields: object) -> ProviderInstance:
    base = ProviderInstance(
        provider_id="p-1", token="l-1", host_id="i-1", state=state, launched_s=100.0
    )
    return msgspec.structs.replace(base, **fields)


def report(**fields: object) -> HostReport:
    return msgspec.structs.replace(HostReport(host_id="i-1", at_s=110.0, ready=True), **fields)


def claim(state: ClaimState = ClaimState.WANTED, **fields: object) -> Claim:
    base = Claim(
        id="c-1",
        state=state,
        parent="s-1",
        role="active",
        ask=Ask(),
        image=Image(name="minimal", python="3.11"),
    )
    return msgspec.structs.replace(base, **fields)


def test_every_state_has_a_row_and_ended_states_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(InstanceState)
    assert {s for s, edges in TRANSITIONS.items() if not edges} == set(ENDED)
    assert all(text for edges in TRANSITIONS.values() for text in edges.values())


def test_a_step_outside_the_table_is_refused() -> None:
    with pytest.raises(InvalidTransition, match="i-1: planned -> ready"):
        step(instance(S.PLANNED), S.READY)


def test_observe_follows_a_life_and_bills_it_once() -> None:
    booting = observe(instance(), seen(), None, 105.0)
    assert booting.state is S.BOOTING
    assert booting.spans[0].started_s == 100.0
    ready = observe(booting, seen(), report(), 111.0)
    assert (ready.state, ready.ready_s) == (S.READY, 110.0)
    lost = observe(ready, seen(Seen.TERMINATED, ended_s=160.0, reason="interrupted"), None, 170.0)
    assert (lost.state, lost.ended_s, lost.ended_reason) == (S.LOST, 160.0, "interrupted")
    assert [s.ended_s for s in lost.spans] == [160.0]


def test_an_end_we_asked_for_is_a_termination() -> None:
    draining = step(observe(instance(), seen(), report(), 111.0), S.DRAINING)
    ended = observe(draining, seen(Seen.TERMINATED, ended_s=120.0), None, 130.0)
    assert ended.state is S.TERMINATED


def test_absence_proves_nothing_before_the_launch_call_returned() -> None:
    assert observe(instance(S.REQUESTED), None, None, 200.0).state is S.REQUESTED
    booting = observe(instance(), seen(), None, 105.0)
    assert observe(booting, None, None, 200.0).state is S.LOST


def test_nothing_is_billed_while_stopped() -> None:
    ready = observe(instance(), seen(), report(), 111.0)
    stopped = observe(ready, seen(Seen.STOPPED, ended_s=150.0), None, 151.0)
    assert stopped.state is S.STOPPED
    assert stopped.spans[-1].ended_s == 150.0
    again = observe(stopped, seen(launched_s=300.0), None, 301.0)
    assert again.state is S.BOOTING
    assert [(s.started_s, s.ended_s) for s in again.spans] == [(100.0, 150.0), (300.0, None)]


@given(
    st.sampled_from(list(InstanceState)),
    st.sampled_from([None, *Seen]),
    st.booleans(),
    st.booleans(),
)
def test_observing_twice_is_observing_once(
    state: InstanceState, found: Seen | None, reported: bool, noticed: bool
) -> None:
    notice = Notice(kind=NoticeKind.INTERRUPTION, seen_s=1.0, deadline_s=2.0) if noticed else None
    told = report(notice=notice) if reported else None
    listed = seen(found, ended_s=150.0) if found else None
    once = observe(instance(state), listed, told, 200.0)
    assert observe(once, listed, told, 200.0) == once


def test_a_wanted_claim_is_pursued_until_held_and_spent_when_its_host_goes() -> None:
    def plan(c: Claim, i: Instance | None) -> list[planning.Instruction]:
        return planning.plan(planning.Snapshot(claim=c, instance=i, now_s=100.0))

    assert isinstance(plan(claim(), None)[0], planning.Choose)
    assert isinstance(plan(claim(), instance(S.PLANNED))[0], planning.Launch)
    assert plan(claim(), instance(S.BOOTING, created_s=50.0)) == []
    held = plan(claim(), instance(S.READY))[0]
    assert isinstance(held, planning.Settle)
    assert held.state is ClaimState.HELD
    spent = plan(claim(ClaimState.HELD), instance(S.LOST))[0]
    assert isinstance(spent, planning.Settle)
    assert spent.state is ClaimState.SPENT
    assert isinstance(plan(claim(), instance(S.LOST))[0], planning.Choose)


def test_an_instance_that_never_gets_ready_is_given_up() -> None:
    late = instance(S.BOOTING, created_s=0.0)
    found = planning.plan(planning.Snapshot(claim=claim(), instance=late, now_s=601.0))
    assert isinstance(found[0], planning.Terminate)


@pytest.mark.parametrize("state", list(InstanceState))
def test_a_released_claim_ends_its_instance_and_then_itself(state: InstanceState) -> None:
    snapshot = planning.Snapshot(
        claim=claim(ClaimState.RELEASED), instance=instance(state), now_s=1.0
    )
    found = planning.plan(snapshot)[0]
    expected = planning.Settle if state in ENDED else planning.Terminate
    assert isinstance(found, expected)


def test_every_claim_state_and_instance_state_has_a_plan() -> None:
    for c, i in itertools.product(ClaimState, [None, *InstanceState]):
        found = instance(i) if i else None
        planning.plan(planning.Snapshot(claim=claim(c), instance=found, now_s=1.0))


def test_a_claim_for_one_pool_is_spent_where_another_would_be_tried() -> None:
    refused = instance(S.FAILED, ended_reason="no capacity")
    only = claim(prefer=offer().key, only=True)
    (settle,) = planning.plan(planning.Snapshot(claim=only, instance=refused, now_s=1.0))
    assert isinstance(settle, planning.Settle)
    assert (settle.state, "no capacity" in settle.reason) == (ClaimState.SPENT, True)
    (choose,) = planning.plan(
        planning.Snapshot(claim=claim(prefer=offer().key), instance=refused, now_s=1.0)
    )
    assert isinstance(choose, planning.Choose)
    others = [RankedOffer(offer=offer(zone="apne2-az2"), reason="")]
    assert planning.preferred(others, only) is None
    found = planning.preferred([*others, RankedOffer(offer=offer(), reason="")], only)
    assert found is not None
    assert found[0] == offer()


def test_spread_and_refusals_narrow_the_ask() -> None:
    pools = [
        Pool(id="azure/x/y/spot", avoid_until_s=50.0, reason="refused"),
        Pool(id="azure/old/y/spot", avoid_until_s=5.0, reason="refused"),
    ]
    away = claim(away_from=(offer(),), spread=Spread.PROVIDER)
    ask = planning.narrowed(away, pools, 10.0)
    assert ask.avoid_clouds == ("aws",)
    assert ask.avoid_pools == ("azure/x/y/spot", offer().key)
    region = planning.narrowed(claim(away_from=(offer(),), spread=Spread.REGION), [], 10.0)
    assert (region.avoid_clouds, region.avoid_regions) == ((), ("ap-northeast-2",))


def test_pools_that_refused_or_interrupted_are_avoided_for_a_while() -> None:
    refused = planning.avoidance(instance(S.FAILED), 0.0)
    lost = planning.avoidance(instance(S.LOST), 0.0)
    assert refused is not None
    assert lost is not None
    assert (refused.avoid_until_s, lost.avoid_until_s) == (180.0, 3600.0)
    assert planning.avoidance(instance(S.READY), 0.0) is None


def test_join_tokens_are_repeatable_and_each_hosts_own() -> None:
    assert join_token(b"secret", "i-1") == join_token(b"secret", "i-1")
    assert join_token(b"secret", "i-1") != join_token(b"secret", "i-2")
    assert join_token(b"other", "i-1") != join_token(b"secret", "i-1")
    assert len(token_hash("x")) == 64
