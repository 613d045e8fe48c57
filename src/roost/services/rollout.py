"""Which replicas of one service are added, drained and removed next. Pure: a snapshot in, instructions out.

Replace first, then drain: a replica that serves leaves only when enough others do, be it for a new
revision, because its host goes away, or because fewer are wanted. It never says where a replica goes.
"""

from collections.abc import Mapping

import msgspec

from roost.fleet.groups.model import GroupHost, HostState
from roost.ports.replicas import ReplicaReport
from roost.services.model import Outcome, Replica, ReplicaState, Service, ServiceState

R = ReplicaState

DRAIN_LEAST_S = 1.0
"""A drained replica stays so long at least: what edges sent before they knew is on its way."""
LAST_MOMENT_S = 2.0
"""Before its host goes, a replica without a replacement serves until here."""
SILENT_S = 15.0
"""A host that is not connected for this long is given up, and so are its replicas."""
LONG_AGO_S = 3600.0
ADD_AT_ONCE = 100
"""Replicas added in one round."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A replica with what is known of it now."""

    replica: Replica
    report: ReplicaReport | None = None
    host: GroupHost | None = None
    """None = it has none yet, or its host is gone."""
    silent_s: float = 0.0
    """How long its host has not been connected."""
    waits: str = ""
    """Why it has no host yet."""

    @property
    def lost(self) -> str:
        """Why it cannot be there any more; empty while it may."""
        if not self.replica.host_id:
            return ""
        if self.host is None:
            return f"host {self.replica.host_id} is gone"
        return f"host silent for {self.silent_s:.0f} s" if self.silent_s > SILENT_S else ""

    @property
    def outgoing(self) -> str:
        """Why it has to leave its host; empty = it need not."""
        if self.host is None:
            return ""
        if self.host.state is HostState.NOTICED:
            return f"host {self.host.host_id} is under notice"
        if self.host.state is HostState.DRAINING:
            return f"host {self.host.host_id} is drained: {self.host.reason or 'by its group'}"
        return ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the plan may look at."""

    service: Service
    replicas: tuple[Facts, ...]
    """All that have not ended."""
    now_s: float
    """As the clock was at first, and steady since: ages are right when the clock jumps."""
    wall_s: float
    """As the clock is: what clouds mean by a deadline."""


class Add(msgspec.Struct, frozen=True, kw_only=True):
    """So many more replicas of the revision that shall run."""

    count: int
    reason: str


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """A replica gets nothing new from now on."""

    replica_id: str
    reason: str


class Remove(msgspec.Struct, frozen=True, kw_only=True):
    """Its host shall not have it any more."""

    replica_id: str
    reason: str


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """The revision that shall run serves."""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The revision that shall run does not serve."""

    reason: str


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing of the service is left."""


Instruction = Add | Drain | Remove | Proven | Failed | End


def plan(snapshot: Snapshot) -> list[Instruction]:
    """The next instructions; empty when there is nothing to do but wait."""
    service = snapshot.service
    gone: list[Instruction] = [
        Remove(replica_id=f.replica.id, reason=f.lost) for f in snapshot.replicas if f.lost
    ]
    if gone:
        return gone
    done = _drained(snapshot)
    if done:
        return done
    if service.state is ServiceState.DELETING:
        return _delete(snapshot)
    verdict = _verdict(snapshot)
    if verdict is not None:
        return [verdict]
    return _replace(snapshot)


def _drained(snapshot: Snapshot) -> list[Instruction]:
    """Replicas that have nothing left to do, or whose time is over."""
    found: list[Instruction] = []
    for facts in snapshot.replicas:
        replica, report = facts.replica, facts.report
        if replica.state is not R.DRAINING:
            continue
        age_s = _age_s(snapshot, replica.draining_s)
        idle = report is not None and report.in_flight + report.queued == 0
        if report is not None and report.state == "ended":
            found.append(Remove(replica_id=replica.id, reason="it has ended"))
        elif idle and age_s >= DRAIN_LEAST_S:
            found.append(Remove(replica_id=replica.id, reason="nothing is in flight"))
        elif age_s >= snapshot.service.wish.rollout.drain_s:
            left = f"{report.in_flight} in flight" if report is not None else "nothing is heard"
            found.append(Remove(replica_id=replica.id, reason=f"drained for {age_s:.0f} s, {left}"))
    return found


def _delete(snapshot: Snapshot) -> list[Instruction]:
    if not snapshot.replicas:
        return [End()]
    return [
        _leave(facts, "the service is deleted")
        for facts in snapshot.replicas
        if facts.replica.state is not R.DRAINING
    ]


def _leave(facts: Facts, reason: str) -> Instruction:
    """Out of service: what never served has nothing to drain."""
    if facts.replica.state in (R.READY, R.FAILING) and facts.replica.first_ready_s is not None:
        return Drain(replica_id=facts.replica.id, reason=reason)
    return Remove(replica_id=facts.replica.id, reason=reason)


# --- is the new revision good? ------------------------------------------------------------------------


def _verdict(snapshot: Snapshot) -> Instruction | None:
    """What the replicas say of the revision that shall run, while it is on trial."""
    service = snapshot.service
    if service.state in (ServiceState.RUNNING, ServiceState.DELETED):
        return None
    mine = [f for f in snapshot.replicas if f.replica.revision == service.revision]
    if service.state is not ServiceState.FAILING:
        for facts in mine:
            why = failure(facts, snapshot)
            if why:
                return Failed(reason=why)
    serving = [f for f in mine if settled(f, snapshot) and not f.outgoing]
    old = [f for f in snapshot.replicas if f.replica.revision != service.revision]
    wanted = service.wanted(only_needed=True)
    if not old and serving and len(serving) >= wanted:
        return Proven()
    asleep = wanted == 0 and not snapshot.replicas
    if asleep and service.current.outcome is Outcome.GOOD:
        return Proven()
    return None


def failure(facts: Facts, snapshot: Snapshot) -> str:
    """Why a replica on trial shows that its revision does not serve; empty = it does not show that."""
    replica, report, rollout = facts.replica, facts.report, snapshot.service.wish.rollout
    if replica.state is R.DRAINING or facts.outgoing:
        return ""
    said = _said(report)
    ends = max(report.restarts, report.failures) if report is not None else 0
    if ends >= rollout.crashes and replica.state is not R.READY:
        return f"{replica.id} failed {ends} times: {said or 'it does not stay'}"
    if report is not None and report.state == "ended":
        return f"{replica.id} has ended: {said or 'its host does not say why'}"
    waited_s = snapshot.now_s - (replica.placed_s or snapshot.now_s)
    if replica.first_ready_s is None and waited_s > rollout.timeout_s:
        return f"{replica.id} was not ready within {rollout.timeout_s:g} s: {said or 'no answer'}"
    return ""


def _said(report: ReplicaReport | None) -> str:
    if report is None:
        return ""
    if report.exit_code is not None and "exit code" not in report.detail:
        return f"exit code {report.exit_code}; {report.detail}".rstrip("; ")
    return report.detail


def settled(facts: Facts, snapshot: Snapshot) -> bool:
    """Whether it has been ready for long enough to count on it."""
    replica = facts.replica
    if replica.state is not R.READY or replica.ready_s is None:
        return False
    on_trial = snapshot.service.state is not ServiceState.RUNNING
    settle_s = snapshot.service.wish.rollout.settle_s if on_trial else 0.0
    return _age_s(snapshot, replica.ready_s) >= settle_s


def _age_s(snapshot: Snapshot, since_s: float | None) -> float:
    """How long ago it was. What is ahead of the clock was written before it jumped back: long ago."""
    if since_s is None:
        return 0.0
    age_s = snapshot.now_s - since_s
    return age_s if age_s >= 0 else LONG_AGO_S


# --- how many, and which leave --------------------------------------------------------------------------


def _replace(snapshot: Snapshot) -> list[Instruction]:
    service = snapshot.service
    here = [f for f in snapshot.replicas if f.replica.state is not R.DRAINING]
    stay = [f for f in here if not f.outgoing]
    new = [f for f in stay if f.replica.revision == service.revision]
    old = [f for f in stay if f.replica.revision != service.revision]
    wanted = service.wanted(only_needed=bool(old))
    instructions: list[Instruction] = []
    missing = wanted - len(new)
    if old:
        missing = min(missing, wanted + service.wish.rollout.max_surge - len(stay))
    if missing > 0:
        why = _why_add(snapshot, wanted, len(here) - len(stay), bool(old))
        instructions.append(Add(count=min(missing, ADD_AT_ONCE), reason=why))
    return instructions + _leaving(snapshot, wanted, here)


def _why_add(snapshot: Snapshot, wanted: int, outgoing: int, updating: bool) -> str:
    service = snapshot.service
    if updating:
        return f"revision {service.revision} takes over"
    if outgoing:
        why = next(f.outgoing for f in snapshot.replicas if f.outgoing)
        return f"in place of {outgoing}: {why}"
    number = service.person
    why = f"a person wants {number}" if number is not None else service.reason or "as planned"
    return f"{wanted} wanted: {why}"


def _leaving(snapshot: Snapshot, wanted: int, here: list[Facts]) -> list[Instruction]:
    """Those that go now: surplus, old, and on hosts that go away, as far as enough others serve."""
    service = snapshot.service
    serving = [f for f in here if settled(f, snapshot)]
    keep = sum(1 for f in serving if not _reason_to_leave(f, service))
    least = max(
        0, min(wanted, service.wanted(only_needed=True)) - service.wish.rollout.max_unavailable
    )
    may_go = len(serving) - max(least, 0)
    instructions: list[Instruction] = []
    surplus = _surplus(snapshot, here, wanted)
    for facts in sorted(here, key=_order):
        why = _reason_to_leave(facts, service) or surplus.get(facts.replica.id, "")
        if not why:
            continue
        if facts.replica.state is not R.READY:
            unwanted = facts.replica.revision != service.revision or facts.replica.id in surplus
            if unwanted or (facts.outgoing and keep >= least):
                instructions.append(_leave(facts, why))
        elif may_go > 0 or _must_go(facts, snapshot, keep):
            may_go -= 1
            instructions.append(_leave(facts, why))
    return instructions


def _reason_to_leave(facts: Facts, service: Service) -> str:
    if facts.outgoing:
        return facts.outgoing
    if facts.replica.revision != service.revision:
        return f"revision {service.revision} takes over"
    return ""


def _surplus(snapshot: Snapshot, here: list[Facts], wanted: int) -> Mapping[str, str]:
    """Replicas of the revision that shall run beyond those wanted: the youngest, not yet ready first."""
    service = snapshot.service
    new = [f for f in here if not _reason_to_leave(f, service)]
    over = len(new) - wanted
    if over <= 0:
        return {}
    crowd: dict[str, int] = {}
    for facts in new:
        crowd[facts.replica.host_id] = crowd.get(facts.replica.host_id, 0) + 1

    def first(facts: Facts) -> tuple[object, ...]:
        replica = facts.replica
        survival = facts.host.survival if facts.host is not None else 0.0
        return (
            _RANK.index(replica.state),
            crowd[replica.host_id] if replica.host_id else 0,
            survival,
            -replica.created_s,
            replica.id,
        )

    number = f"{wanted} wanted: {service.reason or 'as planned'}"
    return {f.replica.id: number for f in sorted(new, key=first)[:over]}


_RANK = (R.WANTED, R.FAILING, R.STARTING, R.READY, R.DRAINING, R.ENDED)


def _order(facts: Facts) -> tuple[object, ...]:
    """Who leaves first: whose host goes soonest, then the old, then the oldest."""
    deadline_s = facts.host.deadline_s if facts.host is not None else None
    return (
        not facts.outgoing,
        deadline_s if deadline_s is not None else float("inf"),
        facts.replica.revision,
        facts.replica.created_s,
        facts.replica.id,
    )


def _must_go(facts: Facts, snapshot: Snapshot, others: int) -> bool:
    """Whether its host goes so soon that what is in flight has to end now."""
    host = facts.host
    if host is None or not facts.outgoing or host.deadline_s is None:
        return False
    service = snapshot.service
    grace_s = service.current.spec.stop_grace_s
    ahead_s = min(service.wish.rollout.drain_s, 10.0) + grace_s if others else LAST_MOMENT_S
    return host.deadline_s - snapshot.wall_s <= max(ahead_s, LAST_MOMENT_S)
