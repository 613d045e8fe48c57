"""How good each backend is, worked out a few times a second: sets, weights, costs. Pure.

``rate`` puts what is known of a backend into two numbers, ``slope`` and ``floor``: a request there
costs ``active * slope + floor``. Its latency counts only above 1.3 times the median (a dead band:
among equals, noise must not move load), failures multiply, and weight stretches what is in flight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roost.proxy import eject, policy

if TYPE_CHECKING:
    from roost.proxy.upstream import Upstream

DEAD_BAND = 1.3
"""Latencies up to this many times the median are the same."""
FAIL_PENALTY = 10.0
"""A backend that always fails has its score multiplied by one more than this."""
FAIL_NOISE = 0.05
"""A failure rate below this is none: a single failure must not keep an idle backend idle."""
FORGET_S = 5.0
"""A latency or failure rate nobody measures any more fades with this time constant."""
REPORT_S = 1.0
"""A backend's own report of its load is believed for this long."""
STUCK_S = 30.0
"""Requests that do not end count as latency for this long: then they are long ones, or tunnels ..."""
STUCK_PENALTY = 4.0
"""... and at most this much."""
LEAVING_S = 60.0
"""A backend whose host leaves gets less and less over this time ..."""
LEFT_S = 5.0
"""... and nothing this long before."""
ZONE_SHARE = 0.7
"""The own zone is enough while this share of its weight is well."""
SLOWEST_START = 0.1
"""Share of its weight a backend begins with in slow start."""


@dataclass(frozen=True, slots=True)
class Sets:
    """The backends that may be used, by how gladly."""

    ready: tuple["Upstream", ...] = ()
    far: tuple["Upstream", ...] = ()
    """Well too, but of other zones: for when the near ones are full."""
    half: tuple["Upstream", ...] = ()
    """Half-open: one trial request each."""
    rest: tuple["Upstream", ...] = ()
    """Ejected or down: the last resort."""


def sort_out(
    members: Sequence["Upstream"],
    service: policy.Service,
    now_s: float,
    unix_s: float,
    median_s: float,
) -> Sets:
    """Who is ready, half-open, out. When nobody is left, all are used."""
    ready: list[Upstream] = []
    half: list[Upstream] = []
    rest: list[Upstream] = []
    for member in members:
        if member.out_until_s and now_s >= member.out_until_s:
            _come_back(member, now_s, median_s)
        if member.spec.state != "ready" or _left_s(member, unix_s) <= LEFT_S:
            continue
        if member.down or (member.out_until_s and not member.half_open):
            rest.append(member)
        elif member.half_open:
            half.append(member)
        else:
            ready.append(member)
    if not ready:
        return Sets(ready=(*half, *rest))
    near, far = _near(ready, members, service.zone)
    return Sets(tuple(near), tuple(far), tuple(half), tuple(rest))


def _come_back(member: "Upstream", now_s: float, median_s: float) -> None:
    if not member.half_open:
        member.half_open = True
        member.watched = True
        member.trial_until_s = 0.0
        member.ewma_s = median_s  # what made it slow is over, or its trial will show it
    elif now_s >= member.out_until_s + 2 * member.out_for_s and not member.trial_until_s:
        eject.let_in(member, now_s)  # nothing came that could have been a trial


def _left_s(member: "Upstream", unix_s: float) -> float:
    leaves_at_s = member.spec.leaves_at_s
    return float("inf") if leaves_at_s is None else leaves_at_s - unix_s


def _near(
    ready: list["Upstream"], members: Sequence["Upstream"], zone: str
) -> tuple[list["Upstream"], list["Upstream"]]:
    if not zone:
        return ready, []
    near = [m for m in ready if m.spec.zone == zone]
    whole = [m.spec.weight for m in members if m.spec.zone == zone and m.spec.state == "ready"]
    if not near or sum(m.spec.weight for m in near) < ZONE_SHARE * sum(whole):
        return ready, []
    return near, [m for m in ready if m.spec.zone != zone]


def rate(
    sets: Sets, service: policy.Service, now_s: float, unix_s: float, passed_s: float
) -> float:
    """Give every usable backend its score. Returns the median of their latencies."""
    usable = sets.ready + sets.far
    if not usable:
        return 0.0
    known = sorted([m.ewma_s for m in usable if m.ewma_s > 0.0])
    median_s = known[(len(known) - 1) // 2] if known else 0.0
    slots = [m.spec.slots or m.reported_slots for m in usable]
    told = [n for n in slots if n]
    mean_slots = sum(told) / len(told) if told else 1.0
    weights = []
    for member, n in zip(usable, slots, strict=True):
        _fade(member, median_s, now_s, passed_s)
        weight = _weight(member, service, now_s, unix_s)
        if service.balance != "round-robin":
            weight *= (n or mean_slots) / mean_slots
        weights.append(weight)
    mean = sum(weights) / len(weights) or 1.0
    for member, weight in zip(usable, weights, strict=True):
        cost = _cost(member, service.balance, now_s, median_s)
        member.weight = max(weight / mean, 1e-6)
        member.step = 1.0 / member.weight
        member.slope = cost / member.weight
        member.floor = cost + member.others * member.slope
    return median_s


def _weight(member: "Upstream", service: policy.Service, now_s: float, unix_s: float) -> float:
    weight = 1.0 if service.balance == "round-robin" else member.spec.weight
    slow_start_s = service.slow_start_s
    if slow_start_s > 0.0:
        weight *= min(1.0, max(SLOWEST_START, (now_s - member.since_s) / slow_start_s))
    left_s = _left_s(member, unix_s)
    if left_s < LEAVING_S:
        weight *= max(0.0, (left_s - LEFT_S) / (LEAVING_S - LEFT_S))
    return weight


def _cost(member: "Upstream", kind: policy.Balance, now_s: float, median_s: float) -> float:
    """How much worse than the others: by latency and failures; 1 = not."""
    cost = 1.0 + FAIL_PENALTY * member.fail_rate if member.fail_rate > FAIL_NOISE else 1.0
    if kind == "least-requests" or not median_s:
        return cost
    ratio = (member.ewma_s or median_s) / median_s
    if member.stuck_since_s and now_s - member.stuck_since_s < STUCK_S:
        stuck = (now_s - member.stuck_since_s) / median_s
        ratio = max(ratio, min(stuck, DEAD_BAND * STUCK_PENALTY))
    return cost * (ratio if kind == "p2c-ewma" else max(1.0, ratio / DEAD_BAND))


def _fade(member: "Upstream", median_s: float, now_s: float, passed_s: float) -> None:
    """What is not measured any more is forgotten; requests that do not end are noticed."""
    if member.others and now_s - member.report_s > REPORT_S:
        member.others = 0
    seen = member.served + member.failures
    if seen != member.seen_before:
        member.seen_before = seen
        member.stuck_since_s = 0.0
        return
    if not member.active:
        member.stuck_since_s = 0.0
    elif not member.stuck_since_s:
        member.stuck_since_s = now_s
    keep = max(0.0, 1.0 - passed_s / FORGET_S)
    member.fail_rate *= keep
    if member.ewma_s > median_s:
        member.ewma_s = median_s + (member.ewma_s - median_s) * keep


def too_slow(
    ready: Sequence["Upstream"], service: policy.Service, median_s: float
) -> list["Upstream"]:
    """The latency outliers, where the policy asks for them."""
    factor = service.outlier.latency_factor
    if not factor or not median_s:
        return []
    return [
        m
        for m in ready
        if m.served >= eject.LATENCY_SAMPLES and m.ewma_s > factor * median_s and not m.out_until_s
    ]
