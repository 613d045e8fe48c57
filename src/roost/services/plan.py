"""How many replicas and hosts there shall be. Pure: an ``Observation`` in, a ``Plan`` with reasons out.

It never reads a clock and keeps nothing between two calls: its memory is a record the caller carries.
"""

import math

from roost.services.observation import (
    GroupPlan,
    GroupState,
    HostPhase,
    Observation,
    Plan,
    ServicePlan,
    ServiceState,
)


def decide(observation: Observation) -> Plan:
    """Replicas per service and hosts per group."""
    services = {s.id: _service(s) for s in observation.services}
    groups = {g.id: _group(g, observation, services) for g in observation.groups}
    return Plan(services=services, groups=groups)


def _service(state: ServiceState) -> ServicePlan:
    load = state.in_flight + state.queued
    needed = max(state.min, min(state.max, math.ceil(load / state.concurrency / 0.7)))
    return ServicePlan(
        replicas=needed, needed=needed, reason=f"{load} requests in flight", memory=b""
    )


def _group(
    group: GroupState, observation: Observation, services: dict[str, ServicePlan]
) -> GroupPlan:
    slots = sum(services[s.id].replicas for s in observation.services if s.group == group.id)
    hosts = max(group.min, min(group.max, math.ceil(slots / group.slots)))
    have = [h for h in group.hosts if h.phase in (HostPhase.READY, HostPhase.BOOTING)]
    leave = sorted(have, key=lambda h: (h.phase is HostPhase.READY, h.used, h.survival))
    release = tuple(h.id for h in leave[: max(0, len(have) - hosts)])
    return GroupPlan(hosts=hosts, release=release, reason=f"{slots} slots wanted", memory=b"")
