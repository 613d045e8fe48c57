"""Everything that serves, now: the history of the last seconds beside who there is. Pure."""

from collections import Counter

from roost.client.top import HostLine, ServiceLine, TopView
from roost.metrics import idle
from roost.metrics.history import History
from roost.metrics.model import Facts, HostFacts, ServiceFacts

TREND = 60
"""Seconds of requests a second that are shown as a line."""
STEP = 3


def view(history: History, facts: Facts, now_s: float) -> TopView:
    """The lines of services by name and of hosts by group."""
    lately = {s.id: history.lately("services", s.id) for s in facts.services}
    used = {
        s.id: idle.utilisation(
            s, _ready(s), lately[s.id].get("busy"), lately[s.id].get("cpu_percent")
        )
        for s in facts.services
    }
    of_services, of_hosts = idle.shares(facts, used)
    services = [_service(history, s, lately[s.id], of_services[s.id]) for s in facts.services]
    on = Counter(replica.host_id for service in facts.services for replica in service.replicas)
    hosts = [_host(history, h, on[h.id], of_hosts[h.id]) for h in facts.hosts]
    return TopView(
        now_s=now_s,
        edges=history.edges.fresh(now_s),
        services=tuple(sorted(services, key=lambda line: line.name)),
        hosts=tuple(sorted(hosts, key=lambda line: (line.group, line.id))),
        usd_hour=sum(line.usd_hour for line in hosts),
        idle_usd_hour=sum(line.idle_usd_hour for line in hosts),
    )


def _ready(service: ServiceFacts) -> int:
    return sum(replica.state == "ready" for replica in service.replicas)


def _service(
    history: History, service: ServiceFacts, lately: dict[str, float | None], use: idle.Use
) -> ServiceLine:
    finished = lately.get("finished_s")
    return ServiceLine(
        id=service.id,
        name=service.name,
        state=service.state,
        group=service.group,
        wanted=service.wanted,
        ready=_ready(service),
        starting=sum(r.state in ("wanted", "starting") for r in service.replicas),
        requests_s=lately.get("requests_s"),
        errors_share=_of(lately.get("errors_s"), finished),
        late_share=_of(lately.get("late_s"), finished),
        in_flight=lately.get("in_flight"),
        held=lately.get("held"),
        queued=lately.get("queued"),
        p50_s=lately.get("p50_s"),
        p99_s=lately.get("p99_s"),
        cpu_percent=lately.get("cpu_percent"),
        memory_mib=lately.get("memory_mib"),
        utilisation=use.utilisation,
        usd_hour=use.usd_hour,
        idle_usd_hour=use.idle_usd_hour,
        why=service.why,
        trend=_trend(history, service.id),
    )


def _host(history: History, host: HostFacts, used: int, use: idle.Use) -> HostLine:
    lately = history.lately("hosts", host.id)
    return HostLine(
        id=host.id,
        group=host.group,
        state=host.state,
        offer=host.offer,
        slots=host.slots,
        slots_used=used,
        cpu_percent=lately.get("cpu_percent"),
        memory_used_mib=lately.get("memory_used_mib"),
        memory_total_mib=lately.get("memory_total_mib"),
        network_bytes_s=lately.get("network_bytes_s"),
        requests_s=lately.get("requests_s"),
        in_flight=lately.get("in_flight"),
        queued=lately.get("queued"),
        utilisation=use.utilisation,
        usd_hour=use.usd_hour,
        idle_usd_hour=use.idle_usd_hour,
        why=use.why,
    )


def _of(part: float | None, whole: float | None) -> float | None:
    if part is None or not whole:
        return None
    return min(1.0, part / whole)


def _trend(history: History, service_id: str) -> tuple[float | None, ...]:
    """Means of a few seconds each."""
    if service_id not in history.services:
        return ()
    _, _, values = history.values("services", service_id, TREND, ("requests_s",))
    line = values["requests_s"]
    found: list[float | None] = []
    for at in range(0, len(line), STEP):
        known = [v for v in line[at : at + STEP] if v is not None]
        found.append(sum(known) / len(known) if known else None)
    return tuple(found)
