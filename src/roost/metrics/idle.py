"""How much of what is paid for is used, and what the rest costs. Pure.

A host's price is shared out over its slots; a slot is used as much as its replica is: by the CPU it was
given, or by the requests it takes at once, whichever is more. Empty slots and hosts that cannot serve yet
idle whole. Never decides what to give back: it says what idles and why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roost.metrics.model import BUSY_STATES, Facts, HostFacts, ReplicaFacts, ServiceFacts

NOT_SERVING = {
    "booting": "booting: paid for, serves nothing yet",
    "noticed": "its provider takes it back",
    "draining": "being emptied",
}


@dataclass(frozen=True, slots=True)
class Use:
    """Of one host or service."""

    utilisation: float | None
    """None where nothing was measured."""
    usd_hour: float
    idle_usd_hour: float
    why: str = ""


def utilisation(
    service: ServiceFacts, ready: int, busy: float | None, cpu_percent: float | None
) -> float | None:
    """Of a service's replicas together: the larger of CPU and requests at once; None = not measured."""
    if ready <= 0:
        return None
    shares = []
    if cpu_percent is not None and service.vcpus > 0:
        shares.append(cpu_percent / (100.0 * service.vcpus * ready))
    if busy is not None and service.concurrency > 0:
        shares.append(busy / (service.concurrency * ready))
    return min(1.0, max(shares)) if shares else None


def shares(facts: Facts, used: Mapping[str, float | None]) -> tuple[dict[str, Use], dict[str, Use]]:
    """Services and hosts by id. ``used``: each service's utilisation."""
    hosts = {host.id: host for host in facts.hosts}
    on: dict[str, list[tuple[ServiceFacts, ReplicaFacts]]] = {host_id: [] for host_id in hosts}
    services: dict[str, Use] = {}
    for service in facts.services:
        paid = idle = 0.0
        share = used.get(service.id)
        for replica in service.replicas:
            host = hosts.get(replica.host_id)
            if host is None:
                continue
            on[host.id].append((service, replica))
            slot = host.usd_hour / max(1, host.slots)
            paid += slot
            idle += slot * (1.0 - _share(replica, share))
        services[service.id] = Use(share, paid, idle)
    return services, {host.id: _host(host, on[host.id], used) for host in facts.hosts}


def _share(replica: ReplicaFacts, share: float | None) -> float:
    """Not measured counts as used: what is not known must not look like waste."""
    if replica.state not in BUSY_STATES:
        return 0.0
    return 1.0 if share is None else share


def _host(
    host: HostFacts,
    replicas: Sequence[tuple[ServiceFacts, ReplicaFacts]],
    used: Mapping[str, float | None],
) -> Use:
    slots = max(1, host.slots)
    shares = [_share(replica, used.get(service.id)) for service, replica in replicas]
    share = min(1.0, sum(shares) / slots)
    idle = host.usd_hour * (1.0 - share)
    return Use(share, host.usd_hour, idle, _why(host, replicas, used))


def _why(
    host: HostFacts,
    replicas: Sequence[tuple[ServiceFacts, ReplicaFacts]],
    used: Mapping[str, float | None],
) -> str:
    parts = []
    if host.state in NOT_SERVING:
        parts.append(NOT_SERVING[host.state] + (f" ({host.why})" if host.why else ""))
    empty = host.slots - len(replicas)
    if not replicas and host.state == "ready":
        parts.append(f"empty for {host.empty_s:.0f} s" if host.empty_s else "empty")
    elif empty > 0 and host.state == "ready":
        parts.append(f"{empty} of {host.slots} slots empty")
    for service in sorted({service.name: service for service, _ in replicas}.items()):
        share = used.get(service[1].id)
        if share is not None and share < 0.5:
            parts.append(f"{service[0]} uses {100 * share:.0f} %")
    if host.why and host.state == "ready":
        parts.append(host.why)
    return "; ".join(parts)
