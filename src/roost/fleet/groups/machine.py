"""What may happen to a group's host. Pure: a value and a wish in, a new value out; never reads a clock."""

from typing import Any

import msgspec

from roost.fleet.groups.model import GroupSpec, Hook, Member, MemberState, Protection
from roost.fleet.machine import InvalidTransition

M = MemberState

TRANSITIONS: dict[MemberState, dict[MemberState, str]] = {
    M.LAUNCHING: {
        M.ENTERING: "its host is ready, and launch hooks have a word first",
        M.SERVING: "its host is ready",
        M.WARM: "its host is ready, for the warm pool",
        M.ENDED: "not needed any more, given up, or lost",
    },
    M.ENTERING: {
        M.SERVING: "every launch hook said yes, or did not answer and that means yes",
        M.WARM: "the same, for the warm pool",
        M.LEAVING: "it goes before it served, and termination hooks have a word",
        M.ENDED: "a hook said no, it is not needed any more, or lost",
    },
    M.WARM: {
        M.LAUNCHING: "taken into service: it is started again, or ready at once",
        M.LEAVING: "not needed any more, and termination hooks have a word",
        M.ENDED: "not needed any more, or lost",
    },
    M.SERVING: {
        M.DRAINING: "shall leave: nothing new is placed there",
        M.LEAVING: "empty and under notice, and termination hooks have a word",
        M.ENDED: "lost, or empty and under notice",
    },
    M.DRAINING: {
        M.SERVING: "needed again before it was empty",
        M.WARM: "drained, back to the warm pool",
        M.LEAVING: "drained, and termination hooks have a word",
        M.ENDED: "drained, or lost",
    },
    M.LEAVING: {M.ENDED: "termination hooks have finished or their time is over, or lost"},
    M.ENDED: {},
}
"""Every edge with when it happens."""


def step(member: Member, to: MemberState, now_s: float, reason: str, **changes: Any) -> Member:
    """``member`` in state ``to``. ``InvalidTransition`` for an edge that is not in the table."""
    if to not in TRANSITIONS[member.state]:
        raise InvalidTransition(f"{member.id}: {member.state} -> {to}")
    return msgspec.structs.replace(member, state=to, since_s=now_s, reason=reason, **changes)


def hooks_of(spec: GroupSpec, on: str) -> tuple[Hook, ...]:
    """The hooks of a moment."""
    return tuple(hook for hook in spec.hooks if hook.on == on)


def arrive(member: Member, spec: GroupSpec, now_s: float) -> Member:
    """Its host is ready."""
    waiting = () if member.admitted else hooks_of(spec, "launch")
    if not waiting:
        return enter(member, spec, now_s, "its host is ready")
    return step(
        member,
        M.ENTERING,
        now_s,
        f"waits for {', '.join(hook.name for hook in waiting)}",
        hooks=tuple(hook.name for hook in waiting),
        until_s=now_s + max(hook.timeout_s for hook in waiting),
    )


def enter(member: Member, spec: GroupSpec, now_s: float, reason: str) -> Member:
    """It may serve, or stand by."""
    to = M.WARM if member.warm else M.SERVING
    new = step(member, to, now_s, reason, hooks=(), until_s=0.0, admitted=True)
    if to is M.SERVING and spec.protect_new and new.protection is Protection.NONE:
        new = msgspec.structs.replace(new, protection=Protection.SCALE_IN)
    return new


def drain(member: Member, spec: GroupSpec, now_s: float, cause: str, reason: str) -> Member:
    """It gets nothing new and is emptied."""
    return step(member, M.DRAINING, now_s, reason, cause=cause, until_s=now_s + spec.drain_s)


def recall(member: Member, now_s: float, reason: str) -> Member:
    """It is needed again."""
    return step(member, M.SERVING, now_s, reason, cause="", release="", until_s=0.0)


def leave(member: Member, spec: GroupSpec, now_s: float, reason: str, lives: bool) -> Member:
    """It may go: at once, or when the termination hooks have finished (only of a host that lives)."""
    waiting = hooks_of(spec, "terminate") if lives else ()
    if not waiting or M.LEAVING not in TRANSITIONS[member.state]:
        return end(member, now_s, reason)
    return step(
        member,
        M.LEAVING,
        now_s,
        reason,
        hooks=tuple(hook.name for hook in waiting),
        until_s=now_s + max(hook.timeout_s for hook in waiting),
    )


def end(member: Member, now_s: float, reason: str) -> Member:
    """It is no part of the group any more."""
    new = step(member, M.ENDED, now_s, reason, hooks=())
    return msgspec.structs.replace(new, parent=f"{member.parent}/ended")


def store_warm(member: Member, now_s: float, reason: str) -> Member:
    """A host that served goes back to the warm pool."""
    return step(member, M.WARM, now_s, reason, warm=True, cause="", release="", until_s=0.0)


def promote(member: Member, now_s: float, reason: str) -> Member:
    """A warm host is taken into service."""
    return step(member, M.LAUNCHING, now_s, reason, warm=False)


def answered(member: Member, hook: Hook, result: str, now_s: float) -> Member:
    """A hook has answered ``continue`` or ``abandon``; the last answer sets the time over."""
    left = tuple(name for name in member.hooks if name != hook.name)
    abandoned = member.abandoned or (result == "abandon" and member.state is M.ENTERING)
    until_s = now_s if not left or abandoned else member.until_s
    return msgspec.structs.replace(member, hooks=left, abandoned=abandoned, until_s=until_s)
