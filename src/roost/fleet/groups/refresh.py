"""One step of an instance refresh, or of its rollback. Pure.

While it runs the group may be larger by ``group_size.surge``: new hosts come from there as ever. Here old
ones go, as many as leave enough that serve; hosts that fail are counted, and too many of them, or too long
a time, turn it back to the template before.
"""

from math import ceil

import msgspec

from roost.fleet.groups import machine
from roost.fleet.groups.budget import allowance
from roost.fleet.groups.model import Group, MemberState, MemberView, Refresh, RefreshState, Template
from roost.fleet.groups.size import movable, outdated
from roost.fleet.groups.snapshot import COMING, Drop, Instruction, Put, Snapshot, Update

R = RefreshState
ACTIVE = (R.RUNNING, R.ROLLING_BACK)


def refresh(s: Snapshot) -> list[Instruction]:
    """What the group's refresh does next."""
    now = s.group.refresh
    if now is None or now.state not in ACTIVE:
        return []
    failed = s.pick(lambda v: _failed(s, now, v))
    if failed:
        return _count(s, now, failed)
    late = s.now_s - now.started_s > now.limit_s
    if now.state is R.RUNNING and (now.failures > now.most_failures or late):
        why = f"{now.failures} hosts failed" if not late else f"not done in {now.limit_s:.0f} s"
        if now.auto_rollback:
            return [roll_back(s.group, s.now_s, why)]
        return [_over(s, now, R.CANCELLED, f"{why}; old and new hosts stay as they are")]
    old = [view for view in s.counted if outdated(s, view)]
    left = [view for view in old if movable(view) or view.use.keep]
    if not left and _complete(s):
        word = R.SUCCESSFUL if now.state is R.RUNNING else R.ROLLED_BACK
        kept = f"; {len(old)} protected ones stay" if old else ""
        return [_over(s, now, word, f"{len(s.counted) - len(old)} hosts are new{kept}")]
    return _replace(s, now, [view for view in left if movable(view)])


def roll_back(group: Group, now_s: float, why: str) -> Update:
    """Back to the template before: hosts of that revision stay, newer ones go."""
    refresh_ = group.refresh
    assert refresh_ is not None, "there is a refresh to roll back"
    before = refresh_.before
    changed = msgspec.structs.replace(
        refresh_, state=R.ROLLING_BACK, failures=0, started_s=now_s, reason=why
    )
    new = msgspec.structs.replace(
        group,
        spec=msgspec.structs.replace(group.spec, ask=before.ask, image=before.image),
        revision=before.revision,
        refresh=changed,
    )
    return Update(group=new, event="RollingBack", reason=why)


def _failed(s: Snapshot, now: Refresh, view: MemberView) -> bool:
    """A new host that did not come up in time, or had to be abandoned."""
    member = view.member
    return (
        now.state is R.RUNNING
        and not outdated(s, view)
        and member.state in COMING
        and not member.warm
        and not s.stuck(view)
        and view.claim is not None
        and view.claim.instance is not None
        and s.now_s - member.created_s > now.boot_limit_s
    )


def _count(s: Snapshot, now: Refresh, failed: list[MemberView]) -> list[Instruction]:
    why = f"not in service within {now.boot_limit_s:.0f} s"
    counted = msgspec.structs.replace(now, failures=now.failures + len(failed))
    group = msgspec.structs.replace(s.group, refresh=counted)
    return [
        Update(group=group, event="RefreshFailures", reason=f"{counted.failures}: {why}"),
        *(Drop(member=machine.end(view.member, s.now_s, why), event="Failed") for view in failed),
    ]


def _complete(s: Snapshot) -> bool:
    new = [view for view in s.serving if not outdated(s, view)]
    return len(new) >= min(s.group.wanted, len(s.counted))


def _over(s: Snapshot, now: Refresh, state: RefreshState, reason: str) -> Update:
    ended = msgspec.structs.replace(now, state=state, ended_s=s.now_s, reason=reason)
    group = msgspec.structs.replace(s.group, refresh=ended)
    if state in (R.SUCCESSFUL, R.ROLLED_BACK):
        settled = Template(revision=group.revision, ask=group.spec.ask, image=group.spec.image)
        group = msgspec.structs.replace(group, settled=settled)
    return Update(group=group, event=f"Refresh {state}", reason=reason)


def _replace(s: Snapshot, now: Refresh, old: list[MemberView]) -> list[Instruction]:
    """Old hosts that may go now."""
    found: list[Instruction] = []
    why = f"revision {s.group.revision} replaces it"
    for view in old:
        if view.member.state in COMING:
            found.append(Drop(member=machine.end(view.member, s.now_s, why), event="Released"))
    enough = ceil(s.group.wanted * now.min_healthy - 1e-9)
    healthy = sum(1 for view in s.serving if _warmed_up(s, now, view))
    spare = min(healthy - enough, allowance(s, "refresh"))
    for view in sorted(old, key=lambda v: (not v.ready, v.use.slots_used, v.survival)):
        if view.member.state is not MemberState.SERVING or spare <= 0:
            continue
        spare -= 1
        drained = machine.drain(view.member, s.group.spec, s.now_s, "refresh", why)
        found.append(Put(member=drained, event="Draining"))
    return found


def _warmed_up(s: Snapshot, now: Refresh, view: MemberView) -> bool:
    return outdated(s, view) or s.now_s - view.member.since_s >= now.warm_up_s
