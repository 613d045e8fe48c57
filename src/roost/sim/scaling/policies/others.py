"""The systems Roost is compared with, after their documentation and papers; each a per-service rule on top of
``nodes``. Parameters that an operator chooses are arguments; the others are the documented defaults.
"""

from collections import deque
from collections.abc import Callable
from math import ceil

import numpy as np

from roost.sim.scaling.policies.nodes import Nodes, ToFit
from roost.sim.scaling.scenario import MINUTE_S, START_S
from roost.sim.scaling.traces import Floats
from roost.sim.scaling.world import ServiceView, View, Want

Rule = Callable[[ServiceView, View], int]


def clip(seen: ServiceView, replicas: int, least: int = 1) -> int:
    """``replicas`` between the service's bounds, at least ``least``."""
    return min(max(replicas, seen.load.min_replicas, least), seen.load.max_replicas)


class Layered:
    """A rule per service for its containers, ``nodes`` for the hosts."""

    def __init__(
        self, name: str, rule: Callable[[], Rule], nodes: Nodes, period_s: float = 5.0
    ) -> None:
        self.name = name
        self.period_s = period_s
        self._make = rule
        self._rules: list[Rule] = []
        self._nodes = nodes

    def decide(self, view: View) -> Want:
        """Containers first, hosts from them."""
        if not self._rules:
            self._rules = [self._make() for _ in view.services]
        replicas = [rule(seen, view) for rule, seen in zip(self._rules, view.services, strict=True)]
        return self._nodes.want(view, replicas)


class Fixed:
    """Always what the highest minute of the scored days takes: the usual "sized for the peak"."""

    period_s = 60.0

    def __init__(self, headroom: float = 1.1) -> None:
        self.name = f"fixed at the peak x {headroom:g}"
        self.headroom = headroom

    def decide(self, view: View) -> Want:
        """The same each time."""
        replicas = []
        for seen in view.services:
            load = seen.load
            peak = float(np.nanmax(load.minutes[int(START_S / MINUTE_S) :])) / MINUTE_S
            containers = ceil(self.headroom * peak * load.mean_s / load.concurrency)
            replicas.append(clip(seen, containers))
        return ToFit().want(view, replicas)


class Hpa:
    """Kubernetes HorizontalPodAutoscaler on CPU: every 15 s, tolerance 10 %, up at most by 100 % or 4 pods in
    15 s, down to the highest recommendation of 300 s; CPU as the metrics server has it, 15 s late."""

    def __init__(self, target: float, sync_s: float = 15.0, down_s: float = 300.0) -> None:
        self.target = target
        self.sync_s = sync_s
        self.down_s = down_s
        self._next_s = -1.0
        self._busy_s = 0.0
        self._seconds = 0.0
        self._usage: float | None = None
        self._wanted = 0
        self._asked: deque[tuple[float, int]] = deque()

    def __call__(self, seen: ServiceView, view: View) -> int:
        self._busy_s += seen.step.busy_s
        self._seconds += view.seconds * seen.load.concurrency
        if view.now_s < self._next_s:
            return self._wanted
        self._next_s = view.now_s + self.sync_s
        usage, self._usage = self._usage, self._busy_s / max(self._seconds, 1e-9)
        self._busy_s = self._seconds = 0.0
        now = max(seen.wanted, 1)
        desired = now if usage is None else self._desired(usage, seen, now)
        self._asked.append((view.now_s, desired))
        while self._asked[0][0] < view.now_s - self.down_s:
            self._asked.popleft()
        highest = max(count for _, count in self._asked)
        desired = min(desired, max(2 * now, now + 4)) if desired > now else min(now, highest)
        self._wanted = clip(seen, desired)
        return self._wanted

    def _desired(self, usage: float, seen: ServiceView, now: int) -> int:
        ready = max(seen.ready, 1)
        ratio = usage / ready / self.target
        if ratio > 1.0 and now > ready:
            # Pods that are not ready count as idle on the way up.
            ratio = max(usage / now / self.target, 1.0)
            return now if ratio <= 1.1 else ceil(now * ratio)
        return now if abs(ratio - 1.0) <= 0.1 else ceil(ready * ratio)


class Kpa:
    """Knative's autoscaler on concurrency: 2-s ticks, mean of 60 s, panic at twice the target over 6 s (then
    never down for 60 s), at most x1000 up and half down a tick, to zero after 30 s of grace."""

    def __init__(self, target: float, retention_s: float = 30.0, stable_s: float = 60.0) -> None:
        self.target = target
        self.retention_s = retention_s
        self.stable_s = stable_s
        self.panic_s = stable_s / 10.0
        self._seen: deque[tuple[float, float, float]] = deque()
        self._panics_until_s = -1.0
        self._panic = 0
        self._last_load_s = -1e18

    def __call__(self, seen: ServiceView, view: View) -> int:
        work = seen.step.busy_s + seen.queued * view.seconds
        self._seen.append((view.now_s, work, view.seconds))
        while self._seen[0][0] <= view.now_s - self.stable_s:
            self._seen.popleft()
        if seen.queued or seen.in_flight:
            self._last_load_s = view.now_s
        per = self.target * seen.load.concurrency
        stable = ceil(self._mean(-1e18) / per - 1e-9)
        panic = ceil(self._mean(view.now_s - self.panic_s) / per - 1e-9)
        ready = max(seen.ready, 1)
        if panic >= 2 * ready:
            self._panics_until_s = view.now_s + self.stable_s
        if view.now_s < self._panics_until_s:
            self._panic = max(self._panic, panic, stable)
            wanted = self._panic
        else:
            self._panic, wanted = 0, stable
        wanted = min(max(wanted, ready // 2), 1000 * ready)
        if wanted == 0 or not (seen.queued or seen.in_flight):
            kept = view.now_s - self._last_load_s < self.stable_s + self.retention_s
            wanted = max(wanted, 1) if kept else (0 if stable == 0 else wanted)
        return clip(seen, wanted, least=1 if seen.queued else 0)

    def _mean(self, since_s: float) -> float:
        rows = [(work, seconds) for at, work, seconds in self._seen if at > since_s]
        return sum(work for work, _ in rows) / max(sum(seconds for _, seconds in rows), 1e-9)


class AwsTargetTracking:
    """Application Auto Scaling: CPU by the minute, out after 3 minutes above the target, in after 15 minutes
    below 90 % of it, a cool-down between; predictive scaling as a floor: the mean load of the hour to come
    from the same hours of up to 14 days, refreshed every 6 h, in force from 5 minutes before the hour."""

    def __init__(self, target: float, cooldown_s: float = 300.0, predictive: bool = True) -> None:
        self.target = target
        self.cooldown_s = cooldown_s
        self.predictive = predictive
        self._next_s = -1.0
        self._busy_s = 0.0
        self._seconds = 0.0
        self._above: deque[float] = deque(maxlen=15)
        self._changed_s = -1e9
        self._wanted = 0
        self._forecast: Floats = np.zeros(24)
        self._fresh_s = -1e18

    def __call__(self, seen: ServiceView, view: View) -> int:
        self._busy_s += seen.step.busy_s
        self._seconds += view.seconds * seen.load.concurrency
        if view.now_s >= self._next_s:
            self._next_s = view.now_s + MINUTE_S
            self._wanted = self._tracked(seen, view.now_s)
            self._busy_s = self._seconds = 0.0
        return clip(seen, max(self._wanted, self._floor(seen, view.now_s)))

    def _tracked(self, seen: ServiceView, now_s: float) -> int:
        wanted = max(self._wanted, seen.wanted if not self._above else 0, 1)
        usage = self._busy_s / max(self._seconds, 1e-9)
        share = usage / max(seen.ready, 1) / self.target
        self._above.append(share)
        recent = list(self._above)
        if now_s - self._changed_s >= self.cooldown_s:
            if len(recent) >= 3 and min(recent[-3:]) > 1.0:
                wanted, self._changed_s = max(wanted, ceil(seen.ready * share)), now_s
            elif len(recent) == 15 and max(recent) < 0.9:
                wanted, self._changed_s = ceil(seen.ready * share), now_s
        return wanted

    def _floor(self, seen: ServiceView, now_s: float) -> int:
        if not self.predictive:
            return 0
        if now_s - self._fresh_s >= 6 * 3600.0:
            self._fresh_s = now_s
            self._forecast = by_hour(seen.minutes(), now_s)
        hour = int((now_s + 300.0) // 3600.0) % 24
        rate = float(max(self._forecast[hour], self._forecast[int(now_s // 3600.0) % 24]))
        work = rate * seen.service_time()[0] / seen.load.concurrency
        return ceil(work / self.target)


class Gcp:
    """Compute Engine autoscaler with predictive autoscaling: the largest of the load now, the highest of the
    last 10 minutes (its stabilisation) and the forecast one initialisation period ahead (the course of
    earlier days, moved to the present level), over the target utilisation."""

    def __init__(self, target: float, ahead_s: float = 180.0, hold_s: float = 600.0) -> None:
        self.target = target
        self.ahead_s = ahead_s
        self.hold_s = hold_s
        self._asked: deque[tuple[float, int]] = deque()
        self._next_s = -1.0
        self._wanted = 0

    def __call__(self, seen: ServiceView, view: View) -> int:
        if view.now_s < self._next_s:
            return self._wanted
        self._next_s = view.now_s + 15.0
        rate = max(seen.arrived(60.0) / 60.0, self._predicted(seen))
        work = rate * seen.service_time()[0] / seen.load.concurrency
        self._asked.append((view.now_s, ceil(work / self.target)))
        while self._asked[0][0] < view.now_s - self.hold_s:
            self._asked.popleft()
        self._wanted = clip(seen, max(count for _, count in self._asked))
        return self._wanted

    def _predicted(self, seen: ServiceView) -> float:
        minutes = seen.minutes()
        ahead = round(self.ahead_s / MINUTE_S)
        days = min(len(minutes) // 1440, 7)
        then = [minutes[-1440 * day - 15 :][: 15 + ahead + 1] for day in range(1, days + 1)]
        then = [one for one in then if not np.isnan(one).any() and one[:15].sum() > 0]
        if len(then) < 3:
            return 0.0
        course = np.mean([one[15:].mean() for one in then])
        level = np.mean([one[:15].mean() for one in then])
        present = float(np.nanmean(minutes[-15:]))
        return float(present * min(course / level, 3.0)) / MINUTE_S


class SkyServe:
    """SkyServe's request-rate autoscaler: requests/s of the last minute over a target per replica; up after
    it has asked for more for ``up_s``, down after ``down_s`` of less."""

    def __init__(self, target: float, up_s: float = 300.0, down_s: float = 1200.0) -> None:
        self.target = target
        self.up_s = up_s
        self.down_s = down_s
        self._more_s = 0.0
        self._less_s = 0.0
        self._wanted = -1

    def __call__(self, seen: ServiceView, view: View) -> int:
        load = seen.load
        per_replica = self.target * load.concurrency / load.mean_s
        asked = clip(seen, ceil(seen.arrived(60.0) / 60.0 / per_replica), least=0)
        if self._wanted < 0:
            self._wanted = max(asked, seen.wanted)
        self._more_s = self._more_s + view.seconds if asked > self._wanted else 0.0
        self._less_s = self._less_s + view.seconds if asked < self._wanted else 0.0
        waking = self._wanted == 0 and asked > 0
        if waking or self._more_s >= self.up_s or self._less_s >= self.down_s:
            self._wanted = asked
            self._more_s = self._less_s = 0.0
        return self._wanted


def by_hour(minutes: Floats, now_s: float) -> Floats:
    """Requests a second by hour of day: mean of up to 14 days, later days weighing more."""
    minutes = minutes[: len(minutes) - int(now_s // MINUTE_S) % 60]
    hours = len(minutes) // 60
    whole = minutes[len(minutes) - hours * 60 :].reshape(hours, 60)
    known = ~np.isnan(whole).any(axis=1)
    ages = (hours - 1 - np.arange(hours)) // 24
    last = int(now_s // 3600.0) - 1
    of_day = (last - (hours - 1 - np.arange(hours))) % 24
    weights = 0.8**ages * known
    rates = np.where(known, np.nan_to_num(whole).mean(axis=1), 0.0) / MINUTE_S
    total = np.bincount(of_day, weights * rates, minlength=24)
    return total / np.maximum(np.bincount(of_day, weights, minlength=24), 1e-9)
