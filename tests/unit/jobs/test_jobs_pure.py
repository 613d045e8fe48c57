"""The machine and the plan of jobs: what follows from what a host reports."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.fleet import demand
from roost.fleet.model import Claim, ClaimState, ClaimView, Instance, InstanceState
from roost.jobs import machine, plan
from roost.jobs.model import Job, JobState
from roost.ports.jobs import JobReport, SavedFiles, SavedOutput
from roost.ports.values import (
    Ask,
    HostReport,
    Notice,
    NoticeKind,
    TaskReport,
)
from tests.unit.jobs.given import IMAGE, JOB
from tests.unit.jobs.given import SPOT as OFFER

INTERRUPTION = Notice(kind=NoticeKind.INTERRUPTION, seen_s=0.0, deadline_s=120.0, source="imds")


def job(state: JobState = JobState.ACCEPTED, **more: object) -> Job:
    base = msgspec.structs.replace(JOB, claim_id="c-1")
    if state is not JobState.ACCEPTED:
        base = machine.begin(base, "i-1", OFFER, 10.0)
    if state is JobState.LEAVING:
        base = machine.leave(base, "interruption notice from imds")
    if state is JobState.STOPPING:
        base = machine.stopping(base, 20.0)
    for name, value in more.items():
        base = msgspec.structs.replace(base, **{name: value})
    return base


def host(
    run: TaskReport | None = None,
    *,
    claim: str = "c-1",
    state: InstanceState = InstanceState.READY,
    held: ClaimState = ClaimState.HELD,
    notice: Notice | None = None,
    connected: bool = True,
) -> ClaimView:
    instance = Instance(
        id=f"i{claim[1:]}",
        state=state,
        parent=claim,
        owner="j-1",
        role="active",
        offer=OFFER,
        image=IMAGE,
        launch_token="l",
        ended_reason="reclaimed",
        notice=notice,
    )
    report = HostReport(host_id="i-1", at_s=0, ready=True, tasks=(run,) if run else ())
    return ClaimView(
        claim=Claim(id=claim, state=held, parent="j-1", role="active", ask=Ask(), image=IMAGE),
        instance=instance,
        report=report if connected else None,
        connected=connected,
    )


def run(
    state: str = "busy", code: int | None = None, *, told: bool = False, epoch: int = 1
) -> TaskReport:
    return TaskReport(
        task_id="j-1-1",
        kind="job",
        session_id="j-1",
        epoch=epoch,
        state=state,
        exit_code=code,
        job=JobReport(told=told),
    )


def planned(
    one: Job,
    active: ClaimView | None,
    following: ClaimView | None = None,
    *,
    now_s: float = 100.0,
    silent_s: float = 0.0,
) -> list[plan.Instruction]:
    return plan.plan(
        plan.Snapshot(job=one, active=active, next=following, now_s=now_s, silent_s=silent_s)
    )


def test_a_job_gets_a_host_and_begins_there() -> None:
    (need,) = planned(job(claim_id=""), None)
    assert isinstance(need, demand.NeedHost)
    assert need.role == "active"
    assert planned(job(), host(state=InstanceState.BOOTING, held=ClaimState.WANTED)) == []
    assert planned(job(), host()) == [plan.Begin(host_id="i-1", offer=OFFER)]
    (dropped,) = planned(job(), host(notice=INTERRUPTION))
    assert isinstance(dropped, demand.DropHost)
    assert planned(job(not_before_s=200.0), host()) == [], "the pause after a failure"


def test_the_order_is_given_until_the_host_reports_the_run() -> None:
    start = plan.StartRun(host_id="i-1", offer=OFFER)
    assert planned(job(JobState.RUNNING), host()) == [start]
    assert planned(job(JobState.RUNNING), host(run(epoch=0))) == [start], "an older run"
    assert planned(job(JobState.RUNNING), host(run())) == []


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.LEAVING])
def test_only_a_script_that_ends_by_itself_ends_the_job(state: JobState) -> None:
    done = plan.End(state=JobState.FINISHED, reason="exit code 0", exit_code=0)
    assert planned(job(state), host(run("dead", 0))) == [done]
    failed = plan.End(state=JobState.FAILED, reason="exit code 3", exit_code=3)
    assert planned(job(state), host(run("dead", 3))) == [failed]
    for code in (0, 1, -15):
        (again,) = planned(job(state), host(run("dead", code, told=True), notice=INTERRUPTION))
        assert isinstance(again, plan.Again)
        assert not again.failed
        assert not again.keep_host
    (lost,) = planned(job(state), host(run("dead", None)))
    assert isinstance(lost, plan.Again)


def test_retries_are_counted_and_pause() -> None:
    one = job(JobState.RUNNING, retries=2)
    for failures in (1, 2):
        (again,) = planned(one, host(run("dead", 1, epoch=one.epoch)))
        assert isinstance(again, plan.Again)
        assert (again.failed, again.keep_host) == (True, True)
        one = machine.again(one, "x", 100.0, exit_code=1, failed=True, keep_host=True)
        assert one.failures == failures
        assert one.not_before_s == 100.0 + machine.PAUSE_S * 2 ** (failures - 1)
        assert one.claim_id == "c-1"
        one = machine.begin(one, "i-1", OFFER, 200.0)
    (end,) = planned(one, host(run("dead", 1, epoch=one.epoch)))
    assert isinstance(end, plan.End)
    assert end.state is JobState.FAILED


def test_a_notice_looks_for_the_next_host_while_the_script_saves() -> None:
    (leave,) = planned(job(JobState.RUNNING), host(run(), notice=INTERRUPTION))
    assert isinstance(leave, plan.Leave)
    leaving = job(JobState.LEAVING)
    (need,) = planned(leaving, host(run(), notice=INTERRUPTION))
    assert isinstance(need, demand.NeedHost)
    assert (need.role, need.away_from) == ("next", (OFFER,))
    following = job(JobState.LEAVING, next_claim_id="c-2")
    there = host(claim="c-2")
    assert planned(following, host(run(), notice=INTERRUPTION), there) == []
    going = host(claim="c-2", notice=INTERRUPTION)
    (drop,) = planned(following, host(run(), notice=INTERRUPTION), going)
    assert isinstance(drop, demand.DropHost)
    moved = machine.again(following, "told", 50.0, exit_code=-15, failed=False, keep_host=False)
    assert (moved.claim_id, moved.next_claim_id, moved.old_claims) == ("c-2", "", ("c-1",))
    assert moved.not_before_s <= 50.0
    rebalance = Notice(kind=NoticeKind.REBALANCE, seen_s=0.0, source="imds")
    assert planned(job(JobState.RUNNING), host(run(), notice=rebalance)) == []


def test_a_host_that_is_gone_or_silent_is_given_up() -> None:
    for state in (JobState.RUNNING, JobState.LEAVING):
        gone = host(state=InstanceState.LOST, held=ClaimState.SPENT, connected=False)
        (again,) = planned(job(state), gone)
        assert isinstance(again, plan.Again)
        quiet = host(connected=False)
        assert planned(job(JobState.RUNNING), quiet, silent_s=5.0) == []
        (again,) = planned(job(state), quiet, silent_s=plan.SILENT_S + 1)
        assert isinstance(again, plan.Again)


def test_stopping_waits_for_the_last_save_but_not_for_ever() -> None:
    asked = {"desired": "stopped"}
    assert planned(job(**asked), None)[0].state is JobState.STOPPED  # type: ignore[union-attr]
    assert planned(job(JobState.RUNNING, **asked), host(run())) == [plan.Stopping()]
    stopping = job(JobState.STOPPING, **asked)
    assert planned(stopping, host(run()), now_s=21.0) == [
        plan.StopRun(host_id="i-1", grace_s=plan.STOP_GRACE_S)
    ]
    (end,) = planned(stopping, host(run("dead", -15, told=True)), now_s=21.0)
    assert end == plan.End(state=JobState.STOPPED, reason="stopped by a person", exit_code=-15)
    late = planned(stopping, host(run()), now_s=20.0 + plan.STOP_LIMIT_S + 1)
    assert isinstance(late[0], plan.End)


def test_an_ended_job_lets_its_hosts_go_and_stays_ended() -> None:
    both = job(JobState.LEAVING, next_claim_id="c-2", old_claims=("c-0",))
    ended = machine.end(both, JobState.FINISHED, "exit code 0", 99.0, 0)
    assert ended.old_claims == ("c-1", "c-2", "c-0")
    assert ended.runs[-1].exit_code == 0
    drops = planned(ended, None)
    assert {d.claim_id for d in drops if isinstance(d, demand.DropHost)} == {"c-0", "c-1", "c-2"}
    for state in JobState:
        with pytest.raises(machine.InvalidTransition):
            machine.step(ended, state)


def test_what_a_run_saved_is_what_the_next_begins_with() -> None:
    files = SavedFiles(digest="saved", number=1, at_s=5.0)
    output = SavedOutput(digest="printed", size=7)
    one = machine.noted(job(JobState.RUNNING), JobReport(files=files, output=output))
    assert (one.files, one.saved, one.output) == ("saved", files, output)
    assert machine.noted(one, JobReport()).files == "saved", (
        "a restarted agent has saved nothing yet"
    )


STATES = st.sampled_from([JobState.ACCEPTED, JobState.RUNNING, JobState.LEAVING, JobState.STOPPING])
RUNS = st.builds(
    run,
    st.sampled_from(["starting", "busy", "dead"]),
    st.sampled_from([None, 0, 1, -15]),
    told=st.booleans(),
    epoch=st.sampled_from([0, 1]),
)
HOSTS = st.builds(
    host,
    st.none() | RUNS,
    state=st.sampled_from([InstanceState.BOOTING, InstanceState.READY, InstanceState.LOST]),
    held=st.sampled_from([ClaimState.WANTED, ClaimState.HELD, ClaimState.SPENT]),
    notice=st.none() | st.just(INTERRUPTION),
    connected=st.booleans(),
)


@given(STATES, st.none() | HOSTS, st.none() | HOSTS, st.booleans(), st.floats(0, 100))
def test_every_plan_is_a_step_the_table_knows(
    state: JobState,
    active: ClaimView | None,
    following: ClaimView | None,
    stop: bool,
    silent: float,
) -> None:
    one = job(state, desired="stopped" if stop else "done")
    for instruction in planned(one, active, following, silent_s=silent):
        match instruction:
            case plan.Begin():
                machine.begin(one, "i-1", OFFER, 0.0)
            case plan.Leave():
                machine.leave(one, "x")
            case plan.Again():
                machine.again(one, "x", 0.0, exit_code=None, failed=False, keep_host=False)
            case plan.Stopping():
                machine.stopping(one, 0.0)
            case plan.End():
                machine.end(one, instruction.state, "x", 0.0, instruction.exit_code)
                finished = instruction.state in (JobState.FINISHED, JobState.FAILED)
                task = plan.run_of(active, one)
                assert not finished or (task is not None and task.job is not None)
                assert not finished or not task.job.told  # type: ignore[union-attr]
