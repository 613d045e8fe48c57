"""What the history is put together with for people: who there is and what it costs. Values only."""

from dataclasses import dataclass

BUSY_STATES = ("ready", "failing", "draining")
"""States in which a replica has a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """Where a replica is."""

    id: str
    host_id: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """A service as it is stored."""

    id: str
    name: str
    state: str
    group: str
    wanted: int
    vcpus: float
    concurrency: int
    """Requests one replica serves at once; 0 = no bound."""
    why: str = ""
    replicas: tuple[ReplicaFacts, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """A host that is paid for."""

    id: str
    group: str
    state: str
    """``booting``, ``ready``, ``noticed``, ``draining``."""
    offer: str
    slots: int
    usd_hour: float
    why: str = ""
    """Why it is noticed or drained, or kept."""
    empty_s: float = 0.0
    """For how long nothing has stood on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of them."""

    services: tuple[ServiceFacts, ...] = ()
    hosts: tuple[HostFacts, ...] = ()
