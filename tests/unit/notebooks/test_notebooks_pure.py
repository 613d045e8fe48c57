"""The pure half of notebooks: what a session plans, and what a move does to it."""

import msgspec
import pytest

from roost.fleet import demand
from roost.fleet.model import Better, Claim, ClaimState, ClaimView, Instance, InstanceState
from roost.market import decision
from roost.notebooks import machine
from roost.notebooks import plan as planning
from roost.notebooks.model import Cause, Phase, Session, SessionState
from roost.ports.kernels import Checkpoint, KernelUp, RestoreReport, VariableReport
from roost.ports.values import (
    Ask,
    HostReport,
    Image,
    Notice,
    NoticeKind,
    Offer,
    PurchaseOption,
    Resources,
    TaskReport,
)

NOW = 1_000.0
IMAGE = Image(name="minimal", python="3.11", imports=("numpy",))


def offer(provider: str) -> Offer:
    return Offer(
        provider=provider,
        region="r",
        zone="z",
        instance_type="t",
        purchase_option=PurchaseOption.SPOT,
        price_usd_hour=0.1,
        on_demand_usd_hour=0.3,
        resources=Resources(vcpus=4, memory_gib=16),
    )


def view(
    claim_id: str,
    provider: str,
    *,
    state: InstanceState = InstanceState.READY,
    claim_state: ClaimState = ClaimState.HELD,
    notice: Notice | None = None,
    tasks: tuple[TaskReport, ...] = (),
    connected: bool = True,
) -> ClaimView:
    claim = Claim(
        id=claim_id, state=claim_state, parent="s-1", role="active", ask=Ask(), image=IMAGE
    )
    instance = Instance(
        id=f"i-{claim_id}",
        state=state,
        parent=claim_id,
        owner="s-1",
        role="active",
        offer=offer(provider),
        image=IMAGE,
        launch_token="l",
        notice=notice,
        ended_s=NOW - 1 if state is InstanceState.LOST else None,
    )
    report = HostReport(host_id=instance.id, at_s=NOW, ready=True, tasks=tasks)
    return ClaimView(claim=claim, instance=instance, report=report, connected=connected)


def session(state: SessionState = SessionState.RUNNING, **fields: object) -> Session:
    base = Session(
        id="s-1",
        name="n",
        state=state,
        epoch=1,
        key="k",
        token="t",
        ask=Ask(),
        image=IMAGE,
        claim_id="c-1",
        standby_claim_id="c-2",
        host_id="i-c-1",
        kernel_since_s=NOW - 100,
    )
    return msgspec.structs.replace(base, **fields)


KERNEL = TaskReport(task_id="t-1", kind="kernel", session_id="s-1", epoch=1, state="ready")
BUSY = msgspec.structs.replace(KERNEL, state="busy")
STANDBY = TaskReport(task_id="t-2", kind="standby", state="ready", imports=("numpy",))
NOTICE = Notice(kind=NoticeKind.INTERRUPTION, seen_s=NOW, deadline_s=NOW + 120)
CHECKPOINT = Checkpoint(session_id="s-1", epoch=1, digest="d", number=3, at_s=NOW, bytes_moved=10)


def plan(s: Session, **fields: object) -> list[planning.Instruction]:
    snapshot = planning.Snapshot(
        session=s,
        active=view("c-1", "aws", tasks=(KERNEL,)),
        standby=view("c-2", "gcp", tasks=(STANDBY,)),
        now_s=NOW,
        warmed=("numpy",),
    )
    return planning.plan(msgspec.structs.replace(snapshot, **fields))


def moving(
    phase: Phase = Phase.PREPARING, cause: Cause = Cause.NOTICE, **fields: object
) -> Session:
    begun = machine.begin_move(
        session(), cause=cause, reason="r", now_s=NOW, deadline_s=NOW + 120, offer=offer("aws")
    )
    assert begun.move is not None
    move = msgspec.structs.replace(begun.move, phase=phase, **fields)
    return msgspec.structs.replace(begun, move=move)


def test_a_quiet_session_with_a_warm_standby_needs_nothing() -> None:
    assert plan(session()) == []


def test_a_new_session_asks_for_a_host_and_then_for_a_place_to_move_to() -> None:
    fresh = session(SessionState.REQUESTED, claim_id="", standby_claim_id="", epoch=0)
    (need,) = plan(fresh, active=None, standby=None)
    assert isinstance(need, demand.NeedHost)
    assert need.role == "active"
    booting = view("c-1", "aws", state=InstanceState.BOOTING, claim_state=ClaimState.WANTED)
    (spare,) = plan(fresh, active=booting, standby=None)
    assert isinstance(spare, demand.NeedHost)
    assert (spare.role, spare.away_from) == ("standby", (offer("aws"),))


def test_a_notice_begins_a_move_with_the_clouds_deadline() -> None:
    (found,) = plan(session(), active=view("c-1", "aws", notice=NOTICE, tasks=(KERNEL,)))
    assert isinstance(found, planning.BeginMove)
    assert (found.cause, found.deadline_s) == (Cause.NOTICE, NOW + 120)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"active": None}, Cause.LOST),
        ({"active": view("c-1", "aws", state=InstanceState.LOST)}, Cause.LOST),
        ({"active": view("c-1", "aws", claim_state=ClaimState.SPENT)}, Cause.LOST),
        ({"silent_s": planning.SILENT_S + 1}, Cause.UNREACHABLE),
        ({"missing_s": planning.KERNEL_MISSING_S + 1}, Cause.KERNEL_LOST),
    ],
)
def test_losses_begin_a_move(fields: dict[str, object], cause: Cause) -> None:
    (found,) = plan(session(), **fields)
    assert isinstance(found, planning.BeginMove)
    assert found.cause is cause


def test_the_kernel_is_frozen_only_when_the_target_is_ready_or_time_is_short() -> None:
    noticed = view("c-1", "aws", notice=NOTICE, tasks=(KERNEL,))
    assert isinstance(plan(moving(), active=noticed)[0], planning.Freeze)
    cold = view("c-2", "gcp", state=InstanceState.BOOTING, claim_state=ClaimState.WANTED)
    assert plan(moving(), active=noticed, standby=cold) == []
    assert isinstance(plan(moving(), active=noticed, warmed=None)[0], planning.WarmHost)
    late = NOW + 120 - planning.FREEZE_MARGIN_S + 1
    assert isinstance(plan(moving(), active=noticed, standby=cold, now_s=late)[0], planning.Freeze)


def test_a_move_waits_for_the_chunks_it_knew_of_and_no_longer() -> None:
    noticed = view("c-1", "aws", notice=NOTICE, tasks=(KERNEL,))
    asked = planning.Prefetch(host_id="i-c-2", checkpoint="d")
    assert plan(session(checkpoint=CHECKPOINT)) == [asked]
    assert plan(session(checkpoint=CHECKPOINT), fetched="c", fetched_s=NOW - 9) == [asked]
    assert plan(session(checkpoint=CHECKPOINT), fetched="d", fetched_s=NOW - 9) == []
    move = msgspec.structs.replace(moving(), checkpoint=CHECKPOINT)
    assert plan(move, active=noticed, fetched="c", fetched_s=NOW - 9) == [asked]
    for there in ({"fetched": "d"}, {"fetched": "c", "fetched_s": NOW + 1}, {"fetched_s": NOW + 1}):
        assert isinstance(plan(move, active=noticed, **there)[0], planning.Freeze)
    late = NOW + 120 - planning.FREEZE_MARGIN_S + 1
    assert isinstance(plan(move, active=noticed, now_s=late)[0], planning.Freeze)


def test_a_running_cell_may_finish_while_there_is_time() -> None:
    busy = view("c-1", "aws", notice=NOTICE, tasks=(BUSY,))
    assert plan(moving(), active=busy) == []
    late = NOW + 120 - planning.FREEZE_MARGIN_S + 1
    assert isinstance(plan(moving(), active=busy, now_s=late)[0], planning.Freeze)


def test_a_notice_during_an_asked_move_makes_it_urgent() -> None:
    asked = machine.begin_move(session(), cause=Cause.ASKED, reason="r", now_s=NOW)
    (found,) = plan(asked, active=view("c-1", "aws", notice=NOTICE))
    assert isinstance(found, planning.Urge)
    urged = machine.urge(asked, cause=found.cause, reason=found.reason, deadline_s=found.deadline_s)
    assert urged.move is not None
    assert urged.move.deadline_s == NOW + 120


BETTER = Better(offer=offer("azure").key, why="saves $2 within 1 h, the move costs $0.05")


def test_a_better_place_is_prepared_and_then_moved_to_between_two_cells() -> None:
    s = session(checkpoint=CHECKPOINT)
    (dropped,) = plan(s, better=BETTER)
    assert isinstance(dropped, demand.DropHost)
    assert "saves $2" in dropped.reason
    (need,) = plan(s, standby=None, better=BETTER)
    assert isinstance(need, demand.NeedHost)
    assert (need.role, need.pool, need.away_from) == ("standby", BETTER.offer, (offer("aws"),))
    there = view("c-2", "azure", tasks=(STANDBY,))
    asked = planning.Prefetch(host_id="i-c-2", checkpoint="d")
    assert plan(s, standby=there, better=BETTER) == [asked]
    ready = {"standby": there, "better": BETTER, "fetched": "d"}
    assert plan(s, active=view("c-1", "aws", tasks=(BUSY,)), **ready) == [], "a cell runs"
    (found,) = plan(s, **ready)
    assert isinstance(found, planning.BeginMove)
    assert (found.cause, found.reason, found.deadline_s) == (Cause.MARKET, BETTER.why, None)
    noticed = view("c-1", "aws", notice=NOTICE, tasks=(KERNEL,))
    (urgent,) = plan(s, **{**ready, "active": noticed})
    assert isinstance(urgent, planning.BeginMove)
    assert urgent.cause is Cause.NOTICE


def test_a_notice_during_a_move_at_will_makes_it_urgent() -> None:
    begun = machine.begin_move(session(), cause=Cause.MARKET, reason="r", now_s=NOW)
    (found,) = plan(begun, active=view("c-1", "aws", notice=NOTICE))
    assert isinstance(found, planning.Urge)


REFUSED = msgspec.structs.replace(
    CHECKPOINT, refused=(VariableReport(name="f", outcome="refused", reason="a socket"),)
)


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ({}, True),
        ({"kernel_since_s": NOW - 60}, False),
        ({"stay": True}, False),
        ({"checkpoint": None}, False),
        ({"checkpoint": REFUSED}, False),
        ({"kernel": "bash"}, False),
        ({"move_asked": "by a person"}, False),
        ({"desired": "stopped"}, False),
    ],
)
def test_the_market_moves_only_what_loses_nothing_and_has_stayed_a_while(
    fields: dict[str, object], may: bool
) -> None:
    settled = session(checkpoint=CHECKPOINT, kernel_since_s=NOW - decision.REST_S)
    snapshot = planning.Snapshot(
        session=msgspec.structs.replace(settled, **fields),
        active=view("c-1", "aws", tasks=(KERNEL,)),
        standby=None,
        now_s=NOW,
    )
    assert planning.may_move_at_will(snapshot) is may


def test_a_capture_gets_what_is_left_of_the_notice_and_three_tries() -> None:
    frozen = machine.freeze(moving(), NOW)
    (capture,) = plan(frozen)
    assert isinstance(capture, planning.Capture)
    assert capture.budget_s == planning.CAPTURE_BUDGET_S
    (short,) = plan(frozen, now_s=NOW + 110)
    assert isinstance(short, planning.Capture)
    assert short.budget_s == pytest.approx(10 - planning.SAFETY_S)
    assert isinstance(plan(frozen, now_s=NOW + 118)[0], planning.Fallback)
    tired = frozen
    for _ in range(planning.CAPTURE_ATTEMPTS):
        tired = machine.capture_failed(tired)
    assert isinstance(plan(tired)[0], planning.Fallback)


def test_a_host_that_dies_during_the_capture_falls_back() -> None:
    frozen = machine.freeze(moving(), NOW)
    (found,) = plan(frozen, active=view("c-1", "aws", state=InstanceState.LOST))
    assert isinstance(found, planning.Fallback)


def test_the_epoch_rises_once_per_freeze_and_once_per_other_target() -> None:
    frozen = machine.freeze(moving(), NOW)
    assert frozen.epoch == 2
    captured = machine.to_restore(frozen, NOW, CHECKPOINT)
    assert captured.epoch == 2
    aimed = machine.aim(captured, "i-c-2")
    assert aimed.epoch == 2
    assert machine.aim(aimed, "i-c-9").epoch == 3
    lost = machine.to_restore(moving(cause=Cause.LOST), NOW, None)
    assert lost.epoch == 2


def test_restoring_aims_first_and_starts_then() -> None:
    captured = machine.to_restore(machine.freeze(moving(), NOW), NOW, CHECKPOINT)
    (found,) = plan(captured)
    assert found == planning.Aim(host_id="i-c-2")
    (start,) = plan(machine.aim(captured, "i-c-2"))
    assert isinstance(start, planning.StartKernel)
    assert start.host_id == "i-c-2"


def test_a_target_under_notice_is_replaced() -> None:
    captured = machine.to_restore(machine.freeze(moving(), NOW), NOW, CHECKPOINT)
    bad = view("c-2", "gcp", notice=NOTICE)
    (found,) = plan(captured, standby=bad)
    assert isinstance(found, demand.DropHost)
    (need,) = plan(msgspec.structs.replace(captured, standby_claim_id=""), standby=None)
    assert isinstance(need, demand.NeedHost)


def test_a_dead_kernel_is_restored_on_its_own_host() -> None:
    lost = machine.to_restore(moving(cause=Cause.KERNEL_LOST), NOW, None)
    assert plan(lost) == [planning.Aim(host_id="i-c-1")]


def test_a_finished_move_swaps_claims_and_reports_every_variable() -> None:
    captured = machine.to_restore(machine.freeze(moving(), NOW), NOW + 1, CHECKPOINT)
    aimed = machine.aim(captured, "i-c-2")
    report = RestoreReport(
        variables=(
            VariableReport(name="x", outcome="kept"),
            VariableReport(name="g", outcome="rebuilt", reason="re-ran cell 2"),
            VariableReport(name="s", outcome="refused", reason="a connected socket"),
        )
    )
    kernel = KernelUp(session_id="s-1", epoch=2, task_id="t", warm=True, report=report)
    done = machine.moved(aimed, kernel, offer("gcp"), NOW + 2.5)
    assert done.state is SessionState.RUNNING
    assert (done.claim_id, done.standby_claim_id, done.old_claims) == ("c-2", "", ("c-1",))
    record = done.moves[-1]
    assert record.frozen_s == 2.5
    assert record.kept == ("x",)
    assert [v.name for v in record.rebuilt] == ["g"]
    assert [v.reason for v in record.refused] == ["a connected socket"]
    assert not record.rerun
    (drop,) = plan(done, standby=None)
    assert drop == demand.DropHost(claim_id="c-1", reason="the session moved on")


def test_only_a_newer_checkpoint_replaces_the_known_one() -> None:
    known = machine.noted(session(), CHECKPOINT)
    older = msgspec.structs.replace(CHECKPOINT, number=2)
    newer = msgspec.structs.replace(CHECKPOINT, epoch=2, number=1)
    assert machine.noted(known, older) == known
    assert machine.noted(known, newer).checkpoint == newer


@pytest.mark.parametrize("state", [s for s in SessionState if s is not SessionState.STOPPED])
def test_a_stopped_wish_wins_in_every_state(state: SessionState) -> None:
    assert plan(session(state, desired="stopped")) == [planning.Stop()]


def test_every_session_state_has_a_row() -> None:
    assert set(machine.TRANSITIONS) == set(SessionState)
    with pytest.raises(machine.InvalidTransition):
        machine.step(session(SessionState.STOPPED), SessionState.RUNNING)
