"""From counters of edges and hosts to what happens a second: differences, over the time between two reports.

Counters run since whoever counts began: another beginning starts from nothing, and of one met for the
first time only what comes after is counted. Keeps the newest of each source, no history.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from roost.ports.replicas import BOUNDS_S, ReplicaReport, ServiceReport
from roost.ports.seen import Seen, ServiceSeen
from roost.ports.values import HostReport

FRESH_S = 5.0
"""What was not heard of for longer is not known now."""
LONGEST_S = 60.0
"""A difference is spread over at most this."""


@dataclass(slots=True)
class Totals:
    """One service over all edges, since control began."""

    requests: int = 0
    finished: int = 0
    errors: int = 0
    late: int = 0
    held: int = 0
    seconds: float = 0.0
    slow: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))


@dataclass(slots=True)
class Rates:
    """One service at one edge, or on one host, lately."""

    requests_s: float = 0.0
    errors_s: float = 0.0
    late_s: float = 0.0
    finished_s: float = 0.0
    busy: float = 0.0
    in_flight: int = 0
    held: int = 0
    queued: int = 0


class _Edge:
    def __init__(self, began_s: float, at_s: float) -> None:
        self.began_s = began_s
        self.at_s = at_s
        self.heard_s = 0.0
        self.last: dict[str, ServiceSeen] = {}
        self.rates: dict[str, Rates] = {}


class Edges:
    """What edges told."""

    def __init__(self) -> None:
        self._edges: dict[int, _Edge] = {}
        self.totals: dict[str, Totals] = {}

    def take(self, seen: Seen, now_s: float) -> None:
        """A report, as it comes."""
        edge = self._edges.get(seen.edge)
        known = edge is not None
        if edge is None or edge.began_s != seen.began_s:
            edge = self._edges[seen.edge] = _Edge(seen.began_s, seen.at_s)
        passed_s = min(max(seen.at_s - edge.at_s, 0.5), LONGEST_S)
        named = set()
        for new in seen.services:
            named.add(new.service_id)
            # Of an edge met for the first time nobody knows when it counted what it says.
            zero = ServiceSeen(service_id=new.service_id) if known else new
            old = edge.last.get(new.service_id, zero)
            edge.last[new.service_id] = new
            edge.rates[new.service_id] = self._counted(old, new, passed_s)
        for service_id, rates in edge.rates.items():
            if service_id not in named:  # it said that nothing has changed
                rates.requests_s = rates.errors_s = rates.late_s = rates.finished_s = 0.0
        if edge.at_s != seen.at_s or not edge.heard_s:
            edge.at_s, edge.heard_s = seen.at_s, now_s

    def _counted(self, old: ServiceSeen, new: ServiceSeen, passed_s: float) -> Rates:
        totals = self.totals.setdefault(new.service_id, Totals())
        arrived = max(0, new.arrived - old.arrived)
        finished = max(0, new.finished - old.finished)
        errors = max(0, new.errors - old.errors)
        late = max(0, new.late - old.late)
        totals.requests += arrived
        totals.finished += finished
        totals.errors += errors
        totals.late += late
        totals.held += max(0, new.held_finished - old.held_finished)
        totals.seconds += max(0.0, new.seconds - old.seconds)
        before = old.slow or (0,) * len(new.slow)
        for index, (one, two) in enumerate(zip(before, new.slow, strict=False)):
            if index < len(totals.slow):
                totals.slow[index] += max(0, two - one)
        return Rates(
            requests_s=arrived / passed_s,
            finished_s=finished / passed_s,
            errors_s=errors / passed_s,
            late_s=late / passed_s,
            in_flight=new.in_flight,
            held=new.held,
        )

    def fresh(self, now_s: float) -> int:
        """Edges that spoke lately."""
        return sum(now_s - edge.heard_s <= FRESH_S for edge in self._edges.values())

    def of(self, now_s: float) -> dict[str, list[Rates]]:
        """Service to what each edge that spoke lately says of it."""
        found: dict[str, list[Rates]] = {}
        for edge in self._edges.values():
            if now_s - edge.heard_s <= FRESH_S:
                for service_id, rates in edge.rates.items():
                    found.setdefault(service_id, []).append(rates)
        return found

    def forget(self, keep: set[str]) -> None:
        """Drop what is known of services that are not among ``keep``."""
        self.totals = {k: v for k, v in self.totals.items() if k in keep}
        for edge in self._edges.values():
            edge.last = {k: v for k, v in edge.last.items() if k in keep}
            edge.rates = {k: v for k, v in edge.rates.items() if k in keep}


class Machine:
    """One host's newest report, and what came since the one before."""

    def __init__(self, report: HostReport, now_s: float) -> None:
        self.report = report
        self.heard_s = now_s
        self.rates: dict[str, Rates] = {s.service_id: _still(s) for s in report.services}
        self.network_s: float | None = None

    def take(self, report: HostReport, now_s: float) -> None:
        """A newer report."""
        old = self.report
        if report.at_s == old.at_s:
            return
        passed_s = min(max(report.at_s - old.at_s, 0.5), LONGEST_S)
        before = {s.service_id: s for s in old.services}
        self.rates = {
            s.service_id: _rates(before.get(s.service_id), s, passed_s) for s in report.services
        }
        moved = _network(report) - _network(old)
        self.network_s = moved / passed_s if moved >= 0 else None
        self.report, self.heard_s = report, now_s

    @property
    def replicas(self) -> tuple[ReplicaReport, ...]:
        """Every replica it has."""
        return self.report.replicas


def _network(report: HostReport) -> float:
    """The host's own count, or that of its replicas."""
    return report.network_bytes or sum(r.network_bytes or 0.0 for r in report.replicas)


def _still(new: ServiceReport) -> Rates:
    return Rates(in_flight=new.in_flight, queued=new.queued)


def _rates(old: ServiceReport | None, new: ServiceReport, passed_s: float) -> Rates:
    if old is None or old.began_s != new.began_s:
        old = ServiceReport(service_id=new.service_id, began_s=new.began_s)
    finished = max(0, new.requests - old.requests) / passed_s
    return Rates(
        requests_s=finished,
        finished_s=finished,
        errors_s=max(0, new.errors - old.errors) / passed_s,
        busy=max(0.0, new.busy_s - old.busy_s) / passed_s,
        in_flight=new.in_flight,
        queued=new.queued,
    )


class Machines:
    """What connected hosts told."""

    def __init__(self) -> None:
        self._known: dict[str, Machine] = {}

    def take(self, reports: Mapping[str, HostReport], now_s: float) -> None:
        """The newest reports of all connected hosts; the others are forgotten."""
        known: dict[str, Machine] = {}
        for host_id, report in reports.items():
            machine = self._known.get(host_id)
            if machine is None:
                machine = Machine(report, now_s)
            else:
                machine.take(report, now_s)
            known[host_id] = machine
        self._known = known

    def fresh(self, now_s: float) -> Iterator[tuple[str, Machine]]:
        """Those that spoke lately."""
        for host_id, machine in self._known.items():
            if now_s - machine.heard_s <= FRESH_S:
                yield host_id, machine
