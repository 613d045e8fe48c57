"""What ``services.plan.decide`` sees and answers: the one documented shape of scaling.

Everything that decides is in here: arrays of usage, states of replicas and hosts, and the small ``memory``
record of the last plan, which the caller keeps (and stores) and gives back unread. Time is ``now_s`` only.
Values only; it never reads or computes anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from roost.scaling.policies import Policy

Floats = NDArray[np.float64]
"""One dimension, oldest first; NaN = not known (never 0 for a missing report)."""


def _none() -> Floats:
    return np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """At most ``late`` of the requests take longer than ``bound_s`` from their arrival at the edge."""

    bound_s: float = 1.0
    late: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """One service now."""

    id: str
    group: str = "default"
    """Whose hosts its replicas run on."""
    min: int = 1
    """0 = may sleep: requests are held at the edge meanwhile (they count in ``queued``)."""
    max: int = 1000
    person_desired: int | None = None
    """A person's number: obeyed within min and max until they take it back."""
    objective: Objective = field(default_factory=Objective)
    policies: tuple[Policy, ...] = ()
    """Empty = predictive."""

    minutes: Floats = field(default_factory=_none)
    """Requests that arrived at the edge per full minute (UTC), up to 14 days, the newest last."""
    minutes_end_s: float | None = None
    """When the last of ``minutes`` ended; None = the newest full minute at ``now_s``."""
    recent: Floats = field(default_factory=_none)
    """Requests that arrived per ``recent_s``, up to 30 minutes, the last one ended at ``now_s``."""
    recent_s: float = 10.0

    in_flight: int = 0
    """Inside replicas now."""
    queued: int = 0
    """Arrived and not yet inside a replica: at hosts' balancers and held at the edge."""
    service_times: Floats = field(default_factory=_none)
    """Seconds inside a replica (no waiting) of the newest finished requests, up to 2,000; or empty and:"""
    service_mean_s: float = 0.1
    """Used while ``service_times`` has fewer than 50: the declared or the measured mean …"""
    service_cv: float = 1.0
    """… and standard deviation / mean."""
    concurrency: int = 1
    """Requests one replica serves at once without one slowing another."""

    ready: int = 0
    """Replicas that serve."""
    starting: int = 0
    """Replicas on their way: placed, or still waiting for a place."""
    draining: int = 0
    failing: bool = False
    """Its replicas crash or fail their health checks: more of them would not help."""
    start_p50_s: float = 5.0
    start_p95_s: float = 20.0

    late: Floats = field(default_factory=_none)
    """Late requests per minute of their *arrival*; the same minutes as the end of ``minutes`` (30 are
    enough). What was held for a start from zero, what failed and what takes longer than the bound by itself
    does not count."""
    total: Floats = field(default_factory=_none)
    """All requests per minute of arrival, those of ``late`` included; same length."""
    metrics: Mapping[str, Floats] = field(default_factory=dict)
    """Other metrics, one value per period, the last one at ``now_s``: mean over ready replicas."""
    memory: bytes | None = None
    """``ServicePlan.memory`` of the last decision; None at first."""


class HostPhase(StrEnum):
    """Where a host is, as scaling needs it."""

    BOOTING = "booting"
    READY = "ready"
    NOTICED = "noticed"
    """Its provider takes it back soon: it does not count as capacity."""
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """One host of a group."""

    id: str
    phase: HostPhase
    used: int = 0
    """Slots with a replica (starting, ready or draining)."""
    age_s: float = 0.0
    """Since its launch was asked for."""
    survival: float = 1.0
    """Odds that it is still there an hour from now."""
    price_usd_hour: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """A group of hosts that several services share."""

    id: str = "default"
    slots: int = 4
    """Replicas per host."""
    hosts: tuple[HostState, ...] = ()
    min: int = 0
    max: int = 1000
    person_desired: int | None = None
    boot_p50_s: float = 105.0
    """From asking for a host to its first replica's start."""
    boot_p95_s: float = 180.0
    memory: bytes | None = None
    """``GroupPlan.memory`` of the last decision; None at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The whole snapshot of one decision."""

    now_s: float
    """UTC seconds."""
    period_s: float = 10.0
    """Between decisions."""
    services: tuple[ServiceState, ...]
    groups: tuple[GroupState, ...]


class ServicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one service shall have."""

    replicas: int
    """Wanted: ready + starting + waiting for a place. What has no slot waits for the next host."""
    needed: int
    """Of these, what the objective asks for; the rest fills slots of hosts that are paid for anyway."""
    reason: str
    memory: bytes
    """To be given back at the next decision and kept in the store (some hundred bytes)."""
    warnings: tuple[str, ...] = ()
    """What is wrong with what was asked or measured, with what to do."""


class GroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one group shall have."""

    hosts: int
    """Ready + booting, without those noticed or draining."""
    release: tuple[str, ...] = ()
    """Which hosts to drain and give back to get down to ``hosts``, in order; empty when growing."""
    reason: str
    memory: bytes


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an observation."""

    services: dict[str, ServicePlan]
    groups: dict[str, GroupPlan]
