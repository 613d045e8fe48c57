"""What decisions see of services: arrivals at the edges, time inside replicas, starts. Bounded memory.

Counters of edges and hosts run since they began: differences count, a counter that began anew starts
from nothing, and a time nobody reported for is unknown (NaN), never zero. It decides nothing.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from roost.ports.errors import Invalid
from roost.ports.replicas import ServiceReport
from roost.ports.seen import Seen, ServiceSeen
from roost.ports.values import HostReport
from roost.services.observation import Floats
from roost.services.series import Series

DAY = 1440
MINUTES = 14 * DAY
SECONDS = 1800
LATE_MINUTES = 30
TIMES_WANTED = 2000
"""Finished requests that a measured service time is taken over, newest first, whole minutes."""
TIMES_LEAST = 50
STARTS = 50
PERIODS = 180
MEASURED = frozenset({"cpu", "in_flight", "latency_s", "queue_age_s"})
TOLD_MOST = 20
SILENCE_S = 3.0
"""Edges speak each second; one that did not for longer is not believed to have met all at once."""
SILENT_S = 10.0
"""What an edge said of in-flight and held requests counts so long after its last word."""


class Track:
    """One service."""

    def __init__(self) -> None:
        self.minutes = Series(MINUTES)
        self.seconds = Series(SECONDS)
        self.late = Series(LATE_MINUTES + 2)
        self.total = Series(LATE_MINUTES + 2)
        self.errors = Series(LATE_MINUTES + 2)
        self.finished = Series(LATE_MINUTES + 2)
        self.busy = Series(LATE_MINUTES + 2)
        self.busy2 = Series(LATE_MINUTES + 2)
        self.waited = Series(LATE_MINUTES + 2)
        self.held: dict[int, tuple[float, int, int]] = {}
        """Edge -> (when it said so, in flight, held)."""
        self.starts: deque[float] = deque(maxlen=STARTS)
        self.metrics: dict[str, deque[float]] = {}
        self.told: dict[str, tuple[float, float]] = {}
        """The owner's own metrics: when it was said, and what."""


class History:
    """Everything that was reported of all services."""

    def __init__(self) -> None:
        self._tracks: dict[str, Track] = {}
        self._edges: dict[int, float] = {}
        self._spoke: dict[int, float] = {}
        self._seen: dict[tuple[int, str], ServiceSeen] = {}
        self._reports: dict[tuple[str, str], ServiceReport] = {}
        self._heard_minutes = Series(MINUTES)
        self._heard_seconds = Series(SECONDS)

    def track(self, service_id: str) -> Track:
        """What is known of a service."""
        known = self._tracks.get(service_id)
        if known is None:
            known = self._tracks[service_id] = Track()
        return known

    def forget(self, keep: Iterable[str]) -> None:
        """Drop what is known of services that are not among ``keep``."""
        kept = set(keep)
        self._tracks = {k: v for k, v in self._tracks.items() if k in kept}
        self._seen = {k: v for k, v in self._seen.items() if k[1] in kept}
        self._reports = {k: v for k, v in self._reports.items() if k[1] in kept}

    def day(self, service_id: str, day: int) -> Floats:
        """Arrivals per minute of a UTC day, NaN where no edge spoke; empty when nothing is known."""
        end = (day + 1) * DAY
        series = self.track(service_id).minutes
        if series.begins is None or series.begins >= end:
            return np.zeros(0)
        known = _known(series.view(end, DAY), self._heard_minutes, end)
        return np.concatenate([np.full(DAY - len(known), np.nan), known])

    def recall(self, service_id: str, days: Mapping[int, Floats]) -> None:
        """Arrivals of earlier days, as they were kept; before anything else is reported."""
        for day, values in sorted(days.items()):
            known = ~np.isnan(values)
            self.track(service_id).minutes.lay(day * DAY, np.where(known, values, 0.0))
            heard = self._heard_minutes
            if heard.begins is None or heard.begins <= day * DAY:
                spoken = heard.view((day + 1) * DAY, DAY)
                new = np.concatenate([np.zeros(DAY - len(spoken)), spoken]) == 0
                heard.lay(day * DAY, (known & new).astype(float))

    # --- what is reported ------------------------------------------------------------------------------

    def seen(self, seen: Seen) -> None:
        """What an edge counted in the last second."""
        anew = self._edges.get(seen.edge) != seen.began_s
        known = seen.edge in self._edges
        self._edges[seen.edge] = seen.began_s
        if anew:
            for key in [key for key in self._seen if key[0] == seen.edge]:
                del self._seen[key]
        passed_s = seen.at_s - self._spoke.get(seen.edge, seen.at_s)
        self._spoke[seen.edge] = seen.at_s
        # What came while an edge could not speak is no burst of this second.
        share = 1.0 / passed_s if passed_s > SILENCE_S else 1.0
        self._heard_seconds.add(int(seen.at_s), 1.0)
        self._heard_minutes.add(int(seen.at_s // 60), 1.0)
        for service in seen.services:
            # Of an edge met for the first time nobody knows when it counted what it says.
            zero = service if anew and not known else ServiceSeen(service_id=service.service_id)
            last = self._seen.get((seen.edge, service.service_id), zero)
            self._seen[seen.edge, service.service_id] = service
            self._counted(seen, last, service, share)

    def _counted(self, seen: Seen, last: ServiceSeen, new: ServiceSeen, share: float) -> None:
        track = self.track(new.service_id)
        second, minute = int(seen.at_s), int(seen.at_s // 60)
        arrived = max(0, new.arrived - last.arrived) * share
        track.seconds.add(second, arrived)
        track.minutes.add(minute, arrived)
        held = max(0, new.held_finished - last.held_finished)
        errors = max(0, new.errors - last.errors)
        track.total.add(minute, max(0, new.finished - last.finished - held - errors))
        track.late.add(minute, max(0, new.late - last.late))
        track.errors.add(minute, errors)
        track.held[seen.edge] = (seen.at_s, new.in_flight, new.held)

    def hosts(self, reports: Sequence[HostReport]) -> None:
        """The newest reports of all hosts, once a second."""
        for report in reports:
            minute = int(report.at_s // 60)
            for service in report.services:
                key = (report.host_id, service.service_id)
                last = self._reports.get(key)
                if last is None or last.began_s != service.began_s:
                    last = ServiceReport(service_id=service.service_id, began_s=service.began_s)
                self._reports[key] = service
                track = self.track(service.service_id)
                track.finished.add(minute, max(0, service.requests - last.requests))
                track.busy.add(minute, max(0.0, service.busy_s - last.busy_s))
                track.busy2.add(minute, max(0.0, service.busy_s2 - last.busy_s2))
                track.waited.add(minute, max(0.0, service.waited_s - last.waited_s))

    def started(self, service_id: str, seconds: float) -> None:
        """A replica was ready so long after it was placed."""
        self.track(service_id).starts.append(seconds)

    def metric(self, service_id: str, name: str, value: float) -> None:
        """A value of this period."""
        metrics = self.track(service_id).metrics
        metrics.setdefault(name, deque(maxlen=PERIODS)).append(value)

    def tell(self, service_id: str, name: str, value: float, at_s: float) -> None:
        """A value of a metric of the owner's own. ``Invalid`` for a name that is measured here."""
        told = self.track(service_id).told
        if name in MEASURED:
            raise Invalid(f"{name} is measured here", hint="another name")
        if name not in told and len(told) >= TOLD_MOST:
            raise Invalid(f"a service has {TOLD_MOST} metrics of its own at most")
        told[name] = (at_s, value)

    def told(self, service_id: str, now_s: float, old_s: float) -> dict[str, float]:
        """The owner's own metrics; NaN for one whose last value is too old."""
        told = self.track(service_id).told
        return {k: v if now_s - at_s <= old_s else math.nan for k, (at_s, v) in told.items()}

    # --- what decisions take -----------------------------------------------------------------------------

    def minutes(self, service_id: str, now_s: float) -> Floats:
        """Arrivals per full minute, NaN where no edge spoke."""
        end = int(now_s // 60)
        return _known(self.track(service_id).minutes.view(end, MINUTES), self._heard_minutes, end)

    def recent(self, service_id: str, now_s: float, period_s: int) -> Floats:
        """Arrivals per period, the last of which ended now."""
        end = int(now_s)
        seconds = _known(
            self.track(service_id).seconds.view(end, SECONDS), self._heard_seconds, end
        )
        whole = len(seconds) // period_s
        if not whole:
            return np.zeros(0)
        parts = seconds[len(seconds) - whole * period_s :].reshape(whole, period_s)
        silent = np.isnan(parts)
        sums = np.where(silent, 0.0, parts).sum(axis=1)
        heard = period_s - silent.sum(axis=1)
        # Edges speak about once a second: a period heard for most of its seconds is known.
        scaled = sums * (period_s / np.maximum(heard, 1))
        return np.where(
            heard * 2 >= period_s, np.where(heard >= period_s - 2, sums, scaled), np.nan
        )

    def lateness(self, service_id: str, now_s: float) -> tuple[Floats, Floats]:
        """(late, all) requests per full minute."""
        track, end = self.track(service_id), int(now_s // 60)
        count = min(LATE_MINUTES, len(track.minutes.view(end, LATE_MINUTES)))
        return _padded(track.late, end, count), _padded(track.total, end, count)

    def service_time(self, service_id: str, now_s: float) -> tuple[float, float] | None:
        """(mean, standard deviation / mean) of the time inside a replica; None while too few finished."""
        track, end = self.track(service_id), int(now_s // 60) + 1
        finished = track.finished.view(end, LATE_MINUTES)[::-1]
        if not len(finished):
            return None
        enough = int(np.searchsorted(np.cumsum(finished), TIMES_WANTED)) + 1
        n = float(finished[:enough].sum())
        if n < TIMES_LEAST:
            return None
        mean = float(track.busy.view(end, enough).sum()) / n
        square = float(track.busy2.view(end, enough).sum()) / n
        if mean <= 0:
            return None
        return mean, math.sqrt(max(0.0, square - mean * mean)) / mean

    def held(self, service_id: str, now_s: float) -> tuple[int, int]:
        """(in flight, held) at the edges."""
        fresh = [v for v in self.track(service_id).held.values() if now_s - v[0] <= SILENT_S]
        return sum(v[1] for v in fresh), sum(v[2] for v in fresh)

    def latency_s(self, service_id: str, now_s: float) -> tuple[float, float]:
        """Mean (time at a host, time waited there) of the newest minutes; NaN when nothing finished."""
        track, end = self.track(service_id), int(now_s // 60) + 1
        n = float(track.finished.view(end, 2).sum())
        if n == 0:
            return math.nan, math.nan
        busy, waited = float(track.busy.view(end, 2).sum()), float(track.waited.view(end, 2).sum())
        return (busy + waited) / n, waited / n

    def starts_s(self, service_id: str) -> tuple[float, float] | None:
        """(median, 95th percentile) of seconds from a host to ready; None before three starts."""
        starts = self.track(service_id).starts
        if len(starts) < 3:
            return None
        p50, p95 = np.percentile(list(starts), (50, 95))
        return float(p50), float(p95)

    def metrics(self, service_id: str) -> dict[str, Floats]:
        """Other metrics, one value per period."""
        return {k: np.array(v) for k, v in self.track(service_id).metrics.items()}


def _known(values: Floats, heard: Series, end: int) -> Floats:
    """``values`` with NaN where nobody spoke."""
    spoken = heard.view(end, len(values))
    known = np.full(len(values), np.nan)
    count = len(spoken)
    if count:
        known[-count:] = np.where(spoken > 0, values[-count:], np.nan)
    return known


def _padded(series: Series, end: int, count: int) -> Floats:
    found = series.view(end, count)
    return np.concatenate([np.zeros(count - len(found)), found])
