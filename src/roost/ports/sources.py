"""Where facts about the market come from: the port of one source, and the facts it may tell.

A source reads one place (a vendor's price list, an archive); it never stores, never ranks and never decides
when it is asked again. Every fact says who told it (``source``) and when it was true (``observed_at``).
"""

from typing import ClassVar, Protocol

import msgspec


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """What every fact carries. ``KIND`` names its table in the history, ``KEY`` its series in that table."""

    KIND: ClassVar[str] = ""
    KEY: ClassVar[tuple[str, ...]] = ()

    source: str
    """The name of the ``PriceSource`` or importer that told it."""
    observed_at: float
    """UTC seconds: when the vendor says it was so (a price change), else when it was read."""


class PoolFact(Fact, frozen=True, kw_only=True):
    """A fact about an instance type in a place."""

    provider: str
    """``aws``, ``azure``, ``gcp``."""
    region: str
    zone: str = ""
    """AWS: the zone id (``use1-az4``) where told, else the account's zone name; empty = the region."""
    instance_type: str


class OfferPrice(PoolFact, frozen=True, kw_only=True):
    """What an hour of a Linux machine with shared tenancy costs. ``usd_hour`` None: no longer offered."""

    KIND = "offer_price"
    KEY = ("provider", "region", "zone", "instance_type", "option")

    option: str
    """``on_demand`` or ``spot``."""
    usd_hour: float | None


class InterruptionBand(PoolFact, frozen=True, kw_only=True):
    """How often a pool is interrupted, as a band in one of the clouds' own scales."""

    KIND = "interruption_band"
    KEY = ("provider", "region", "zone", "instance_type", "scale")

    scale: str
    """``share_month``: share interrupted in the trailing month (AWS); ``share_hour``: per hour (Azure)."""
    label: str
    """As published: ``5-10%``."""
    low: float
    """Shares, 0 to 1."""
    high: float
    savings: float | None = None
    """Discount to on demand told beside it, 0 to 1."""


class PlacementScore(PoolFact, frozen=True, kw_only=True):
    """How likely a request for ``capacity`` machines succeeds now, in the vendor's own scale.

    ``instance_type`` holds all types of the request, joined with commas, where the score is of a set.
    """

    KIND = "placement_score"
    KEY = ("provider", "region", "zone", "instance_type", "scale", "capacity")

    scale: str
    """``aws_1_10``, ``spotlake_1_3``, ``spotlake_t3`` (largest capacity that scored 3), ``azure_1_3``."""
    score: float | None
    """None: the vendor names no score; ``label`` says why."""
    label: str = ""
    capacity: int = 1


class PreemptionRate(PoolFact, frozen=True, kw_only=True):
    """Share of the machines stopped in an interval that the vendor preempted (GCP ``capacityHistory``)."""

    KIND = "preemption_rate"
    KEY = ("provider", "region", "zone", "instance_type")

    rate: float
    """0 to 1. ``observed_at`` is the end of the interval."""
    interval_s: float


class PerformanceScore(Fact, frozen=True, kw_only=True):
    """What an instance type reached in a benchmark; higher is better unless the benchmark says otherwise."""

    KIND = "performance_score"
    KEY = ("provider", "instance_type", "benchmark")

    provider: str
    instance_type: str
    benchmark: str
    """The benchmark's id and its configuration."""
    score: float


class CapacityAdvice(PoolFact, frozen=True, kw_only=True):
    """How obtainable ``count`` machines are and how long they should last (GCP ``advice.capacity``)."""

    KIND = "capacity_advice"
    KEY = ("provider", "region", "zone", "instance_type", "count")

    count: int
    obtainability: float
    """0 to 1."""
    estimated_uptime_s: float | None


class SavingsRate(PoolFact, frozen=True, kw_only=True):
    """The hourly rate under a commitment, upfront payments spread over its term."""

    KIND = "savings_rate"
    KEY = ("provider", "region", "instance_type", "plan", "term_years", "payment")

    plan: str
    """``reserved_standard``, ``reserved_convertible``, ``savings_plan``, ``commitment``."""
    term_years: int
    payment: str
    """``no_upfront``, ``partial_upfront``, ``all_upfront``, ``monthly``."""
    usd_hour: float
    upfront_usd: float = 0.0
    """Part of it due at the start; already counted in ``usd_hour``."""


class Availability(PoolFact, frozen=True, kw_only=True):
    """How many machines a pool could run at a moment; 0 = none."""

    KIND = "availability"
    KEY = ("provider", "region", "zone", "instance_type", "series")

    series: str
    """The recording it belongs to."""
    capacity: int
    interval_s: float
    """Seconds to the next sample of the series."""
    usd_hour: float | None = None


class Lifetime(PoolFact, frozen=True, kw_only=True):
    """The life of one machine. ``observed_at`` is its start; ``preempted`` False: its user stopped it."""

    KIND = "lifetime"
    KEY = ("provider", "region", "zone", "instance_type", "name")

    name: str
    lifetime_s: float
    preempted: bool
    idle: bool | None = None


class NodeEvent(Fact, frozen=True, kw_only=True):
    """A machine joined (+1) or left (-1) a spot group."""

    KIND = "node_event"
    KEY = ("provider", "cluster", "node", "delta")

    provider: str
    cluster: str
    node: str
    delta: int


FACTS: dict[str, type[Fact]] = {
    kind.KIND: kind
    for kind in (
        OfferPrice,
        InterruptionBand,
        PlacementScore,
        PreemptionRate,
        PerformanceScore,
        CapacityAdvice,
        SavingsRate,
        Availability,
        Lifetime,
        NodeEvent,
    )
}
"""Every kind of fact by its name."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What one ``fetch`` brought."""

    records: tuple[Fact, ...] = ()
    cursor: str = ""
    """Where the next ``fetch`` goes on; opaque, to be kept only after ``records`` are stored."""
    done: bool = True
    """No further page is there now: wait ``cadence_s`` before the next ``fetch``."""
    progress: str = ""
    """Where the source is, for a person: ``us-east-1, 3 of 30 regions``."""
    skipped: dict[str, int] = {}
    """What the source left out on purpose or could not read, and how often: ``{"no price": 12}``."""
    failed: tuple[str, ...] = ()
    """Parts that could not be read while others could (``eu-west-1: access denied``)."""


class PriceSource(Protocol):
    """One source of facts.

    ``fetch`` raises ``Retry`` (throttled, out of reach; ``after_s`` says when), ``Denied`` (credentials
    missing or refused; the hint says which), ``Invalid`` (wrong settings), ``Never`` (a body that is not what
    the vendor documents). After an error the same cursor may be used again: nothing of the failed page was
    handed out.
    """

    @property
    def name(self) -> str:
        """Stable: the ``source`` of its facts and a folder of the history. Lower case, digits, dashes."""

    @property
    def licence(self) -> str:
        """The terms of the data, for a person."""

    @property
    def consent(self) -> bool:
        """The licence restricts use: the person must have accepted it before anything is fetched."""

    @property
    def needs(self) -> str:
        """Credentials it needs, for a person; empty = none."""

    @property
    def cadence_s(self) -> float:
        """Seconds between complete reads that are worth the vendor's limits."""

    async def fetch(self, cursor: str) -> Page:
        """The next page from ``cursor`` (empty: from the start)."""

    async def close(self) -> None:
        """Free connections."""
