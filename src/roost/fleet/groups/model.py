"""The words of groups: a set of hosts kept between min and max at desired. Pure values; never does I/O.

A *group* is what Auto Scaling groups and fleets are elsewhere. Each of its *members* is one claim, so that
launching, refusals and losses stay fleet's own; a member adds what only a group knows: whether it serves,
waits for a hook, stands by warm, is drained, and of which revision of the template it is.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum

import msgspec

from roost.fleet.model import ClaimView
from roost.ports.store import DEFAULT_TENANT
from roost.ports.values import (
    Allocation,
    Ask,
    Image,
    NoticeKind,
    Offer,
    PurchaseOption,
)

PREFIX = "g-"
DEFAULT_GROUP = "default"
ROLE = "group"
"""The role of a group's claims and instances."""


class GroupState(StrEnum):
    """active -> deleting -> deleted."""

    ACTIVE = "active"
    DELETING = "deleting"
    DELETED = "deleted"


class MemberState(StrEnum):
    """Where a host is in its group; ``group_machine.TRANSITIONS`` says what may follow what."""

    LAUNCHING = "launching"
    ENTERING = "entering"
    """Ready; a launch hook has to say yes first."""
    WARM = "warm"
    """Prepared, not in service: part of the warm pool."""
    SERVING = "serving"
    DRAINING = "draining"
    LEAVING = "leaving"
    """Drained; a termination hook has to finish first."""
    ENDED = "ended"


class Protection(StrEnum):
    """What a host is protected from. A cloud's own notice asks nobody."""

    NONE = "none"
    SCALE_IN = "scale-in"
    """Never chosen when the group shrinks; a refresh replaces it."""
    DISRUPTION = "disruption"
    """Do not disrupt: neither shrinking, refresh nor consolidation touches it."""


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Clouds that are tried together; tiers in order: private first, then burst to public."""

    clouds: tuple[str, ...]
    most: int | None = None
    """Most hosts there; None = no bound."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How many hosts may be disrupted at once of our own will. The strictest that applies counts."""

    most: str = "10%"
    """A share of the group's hosts (rounded up) or a number; ``0`` = none."""
    reasons: tuple[str, ...] = ()
    """Of ``scale-in``, ``refresh``, ``rebalance``; empty = all."""
    days: tuple[int, ...] = ()
    """0 = Monday; empty = every day."""
    from_hour: int = 0
    to_hour: int = 24
    """UTC; over midnight where ``to_hour`` is the smaller one."""


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody else has a word before a host serves, or before it ends."""

    name: str
    on: str = "launch"
    """``launch`` or ``terminate``."""
    timeout_s: float = 300.0
    default: str = "continue"
    """What no answer in time means: ``continue`` or ``abandon`` (a launch: the host is replaced)."""


class WarmPool(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts prepared in advance."""

    size: int = 0
    state: str = "running"
    """``running``, or ``stopped``: nothing is billed but its disk, and it boots when it is needed."""
    reuse: bool = False
    """A host that is not needed any more returns here instead of ending."""


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a person says of a group."""

    name: str
    min: int = 0
    max: int = 10
    slots: int = 4
    """Containers a host takes at most."""
    ask: Ask = Ask()
    """What a host must have. Its purchase options are set by the on-demand floor and percentage."""
    image: Image
    allocation: Allocation = Allocation.PRICE_CAPACITY
    tiers: tuple[Tier, ...] = ()
    on_demand_base: int = 0
    """So many hosts are on demand, whatever the size."""
    on_demand_percent: float = 0.0
    """Of the hosts above the base."""
    fallback_s: float = 120.0
    """A spot host that no pool gives within this time is stood in for on demand; 0 = never."""
    pool_share: float = 0.5
    """At most this share of the hosts in one pool, as far as others are to be had."""
    region_share: float = 0.5
    """The same for one region: a second region removes most joint losses, a second zone does not."""
    spares: int | None = None
    """At most so many hosts above desired while the risk of losing some is high; None = as many as stand in
    for a whole pool."""
    rebalance: bool = True
    """Replace a host at its cloud's rebalance recommendation already."""
    drain_s: float = 300.0
    """Containers get this long to leave a host that is drained."""
    protect_new: bool = False
    """New hosts are protected from scale-in."""
    warm: WarmPool = WarmPool()
    hooks: tuple[Hook, ...] = ()
    budgets: tuple[Budget, ...] = ()

    @property
    def purchase_options(self) -> tuple[PurchaseOption, ...]:
        """What the group may buy."""
        spot = self.on_demand_percent < 100.0
        steady = self.on_demand_base > 0 or self.on_demand_percent > 0.0 or self.fallback_s > 0.0
        found = ((PurchaseOption.SPOT, spot), (PurchaseOption.ON_DEMAND, steady))
        return tuple(option for option, may in found if may)


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """What new hosts are launched from."""

    revision: int
    ask: Ask
    image: Image


class RefreshState(StrEnum):
    """running -> successful | cancelled | rolling-back -> rolled-back."""

    RUNNING = "running"
    SUCCESSFUL = "successful"
    CANCELLED = "cancelled"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"


class Refresh(msgspec.Struct, frozen=True, kw_only=True):
    """Replacing all hosts of older revisions, within bounds."""

    state: RefreshState
    before: Template
    """Where a rollback goes back to."""
    min_healthy: float = 0.9
    """At least this share of desired serves meanwhile."""
    max_healthy: float = 1.1
    """At most this share of desired exists meanwhile: hosts are launched before others go."""
    warm_up_s: float = 0.0
    """A new host counts once it has served for so long."""
    boot_limit_s: float = 300.0
    """A new host that takes longer has failed."""
    most_failures: int = 1
    """More failures than this roll back."""
    limit_s: float = 3600.0
    """A refresh that takes longer rolls back."""
    auto_rollback: bool = True
    failures: int = 0
    started_s: float = 0.0
    ended_s: float | None = None
    reason: str = ""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group as it is stored. Only ``Groups`` and its controller write it."""

    id: str
    state: GroupState = GroupState.ACTIVE
    spec: GroupSpec
    desired: int = 0
    """What the scaler asked for last: the one writer is whoever scales the group."""
    reason: str = ""
    """Why that many."""
    pinned: int | None = None
    """A person's desired: counts instead."""
    revision: int = 1
    """Of ask and image: hosts of another one wait for a refresh."""
    newest: int = 1
    """The highest revision there ever was: a rollback goes back to an older one."""
    settled: Template
    """What the last refresh that came through left."""
    refresh: Refresh | None = None
    spares: int = 0
    """How many stand above desired now, because of risk."""
    setbacks: int = 0
    """Hosts in a row that never served."""
    not_before_s: float = 0.0
    """After setbacks: when the next host is launched."""
    created_s: float = 0.0
    message: str = ""
    """What a person should know: why there are fewer hosts than wanted."""
    tenant: str = DEFAULT_TENANT

    @property
    def wanted(self) -> int:
        """Desired within the bounds."""
        asked = self.desired if self.pinned is None else self.pinned
        return max(self.spec.min, min(asked, self.spec.max))


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One host of a group. Its id is its claim's."""

    id: str
    parent: str
    """The group; with ``/ended`` behind it once it has ended."""
    state: MemberState = MemberState.LAUNCHING
    option: PurchaseOption = PurchaseOption.SPOT
    revision: int = 1
    stand_in: bool = False
    """On demand in the place of a spot host that is not to be had."""
    warm: bool = False
    """Launched for the warm pool."""
    admitted: bool = False
    """Launch hooks have had their word."""
    protection: Protection = Protection.NONE
    release: str = ""
    """Why it should be the first to go when the group shrinks; empty = no wish."""
    cause: str = ""
    """Why it is drained: ``scale-in``, ``refresh``, ``rebalance``, ``person``, ``delete``."""
    reason: str = ""
    hooks: tuple[str, ...] = ()
    """Hooks that have not answered."""
    abandoned: bool = False
    """A launch hook said no."""
    until_s: float = 0.0
    """Until when hooks, or the containers of a host that is drained, have time."""
    since_s: float = 0.0
    """In its state since."""
    created_s: float = 0.0
    tenant: str = DEFAULT_TENANT


class HostUse(msgspec.Struct, frozen=True, kw_only=True):
    """What stands on a host, as whoever places containers knows it."""

    slots_used: int = 0
    keep: str = ""
    """Why it must not be disrupted; empty = it may."""
    idle_since_s: float | None = None
    """Since when nothing stands there; None = something does, or not known."""


Uses = Callable[[Sequence[str]], Awaitable[Mapping[str, HostUse]]]
"""What stands on the hosts of these ids; those it does not know are empty."""


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """A member, its claim's instance and report, what stands on it, and its odds."""

    member: Member
    claim: ClaimView | None = None
    use: HostUse = HostUse()
    survival: float = 1.0
    """Probability that it lasts the next hour."""
    risk: float = 0.0
    """Probability that it is taken within ten minutes."""
    silent_s: float = 0.0
    """How long it has not been connected although its provider lists it."""

    @property
    def host_id(self) -> str:
        """Empty before an instance was chosen."""
        instance = self.claim.instance if self.claim is not None else None
        return "" if instance is None else instance.id

    @property
    def noticed(self) -> bool:
        """It will go away."""
        return self.claim is not None and self.claim.leaving

    @property
    def advised(self) -> bool:
        """Its cloud recommends to leave it."""
        instance = self.claim.instance if self.claim is not None else None
        notice = None if instance is None else instance.notice
        return notice is not None and notice.kind is NoticeKind.REBALANCE

    @property
    def ready(self) -> bool:
        """Its host could take containers now."""
        return self.claim is not None and self.claim.usable


class HostState(StrEnum):
    """A group's host as whoever places containers sees it."""

    BOOTING = "booting"
    READY = "ready"
    NOTICED = "noticed"
    DRAINING = "draining"


class GroupHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host of a group. Warm ones are not shown: nothing may be placed there."""

    host_id: str
    """Empty while no instance was chosen yet."""
    offer: Offer | None
    state: HostState
    slots: int
    slots_used: int = 0
    idle_s: float = 0.0
    """For how long nothing has stood on it."""
    connected: bool = False
    created_s: float = 0.0
    ready_s: float | None = None
    survival: float = 1.0
    """Probability that it lasts the next hour."""
    deadline_s: float | None = None
    """When it goes away, or is emptied at the latest (UTC seconds)."""
    reason: str = ""
    """Why it is drained or noticed."""
    member_id: str = ""
    protection: Protection = Protection.NONE
    revision: int = 1
    stand_in: bool = False
    """On demand in the place of a spot host."""
    keep: str = ""
    """Why whoever placed containers there wants it left alone."""
