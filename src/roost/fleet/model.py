"""The words of fleet: claims, instances, pools. Pure values; never does I/O.

A *claim* is durable intent: "owner needs one host like this". It is satisfied once: when its instance
was ready and then went away, or the only pool it is for did not give one, the claim is ``spent`` and
the owner decides what it needs now.
An *instance* is one launch for a claim. It is billed by its spans.
"""

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum

import msgspec

from roost.ports.store import DEFAULT_TENANT
from roost.ports.values import Ask, HostReport, Image, Notice, NoticeKind, Offer


class InstanceState(StrEnum):
    """Where an instance is in its life; ``machine.TRANSITIONS`` says what may follow what."""

    PLANNED = "planned"
    REQUESTED = "requested"
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    TERMINATED = "terminated"
    FAILED = "failed"
    LOST = "lost"


ENDED = frozenset({InstanceState.TERMINATED, InstanceState.FAILED, InstanceState.LOST})


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One charged interval, UTC seconds, at the price of that moment."""

    started_s: float
    ended_s: float | None
    price_usd_hour: float
    on_demand_usd_hour: float


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A leased machine, from launch to termination. Its id is also its host's id."""

    id: str
    state: InstanceState
    parent: str
    """The claim it was launched for."""
    owner: str
    """Who claimed it (a session id)."""
    role: str
    """``active`` or ``standby``: what it was launched as."""
    offer: Offer
    image: Image
    launch_token: str
    provider_id: str = ""
    reason: str = ""
    """Why this offer was chosen."""
    created_s: float = 0.0
    ready_s: float | None = None
    ended_s: float | None = None
    ended_reason: str = ""
    ended_code: str = ""
    """The cloud's own code of a refusal, as far as it gave one."""
    notice: Notice | None = None
    spans: tuple[Span, ...] = ()
    tenant: str = DEFAULT_TENANT

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left."""
        return self.state in ENDED


class ClaimState(StrEnum):
    """wanted -> held -> spent; released at any time -> ended once its instance is gone."""

    WANTED = "wanted"
    HELD = "held"
    SPENT = "spent"
    RELEASED = "released"
    ENDED = "ended"


class Spread(StrEnum):
    """How far from the owner's other hosts a new one must be."""

    POOL = "pool"
    REGION = "region"
    PROVIDER = "provider"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Durable intent: ``parent`` (the owner) needs one host that satisfies ``ask``."""

    id: str
    state: ClaimState
    parent: str
    role: str
    ask: Ask
    image: Image
    away_from: tuple[Offer, ...] = ()
    """Offers it must be apart from, as far as ``spread`` says."""
    spread: Spread = Spread.POOL
    instance_id: str = ""
    created_s: float = 0.0
    message: str = ""
    """What a person should know: why nothing could be launched."""
    prefer: str = ""
    """The offer key its owner wants, while that pool gives it."""
    only: bool = False
    """No other than that: when the pool does not give it the claim is spent."""
    paused: bool = False
    """Its host shall be stopped; nothing is billed then but its disk."""
    tenant: str = DEFAULT_TENANT


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A pool (offer key) that refused or interrupted: avoided until ``avoid_until_s``."""

    id: str
    avoid_until_s: float
    reason: str
    tenant: str = DEFAULT_TENANT


class RankedOffer(msgspec.Struct, frozen=True, kw_only=True):
    """An offer in rank order with the reason for its rank."""

    offer: Offer
    reason: str
    usd_useful_hour: float = 0.0
    """Its rate; 0 where whoever ranked did not say."""
    usd_undisturbed_hour: float = 0.0
    """The rate without what losses cost."""


Odds = Callable[[Sequence[Offer], float], Awaitable[Sequence[float]]]
"""The probability of each offer that an instance of it lasts so many hours."""
Rank = Callable[[Ask], Awaitable[Sequence[RankedOffer]]]
"""Ranks offers for an ask, best first; raises ``Invalid`` saying which constraint leaves nothing."""


class Better(msgspec.Struct, frozen=True, kw_only=True):
    """A place that is worth leaving another for."""

    offer: str
    """Its key."""
    why: str


Advise = Callable[[Offer, Ask], Awaitable[Better | None]]
"""Whether to leave an offer that is held, for which that satisfies the ask; None = stay."""


class ClaimView(msgspec.Struct, frozen=True, kw_only=True):
    """A claim, its newest instance and what its host reports now."""

    claim: Claim
    instance: Instance | None = None
    report: HostReport | None = None
    connected: bool = False

    @property
    def leaving(self) -> bool:
        """The host will go away. A rebalance recommendation alone does not say so."""
        notice = self.instance.notice if self.instance is not None else None
        return notice is not None and notice.kind is not NoticeKind.REBALANCE

    @property
    def usable(self) -> bool:
        """A host that can take a kernel now: ready, connected and not going away."""
        return (
            self.instance is not None
            and self.instance.state is InstanceState.READY
            and not self.leaving
            and self.connected
            and self.report is not None
            and self.report.ready
        )

    @property
    def gone(self) -> bool:
        """The claim will never have a host (again)."""
        return self.claim.state in (ClaimState.SPENT, ClaimState.RELEASED, ClaimState.ENDED)
