"""Hosts and asks for the tests of placement, small enough to see the answer."""

from roost.placement.hosts import Hosts
from roost.placement.model import Ask, HostFacts


def facts(name: str, **given: object) -> HostFacts:
    """A host of 8 vCPUs, 16 GiB and 8 slots in zone a of region r."""
    some: dict[str, object] = {
        "vcpus": 8.0,
        "memory_mib": 16_384.0,
        "slots": 8,
        "region": "r",
        "zone": "a",
        "pool": "p",
        "group": "default",
        "price_usd_hour": 1.0,
    }
    return HostFacts(id=name, **{**some, **given})  # type: ignore[arg-type]


def fleet(count: int, **given: object) -> Hosts:
    """Some that are alike: ``h0``, ``h1`` …"""
    return Hosts(facts(f"h{n}", **given) for n in range(count))


def ask(service: str = "web", **given: object) -> Ask:
    """One vCPU and 1 GiB."""
    return Ask(**{"service": service, "vcpus": 1.0, "memory_mib": 1_024.0, **given})  # type: ignore[arg-type]
