"""The page Prometheus scrapes at control: services, hosts and what idles. Pure.

Counters are sums over all edges since control began; gauges are the newest of what was told in the last
seconds, and left out where nobody told.
"""

from collections.abc import Callable, Iterable, Iterator

from roost.client.top import HostLine, ServiceLine, TopView
from roost.kit.exposition import Page, line
from roost.metrics.history import History
from roost.metrics.intake import Totals
from roost.ports.replicas import BOUNDS_S

SERVICE_GAUGES: tuple[tuple[str, str, Callable[[ServiceLine], float | None]], ...] = (
    ("in_flight", "Requests with hosts.", lambda s: s.in_flight),
    ("held", "Requests that wait at edges for a host.", lambda s: s.held),
    ("queued", "Requests that wait at hosts for a replica.", lambda s: s.queued),
    ("replicas_wanted", "Replicas there shall be.", lambda s: float(s.wanted)),
    ("replicas_ready", "Replicas that serve.", lambda s: float(s.ready)),
    ("replicas_starting", "Replicas on their way.", lambda s: float(s.starting)),
    ("cpu_cores", "CPU used by its replicas.", lambda s: _scaled(s.cpu_percent, 0.01)),
    ("memory_bytes", "Memory of its replicas.", lambda s: _scaled(s.memory_mib, 1 << 20)),
    ("utilisation", "Share of what its replicas could do.", lambda s: s.utilisation),
    ("cost_usd_per_hour", "Its slots' share of its hosts.", lambda s: s.usd_hour),
    ("idle_usd_per_hour", "Of that: not used.", lambda s: s.idle_usd_hour),
)
HOST_GAUGES: tuple[tuple[str, str, Callable[[HostLine], float | None]], ...] = (
    ("cpu_ratio", "CPU of the host in use.", lambda h: _scaled(h.cpu_percent, 0.01)),
    ("memory_used_bytes", "Memory in use.", lambda h: _scaled(h.memory_used_mib, 1 << 20)),
    ("memory_bytes", "Memory there is.", lambda h: _scaled(h.memory_total_mib, 1 << 20)),
    ("network_bytes_per_second", "Received and sent.", lambda h: h.network_bytes_s),
    ("slots", "Replicas it may have.", lambda h: float(h.slots)),
    ("slots_used", "Replicas on it.", lambda h: float(h.slots_used)),
    ("in_flight", "Requests in its replicas.", lambda h: h.in_flight),
    ("queued", "Requests that wait at its balancer.", lambda h: h.queued),
    ("utilisation", "Mean over its slots.", lambda h: h.utilisation),
    ("cost_usd_per_hour", "Its price.", lambda h: h.usd_hour),
    ("idle_usd_per_hour", "Of that: not used.", lambda h: h.idle_usd_hour),
)
COUNTERS: tuple[tuple[str, str, Callable[[Totals], float]], ...] = (
    ("requests_total", "Requests, counted when they came.", lambda t: float(t.requests)),
    ("errors_total", "5xx, and answers cut off.", lambda t: float(t.errors)),
    ("late_total", "Longer than the service's bound; held ones left out.", lambda t: float(t.late)),
    ("held_total", "Had to wait for a host.", lambda t: float(t.held)),
)


def text(history: History, top: TopView) -> str:
    """The whole page."""
    page = Page()
    page.family("roost_edges", "gauge", "Edges that report.", [line("roost_edges", top.edges)])
    names = {s.id: s.name for s in top.services}
    totals = {names[k]: v for k, v in history.edges.totals.items() if k in names}
    for name, help_, of in COUNTERS:
        family = f"roost_service_{name}"
        page.family(
            family, "counter", help_, [line(family, of(t), service=n) for n, t in totals.items()]
        )
    family = "roost_service_request_seconds"
    page.family(
        family, "histogram", "From arrival to the answer's end.", _histogram(family, totals)
    )
    for name, help_, value in SERVICE_GAUGES:
        family = f"roost_service_{name}"
        found = ((s, value(s)) for s in top.services)
        page.family(
            family,
            "gauge",
            help_,
            [line(family, v, service=s.name) for s, v in found if v is not None],
        )
    for name, help_, measure in HOST_GAUGES:
        family = f"roost_host_{name}"
        page.family(family, "gauge", help_, _of_hosts(family, top.hosts, measure))
    return page.text()


def _of_hosts(
    family: str, hosts: Iterable[HostLine], measure: Callable[[HostLine], float | None]
) -> Iterator[str]:
    for host in hosts:
        value = measure(host)
        if value is not None:
            yield line(family, value, host=host.id, group=host.group, state=host.state)


def _histogram(family: str, totals: dict[str, Totals]) -> Iterator[str]:
    for name, total in totals.items():
        below = 0
        for bound, count in zip(BOUNDS_S, total.slow, strict=False):
            below += count
            yield line(f"{family}_bucket", below, service=name, le=f"{bound:g}")
        count = sum(total.slow)
        yield line(f"{family}_bucket", count, service=name, le="+Inf")
        yield line(f"{family}_sum", total.seconds, service=name)
        yield line(f"{family}_count", count, service=name)


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by
