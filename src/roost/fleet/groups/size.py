"""How many hosts a group needs, of which purchase option, and which go first. Pure.

Have = ready and booting, without those that go, are under notice or are stood in for. Below the target:
recall one that is being drained, promote a warm one, launch the rest. Above it: those that boot go first,
then those the scaler named, then the emptiest, least likely to last, and of the pool that has most; one
that serves goes only when enough others are ready.
"""

from collections import Counter
from collections.abc import Sequence
from math import ceil
from statistics import median

import msgspec

from roost.fleet.groups import machine
from roost.fleet.groups.budget import allowance
from roost.fleet.groups.model import (
    GroupSpec,
    MemberState,
    MemberView,
    Protection,
    RefreshState,
)
from roost.fleet.groups.snapshot import (
    COMING,
    GOING,
    Drop,
    Instruction,
    Launch,
    LaunchOrder,
    Put,
    Snapshot,
    Update,
)
from roost.fleet.plan import BOOT_LIMIT_S
from roost.fleet.spares import exposed, kept
from roost.ports.values import PurchaseOption

M = MemberState
OD, SPOT = PurchaseOption.ON_DEMAND, PurchaseOption.SPOT


def on_demand_floor(spec: GroupSpec, size: int) -> int:
    """How many of ``size`` hosts are on demand: the base, and a share of those above it."""
    above = max(0, size - spec.on_demand_base)
    # The small number keeps 30 % of 10 at 3 where floating point says 3.0000000000000004.
    return min(size, spec.on_demand_base) + ceil(above * spec.on_demand_percent / 100.0 - 1e-9)


def target(s: Snapshot) -> int:
    """How many hosts there shall be: desired, spares against risk, and what a refresh adds."""
    return s.group.wanted + s.group.spares + surge(s)


def surge(s: Snapshot) -> int:
    """How many hosts a refresh may have above desired now."""
    refresh = s.group.refresh
    if refresh is None or refresh.state not in (RefreshState.RUNNING, RefreshState.ROLLING_BACK):
        return 0
    wanted = s.group.wanted
    above = int(wanted * refresh.max_healthy + 1e-9) - wanted
    below = wanted - ceil(wanted * refresh.min_healthy - 1e-9)
    if above <= 0 and below <= 0:
        above = 1  # else nothing could ever be replaced
    old = [v for v in s.counted if outdated(s, v) and movable(v)]
    return min(max(0, above), len(old))


def outdated(s: Snapshot, view: MemberView) -> bool:
    """Whether it is of another revision than new hosts are."""
    return view.member.revision != s.group.revision


def movable(view: MemberView) -> bool:
    """Whether a refresh may touch it."""
    return view.member.protection is not Protection.DISRUPTION and not view.use.keep


def resize(s: Snapshot) -> list[Instruction]:
    """What brings the group to its size."""
    standing = _spares(s)
    if standing is not None:
        return [standing]
    counted, aim = s.counted, target(s)
    found = _grow(s, counted, aim)
    if not found and len(counted) > aim:
        found = _shrink(s, counted, aim)
    return found or _doubtful(s, aim) or _stuck(s, counted, aim) or _warm_pool(s)


def _spares(s: Snapshot) -> Update | None:
    group, most = s.group, s.group.spec.spares
    standing = [view for view in s.counted if view.member.state is M.SERVING]
    cold_start_s = _cold_start_s(s)
    risks = [exposed(view.risk, cold_start_s, _notice_s(view)) for view in standing]
    pools = max(s.pools, len({_pool(view) for view in standing}))
    wanted = kept(risks, group.spares, group.wanted, pools)
    if most is not None:
        wanted = min(wanted, most)
    if wanted == group.spares:
        return None
    reason = (
        f"summed risk of a loss within ten minutes {sum(risks):.3f} of {len(risks)} hosts, as far as their "
        f"notices do not cover {cold_start_s:.0f} s of boot"
    )
    changed = msgspec.structs.replace(group, spares=wanted)
    return Update(group=changed, event=f"Spares {wanted}", reason=reason)


def _cold_start_s(s: Snapshot) -> float:
    """How long a host takes to come, by those that came."""
    took = [
        instance.ready_s - instance.created_s
        for view in s.members
        if view.claim is not None
        and (instance := view.claim.instance) is not None
        and instance.ready_s is not None
    ]
    return median(took) if took else BOOT_LIMIT_S


def _notice_s(view: MemberView) -> float:
    instance = view.claim.instance if view.claim is not None else None
    return 0.0 if instance is None else instance.offer.notice_s


# --- more -------------------------------------------------------------------------------------------


def _grow(s: Snapshot, counted: Sequence[MemberView], aim: int) -> list[Instruction]:
    need = aim - len(counted)
    why = _why(s, len(counted), aim)
    found: list[Instruction] = []
    for view in s.members:
        if need > 0 and _recallable(s, view):
            found.append(Put(member=machine.recall(view.member, s.now_s, why), event="Recalled"))
            need -= 1
    for view in sorted(s.pick(_standing_by), key=_readiest):
        if need > 0 and not outdated(s, view):
            found.append(Put(member=machine.promote(view.member, s.now_s, why), event="Promoted"))
            need -= 1
    orders = _orders(s, counted, aim, max(0, need)) if not found else []
    if orders and s.now_s >= s.group.not_before_s:
        found.append(Launch(orders=tuple(orders), reason=why))
    return found


def _why(s: Snapshot, have: int, aim: int) -> str:
    group = s.group
    parts = [f"has {have}, needs {aim}"]
    parts.append(f"desired {group.wanted}" + (" by a person" if group.pinned is not None else ""))
    if group.spares:
        parts.append(f"{group.spares} spare")
    going = len(s.pick(lambda v: v.noticed))
    if going:
        parts.append(f"{going} under notice")
    if group.reason:
        parts.append(group.reason)
    return "; ".join(parts)


def _recallable(s: Snapshot, view: MemberView) -> bool:
    return (
        view.member.state is M.DRAINING
        and view.member.cause == "scale-in"
        and view.ready
        and not s.doubtful(view)
        and not outdated(s, view)
    )


def _standing_by(view: MemberView) -> bool:
    return view.member.state is M.WARM and not view.noticed


def _readiest(view: MemberView) -> tuple[bool, float, str]:
    return (not view.ready, view.member.since_s, view.member.id)


def _orders(s: Snapshot, counted: Sequence[MemberView], aim: int, need: int) -> list[LaunchOrder]:
    floor = on_demand_floor(s.group.spec, aim)
    short = floor - sum(1 for v in counted if v.member.option is OD and not v.member.stand_in)
    # A floor that rose is met even where the number is right: a spot host goes once the other is ready.
    steady = [LaunchOrder(option=OD)] * max(0, short)
    stuck = len(s.pick(s.stuck)) - sum(1 for v in counted if v.member.stand_in)
    rest = max(0, need - len(steady))
    stand_ins = min(rest, max(0, stuck))
    return [
        *steady,
        *[LaunchOrder(option=OD, stand_in=True)] * stand_ins,
        *[LaunchOrder(option=SPOT)] * (rest - stand_ins),
    ]


# --- fewer ------------------------------------------------------------------------------------------


def _shrink(s: Snapshot, counted: Sequence[MemberView], aim: int) -> list[Instruction]:
    floor = on_demand_floor(s.group.spec, aim)
    steady = sum(1 for v in counted if _steady(v))
    over = {True: steady - floor, False: len(counted) - steady - (aim - floor)}
    surplus, serving = len(counted) - aim, len(s.serving)
    budget = allowance(s, "scale-in")
    found: list[Instruction] = []
    left = list(counted)
    crowd = Counter(_pool(view) for view in counted)
    while surplus > 0 and left:
        view = min(left, key=lambda v: _first_to_go(s, v, crowd))
        left.remove(view)
        if over[_steady(view)] <= 0 or not _may_shrink(view):
            continue
        surplus -= 1
        over[_steady(view)] -= 1
        crowd[_pool(view)] -= 1
        if view.member.state in COMING:
            why = f"{_why(s, len(counted), aim)}; it had not served yet"
            ended = machine.end(view.member, s.now_s, why)
            found.append(Drop(member=ended, event="Released"))
        elif budget > 0 and (serving > aim or not view.ready):
            serving -= view.ready
            budget -= 1
            why = f"{_why(s, len(counted), aim)}; {idleness(s, view)}"
            drained = machine.drain(view.member, s.group.spec, s.now_s, "scale-in", why)
            found.append(Put(member=drained, event="Draining"))
    return found


def _pool(view: MemberView) -> str:
    instance = view.claim.instance if view.claim is not None else None
    return "" if instance is None else instance.offer.key


def _steady(view: MemberView) -> bool:
    """Counts for the on-demand floor."""
    return view.member.option is OD and not view.member.stand_in


def _may_shrink(view: MemberView) -> bool:
    return view.member.protection is Protection.NONE and not view.use.keep


def _first_to_go(
    s: Snapshot, view: MemberView, crowd: Counter[str]
) -> tuple[bool, bool, bool, bool, int, float, int, float, str]:
    member = view.member
    instance = view.claim.instance if view.claim is not None else None
    price = 0.0 if instance is None else instance.offer.price_usd_hour
    return (
        not member.stand_in,
        member.state not in COMING,
        not member.release,
        not outdated(s, view),
        view.use.slots_used,
        round(view.survival, 2),
        -crowd[_pool(view)],
        -price,
        member.id,
    )


def idleness(s: Snapshot, view: MemberView) -> str:
    """Why this one: what idles on it and since when."""
    if view.member.release and view.member.release not in s.group.reason:
        return view.member.release
    slots = f"{view.use.slots_used} of {s.group.spec.slots} slots used"
    if view.member.stand_in:
        return f"spot is to be had again, {slots}"
    if view.use.slots_used == 0 and view.use.idle_since_s is not None:
        return f"idle for {max(0.0, s.now_s - view.use.idle_since_s):.0f} s, {slots}"
    return f"{slots}, lasts an hour with {view.survival:.1%}"


def _doubtful(s: Snapshot, aim: int) -> list[Instruction]:
    """Hosts that should be left: once enough others are ready."""
    found: list[Instruction] = []
    budget = allowance(s, "rebalance")
    if len(s.serving) < aim:
        return []
    for view in s.pick(lambda v: v.member.state is M.SERVING and bool(s.doubtful(v))):
        if budget <= 0 or not movable(view):
            continue
        budget -= 1
        why = f"{s.doubtful(view)}; {len(s.serving)} others are ready"
        drained = machine.drain(view.member, s.group.spec, s.now_s, "rebalance", why)
        found.append(Put(member=drained, event="Draining"))
    return found


def _stuck(s: Snapshot, counted: Sequence[MemberView], aim: int) -> list[Instruction]:
    """Spot hosts that nobody gives and nobody needs any more."""
    stand_ins = sum(1 for v in counted if v.member.stand_in)
    stuck = s.pick(s.stuck)
    why = f"no pool gives it, and {aim} hosts are there without it"
    return [
        Drop(member=machine.end(view.member, s.now_s, why), event="Released")
        for view in stuck[stand_ins:]
        if len(counted) >= aim
    ]


# --- the warm pool ----------------------------------------------------------------------------------


def _warm_pool(s: Snapshot) -> list[Instruction]:
    spec = s.group.spec
    prepared = s.pick(lambda v: v.member.warm and v.member.state not in GOING)
    kept = [v for v in prepared if not v.noticed and not outdated(s, v)]
    surplus = [v for v in prepared if v not in kept]
    kept.sort(key=_readiest)
    surplus += kept[spec.warm.size :]
    found: list[Instruction] = [
        Drop(member=machine.end(v.member, s.now_s, "not needed in the warm pool"), event="Released")
        for v in surplus
    ]
    short = spec.warm.size - len(kept)
    if short > 0 and not found:
        # Clouds do not stop spot instances at will.
        option = OD if spec.warm.state == "stopped" or spec.on_demand_percent >= 100 else SPOT
        orders = (LaunchOrder(option=option, warm=True),) * short
        found.append(Launch(orders=orders, reason=f"warm pool of {spec.warm.size}"))
    return found
