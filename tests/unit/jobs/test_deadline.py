"""Jobs with a deadline: the rule, and what the plan asks for because of it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.doors.cli.job import duration_s, moment
from roost.fleet import demand
from roost.fleet.model import Claim, ClaimState, ClaimView
from roost.jobs import plan
from roost.jobs.deadline import Standing, Where, decide
from roost.jobs.model import Job, JobState, RunRecord
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Image, PurchaseOption

HOUR = 3600.0
IMAGE = Image(name="python", python="3.11")


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


def test_spot_is_tried_while_two_restarts_fit_then_on_demand() -> None:
    assert decide(standing(2.0), 0.05).where is Where.SPOT
    assert decide(standing(0.4), 0.05).where is Where.ON_DEMAND
    assert decide(standing(2.0), None).where is Where.WAIT
    assert decide(standing(0.1, on=Where.SPOT), 0.9).where is Where.STAY


def test_time_for_later_restarts_is_not_waited_away() -> None:
    assert decide(standing(1.2, left_h=10.0), None).where is Where.ON_DEMAND
    assert decide(standing(1.2, left_h=10.0), 0.5).where is Where.SPOT  # tried all the same
    assert decide(standing(1.2, left_h=4.0), None).where is Where.WAIT  # less work, fewer restarts
    on_demand = standing(1.2, left_h=10.0, on=Where.ON_DEMAND)
    assert decide(on_demand, 0.9).where is Where.STAY
    assert decide(on_demand, 0.3).where is Where.SPOT


def test_the_more_time_to_spare_the_surer_a_pool_must_be() -> None:
    assert decide(standing(4.0), 0.3).where is Where.SPOT
    assert decide(standing(8.0), 0.3).where is Where.WAIT
    assert decide(standing(8.0), 0.1).where is Where.SPOT
    assert decide(standing(30.0), 0.1).where is Where.WAIT


@given(
    slack=st.floats(0, 30),
    left=st.floats(0.01, 24),
    risk=st.none() | st.floats(0, 1),
)
def test_it_never_waits_past_the_last_moment(slack: float, left: float, risk: float | None) -> None:
    stand = standing(slack, left_h=left)
    verdict = decide(stand, risk)
    if verdict.where in (Where.WAIT, Where.SPOT):
        # After a restart that comes to nothing and one more look there is still one on demand.
        assert stand.slack_s >= 2.0 * stand.restart_s + stand.look_s


def job(**more: object) -> Job:
    base = Job(
        id="j-1",
        name="train",
        state=JobState.ACCEPTED,
        epoch=0,
        token="t",
        argv=("python", "train.py"),
        ask=Ask(),
        image=IMAGE,
        files="sent",
        deadline_s=10 * HOUR,
        work_s=8 * HOUR,
    )
    return msgspec.structs.replace(base, **more)


def wanted(job: Job, now_s: float) -> demand.NeedHost:
    [need] = plan.plan(plan.Snapshot(job=job, active=None, next=None, now_s=now_s))
    assert isinstance(need, demand.NeedHost)
    return need


def test_a_job_behind_its_line_asks_for_on_demand() -> None:
    assert wanted(job(), 0.0).purchase_options == ()
    late = wanted(job(), 1.9 * HOUR)
    assert late.purchase_options == (PurchaseOption.ON_DEMAND,)
    assert "to spare" in late.reason
    claim = demand.wanted(job(), late, Ask(vcpus=4), claim_id="c", now_s=0.0)
    assert claim.ask == Ask(vcpus=4, purchase_options=(PurchaseOption.ON_DEMAND,))
    assert wanted(job(deadline_s=None), 1e9).purchase_options == ()


def test_work_already_done_counts() -> None:
    run = RunRecord(
        epoch=1, host_id="i", offer="o", started_s=0.0, ended_s=1.5 * HOUR, reason="host lost"
    )
    assert wanted(job(runs=(run,)), 1.9 * HOUR).purchase_options == ()


def test_a_claim_that_finds_no_spot_host_is_given_up_in_time() -> None:
    ask = Ask()
    claim = Claim(
        id="c-1", state=ClaimState.WANTED, parent="j-1", role="active", ask=ask, image=IMAGE
    )
    looking = job(claim_id="c-1")

    def at(now_s: float, claim: Claim) -> list[plan.Instruction]:
        view = ClaimView(claim=claim)
        return plan.plan(plan.Snapshot(job=looking, active=view, next=None, now_s=now_s))

    assert at(0.0, claim) == []
    [dropped] = at(1.9 * HOUR, claim)
    assert isinstance(dropped, demand.DropHost)
    on_demand = msgspec.structs.replace(ask, purchase_options=(PurchaseOption.ON_DEMAND,))
    assert at(1.9 * HOUR, msgspec.structs.replace(claim, ask=on_demand)) == []


def test_durations_and_moments_as_people_write_them() -> None:
    assert [duration_s(t) for t in ("90m", "36h", "1.5d", "5s")] == [5400, 129_600, 129_600, 5]
    assert moment("2h", 100.0) == 7300.0
    assert moment("2026-05-01T18:00+00:00", 0.0) == 1777658400.0
    for wrong in ("", "5", "h", "nanh", "-1h", "tomorrow"):
        with pytest.raises(Invalid):
            duration_s(wrong)
