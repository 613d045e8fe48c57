"""The values of placement: what a container asks for, what a host is, what was chosen and why.

Nothing here knows a service's rows, a clock or a network. Names are the caller's: a container's id is the
replica's, a host's id is the fleet's.
"""

import math
from enum import StrEnum

import msgspec

from roost.ports.errors import Invalid

TINY = 1e-9
"""Shares are sums of floats: so much may be missing."""


class By(StrEnum):
    """The domains over which replicas are spread, or in which they stay together or apart."""

    HOST = "host"
    ZONE = "zone"
    REGION = "region"
    POOL = "pool"
    PROVIDER = "provider"
    GROUP = "group"


DOMAINS = (By.ZONE, By.REGION, By.POOL, By.PROVIDER, By.GROUP)
"""All but the host itself: a column of codes each."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """At most ``share`` of a service's replicas, and at most ``most``, in one domain."""

    by: By
    share: float = 1.0
    most: int = 0
    """0 = no bound beside the share."""
    strict: bool = True
    """False: broken, and said, where nothing else fits."""

    def cap(self, wanted: int) -> int:
        """How many of ``wanted`` replicas one domain may have; one always."""
        cap = max(1, math.ceil(self.share * wanted - TINY))
        return min(cap, self.most) if self.most else cap


class Affinity(msgspec.Struct, frozen=True, kw_only=True):
    """In the same domain as a replica of ``service``, or (``apart``) in none that has one."""

    service: str
    by: By = By.HOST
    apart: bool = False
    strict: bool = True


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One container to place. Replicas that are alike share one value: they are placed together faster."""

    service: str
    vcpus: float = 0.0
    memory_mib: float = 0.0
    gpus: float = 0.0
    """A whole number of devices, or a share below 1 of one device."""
    extra: tuple[tuple[str, float], ...] = ()
    """Further resources by name, as ``Hosts`` was told to count them."""
    wanted: int = 1
    """Replicas the service shall have in all: the shares of ``spread`` are of this."""
    peers: str = ""
    """Whose replicas ``spread`` counts (a revision); empty = the service's."""
    spread: tuple[Spread, ...] = ()
    affinity: tuple[Affinity, ...] = ()
    groups: tuple[str, ...] = ()
    """Only hosts of these; empty = any. The same for the next three."""
    regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """The host has all of these."""
    min_survival: float = 0.0
    """The host lasts the next hour at least with this probability."""
    max_wait_s: float = math.inf
    """The host is ready in at most this time."""
    loss: float = 0.5
    """What its loss costs: 0 = stateless or short, 1 = slow to build again."""

    @property
    def counted_as(self) -> str:
        """The name under which ``spread`` counts it."""
        return self.peers or self.service


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A host as placement sees it."""

    id: str
    vcpus: float = math.inf
    memory_mib: float = math.inf
    gpus: int = 0
    slots: float = math.inf
    """Containers it may have."""
    extra: tuple[tuple[str, float], ...] = ()
    provider: str = ""
    region: str = ""
    zone: str = ""
    pool: str = ""
    """The offer it was bought from: what is taken together."""
    group: str = ""
    labels: tuple[str, ...] = ()
    takes: bool = True
    """False: draining, under notice or not connected."""
    why_not: str = ""
    """Why it takes nothing."""
    ready_in_s: float = 0.0
    """Still booting for about so long."""
    survival: float = 1.0
    """Probability that it lasts the next hour."""
    launched_s: float = -math.inf
    """When it was launched, in the time of ``consolidate``."""
    price_usd_hour: float = 1.0
    """Where no price is known all cost the same; 0 = it costs nothing to keep."""
    protected: bool = False
    """Do not disrupt: never emptied to save."""

    def domain(self, by: By) -> str:
        """The name of its domain of this kind."""
        return self.id if by is By.HOST else str(getattr(self, by.value))


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """What a host that fits costs, in shares of a host; the smallest sum wins, then the earliest host."""

    pack: float = 1.0
    """Per share of the host left free: the fullest first."""
    risk: float = 1.0
    """Per probability of losing the host within the hour, times ``Ask.loss``."""
    spare: float = 0.1
    """Per probability of keeping it, times (1 - loss): lasting hosts are left to those that need them."""
    wait: float = 0.5
    """Per minute until the host is ready (at most ten)."""
    gpu: float = 0.5
    """For a container without GPUs on a host that has some."""
    safe: float = 0.97
    """A host that lasts the hour with this probability may carry a service's only replica."""


class Choice(msgspec.Struct, frozen=True):
    """Where one container goes; ``host`` is None where nothing fits, and ``why`` says what was in the way."""

    host: str | None
    index: int = -1
    container: str = ""
    why: str = ""
    relaxed: tuple[str, ...] = ()
    """Wishes (not strict) that were given up."""
    left: float = 0.0
    """Share of the host free after it."""
    ready_in_s: float = 0.0
    survival: float = 1.0

    @property
    def reason(self) -> str:
        """In one line for a person."""
        if self.host is None:
            return self.why
        parts = [f"{self.left:.0%} of {self.host} left free"]
        parts.append(f"ready in {self.ready_in_s:.0f} s" if self.ready_in_s else "ready")
        if self.survival < 1.0:
            parts.append(f"lasts the hour with {self.survival:.3f}")
        parts += [f"gave up: {wish}" for wish in self.relaxed]
        return ", ".join(parts)


def check(ask: Ask) -> None:
    """Refuse what no host could ever mean."""
    amounts = {
        "vcpus": ask.vcpus,
        "memory_mib": ask.memory_mib,
        "gpus": ask.gpus,
        **dict(ask.extra),
    }
    for name, amount in amounts.items():
        if not (0.0 <= amount < math.inf):
            raise Invalid(f"{ask.service} asks for {amount} {name}", hint="give a number from 0 on")
    if ask.gpus > 1.0 and ask.gpus != int(ask.gpus):
        raise Invalid(
            f"{ask.service} asks for {ask.gpus} GPUs",
            hint="a share of one GPU is below 1; above, ask for whole ones",
        )
    for rule in ask.spread:
        if not 0.0 < rule.share <= 1.0 or rule.most < 0:
            raise Invalid(
                f"{ask.service} spreads by {rule.by} with share {rule.share}, most {rule.most}",
                hint="the share is above 0 and at most 1; most is 0 (no bound) or a count",
            )
    if ask.wanted < 1:
        raise Invalid(
            f"{ask.service} wants {ask.wanted} replicas", hint="wanted counts this one too"
        )
    for wish in ask.affinity:
        twins = (wish.service, wish.by, not wish.apart)
        if any((o.service, o.by, o.apart) == twins for o in ask.affinity):
            raise Invalid(
                f"{ask.service} shall be both with and apart from {wish.service} by {wish.by}",
                hint="drop one of the two affinities",
            )
