"""What may happen to a service and its replicas. Pure: a value and facts in, a new value out."""

import msgspec

from roost.ports.replicas import ReplicaReport, ReplicaSpec
from roost.services.model import (
    REVISIONS_KEPT,
    Outcome,
    Replica,
    ReplicaState,
    Revision,
    Service,
    ServiceState,
)

S = ServiceState
R = ReplicaState

TRANSITIONS: dict[ServiceState, dict[ServiceState, str]] = {
    S.STARTING: {
        S.RUNNING: "as many replicas of the first revision as wanted were ready for a while",
        S.FAILING: "the first revision crashes or never becomes ready; there is none to go back to",
        S.UPDATING: "another revision was given before the first had served",
        S.DELETING: "a person deletes it",
    },
    S.RUNNING: {
        S.UPDATING: "another revision was given: it replaces the old one replica by replica",
        S.DELETING: "a person deletes it",
    },
    S.UPDATING: {
        S.RUNNING: "all wanted replicas are of the new revision and were ready for a while",
        S.UPDATING: "yet another revision was given",
        S.ROLLING_BACK: "the new revision failed: the last good one takes its place again",
        S.FAILING: "the new revision failed and no revision ever served, or rollback is off",
        S.DELETING: "a person deletes it",
    },
    S.ROLLING_BACK: {
        S.RUNNING: "all wanted replicas are of the last good revision again",
        S.UPDATING: "another revision was given",
        S.FAILING: "the last good revision fails too",
        S.DELETING: "a person deletes it",
    },
    S.FAILING: {
        S.RUNNING: "its replicas became ready after all: hosts go on trying, with pauses",
        S.UPDATING: "another revision was given",
        S.DELETING: "a person deletes it",
    },
    S.DELETING: {S.DELETED: "the last replica has ended"},
    S.DELETED: {},
}
"""Every edge with when it happens."""

SEEN: dict[str, ReplicaState] = {
    "pulling": R.STARTING,
    "starting": R.STARTING,
    "ready": R.READY,
    "unhealthy": R.FAILING,
    "backing_off": R.FAILING,
}
"""A host's word for a replica that is not leaving, in ours."""


class InvalidTransition(Exception):
    """A step the table does not know."""


def step(service: Service, to: ServiceState) -> Service:
    """``service`` in state ``to``; raises ``InvalidTransition`` for an edge not in the table."""
    if to not in TRANSITIONS[service.state]:
        raise InvalidTransition(f"{service.id}: {service.state} -> {to}")
    return msgspec.structs.replace(service, state=to)


def update(service: Service, spec: ReplicaSpec, now_s: float) -> Service:
    """Another revision shall run from now on."""
    number = max(r.number for r in service.revisions) + 1
    judged = tuple(
        msgspec.structs.replace(r, outcome=Outcome.SUPERSEDED)
        if r.outcome is Outcome.DEPLOYING
        else r
        for r in service.revisions
    )
    revision = Revision(number=number, spec=spec, created_s=now_s)
    return msgspec.structs.replace(
        step(service, S.UPDATING),
        revision=number,
        revisions=_kept((*judged, revision), service),
        changed_s=now_s,
        message="",
    )


def proven(service: Service) -> Service:
    """The revision that shall run serves."""
    return msgspec.structs.replace(
        step(service, S.RUNNING),
        revisions=_judged(service, service.revision, Outcome.GOOD, ""),
        message=service.message if service.state is S.ROLLING_BACK else "",
    )


def failed(service: Service, reason: str, now_s: float) -> Service:
    """The revision that shall run does not serve: back to the last good one, where there is one."""
    good = service.last_good
    back = good is not None and good.number != service.revision and service.wish.rollout.rollback
    if service.state is S.ROLLING_BACK or not back or good is None:
        outcome = service.current.outcome
        if outcome is not Outcome.GOOD:
            outcome = Outcome.FAILED
        return msgspec.structs.replace(
            step(service, S.FAILING),
            revisions=_judged(service, service.revision, outcome, reason),
            message=f"revision {service.revision}: {reason}",
        )
    return msgspec.structs.replace(
        step(service, S.ROLLING_BACK),
        revisions=_judged(service, service.revision, Outcome.FAILED, reason),
        revision=good.number,
        wish=msgspec.structs.replace(service.wish, spec=good.spec),
        changed_s=now_s,
        message=f"revision {service.revision} failed: {reason}; back at revision {good.number}",
    )


def deleting(service: Service) -> Service:
    """A person deletes it."""
    return msgspec.structs.replace(step(service, S.DELETING), message="")


def end(service: Service, now_s: float) -> Service:
    """Nothing of it is left."""
    return msgspec.structs.replace(step(service, S.DELETED), ended_s=now_s)


def _judged(service: Service, number: int, outcome: Outcome, message: str) -> tuple[Revision, ...]:
    return tuple(
        msgspec.structs.replace(r, outcome=outcome, message=message) if r.number == number else r
        for r in service.revisions
    )


def _kept(revisions: tuple[Revision, ...], service: Service) -> tuple[Revision, ...]:
    """The newest revisions, and always the last good one."""
    newest = revisions[-REVISIONS_KEPT:]
    good = service.last_good
    if good is not None and all(r.number != good.number for r in newest):
        return (good, *newest[1:])
    return newest


# --- replicas ---------------------------------------------------------------------------------------


def place(replica: Replica, host_id: str, now_s: float, why: str = "") -> Replica:
    """It shall run on this host."""
    return msgspec.structs.replace(
        replica, state=R.STARTING, host_id=host_id, placed_s=now_s, where=why
    )


def observe(replica: Replica, report: ReplicaReport, now_s: float) -> Replica:
    """Fold in what its host says of it. A draining one stays so until it is removed."""
    if replica.state in (R.WANTED, R.DRAINING, R.ENDED):
        return replica
    state = SEEN.get(report.state, R.FAILING)
    if state is replica.state:
        return replica
    if state is not R.READY:
        return msgspec.structs.replace(replica, state=state)
    first_s = replica.first_ready_s if replica.first_ready_s is not None else now_s
    return msgspec.structs.replace(replica, state=state, ready_s=now_s, first_ready_s=first_s)


def drain(replica: Replica, now_s: float) -> Replica:
    """It gets nothing new from now on."""
    return msgspec.structs.replace(replica, state=R.DRAINING, draining_s=now_s)


def remove(replica: Replica, reason: str, now_s: float) -> Replica:
    """Its host shall not have it any more."""
    return msgspec.structs.replace(replica, state=R.ENDED, ended_s=now_s, ended_reason=reason)
