"""What a session needs next. Pure: a snapshot in, instructions with reasons out.

The order of a move: find the target while the kernel works on; freeze (hold the routes, fence) only
when the target is ready or the deadline is near; capture; restore; route; let the old host go.

A move that nothing forces (another place is better) is prepared before it begins: the standby host is
claimed there, and the session moves between two cells once that is warm.
"""

import msgspec

from roost.fleet.demand import DropHost, NeedHost
from roost.fleet.model import Better, ClaimView
from roost.market import decision
from roost.notebooks.model import Cause, Move, Phase, Session, SessionState
from roost.ports.values import Notice, Offer, PurchaseOption, TaskReport

FREEZE_MARGIN_S = 15.0
"""Before a deadline, when the move starts even if a cell runs or no target is ready (seconds)."""
SAFETY_S = 3.0
"""A capture must end this long before the machine goes."""
CAPTURE_BUDGET_S = 60.0
"""Longest capture without a deadline."""
CAPTURE_ATTEMPTS = 3
SILENT_S = 15.0
"""A host its provider lists as running but that is not connected for this long is given up."""
KERNEL_MISSING_S = 3.0
"""A kernel its connected host does not report for this long is dead."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the plan may look at."""

    session: Session
    active: ClaimView | None
    standby: ClaimView | None
    now_s: float
    silent_s: float = 0.0
    """How long the active host has not been connected."""
    missing_s: float = 0.0
    """How long the connected active host has not reported the session's kernel."""
    warmed: tuple[str, ...] | None = None
    """Imports the standby host was last warmed with; None = not yet."""
    fetched: str = ""
    """The checkpoint whose chunks the standby host has."""
    fetched_s: float = 0.0
    """When it, or one that did not come, was asked for; 0: none was."""
    better: Better | None = None
    """Where it should be, when that is worth a move; looked at as long as it ``may_move_at_will``."""


class WarmHost(msgspec.Struct, frozen=True, kw_only=True):
    """Have a standby kernel with the recorded imports there."""

    host_id: str
    imports: tuple[str, ...]


class Prefetch(msgspec.Struct, frozen=True, kw_only=True):
    """Have the chunks of the session's last checkpoint there."""

    host_id: str
    checkpoint: str


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """A host is ready for the first kernel."""

    host_id: str


class BackToRequested(msgspec.Struct, frozen=True, kw_only=True):
    """The host went away before the kernel was up."""

    reason: str


class StartKernel(msgspec.Struct, frozen=True, kw_only=True):
    """Start or restore the kernel at the session's epoch, then point the routes."""

    host_id: str
    claim_id: str
    offer: Offer


class BeginMove(msgspec.Struct, frozen=True, kw_only=True):
    """The session changes place."""

    cause: Cause
    reason: str
    deadline_s: float | None = None
    offer: Offer | None = None


class Urge(msgspec.Struct, frozen=True, kw_only=True):
    """The move under way has a new, stronger reason."""

    cause: Cause
    reason: str
    deadline_s: float | None


class Freeze(msgspec.Struct, frozen=True, kw_only=True):
    """Stop accepting work at the old place."""

    reason: str


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the routes, fence, capture."""

    host_id: str
    claim_id: str
    budget_s: float


class Fallback(msgspec.Struct, frozen=True, kw_only=True):
    """Restore from the last durable checkpoint."""

    reason: str
    since_s: float


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """Restore on this host."""

    host_id: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Take routes, server and kernel away and release the claims."""


Instruction = (
    NeedHost
    | DropHost
    | WarmHost
    | Prefetch
    | Begin
    | BackToRequested
    | StartKernel
    | BeginMove
    | Urge
    | Freeze
    | Capture
    | Fallback
    | Aim
    | Stop
)


def plan(snapshot: Snapshot) -> list[Instruction]:
    """The next instructions; empty when there is nothing to do but wait."""
    session = snapshot.session
    if session.state is SessionState.STOPPED:
        return []
    if session.desired == "stopped":
        return [Stop()]
    match session.state:
        case SessionState.REQUESTED:
            return _place(snapshot)
        case SessionState.STARTING:
            return _start(snapshot)
        case SessionState.RUNNING:
            return _run(snapshot)
        case SessionState.MOVING:
            return _move(snapshot)
    return []


def _place(snapshot: Snapshot) -> list[Instruction]:
    active = snapshot.active
    if active is None:
        reason = f"session {snapshot.session.name} needs a host"
        return [NeedHost(role="active", away_from=(), reason=reason)]
    if active.gone:
        return [DropHost(claim_id=active.claim.id, reason="gone before the kernel started")]
    if active.usable and active.instance is not None:
        return [Begin(host_id=active.instance.id)]
    return _spare(snapshot)


def _start(snapshot: Snapshot) -> list[Instruction]:
    active = snapshot.active
    if active is None or active.gone or active.leaving:
        reason = "its host went away before the kernel was up"
        return [BackToRequested(reason=reason)]
    if active.usable and active.instance is not None:
        return [
            StartKernel(
                host_id=active.instance.id,
                claim_id=active.claim.id,
                offer=active.instance.offer,
            )
        ]
    return []


def _run(snapshot: Snapshot) -> list[Instruction]:
    reason = _reason_to_move(snapshot)
    if reason is not None:
        return [reason]
    old: list[Instruction] = [
        DropHost(claim_id=c, reason="the session moved on") for c in snapshot.session.old_claims
    ]
    return old or _towards(snapshot) or _spare(snapshot, wanted=snapshot.better is not None)


def may_move_at_will(snapshot: Snapshot) -> bool:
    """Whether the market may move it: nothing of it would be lost, and it has been here for a while."""
    session, active = snapshot.session, snapshot.active
    if active is None or active.instance is None or not active.usable:
        return False
    on_demand = active.instance.offer.purchase_option is not PurchaseOption.SPOT
    rested = decision.rested(snapshot.now_s - session.kernel_since_s, on_demand=on_demand)
    kept = session.checkpoint is not None and not session.checkpoint.refused and not session.kernel
    running = session.state is SessionState.RUNNING and session.desired == "running"
    return running and kept and rested and not session.stay and not session.move_asked


def _towards(snapshot: Snapshot) -> list[Instruction]:
    """To a better place: the standby host is to be there first."""
    better, standby, active = snapshot.better, snapshot.standby, snapshot.active
    instance = active.instance if active is not None else None
    if better is None or instance is None:
        return []
    if standby is None:
        return [
            NeedHost(
                role="standby",
                away_from=(instance.offer,),
                reason=f"a better place: {better.why}",
                pool=better.offer,
            )
        ]
    there = standby.instance is not None and standby.instance.offer.key == better.offer
    if not there and standby.claim.prefer != better.offer:
        why = f"{better.offer} is better: {better.why}"
        return [DropHost(claim_id=standby.claim.id, reason=why)]
    if _ready_target(snapshot) and not _busy(snapshot):
        return [BeginMove(cause=Cause.MARKET, reason=better.why, offer=instance.offer)]
    return []


def _reason_to_move(snapshot: Snapshot) -> BeginMove | None:
    session, active = snapshot.session, snapshot.active
    instance = active.instance if active else None
    offer = instance.offer if instance else None
    if active is None or active.gone or instance is None or instance.ended:
        why = instance.ended_reason if instance else "its claim is gone"
        return BeginMove(cause=Cause.LOST, reason=f"host lost: {why}", offer=offer)
    notice = instance.notice
    if notice is not None:
        reason = f"{notice.kind} notice from {notice.source}"
        deadline_s = notice.deadline_s
        return BeginMove(cause=Cause.NOTICE, reason=reason, deadline_s=deadline_s, offer=offer)
    if snapshot.silent_s > SILENT_S:
        reason = f"host silent for {snapshot.silent_s:.0f} s"
        return BeginMove(cause=Cause.UNREACHABLE, reason=reason, offer=offer)
    if snapshot.missing_s > KERNEL_MISSING_S:
        reason = "the host no longer runs the kernel"
        return BeginMove(cause=Cause.KERNEL_LOST, reason=reason, offer=offer)
    if session.move_asked:
        return BeginMove(cause=Cause.ASKED, reason=session.move_asked, offer=offer)
    return None


def _move(snapshot: Snapshot) -> list[Instruction]:
    move = snapshot.session.move
    assert move is not None, "a moving session has a move"
    match move.phase:
        case Phase.PREPARING:
            return _prepare(snapshot, move)
        case Phase.CAPTURING:
            return _capture(snapshot, move)
        case Phase.RESTORING:
            return _restore(snapshot, move)


def _prepare(snapshot: Snapshot, move: Move) -> list[Instruction]:
    active, now_s = snapshot.active, snapshot.now_s
    if move.cause in (Cause.LOST, Cause.UNREACHABLE, Cause.KERNEL_LOST) or _ended(active):
        ended_s = active.instance.ended_s if active and active.instance else None
        since_s = ended_s if ended_s is not None else move.started_s
        return [Fallback(reason=move.reason, since_s=since_s)]
    instance = active.instance if active else None
    notice = instance.notice if instance else None
    if notice is not None and _says_more(notice, move):
        reason = f"{notice.kind} notice from {notice.source}"
        return [Urge(cause=Cause.NOTICE, reason=reason, deadline_s=notice.deadline_s)]
    pressing = move.deadline_s is not None and now_s > move.deadline_s - FREEZE_MARGIN_S
    if pressing:
        return [Freeze(reason="the deadline is near")]
    if _ready_target(snapshot) and not _busy(snapshot):
        return [Freeze(reason="the target is ready")]
    return _spare(snapshot, wanted=True)


def _capture(snapshot: Snapshot, move: Move) -> list[Instruction]:
    active = snapshot.active
    left_s = CAPTURE_BUDGET_S
    if move.deadline_s is not None:
        left_s = min(left_s, move.deadline_s - snapshot.now_s - SAFETY_S)
    since_s = move.frozen_s or snapshot.now_s
    if active is None or _ended(active):
        return [Fallback(reason="the host went away during the capture", since_s=since_s)]
    if left_s <= 0 or move.capture_attempts >= CAPTURE_ATTEMPTS:
        return [Fallback(reason="the capture did not fit in its budget", since_s=since_s)]
    return [Capture(host_id=move.from_host, claim_id=active.claim.id, budget_s=left_s)]


def _restore(snapshot: Snapshot, move: Move) -> list[Instruction]:
    stays = move.cause is Cause.KERNEL_LOST and snapshot.active is not None
    target = snapshot.active if stays else snapshot.standby
    if stays and (target is None or not target.usable):
        target = snapshot.standby
    if target is None or not target.usable or target.instance is None:
        return _spare(snapshot, wanted=True)
    if move.to_host != target.instance.id:
        return [Aim(host_id=target.instance.id)]
    return [
        StartKernel(
            host_id=target.instance.id,
            claim_id=target.claim.id,
            offer=target.instance.offer,
        )
    ]


def _spare(snapshot: Snapshot, *, wanted: bool = False) -> list[Instruction]:
    """Keep the standby host as the session wants it (``wanted``: a move needs it in any case)."""
    session, standby = snapshot.session, snapshot.standby
    if not (session.standby or wanted):
        # Claimed for a move that in the end stayed on its host.
        why = "no standby host is wanted"
        return [] if standby is None else [DropHost(claim_id=standby.claim.id, reason=why)]
    if standby is None:
        active = snapshot.active.instance if snapshot.active is not None else None
        offer = active.offer if active is not None else None
        if offer is None and session.move is not None:
            offer = session.move.from_offer
        if offer is None and not wanted:
            return []
        away_from = (offer,) if offer is not None else ()
        return [NeedHost(role="standby", away_from=away_from, reason="a place to move to")]
    if standby.gone or _unwanted(standby, session.move):
        return [DropHost(claim_id=standby.claim.id, reason="the standby host goes away")]
    if standby.usable and standby.instance is not None and not _warm(snapshot):
        return [WarmHost(host_id=standby.instance.id, imports=session.imports)]
    if standby.usable and standby.instance is not None and session.checkpoint is not None:
        digest = session.checkpoint.digest
        if snapshot.fetched != digest:
            return [Prefetch(host_id=standby.instance.id, checkpoint=digest)]
    return []


def _says_more(notice: Notice, move: Move) -> bool:
    """Whether a notice tells the move something new: a cause, or a deadline where there was none."""
    free = move.cause in (Cause.ASKED, Cause.MARKET)
    return free or (move.deadline_s is None and notice.deadline_s is not None)


def _unwanted(standby: ClaimView, move: Move | None) -> bool:
    """A standby host that goes away, or may and there is time for a better one."""
    noticed = standby.instance is not None and standby.instance.notice is not None
    urgent = move is not None and (move.deadline_s is not None or move.phase is not Phase.PREPARING)
    return standby.leaving or (noticed and not urgent)


def _ended(view: ClaimView | None) -> bool:
    return view is None or view.gone or view.instance is None or view.instance.ended


def _warm(snapshot: Snapshot) -> bool:
    """Whether a standby kernel is ready on the standby host, warmed with all the session imports.

    A module that cannot be imported there counts as done: waiting longer would not help.
    """
    view = snapshot.standby
    tasks = view.report.tasks if view is not None and view.report is not None else ()
    ready = any(t.kind == "standby" and t.state == "ready" for t in tasks)
    warmed = set(snapshot.warmed or ())
    return ready and snapshot.warmed is not None and set(snapshot.session.imports) <= warmed


def _ready_target(snapshot: Snapshot) -> bool:
    standby = snapshot.standby
    if standby is None or not standby.usable or _unwanted(standby, snapshot.session.move):
        return False
    return _warm(snapshot) and _fetched(snapshot)


def _fetched(snapshot: Snapshot) -> bool:
    """Whether the standby host has the session's chunks, but for what has changed since the move began.

    Those that do not come count as fetched: a move must not wait for ever.
    """
    checkpoint, move = snapshot.session.checkpoint, snapshot.session.move
    if checkpoint is None or snapshot.fetched == checkpoint.digest:
        return True
    return move is not None and snapshot.fetched_s >= move.started_s


def _busy(snapshot: Snapshot) -> bool:
    task = kernel_task(snapshot.active, snapshot.session)
    return task is not None and task.state == "busy"


def kernel_task(view: ClaimView | None, session: Session) -> TaskReport | None:
    """The session's kernel as its host reports it."""
    tasks = view.report.tasks if view is not None and view.report is not None else ()
    return next(
        (t for t in tasks if t.session_id == session.id and t.state not in ("dead", "fenced")),
        None,
    )
