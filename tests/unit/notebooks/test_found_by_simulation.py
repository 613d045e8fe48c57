"""What the simulator found in notebooks, each reduced to its smallest case."""

import msgspec

from roost.fleet.model import Claim, ClaimState, ClaimView, Instance, InstanceState
from roost.notebooks import machine
from roost.notebooks import plan as planning
from roost.notebooks.model import Cause, Session, SessionState
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

NOW_S = 1_000.0
IMAGE = Image(name="minimal", python="3.11")
REBALANCE = Notice(kind=NoticeKind.REBALANCE, seen_s=NOW_S)
INTERRUPTION = Notice(kind=NoticeKind.INTERRUPTION, seen_s=NOW_S, deadline_s=NOW_S + 120)
KERNEL = TaskReport(task_id="t-1", kind="kernel", session_id="s-1", epoch=1, state="ready")
STANDBY = TaskReport(task_id="t-2", kind="standby", state="ready")


def _view(claim_id: str, notice: Notice | None, *tasks: TaskReport) -> ClaimView:
    offer = Offer(
        provider="aws",
        region="r",
        zone=claim_id,
        instance_type="t",
        purchase_option=PurchaseOption.SPOT,
        price_usd_hour=0.1,
        on_demand_usd_hour=0.3,
        resources=Resources(vcpus=4, memory_gib=16),
    )
    instance = Instance(
        id=f"i-{claim_id}",
        state=InstanceState.READY,
        parent=claim_id,
        owner="s-1",
        role="active",
        offer=offer,
        image=IMAGE,
        launch_token="l",
        notice=notice,
    )
    claim = Claim(
        id=claim_id, state=ClaimState.HELD, parent="s-1", role="active", ask=Ask(), image=IMAGE
    )
    report = HostReport(host_id=instance.id, at_s=NOW_S, ready=True, tasks=tasks, notice=notice)
    return ClaimView(claim=claim, instance=instance, report=report, connected=True)


def _session(**fields: object) -> Session:
    base = Session(
        id="s-1",
        name="n",
        state=SessionState.RUNNING,
        epoch=1,
        key="k",
        token="t",
        ask=Ask(),
        image=IMAGE,
        claim_id="c-1",
        standby_claim_id="c-2",
        host_id="i-c-1",
    )
    return msgspec.structs.replace(base, **fields)


def _plan(
    session: Session, active: Notice | None, standby: Notice | None
) -> list[planning.Instruction]:
    return planning.plan(
        planning.Snapshot(
            session=session,
            active=_view("c-1", active, KERNEL),
            standby=_view("c-2", standby, STANDBY),
            now_s=NOW_S,
            warmed=(),
        )
    )


def _moving(cause: Cause, deadline_s: float | None) -> Session:
    return machine.begin_move(
        _session(), cause=cause, reason="r", now_s=NOW_S, deadline_s=deadline_s
    )


def test_a_standby_host_with_a_recommendation_is_replaced_while_there_is_time() -> None:
    """Seed 4: it was kept, never used, and the move waited for ever."""
    drop = planning.DropHost(claim_id="c-2", reason="the standby host goes away")
    assert _plan(_session(), None, REBALANCE) == [drop]
    assert _plan(_moving(Cause.NOTICE, None), REBALANCE, REBALANCE) == [drop]


def test_a_standby_host_with_a_recommendation_is_used_when_there_is_no_time() -> None:
    """Seed 4, the other half: with a deadline a place that may go is better than none."""
    moving = _moving(Cause.NOTICE, NOW_S + 120)
    assert _plan(moving, INTERRUPTION, REBALANCE) == [planning.Freeze(reason="the target is ready")]
    assert _plan(moving, INTERRUPTION, INTERRUPTION) == [
        planning.DropHost(claim_id="c-2", reason="the standby host goes away")
    ]


def test_an_interruption_hurries_a_move_that_a_recommendation_began() -> None:
    """Seed 4: the move went on as if it had all the time in the world."""
    (urge,) = _plan(_moving(Cause.NOTICE, None), INTERRUPTION, None)
    assert isinstance(urge, planning.Urge)
    assert urge.deadline_s == INTERRUPTION.deadline_s


def test_a_start_that_came_to_nothing_gets_the_next_epoch() -> None:
    """Seed 339: a kernel that died before it was routed was asked for again and again."""
    starting = machine.begin(_session(state=SessionState.REQUESTED, epoch=0), "i-c-1")
    again = machine.again(starting)
    assert (again.state, again.epoch, again.host_id) == (SessionState.STARTING, 2, "i-c-1")


def test_a_standby_host_nobody_wants_is_let_go() -> None:
    """Seed 1010: claimed for a move that stayed on its host, and paid for ever after."""
    assert _plan(_session(standby=False), None, None) == [
        planning.DropHost(claim_id="c-2", reason="no standby host is wanted")
    ]
    assert _plan(_session(standby=True), None, None) == []
