"""What may happen to a session. Pure: a session and facts in, a new session out."""

import msgspec

from roost.notebooks.model import (
    RECORDS_KEPT,
    Cause,
    Move,
    MoveRecord,
    Phase,
    Session,
    SessionState,
)
from roost.ports.kernels import Checkpoint, KernelUp
from roost.ports.values import Offer

S = SessionState

TRANSITIONS: dict[SessionState, dict[SessionState, str]] = {
    S.REQUESTED: {
        S.STARTING: "a host is ready: the kernel starts at the next epoch",
        S.STOPPING: "stopped before it had a host",
    },
    S.STARTING: {
        S.RUNNING: "the kernel accepts work and the routes point to it",
        S.REQUESTED: "the host went away before the kernel was up",
        S.STOPPING: "stopped while starting",
    },
    S.RUNNING: {
        S.MOVING: "a notice, a loss, a person or the market: it changes place at the next epoch",
        S.STOPPING: "a person stops it",
    },
    S.MOVING: {
        S.RUNNING: "the restored kernel accepts work and the routes point to it",
        S.STOPPING: "stopped in mid-move",
    },
    S.STOPPING: {S.STOPPED: "routes, server, kernel and claims are gone"},
    S.STOPPED: {},
}
"""Every edge with when it happens."""


class InvalidTransition(Exception):
    """A step the table does not know."""


def step(session: Session, to: SessionState) -> Session:
    """``session`` in state ``to``; raises ``InvalidTransition`` for an edge not in the table."""
    if to not in TRANSITIONS[session.state]:
        raise InvalidTransition(f"{session.id}: {session.state} -> {to}")
    return msgspec.structs.replace(session, state=to)


def begin(session: Session, host_id: str) -> Session:
    """A host is ready: start the kernel there at a new epoch."""
    started = step(session, S.STARTING)
    return msgspec.structs.replace(started, host_id=host_id, epoch=session.epoch + 1)


def begin_move(
    session: Session,
    *,
    cause: Cause,
    reason: str,
    now_s: float,
    deadline_s: float | None = None,
    offer: Offer | None = None,
) -> Session:
    """The session starts to change place; its kernel works on."""
    move = Move(
        cause=cause,
        reason=reason,
        phase=Phase.PREPARING,
        started_s=now_s,
        from_host=session.host_id,
        from_epoch=session.epoch,
        from_offer=offer,
        deadline_s=deadline_s,
    )
    return msgspec.structs.replace(step(session, S.MOVING), move=move, move_asked="")


def urge(session: Session, *, cause: Cause, reason: str, deadline_s: float | None) -> Session:
    """A later, stronger reason for the move under way (a notice during an asked move)."""
    assert session.move is not None
    move = msgspec.structs.replace(session.move, cause=cause, reason=reason, deadline_s=deadline_s)
    return msgspec.structs.replace(session, move=move)


def freeze(session: Session, now_s: float) -> Session:
    """Reserve the next epoch; from here the old place accepts no work."""
    assert session.move is not None
    move = msgspec.structs.replace(session.move, phase=Phase.CAPTURING, frozen_s=now_s)
    return msgspec.structs.replace(session, move=move, epoch=session.epoch + 1)


def capture_failed(session: Session) -> Session:
    """One more try did not work."""
    assert session.move is not None
    tried = session.move.capture_attempts + 1
    move = msgspec.structs.replace(session.move, capture_attempts=tried)
    return msgspec.structs.replace(session, move=move)


def to_restore(session: Session, now_s: float, checkpoint: Checkpoint | None) -> Session:
    """The state is as captured as it will be (None: the last durable checkpoint must do)."""
    assert session.move is not None
    move = msgspec.structs.replace(
        session.move,
        phase=Phase.RESTORING,
        frozen_s=session.move.frozen_s if session.move.frozen_s is not None else now_s,
        captured=checkpoint is not None,
        bytes_moved=session.move.bytes_moved + (checkpoint.bytes_moved if checkpoint else 0),
    )
    epoch = session.epoch + 1 if session.move.phase is Phase.PREPARING else session.epoch
    session = msgspec.structs.replace(session, move=move, epoch=epoch)
    return session if checkpoint is None else noted(session, checkpoint)


def aim(session: Session, host_id: str) -> Session:
    """Choose the restore's target. Another target needs another epoch: the first may live unseen."""
    assert session.move is not None
    again = session.move.to_host not in ("", host_id)
    move = msgspec.structs.replace(session.move, to_host=host_id)
    return msgspec.structs.replace(session, move=move, epoch=session.epoch + (1 if again else 0))


def again(session: Session) -> Session:
    """The start at this epoch came to nothing for good: try at the next one."""
    return msgspec.structs.replace(session, epoch=session.epoch + 1)


def noted(session: Session, checkpoint: Checkpoint) -> Session:
    """A capture is durable: remember it unless a newer one is known."""
    known = session.checkpoint
    newer = known is None or (checkpoint.epoch, checkpoint.number) > (known.epoch, known.number)
    return msgspec.structs.replace(session, checkpoint=checkpoint) if newer else session


def up(session: Session, kernel: KernelUp, now_s: float) -> Session:
    """The first kernel of the session accepts work."""
    running = step(session, S.RUNNING)
    return msgspec.structs.replace(running, kernel_since_s=now_s, report=kernel.report, message="")


def moved(session: Session, kernel: KernelUp, to_offer: Offer, now_s: float) -> Session:
    """The restored kernel accepts work and the routes point to it."""
    move = session.move
    assert move is not None and move.frozen_s is not None
    record = MoveRecord(
        cause=move.cause,
        reason=move.reason,
        epoch=session.epoch,
        started_s=move.started_s,
        ended_s=now_s,
        frozen_s=round(now_s - move.frozen_s, 3),
        from_host=move.from_host,
        to_host=move.to_host,
        from_offer=move.from_offer.key if move.from_offer else "",
        to_offer=to_offer.key,
        bytes_moved=move.bytes_moved + kernel.bytes_fetched,
        kept=kernel.report.names("kept"),
        rebuilt=tuple(v for v in kernel.report.variables if v.outcome == "rebuilt"),
        refused=tuple(v for v in kernel.report.variables if v.outcome == "refused"),
        warm=kernel.warm,
        rerun=not move.captured,
    )
    same_host = move.to_host == move.from_host
    claim_id = session.claim_id if same_host else session.standby_claim_id
    old = session.old_claims if same_host else (*session.old_claims, session.claim_id)
    return msgspec.structs.replace(
        step(session, S.RUNNING),
        host_id=move.to_host,
        kernel_since_s=now_s,
        claim_id=claim_id,
        standby_claim_id=session.standby_claim_id if same_host else "",
        old_claims=tuple(c for c in old if c),
        move=None,
        moves=(*session.moves, record)[-RECORDS_KEPT:],
        report=kernel.report,
        message="",
    )
