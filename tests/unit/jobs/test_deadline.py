"""Jobs with a deadline: the rule, and what the plan asks for because of it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.doors.cli.job import duration_s, moment
from roost.doors.rest.jobs import job_view
from roost.fleet import demand
from roost.fleet.model import Claim, ClaimState, ClaimView, Instance, InstanceState
from roost.jobs import machine, plan
from roost.jobs.deadline import Chance, Standing, Where, decide
from roost.jobs.model import Job, RunRecord
from roost.ports.errors import Invalid
from roost.ports.values import (
    Ask,
    HostReport,
    PurchaseOption,
    TaskReport,
)
from tests.unit.jobs.given import IMAGE, JOB, SPOT

HOUR = 3600.0


def standing(slack_h: float, *, left_h: float = 10.0, on: Where = Where.WAIT) -> Standing:
    return Standing(
        work_s=24 * HOUR,
        left_s=left_h * HOUR,
        deadline_s=36 * HOUR,
        elapsed_s=(36 - left_h - slack_h) * HOUR,
        restart_s=720.0,
        look_s=200.0,
        on=on,
    )


def pools(risk: float | None) -> list[Chance]:
    """One pool that is lost within the hour with this probability; none without."""
    if risk is None:
        return []
    return [Chance(pool="a", price=0.3, soon=1.0 - (1.0 - risk) ** (1 / 6), hour=risk)]


def test_spot_is_tried_while_two_restarts_fit_then_on_demand() -> None:
    assert decide(standing(2.0), pools(0.05)).where is Where.SPOT
    assert decide(standing(0.4), pools(0.05)).where is Where.ON_DEMAND
    assert decide(standing(2.0), pools(None)).where is Where.WAIT
    assert decide(standing(0.1, on=Where.SPOT), pools(0.9)).where is Where.STAY


def test_time_for_later_restarts_is_not_waited_away() -> None:
    assert decide(standing(1.2, left_h=10.0), pools(None)).where is Where.ON_DEMAND
    assert decide(standing(1.2, left_h=10.0), pools(0.5)).where is Where.SPOT  # tried all the same
    assert (
        decide(standing(1.2, left_h=4.0), pools(None)).where is Where.WAIT
    )  # less work, fewer restarts
    on_demand = standing(1.2, left_h=10.0, on=Where.ON_DEMAND)
    assert decide(on_demand, pools(0.9)).where is Where.STAY
    assert decide(on_demand, pools(0.3)).where is Where.SPOT


def test_the_more_time_to_spare_the_surer_a_pool_must_be() -> None:
    assert decide(standing(4.0), pools(0.3)).where is Where.SPOT
    assert decide(standing(8.0), pools(0.3)).where is Where.WAIT
    assert decide(standing(8.0), pools(0.1)).where is Where.SPOT
    assert decide(standing(30.0), pools(0.1)).where is Where.WAIT


def test_the_pool_is_the_one_of_the_lowest_rate() -> None:
    cheap = Chance(pool="cheap", price=0.29, soon=0.5, hour=0.9)
    calm = Chance(pool="calm", price=0.30, soon=0.01, hour=0.05)
    assert decide(standing(4.0), [cheap, calm]).pool == "calm"
    dear = msgspec.structs.replace(calm, price=0.9)
    assert decide(standing(4.0), [cheap, dear]).pool == "cheap"
    assert decide(standing(0.4), [cheap, calm]).pool == "", "on demand is no pool of these"


@given(
    slack=st.floats(0, 30),
    left=st.floats(0.01, 24),
    risk=st.none() | st.floats(0, 1),
)
def test_it_never_waits_past_the_last_moment(slack: float, left: float, risk: float | None) -> None:
    stand = standing(slack, left_h=left)
    verdict = decide(stand, pools(risk))
    if verdict.where in (Where.WAIT, Where.SPOT):
        # After a restart that comes to nothing and one more look there is still one on demand.
        assert stand.slack_s >= 2.0 * stand.restart_s + stand.look_s


def job(**more: object) -> Job:
    base = msgspec.structs.replace(JOB, deadline_s=10 * HOUR, work_s=8 * HOUR)
    return msgspec.structs.replace(base, **more)


def planned(
    one: Job,
    now_s: float,
    *,
    chances: tuple[Chance, ...] = (),
    active: ClaimView | None = None,
    following: ClaimView | None = None,
) -> tuple[Job, list[plan.Instruction]]:
    """What comes next once what was decided is noted; the job with it."""
    for _ in range(2):
        snapshot = plan.Snapshot(
            job=one, active=active, next=following, now_s=now_s, chances=chances
        )
        found = plan.plan(snapshot)
        match found:
            case [plan.Decided(where=where, reason=reason)]:
                one = machine.decided(one, where, reason)
            case _:
                return one, found
    raise AssertionError("it decides for ever")


CALM = Chance(pool="aws/r-1/m5.large/spot", price=0.03, soon=0.001, hour=0.006)
SHAKY = msgspec.structs.replace(CALM, soon=0.2, hour=0.7)
OFFER = msgspec.structs.replace(SPOT, purchase_option=PurchaseOption.ON_DEMAND, price_usd_hour=0.1)


def test_a_job_asks_for_the_pool_that_was_chosen_and_no_other() -> None:
    one, [need] = planned(job(), 0.0, chances=(SHAKY, CALM))
    assert isinstance(need, demand.NeedHost)
    claim = demand.wanted(one, need, Ask(vcpus=4), claim_id="c", now_s=0.0)
    assert (claim.prefer, claim.only) == (CALM.pool, True)
    assert claim.ask == Ask(vcpus=4, purchase_options=(PurchaseOption.SPOT,))
    assert (one.where, "to spare" in one.why) == ("spot", True)


def test_it_waits_for_a_pool_and_says_so() -> None:
    much = job(deadline_s=30 * HOUR)
    one, nothing = planned(much, 0.0, chances=(SHAKY,))
    assert (nothing, one.where) == ([], "wait")
    assert "will not last" in one.why
    one, nothing = planned(much, 0.0)
    assert (nothing, one.where) == ([], "wait")
    assert "no pool to try" in one.why
    view = job_view(one, 0.0)
    assert view.deadline is not None
    assert view.deadline.spare_s == 22 * HOUR
    assert view.deadline.on_demand_at_s == pytest.approx(22 * HOUR - 2 * 600 - 60)
    one, [need] = planned(one, 0.0, chances=(CALM,))
    assert isinstance(need, demand.NeedHost)


def test_a_job_behind_its_line_asks_for_on_demand() -> None:
    one, [need] = planned(job(), 1.9 * HOUR, chances=(CALM,))
    assert isinstance(need, demand.NeedHost)
    assert (need.purchase_options, need.pool) == ((PurchaseOption.ON_DEMAND,), "")
    assert "to spare" in need.reason
    assert job_view(one, 1.9 * HOUR).deadline.on_demand_at_s is None  # type: ignore[union-attr]


def test_the_rule_is_for_those_who_leave_the_choice_to_it() -> None:
    on_demand = Ask(purchase_options=(PurchaseOption.ON_DEMAND,))
    for one in (job(deadline_s=None), job(ask=on_demand)):
        same, [need] = planned(one, 1e9)
        assert isinstance(need, demand.NeedHost)
        assert (need.purchase_options, need.pool, same.where) == ((), "", "")


def test_work_already_done_counts() -> None:
    run = RunRecord(
        epoch=1, host_id="i", offer="o", started_s=0.0, ended_s=1.5 * HOUR, reason="host lost"
    )
    one, _ = planned(job(runs=(run,)), 1.9 * HOUR, chances=(CALM,))
    assert one.where == "spot"


def claimed(claim_id: str, option: PurchaseOption, state: InstanceState | None) -> ClaimView:
    ask = Ask(purchase_options=(option,))
    claim = Claim(
        id=claim_id, state=ClaimState.WANTED, parent="j-1", role="active", ask=ask, image=IMAGE
    )
    if state is None:
        return ClaimView(claim=claim)
    instance = Instance(
        id=f"i-{claim_id}",
        state=state,
        parent=claim_id,
        owner="j-1",
        role="active",
        offer=msgspec.structs.replace(OFFER, purchase_option=option),
        image=IMAGE,
        launch_token="l",
    )
    task = TaskReport(task_id="t", kind="job", session_id="j-1", epoch=1, state="busy")
    report = HostReport(host_id=instance.id, at_s=0.0, ready=True, tasks=(task,))
    return ClaimView(claim=claim, instance=instance, report=report, connected=True)


def test_a_claim_that_finds_no_spot_host_is_given_up_in_time() -> None:
    looking = job(claim_id="c-1")
    spot = claimed("c-1", PurchaseOption.SPOT, None)
    assert planned(looking, 0.0, active=spot)[1] == []
    _, [dropped] = planned(looking, 1.9 * HOUR, active=spot)
    assert isinstance(dropped, demand.DropHost)
    booting = claimed("c-1", PurchaseOption.SPOT, InstanceState.BOOTING)
    assert planned(looking, 1.9 * HOUR, active=booting)[1] == []
    on_demand = claimed("c-1", PurchaseOption.ON_DEMAND, None)
    assert planned(looking, 1.9 * HOUR, active=on_demand)[1] == []


def test_from_on_demand_back_to_a_pool_once_its_host_is_ready() -> None:
    begun = machine.begin(job(claim_id="c-1", where="on_demand"), "i-c-1", OFFER, 0.0)
    here = claimed("c-1", PurchaseOption.ON_DEMAND, InstanceState.READY)
    assert planned(begun, 0.0, active=here)[1] == []
    back, [need] = planned(begun, 0.0, active=here, chances=(CALM,))
    assert isinstance(need, demand.NeedHost)
    assert (need.role, need.pool, back.where) == ("next", CALM.pool, "spot")
    back = msgspec.structs.replace(back, next_claim_id="c-2")
    booting = claimed("c-2", PurchaseOption.SPOT, InstanceState.BOOTING)
    assert planned(back, 60.0, active=here, following=booting)[1] == []
    there = claimed("c-2", PurchaseOption.SPOT, InstanceState.READY)
    _, [leave] = planned(back, 60.0, active=here, following=there)
    assert isinstance(leave, plan.Leave)
    left = machine.leave(back, leave.reason)
    _, told = planned(left, 60.0, active=here, following=there)
    assert told == [plan.StopRun(host_id="i-c-1", grace_s=OFFER.notice_s)]
    gone = msgspec.structs.replace(
        booting, claim=msgspec.structs.replace(booting.claim, state=ClaimState.SPENT)
    )
    _, [dropped] = planned(back, 60.0, active=here, following=gone)
    assert isinstance(dropped, demand.DropHost)
    stays, nothing = planned(msgspec.structs.replace(back, next_claim_id=""), 60.0, active=here)
    assert (nothing, stays.where) == ([], "on_demand")


def test_durations_and_moments_as_people_write_them() -> None:
    assert [duration_s(t) for t in ("90m", "36h", "1.5d", "5s")] == [5400, 129_600, 129_600, 5]
    assert moment("2h", 100.0) == 7300.0
    assert moment("2026-05-01T18:00+00:00", 0.0) == 1777658400.0
    for wrong in ("", "5", "h", "nanh", "-1h", "tomorrow"):
        with pytest.raises(Invalid):
            duration_s(wrong)
