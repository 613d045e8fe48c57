"""What was used by each service and host, second by second, in bounded memory.

``sample`` is called once a second; it never asks anybody. Gone ones are forgotten when told who is there.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from roost.metrics.intake import Edges, Machines, Rates
from roost.metrics.rings import MINUTE_S, NAN, SECONDS, Track
from roost.ports.errors import Gone
from roost.ports.replicas import BOUNDS_S
from roost.ports.seen import Seen
from roost.ports.values import HostReport

SERVICE = (
    "requests_s", "finished_s", "errors_s", "late_s", "in_flight", "held", "queued", "p50_s", "p99_s",
    "busy", "cpu_percent", "memory_mib", "ready", "network_bytes_s",
)  # fmt: skip
"""Columns of a service. ``busy`` is requests inside replicas on average; ``late_s`` late ones a second."""
HOST = (
    "cpu_percent", "memory_used_mib", "memory_total_mib", "network_bytes_s", "requests_s", "errors_s",
    "in_flight", "queued", "busy", "ready", "replicas",
)  # fmt: skip
TIMES_S = 10
"""Percentiles are of what finished in so many seconds."""
MOST = 5000
"""Services, and hosts, that are recorded: more are only counted."""


class History:
    """Implements nothing; main gives it what comes in."""

    def __init__(self) -> None:
        self.edges = Edges()
        self.machines = Machines()
        self.services: dict[str, Track] = {}
        self.hosts: dict[str, Track] = {}
        self._slow: dict[str, deque[tuple[int, ...]]] = {}
        self._second = 0
        self._there: set[str] = set()

    def seen(self, seen: Seen, now_s: float) -> None:
        """An edge's report."""
        self.edges.take(seen, now_s)

    def sample(self, reports: Mapping[str, HostReport], now_s: float) -> None:
        """Once a second: record what is known now."""
        second = int(now_s)
        if second == self._second:
            return
        self._second = second
        self.machines.take(reports, now_s)
        rows: dict[str, dict[str, float]] = {}
        for host_id, machine in self.machines.fresh(now_s):
            report, rates = machine.report, machine.rates.values()
            own = {
                "cpu_percent": report.cpu_percent,
                "memory_used_mib": report.memory_used_mib,
                "memory_total_mib": report.memory_total_mib or NAN,
                "network_bytes_s": NAN if machine.network_s is None else machine.network_s,
                "requests_s": sum(r.requests_s for r in rates),
                "errors_s": sum(r.errors_s for r in rates),
                "in_flight": float(sum(r.in_flight for r in rates)),
                "queued": float(sum(r.queued for r in rates)),
                "busy": sum(r.busy for r in rates),
                "ready": float(sum(r.state == "ready" for r in machine.replicas)),
                "replicas": float(sum(r.state != "ended" for r in machine.replicas)),
            }
            _put(self.hosts, host_id, second, [own[name] for name in HOST])
            for service_id, rate in machine.rates.items():
                _sum(rows, service_id, queued=rate.queued, busy=rate.busy)
            for replica in machine.replicas:
                _sum(
                    rows,
                    replica.service_id,
                    ready=replica.state == "ready",
                    cpu_percent=replica.cpu_percent,
                    memory_mib=replica.memory_mib,
                )
        self._services(rows, second, now_s)

    def _services(self, rows: dict[str, dict[str, float]], second: int, now_s: float) -> None:
        told = self.edges.of(now_s)
        if self.edges.fresh(now_s):
            for service_id in (self._there | rows.keys()) - told.keys():
                told[service_id] = [Rates()]  # edges name only what was asked for
        for service_id, edges in told.items():
            for rate in edges:
                _sum(
                    rows,
                    service_id,
                    requests_s=rate.requests_s,
                    finished_s=rate.finished_s,
                    errors_s=rate.errors_s,
                    late_s=rate.late_s,
                    in_flight=rate.in_flight,
                    held=rate.held,
                )
            slow = self._slow.setdefault(service_id, deque(maxlen=TIMES_S + 1))
            totals = self.edges.totals.get(service_id)
            if totals is not None:
                slow.append(tuple(totals.slow))
                counts = [new - old for old, new in zip(slow[0], slow[-1], strict=True)]
                rows[service_id]["p50_s"] = quantile(counts, 0.5)
                rows[service_id]["p99_s"] = quantile(counts, 0.99)
        for service_id, row in rows.items():
            _put(self.services, service_id, second, [row.get(name, NAN) for name in SERVICE])

    def keep(self, services: Iterable[str], hosts: Iterable[str]) -> None:
        """Only these are there: forget the others."""
        kept = self._there = set(services)
        self.services = {k: v for k, v in self.services.items() if k in kept}
        self._slow = {k: v for k, v in self._slow.items() if k in kept}
        self.edges.forget(kept)
        there = set(hosts)
        self.hosts = {k: v for k, v in self.hosts.items() if k in there}

    def lately(self, kind: str, object_id: str, seconds: int = 10) -> dict[str, float | None]:
        """Means over the last seconds; None where nobody told."""
        tracks, names = self._kind(kind)
        track = tracks.get(object_id)
        if track is None:
            return dict.fromkeys(names)
        end = self._second + 1
        return {n: known(track.mean(i, seconds, end)) for i, n in enumerate(names)}

    def values(
        self, kind: str, object_id: str, seconds: float, columns: Sequence[str] = ()
    ) -> tuple[float, float, dict[str, list[float | None]]]:
        """Step, end and columns: by seconds as far as these are kept, else by minutes. Raises ``Gone``."""
        tracks, names = self._kind(kind)
        track = tracks.get(object_id)
        if track is None:
            raise Gone(f"nothing is recorded of {kind} {object_id!r}")
        fine = seconds <= SECONDS
        ring, step = (track.seconds, 1) if fine else (track.minutes, MINUTE_S)
        end = self._second + 1 if fine else ring.end
        count = max(1, math.ceil(seconds / step))
        found = {
            name: [known(v) for v in ring.column(index, count, end)]
            for index, name in enumerate(names)
            if not columns or name in columns
        }
        return float(step), float(end * step), found

    def _kind(self, kind: str) -> tuple[dict[str, Track], tuple[str, ...]]:
        if kind == "services":
            return self.services, SERVICE
        if kind == "hosts":
            return self.hosts, HOST
        raise Gone(f"nothing is recorded of {kind!r}", hint="services or hosts")


def known(value: float) -> float | None:
    """None for what nobody told."""
    return None if value != value else value


def quantile(counts: Sequence[int], share: float) -> float:
    """The time that ``share`` of those finished stayed within, between two bounds; NaN for none."""
    total = sum(counts)
    if not total:
        return NAN
    wanted, below = share * total, 0
    for index, count in enumerate(counts):
        if count and below + count >= wanted:
            low = BOUNDS_S[index - 1] if index else 0.0
            high = BOUNDS_S[min(index, len(BOUNDS_S) - 1)]
            return low + (high - low) * (wanted - below) / count if high > low else high
        below += count
    return BOUNDS_S[-1]


def _put(tracks: dict[str, Track], object_id: str, second: int, row: Sequence[float]) -> None:
    track = tracks.get(object_id)
    if track is None:
        if len(tracks) >= MOST:
            return
        track = tracks[object_id] = Track(len(row))
    track.put(second, row)


def _sum(rows: dict[str, dict[str, float]], key: str, **values: float | None) -> None:
    row = rows.setdefault(key, {})
    for name, value in values.items():
        if value is not None:
            row[name] = row.get(name, 0.0) + value
