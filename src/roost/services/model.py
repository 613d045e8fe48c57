"""The words of services: a service, its revisions, its replicas, and what it needs from elsewhere.

Pure values; never does I/O. A *revision* is one recorded way to run the service; a *replica* is one
container or process of a revision on one host.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from roost.fleet.groups.model import DEFAULT_GROUP, GroupHost
from roost.placement.model import Affinity, Spread
from roost.ports.replicas import ReplicaSpec
from roost.ports.store import DEFAULT_TENANT
from roost.scaling.policies import Policy

REVISIONS_KEPT = 20
"""Revisions kept on a service; older ones stay in its story."""


class ServiceState(StrEnum):
    """Where a service is; ``machine.TRANSITIONS`` says what may follow what."""

    STARTING = "starting"
    RUNNING = "running"
    UPDATING = "updating"
    ROLLING_BACK = "rolling_back"
    FAILING = "failing"
    DELETING = "deleting"
    DELETED = "deleted"


class Outcome(StrEnum):
    """What became of a revision."""

    DEPLOYING = "deploying"
    GOOD = "good"
    """It served with all its replicas: what a rollback goes back to."""
    FAILED = "failed"
    SUPERSEDED = "superseded"
    """A newer one came before it was proven."""


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded way to run a service. Never changed, only judged."""

    number: int
    spec: ReplicaSpec
    created_s: float
    outcome: Outcome = Outcome.DEPLOYING
    message: str = ""
    """Why it failed."""


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """How a new revision replaces an old one."""

    max_surge: int = 1
    """So many replicas more than wanted meanwhile."""
    max_unavailable: int = 0
    """So many fewer ready ones than wanted meanwhile."""
    settle_s: float = 2.0
    """A new replica counts once it has been ready for so long."""
    timeout_s: float = 300.0
    """A new replica that is not ready so long after it was placed has failed."""
    crashes: int = 3
    """So many restarts of one new replica are a crash loop."""
    drain_s: float = 30.0
    """What is in flight at a replica that leaves may take so long."""
    rollback: bool = True
    """Go back to the last good revision by itself when the new one fails."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How clients reach the service through the edge, besides ``/s/<name>``."""

    hosts: tuple[str, ...] = ()
    """Host names, besides ``<name>.localhost``."""
    strip: bool = True
    """Take ``/s/<name>`` off the path before a replica sees it."""
    hold_s: float = 60.0
    """How long a request waits for the first replica."""


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """At most ``late`` of the requests take longer than ``bound_s``."""

    bound_s: float = 1.0
    late: float = 0.01
    service_s: float = 0.1
    """What one request takes, as its owner says; used until enough were measured."""


class Where(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """On which hosts of its group replicas may run, beside those that have room."""

    spread: tuple[Spread, ...] = ()
    """Empty = at most half on one host and half in one pool, as far as there are others."""
    affinity: tuple[Affinity, ...] = ()
    """Services by name."""
    regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    min_survival: float = 0.0
    """Only hosts that last the next hour with this probability."""
    loss: float = 0.5
    """What losing a replica costs: 0 = nothing, it may stand where it is likely to go; 1 = much."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """All that a person says of a service, besides its name."""

    spec: ReplicaSpec
    group: str = DEFAULT_GROUP
    min: int = 1
    max: int = 10
    goal: Goal = Goal()
    policies: tuple[Policy, ...] = ()
    """Empty = predictive."""
    rollout: Rollout = Rollout()
    endpoint: Endpoint = Endpoint()
    where: Where = Where()


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """Durable intent, and where it is."""

    id: str
    name: str
    """A DNS label, unique among services that are not deleted."""
    state: ServiceState
    token: str
    """Of the request that made it: the same request again makes no second service."""
    revision: int
    """Which shall run."""
    revisions: tuple[Revision, ...]
    wish: Wish
    """As asked for last; its ``spec`` is the newest revision's."""
    person: int | None = None
    """A person's number of replicas; obeyed within min and max until taken back."""
    planned: int = 1
    """Written by scaling only."""
    needed: int = 1
    """Of ``planned``, what the objective asks for; the rest fills slots that are paid for anyway."""
    reason: str = ""
    """Of ``planned``."""
    created_s: float = 0.0
    changed_s: float = 0.0
    """When the present update began."""
    ended_s: float | None = None
    message: str = ""
    """What a person should know now."""
    tenant: str = DEFAULT_TENANT

    @property
    def deleted(self) -> bool:
        """Whether nothing of it is left."""
        return self.state is ServiceState.DELETED

    def numbered(self, number: int) -> Revision | None:
        """A revision that is still known."""
        return next((r for r in self.revisions if r.number == number), None)

    @property
    def current(self) -> Revision:
        """The revision that shall run."""
        found = self.numbered(self.revision)
        assert found is not None, "the revision that shall run is always kept"
        return found

    @property
    def last_good(self) -> Revision | None:
        """The newest proven revision: what a rollback goes back to."""
        good = [r for r in self.revisions if r.outcome is Outcome.GOOD]
        return max(good, key=lambda r: r.number, default=None)

    def wanted(self, *, only_needed: bool = False) -> int:
        """Replicas there shall be: limits come last, a person's number before the plan's."""
        if self.state in (ServiceState.DELETING, ServiceState.DELETED):
            return 0
        number = self.needed if only_needed else self.planned
        if self.state in (ServiceState.STARTING, ServiceState.UPDATING):
            number = max(1, number)  # one at least shows whether the revision serves
        if self.person is not None:
            number = self.person
        return max(self.wish.min, min(self.wish.max, number))


class ReplicaState(StrEnum):
    """Where a replica is."""

    WANTED = "wanted"
    """No host has room for it yet."""
    STARTING = "starting"
    READY = "ready"
    FAILING = "failing"
    """Unhealthy, or it crashed and its host waits before it starts it again."""
    DRAINING = "draining"
    """It gets nothing new; what is in flight may end."""
    ENDED = "ended"


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One container or process of a service."""

    id: str
    service_id: str
    revision: int
    state: ReplicaState
    host_id: str = ""
    reason: str = ""
    """Why there is this one."""
    where: str = ""
    """Why on this host."""
    created_s: float = 0.0
    placed_s: float | None = None
    ready_s: float | None = None
    """When it became ready (the last time)."""
    first_ready_s: float | None = None
    draining_s: float | None = None
    ended_s: float | None = None
    ended_reason: str = ""
    tenant: str = DEFAULT_TENANT

    @property
    def parent(self) -> str:
        """The store's index: ended replicas belong to nobody, so that live ones are found at once."""
        return "" if self.state is ReplicaState.ENDED else self.service_id


LIVE = tuple(s for s in ReplicaState if s is not ReplicaState.ENDED)


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A group of hosts, as services see it."""

    id: str
    slots: int = 4
    """Replicas per host."""
    min: int = 0
    max: int = 10
    person: int | None = None
    vcpus: float = 0.0
    """What a host has at least; 0 = not said."""
    memory_mib: float = 0.0
    gpus: float = 0.0
    hosts: tuple[GroupHost, ...] = ()
    message: str = ""
    """Why hosts that are wanted do not come."""


class Pools(Protocol):
    """The groups of hosts that replicas run on; filled from ``fleet``."""

    async def pool(self, group: str) -> Pool:
        """The group with its live hosts. ``Gone`` when there is no such group."""

    async def want(self, group: str, hosts: int, reason: str, release: Sequence[str] = ()) -> None:
        """Keep so many hosts besides those of ``release``, which are given back."""
