"""What one service needs, before its group's hosts are considered. Pure, part of ``services.plan.decide``.

Prediction, the person's number, target tracking, steps and schedules each name a number; the largest wins and
the reason says which. Limits come last. It never changes anything but the memory it was given.
"""

import math
from dataclasses import dataclass

import numpy as np

from roost.scaling import idle, learn, memory, schedule, surges, tracking
from roost.scaling.arrivals import DAY, rate_now, spans
from roost.scaling.memory import Memory
from roost.scaling.policies import Predictive, Scheduled, Step, TargetTracking
from roost.services.observation import GroupState, Observation, ServiceState

KEEP_S = 120.0
"""What was needed a moment ago keeps its hosts for so long."""
SLOW_S = 10.0
"""From this mean service time on, what is in the system says more than the arrivals of the last minute."""
LEAST_LATE = 1e-5
"""Of all requests: an objective of none is met as if it were this one."""
_DRAIN_S = 60.0
"""A backlog shall be gone in so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Requests per second."""

    now: float
    """To stand now."""
    lasting: float
    """What of it a host that is launched now will see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Replicas to have soon, to hold on to, and at most, with the memory to keep."""

    memory: Memory
    up: int
    lasting: int
    """Of ``up``: what will still be needed when a new host could be there."""
    hold: int
    most: int
    """With spare slots filled."""
    reason: str
    blind: bool
    """Its load is not known: nothing of it may go."""
    warnings: tuple[str, ...]


def recall(s: ServiceState, o: Observation) -> Memory:
    """The service's memory; a new one holds what runs, and starts with what was declared."""
    m = memory.load(s.memory)
    if m is None:
        running = s.ready + s.starting
        return Memory(
            born_s=o.now_s,
            top=running,
            top_until_s=o.now_s + (learn.HOLD_S if len(s.minutes) < DAY else KEEP_S),
            needed=running,
            replicas=running,
            service_s=max(1e-6, s.service_mean_s),
            cv=s.service_cv,
        )
    if m.minute_s > o.now_s + 60.0:
        # The clock was put back: what was timed by the old one is over, what was measured holds.
        m.minute_s = m.judged_s = m.asked_s = m.idle_until_s = m.lasting_until_s = 0.0
        m.asked, m.held = b"", {}
        m.top_until_s = o.now_s + KEEP_S
    return m


def end_s(s: ServiceState, o: Observation) -> float:
    """End of the newest full minute."""
    return o.now_s // 60.0 * 60.0 if s.minutes_end_s is None else s.minutes_end_s


def usage(s: ServiceState, group: GroupState, o: Observation) -> learn.Usage:
    """What learning sees of a service."""
    return learn.Usage(
        minutes=s.minutes[-14 * DAY :],
        end_s=end_s(s, o),
        recent=s.recent,
        recent_s=s.recent_s,
        times=s.service_times,
        mean_s=s.service_mean_s,
        cv=s.service_cv,
        concurrency=max(1, s.concurrency),
        late=s.late,
        total=s.total,
        failing=s.failing,
        bound_s=s.objective.bound_s,
        late_share=max(LEAST_LATE, s.objective.late),
        ahead_s=group.boot_p95_s + s.start_p95_s + o.period_s,
        start_s=group.boot_p50_s + s.start_p50_s,
        sleeps=s.min == 0,
    )


def present(s: ServiceState, m: Memory) -> Rate | None:
    """The rate to stand now, and what of it lasts; None while the newest reports are missing."""
    found = rate_now(s.recent, s.recent_s, m.dispersion)
    if found is None:
        return None
    rate, minute = found
    if m.service_s > SLOW_S:
        count = max(1, round(4.0 * m.service_s / s.recent_s))
        arrived = float(np.nansum(s.recent[-count:])) / (count * s.recent_s)
        rate = max(0.8 * (s.in_flight + s.queued) / m.service_s, arrived)
        return Rate(now=rate, lasting=_lasting(m, rate))
    if m.highest > 0:
        rate = min(rate, max(m.highest, minute))
    few = spans(s.recent_s)[1]
    short = float(s.recent[-few:].sum()) / (few * s.recent_s)
    share = surges.part(short, minute, m.day_mean / 60.0, m.jumping)
    return Rate(now=rate, lasting=_lasting(m, surges.left(rate, minute, share)))


def _lasting(m: Memory, rate: float) -> float:
    return surges.left(rate, m.level, surges.part(rate, m.level, m.day_mean / 60.0, m.lasting))


def of(
    s: ServiceState, m: Memory, rate: Rate | None, counts: tuple[int, int], o: Observation
) -> Need:
    """Everything that asks for replicas of ``s``; ``counts`` = for the present rate, and what of it lasts."""
    low, high, asked, warnings = _limits(s, o)
    if s.person_desired is not None:
        count = max(low, min(high, s.person_desired))
        reason = f"{count}: a person's number" + ("" if count == s.person_desired else ", limited")
        return Need(
            memory=m, up=count, lasting=count, hold=count, most=count, reason=reason,
            blind=False, warnings=tuple(warnings),
        )  # fmt: skip
    names = [(count, name) for count, name in _reactive(s, m, o, warnings)]
    blind = False
    predicts = not s.policies or any(isinstance(p, Predictive) and p.scale for p in s.policies)
    hold = 0
    lasting = max((count for count, _ in names), default=0)
    if predicts:
        blind = rate is None or o.now_s - m.minute_s > 180.0 + 60.0
        count, stays, hold, why = _predicted(s, m, rate, counts, o, low)
        lasting = max(lasting, stays)
        names.append((count, why))
    elif not names:
        blind = True
        names.append((m.needed, "no policy has anything to say: as before"))
    if s.queued > 0:
        names.append((1, "requests wait"))
    names.append((low, asked))
    count, why = max(names, key=lambda one: one[0])
    if blind and count < m.needed:
        count, why = m.needed, "its load is not known: as before"
    up = min(high, count)
    if up < count:
        why += f", limited to its maximum {high}"
    lasting = up if blind or not predicts else min(up, max(lasting, low))
    hold = min(high, max(lasting, hold))
    return Need(
        memory=m,
        up=up,
        lasting=lasting,
        hold=hold,
        most=high if up > 0 and predicts else up,
        reason=f"{up}: {why}",
        blind=blind,
        warnings=tuple(warnings),
    )


def _limits(s: ServiceState, o: Observation) -> tuple[int, int, str, list[str]]:
    """(min, max, what to call the minimum, warnings)."""
    low, high, name, warnings = max(0, s.min), s.max, "its minimum", []
    plans = [p for p in s.policies if isinstance(p, Scheduled)]
    for one in plans:
        wrong = schedule.problem(one)
        if wrong is not None:
            warnings.append(wrong)
    held = schedule.holding(plans, o.now_s) if plans else None
    if held is not None:
        low = low if held.min is None else held.min
        high = high if held.max is None else held.max
        name = f"schedule {held.name or held.cron}"
    if low > high:
        warnings.append(f"min {low} is above max {high}: {high} is used; raise max or lower min")
        low = high
    return low, high, name, warnings


def _predicted(
    s: ServiceState,
    m: Memory,
    rate: Rate | None,
    counts: tuple[int, int],
    o: Observation,
    low: int,
) -> tuple[int, int, int, str]:
    """(up, what of it lasts, hold, why) from the forecast and the present."""
    now, later = _behind(s, m, rate, counts)
    up, lasting = max(m.up, now), max(m.up, later)
    present = (
        "its present load is not known"
        if rate is None
        else f"{now} for the present {rate.now:.3g}/s"
    )
    why = f"{m.up} by forecast, {present}"
    if low == 0:
        up, sleep = _awake(s, m, up)
        lasting = max(lasting, min(up, 1))
        if sleep:
            m.top = 0
            return 0, 0, 0, "asleep: no request for its idle time"
    if later >= m.top or o.now_s >= m.top_until_s:
        m.top, m.top_until_s = later, o.now_s + KEEP_S
    return up, lasting, max(m.hold, m.top), f"{why} (z {m.z:.2f})"


def _behind(
    s: ServiceState, m: Memory, rate: Rate | None, counts: tuple[int, int]
) -> tuple[int, int]:
    """``counts`` with what a backlog asks for; to new hosts only what the replicas there cannot work off."""
    now, later = counts
    wide = max(1, s.concurrency)
    if s.queued > now:
        now += math.ceil((s.queued - now) * m.service_s / _DRAIN_S / wide)
    spare = s.ready * wide / m.service_s - (0.0 if rate is None else rate.now)
    left = s.queued - max(0.0, spare) * _DRAIN_S
    if left > 0:
        later = min(now, later + math.ceil(left * m.service_s / _DRAIN_S / wide))
    return now, max(later, counts[1])


def _awake(s: ServiceState, m: Memory, up: int) -> tuple[int, bool]:
    """(replicas, whether to sleep) of a service that may sleep."""
    if s.queued + s.in_flight > 0:
        return max(up, 1), False
    idle_s = idle.since_s(s.recent, s.recent_s)
    if s.ready + s.starting == 0 and m.needed == 0:
        return 0, True
    if idle_s <= idle.limit_s(m.idle_s, float(np.nansum(s.minutes[-60:]))):
        return max(up, 1), False
    return 0, True


def _reactive(
    s: ServiceState, m: Memory, o: Observation, warnings: list[str]
) -> list[tuple[int, str]]:
    """Numbers of target tracking and steps, kept as long as each policy says."""
    found = []
    for place, policy in enumerate(s.policies):
        if isinstance(policy, TargetTracking):
            value = tracking.newest(s.metrics.get(policy.metric))
            count = tracking.track(policy, value, s.ready, max(m.needed, s.ready))
            keep_s = policy.scale_in_s
            says = f"{policy.metric} {value} for a target of {policy.target:g}"
        elif isinstance(policy, Step):
            value = tracking.newest(s.metrics.get(policy.metric))
            count = tracking.step(policy, value, s.ready)
            keep_s, says = policy.cooldown_s, f"step on {policy.metric} {value}"
        else:
            continue
        if value is None:
            warnings.append(f"metric {policy.metric!r} does not arrive: it changes nothing")
        key = f"{place}:{policy.metric}"
        before, until_s = m.held.get(key, (0, 0.0))
        if count is not None and (count >= before or o.now_s >= until_s):
            m.held[key] = (count, o.now_s + keep_s)
            found.append((count, says))
        elif count is not None or (value is None and before > 0):
            found.append((before, says if count is not None else f"{policy.metric} is missing"))
    return found
