"""``decide``: snapshot in, plan with reasons out. Limits, missing data, zero and back, bad input."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.scaling import memory
from roost.scaling.memory import Memory
from roost.scaling.policies import Predictive, Scheduled, Step, StepRule, TargetTracking
from roost.services.observation import (
    GroupState,
    HostPhase,
    HostState,
    Objective,
    Observation,
    Plan,
    ServiceState,
)
from roost.services.plan import decide

NOW = 1_790_000_040.0
PER_MINUTE = 600.0


def _service(id: str = "web", rate: float = PER_MINUTE, **given: object) -> ServiceState:
    """Ten requests a second of 0.5 s each, for two days."""
    random = np.random.default_rng(3)
    some: dict[str, object] = {
        "minutes": random.poisson(rate, 2 * 1440).astype(float),
        "recent": random.poisson(rate / 6, 180).astype(float),
        "service_mean_s": 0.5,
        "in_flight": int(rate / 120),
        "ready": 8,
    }
    return ServiceState(id=id, **{**some, **given})  # type: ignore[arg-type]


def _hosts(ready: int, booting: int = 0) -> tuple[HostState, ...]:
    return tuple(
        HostState(
            id=f"h{n}",
            phase=HostPhase.READY if n < ready else HostPhase.BOOTING,
            used=4 if n < ready else 0,
            age_s=1000.0 - n,
        )
        for n in range(ready + booting)
    )


def _decide(*services: ServiceState, now_s: float = NOW, **group: object) -> Plan:
    state = GroupState(**{"hosts": _hosts(2), **group})  # type: ignore[arg-type]
    return decide(Observation(now_s=now_s, services=services, groups=(state,)))


def _again(s: ServiceState, plan: Plan, **given: object) -> ServiceState:
    return replace(s, memory=plan.services[s.id].memory, **given)  # type: ignore[arg-type]


def test_capacity_covers_the_load_with_a_reason() -> None:
    plan = _decide(_service())
    got = plan.services["web"]
    assert 6 <= got.needed <= 14
    assert got.replicas == plan.groups["default"].hosts * 4, "spare slots are filled"
    assert "forecast" in got.reason
    assert "slots needed" in plan.groups["default"].reason


def test_booting_hosts_are_not_launched_twice() -> None:
    s = _service(rate=6000.0, ready=8)
    first = _decide(s)
    want = first.groups["default"].hosts
    assert want > 10
    second = _decide(_again(s, first), hosts=_hosts(2, want - 2), now_s=NOW + 10)
    assert second.groups["default"].hosts == want
    assert second.groups["default"].release == ()


@pytest.mark.parametrize(("lasts", "more"), [(1, False), (20, True)])
def test_hosts_are_launched_for_surges_that_last(lasts: int, more: bool) -> None:
    minutes = np.where(np.arange(2 * 1440) % 97 < lasts, 6 * PER_MINUTE, PER_MINUTE)
    minutes[-60:] = PER_MINUTE
    recent = np.full(180, PER_MINUTE / 6)
    calm = _decide(_service(minutes=minutes, recent=recent))
    there = calm.groups["default"].hosts
    recent[-6:] *= 6
    s = _again(_service(minutes=minutes, recent=recent, ready=4 * there), calm)
    plan = _decide(s, hosts=_hosts(there), now_s=NOW + 10)
    assert (plan.groups["default"].hosts > there) is more
    got = plan.services["web"]
    assert got.replicas >= 4 * there, "what there is serves the surge"
    assert ("will pass" in got.reason) is not more


def test_a_start_must_be_worth_it_where_surges_are_harmless() -> None:
    calm = _decide(_service())
    steady = memory.load(calm.services["web"].memory)
    assert steady is not None
    assert steady.sudden == 0.0
    bursty = msgspec.structs.replace(steady, sudden=1.0)

    def needed(known: Memory, rate: float) -> int:
        recent = np.full(180, rate / 6)
        s = _service(recent=recent, memory=memory.dump(known))
        return _decide(s, now_s=NOW + 10).services["web"].needed

    rates = [PER_MINUTE * (1.2 + 0.05 * n) for n in range(20)]
    pairs = [(needed(steady, rate), needed(bursty, rate)) for rate in rates]
    assert all(few <= many for few, many in pairs)
    assert any(few < many for few, many in pairs)
    assert pairs[-1][0] > calm.services["web"].replicas, "what is clearly needed is started"


def test_noticed_and_draining_hosts_are_no_capacity() -> None:
    lost = tuple(replace(h, phase=HostPhase.NOTICED) for h in _hosts(2))
    plan = _decide(_service(), hosts=(*lost, HostState(id="d", phase=HostPhase.DRAINING)))
    assert plan.groups["default"].hosts >= 2
    assert not set(plan.groups["default"].release) & {"h0", "h1", "d"}


def test_booting_and_empty_hosts_go_first() -> None:
    s = _service(rate=60.0, ready=1)
    plan = _decide(s, hosts=_hosts(3, 2))
    later = _decide(_again(s, plan), hosts=_hosts(3, 2), now_s=NOW + 1200)
    release = later.groups["default"].release
    assert release[:2] == ("h4", "h3")
    assert later.groups["default"].hosts == 5 - len(release)


counts = st.integers(0, 30)


@settings(max_examples=60, deadline=None)
@given(
    low=counts,
    high=counts,
    person=st.none() | counts,
    rate=st.sampled_from([0.0, 3.0, 600.0, 60_000.0]),
    queued=counts,
    hole=st.booleans(),
)
def test_limits_hold_always(
    low: int, high: int, person: int | None, rate: float, queued: int, hole: bool
) -> None:
    s = _service(rate=rate, min=low, max=high, person_desired=person, queued=queued)
    if hole:
        s = replace(s, recent=np.full(180, math.nan))
    plan = _decide(s, min=1, max=3)
    got = plan.services["web"]
    assert min(low, high) <= got.needed <= got.replicas <= high
    assert 1 <= plan.groups["default"].hosts <= 3
    if person is not None:
        assert got.replicas == min(high, max(low, person))


def test_nobody_shall_be_late_is_an_objective_too() -> None:
    late, total = np.full(30, 1.0), np.full(30, PER_MINUTE)
    s = _service(objective=Objective(late=0.0), late=late, total=total)
    plan = _decide(s)
    later = _decide(_again(s, plan), now_s=NOW + 300)
    assert later.services["web"].needed >= 6


def test_max_below_min_is_said() -> None:
    got = _decide(_service(min=5, max=2)).services["web"]
    assert got.replicas == 2
    assert "raise max or lower min" in got.warnings[0]


def test_missing_reports_never_scale_down() -> None:
    s = _service()
    plan = _decide(s)
    before = plan.services["web"].needed
    hosts = plan.groups["default"].hosts
    gone = np.full(180, math.nan)
    for step in range(1, 200):
        now = NOW + 60 * step
        s = _again(s, plan, recent=gone, minutes=np.append(s.minutes, math.nan), in_flight=0)
        plan = _decide(s, now_s=now, hosts=_hosts(hosts))
    assert plan.services["web"].needed == before
    assert plan.groups["default"].release == ()
    assert "not known" in plan.services["web"].reason


def test_no_memory_and_no_history_holds_what_runs() -> None:
    young = _service(minutes=np.full(5, 6.0), recent=np.full(180, 1.0), ready=8)
    plan = _decide(young)
    assert plan.groups["default"].release == ()
    assert plan.groups["default"].hosts == 2


@pytest.mark.parametrize("jump_s", [-7 * 86_400.0, -120.0, 7 * 86_400.0])
def test_a_clock_that_jumps_does_not_throw_capacity_away(jump_s: float) -> None:
    s = _service()
    plan = _decide(s)
    after = _decide(_again(s, plan), now_s=NOW + jump_s)
    assert after.services["web"].needed >= 6
    again = _decide(_again(s, after), now_s=NOW + jump_s + 60)
    assert again.services["web"].needed >= 6


def test_a_memory_of_another_version_is_forgotten() -> None:
    got = _decide(_service(memory=b"\x93\x01nonsense")).services["web"]
    assert got.needed >= 6


def test_zero_and_back() -> None:
    quiet = np.zeros(180)
    asleep = _service(rate=0.0, min=0, ready=1, in_flight=0, minutes=np.zeros(2880), recent=quiet)
    plan = _decide(asleep, hosts=_hosts(1))
    plan = _decide(_again(asleep, plan), hosts=_hosts(1), now_s=NOW + 3600)
    assert plan.services["web"].replicas == 0
    assert plan.groups["default"].hosts == 0
    assert len(plan.groups["default"].release) == 1
    held = _again(asleep, plan, ready=0, queued=1, recent=np.append(quiet[1:], 1.0))
    woken = _decide(held, hosts=(), now_s=NOW + 3610)
    assert woken.services["web"].needed >= 1
    assert woken.groups["default"].hosts == 1


def test_it_does_not_sleep_before_its_idle_time() -> None:
    recent = np.zeros(180)
    recent[-10] = 1.0
    s = _service(rate=0.0, min=0, ready=1, in_flight=0, minutes=np.zeros(2880), recent=recent)
    assert _decide(s, hosts=_hosts(1)).services["web"].needed == 1
    blind = replace(s, recent=np.full(180, math.nan))
    assert _decide(blind, hosts=_hosts(1)).services["web"].needed == 1


def test_policies_that_disagree_the_largest_wins_and_is_named() -> None:
    tracking = TargetTracking(metric="cpu", target=50.0)
    s = _service(policies=(Predictive(), tracking), metrics={"cpu": np.array([200.0])}, ready=8)
    got = _decide(s).services["web"]
    assert got.needed == 32
    assert "cpu 200.0" in got.reason
    calm = replace(s, metrics={"cpu": np.array([1.0])})
    assert "forecast" in _decide(calm).services["web"].reason


def test_scale_in_of_target_tracking_waits() -> None:
    s = _service(
        policies=(TargetTracking(metric="cpu", target=50.0, scale_in_s=300.0),),
        metrics={"cpu": np.array([100.0])},
        ready=4,
    )
    plan = _decide(s)
    assert plan.services["web"].needed == 8
    low = {"ready": 8, "metrics": {"cpu": np.array([10.0])}}
    soon = _decide(_again(s, plan, **low), now_s=NOW + 60)
    assert soon.services["web"].needed == 8
    late = _decide(_again(s, soon, **low), now_s=NOW + 301)
    assert late.services["web"].needed == 2


def test_a_metric_that_never_arrives_changes_nothing_and_is_said() -> None:
    policy = TargetTracking(metric="queue_age_s", target=5.0)
    s = _service(policies=(policy,), ready=6, starting=1)
    plan = _decide(s)
    for step in range(1, 100):
        plan = _decide(_again(s, plan), now_s=NOW + 60 * step)
    assert plan.services["web"].needed == 7
    assert "does not arrive" in plan.services["web"].warnings[0]
    assert plan.groups["default"].release == ()


def test_steps_and_schedules() -> None:
    step = Step(metric="backlog", steps=(StepRule(above=100, add=4),))
    s = _service(policies=(step,), metrics={"backlog": np.array([150.0])}, ready=3)
    assert _decide(s).services["web"].needed == 7
    always = Scheduled(cron="* * * * *", min=40, name="launch day")
    got = _decide(_service(policies=(Predictive(), always))).services["web"]
    assert got.needed == 40
    assert "launch day" in got.reason
    wrong = Scheduled(cron="every morning")
    assert "five fields" in _decide(_service(policies=(wrong,))).services["web"].warnings[0]


def test_several_services_share_hosts_and_keep_what_fills() -> None:
    a, b = _service("a", rate=600.0), _service("b", rate=300.0, ready=4)
    plan = _decide(a, b, hosts=_hosts(5))
    total = sum(p.replicas for p in plan.services.values())
    assert total == plan.groups["default"].hosts * 4
    moved = 0
    for n in range(1, 7):
        last = plan
        plan = _decide(_again(a, last), _again(b, last), hosts=_hosts(5), now_s=NOW + 10 * n)
        moved += sum(abs(plan.services[k].replicas - last.services[k].replicas) for k in "ab")
    assert moved <= 2


def test_a_group_that_is_not_there_is_said() -> None:
    got = _decide(_service(group="elsewhere")).services["web"]
    assert "create it" in got.warnings[0]


def test_a_thousand_services_are_planned_within_their_turns() -> None:
    one = _service()
    many = tuple(replace(one, id=f"s{n}", service_times=np.full(60, 0.5)) for n in range(1000))
    seen: set[str] = set()
    for turn in range(6):
        plan = _decide(*many, hosts=(), max=100_000, now_s=NOW + turn)
        assert len(plan.services) == 1000
        seen |= {k for k, p in plan.services.items() if not p.reason.startswith("0:")}
        many = tuple(replace(s, memory=plan.services[s.id].memory) for s in many)
    assert len(seen) == 1000
