"""What a group needs next. Pure: a snapshot in, instructions with reasons out.

First every host is followed to where it is, then a refresh goes a step on, then the size is corrected. What
changes a host's state comes alone: the next round looks again.
"""

from collections.abc import Sequence

import msgspec

from roost.fleet.groups import machine
from roost.fleet.groups.model import GroupState, Member, MemberState, MemberView
from roost.fleet.groups.refresh import refresh
from roost.fleet.groups.size import resize
from roost.fleet.groups.snapshot import Drop, Instruction, Pause, Put, Snapshot, Update
from roost.fleet.model import InstanceState

M = MemberState
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 600.0


def plan(snapshot: Snapshot) -> list[Instruction]:
    """The next instructions; empty when there is nothing to do but wait."""
    if snapshot.group.state is GroupState.DELETING:
        return _delete(snapshot)
    followed = [i for i in (_follow(snapshot, view) for view in snapshot.members) if i is not None]
    if followed:
        return [*followed, *_setbacks(snapshot, followed)]
    return refresh(snapshot) or resize(snapshot)


def _setbacks(s: Snapshot, followed: Sequence[Instruction]) -> list[Instruction]:
    """Hosts that never come to serve are launched ever more slowly."""
    group = s.group
    if any(isinstance(i, Put) and i.member.state is M.SERVING for i in followed):
        if not group.setbacks:
            return []
        new = msgspec.structs.replace(group, setbacks=0, not_before_s=0.0)
        return [Update(group=new, event="", reason="")]
    bad = [i for i in followed if isinstance(i, Drop) and i.event == "Abandoned"]
    if not bad:
        return []
    setbacks = group.setbacks + 1
    wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (setbacks - 1))
    new = msgspec.structs.replace(group, setbacks=setbacks, not_before_s=s.now_s + wait_s)
    why = f"{bad[0].member.reason}; the next launch waits {wait_s:.0f} s"
    return [Update(group=new, event="SetBack", reason=why)]


def _delete(s: Snapshot) -> list[Instruction]:
    if not s.members:
        gone = msgspec.structs.replace(s.group, state=GroupState.DELETED)
        return [Update(group=gone, event="Deleted", reason="its last host is released")]
    return [i for i in (_leave_now(s, view) for view in s.members) if i is not None]


def _leave_now(s: Snapshot, view: MemberView) -> Instruction | None:
    if view.member.state is M.LEAVING and view.claim is not None and not view.claim.gone:
        return _left(s, view)
    return _go(s, view, "the group is deleted", "Released")


def _follow(s: Snapshot, view: MemberView) -> Instruction | None:
    member = view.member
    if view.claim is None or view.claim.gone:
        return Drop(member=machine.end(member, s.now_s, _why_gone(view)), event="Lost")
    match member.state:
        case M.LAUNCHING if view.claim.claim.paused:
            return Pause(claim_id=member.id, paused=False)
        case M.LAUNCHING if view.ready:
            return _arrived(machine.arrive(member, s.group.spec, s.now_s))
        case M.ENTERING:
            return _hooked(s, view)
        case M.WARM:
            return _warm(s, view)
        case M.DRAINING:
            return _drained(s, view)
        case M.LEAVING:
            return _left(s, view)
    return None


def _why_gone(view: MemberView) -> str:
    instance = view.claim.instance if view.claim is not None else None
    if instance is None:
        return "its claim is gone"
    noticed = "" if instance.notice is None else f" after a {instance.notice.kind} notice"
    return f"{instance.id} {instance.offer.key}: {instance.ended_reason or 'released'}{noticed}"


def _arrived(member: Member) -> Put:
    words = {M.ENTERING: "Waiting", M.WARM: "Prepared"}
    return Put(member=member, event=words.get(member.state, "InService"))


def _hooked(s: Snapshot, view: MemberView) -> Instruction | None:
    member = view.member
    over = not member.hooks or s.now_s >= member.until_s
    if not over and not member.abandoned:
        return None
    refused = [h.name for h in machine.hooks_of(s.group.spec, "launch") if h.default == "abandon"]
    late = [name for name in member.hooks if name in refused]
    if member.abandoned or late:
        why = "a launch hook said no" if member.abandoned else f"{late[0]} did not answer in time"
        return Drop(member=machine.end(member, s.now_s, why), event="Abandoned")
    why = f"{', '.join(member.hooks)} did not answer in time" if member.hooks else "hooks said yes"
    return _arrived(machine.enter(member, s.group.spec, s.now_s, why))


def _warm(s: Snapshot, view: MemberView) -> Instruction | None:
    claim = view.claim
    if claim is None or claim.instance is None:
        return None
    wanted = s.group.spec.warm.state == "stopped"
    stoppable = claim.instance.state in (
        InstanceState.READY,
        InstanceState.STOPPING,
        InstanceState.STOPPED,
    )
    if stoppable and claim.claim.paused != wanted:
        return Pause(claim_id=claim.claim.id, paused=wanted)
    return None


def _drained(s: Snapshot, view: MemberView) -> Instruction | None:
    member = view.member
    empty = view.use.slots_used == 0
    if not empty and s.now_s < member.until_s:
        return None
    warm = s.group.spec.warm
    back = warm.reuse and member.cause == "scale-in" and not view.noticed and view.ready
    if back and empty and len(s.pick(_prepared)) < warm.size:
        stored = machine.store_warm(member, s.now_s, f"{member.reason}; back to the warm pool")
        return Put(member=stored, event="Prepared")
    left = "" if empty else f"; {view.use.slots_used} containers did not leave in time"
    return _go(s, view, member.reason + left, "Released")


def _prepared(view: MemberView) -> bool:
    """One of the warm pool, booting ones with it."""
    return view.member.warm and view.member.state in (M.LAUNCHING, M.ENTERING, M.WARM)


def _left(s: Snapshot, view: MemberView) -> Drop | None:
    """Its termination hooks have finished, or their time is over."""
    member = view.member
    if member.hooks and s.now_s < member.until_s:
        return None
    return Drop(member=machine.end(member, s.now_s, member.reason), event="Released")


def _go(s: Snapshot, view: MemberView, reason: str, event: str) -> Instruction:
    """It may go: at once, or after its termination hooks."""
    member = view.member
    lives = view.ready and not view.noticed
    left = machine.leave(member, s.group.spec, s.now_s, reason, lives)
    if left.state is M.ENDED:
        return Drop(member=left, event=event)
    return Put(member=left, event="Leaving")
