"""How long an offer lasts: what the clouds publish, on one scale. Pure; never reads a file or a clock.

The scale is losses per hour. AWS publishes the share of instances taken back in a month, Azure the share per
hour, GCP the share of a day's stops that were preemptions; each becomes the constant rate that gives that
share in that time, and keeps its source. Where nothing is published, the pooled prior of all known pools
stands in, with a wide interval: unknown is neither safe nor lost, and never a number of its own.
"""

from collections.abc import Mapping, Sequence
from math import exp, log, sqrt

import msgspec

from roost.ports.errors import Invalid
from roost.ports.values import Offer, PurchaseOption

HOURS_PER_MONTH = 730.0
OPEN_END = 0.95
"""Upper end of the open band ``>20%``: some pools lose nearly every instance within a month."""
HARDWARE_HAZARD = 5e-6
"""Losses per hour of any machine, on demand too: about 4 % of servers fail in a year."""
QUANTILE = 0.1
"""The prior's interval holds the pools between this share and its complement."""


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """A published band: monthly shares at its ends and the share that stands for it."""

    low: float
    mid: float
    high: float


BANDS: Mapping[str, Band] = {
    "<5%": Band(low=0.0, mid=0.025, high=0.05),
    "5-10%": Band(low=0.05, mid=0.075, high=0.10),
    "10-15%": Band(low=0.10, mid=0.125, high=0.15),
    "15-20%": Band(low=0.15, mid=0.175, high=0.20),
    # Open at the top: the geometric mean of its ends, as rates differ by factors there, not by steps.
    ">20%": Band(low=0.20, mid=sqrt(0.20 * OPEN_END), high=OPEN_END),
}
"""From the most to the least stable."""


SCALES: Mapping[str, float] = {"share_hour": 1.0, "share_day": 24.0, "share_month": HOURS_PER_MONTH}
"""Hours in which a published share is lost, by the name of its scale."""


def hazard(share: float, hours: float = HOURS_PER_MONTH) -> float:
    """Losses per hour that take ``share`` (0 to 1, at most ``OPEN_END`` counts) of instances in ``hours``.

    Never below that of the hardware.
    """
    return max(-log(1.0 - min(share, OPEN_END)) / hours, HARDWARE_HAZARD)


class Hazard(msgspec.Struct, frozen=True, kw_only=True):
    """Losses per hour: expected, and the ends of the interval; ``source`` says who published what."""

    expected: float
    low: float
    high: float
    source: str = ""


def on_one_scale(low: float, high: float, scale: str, prior: Hazard, source: str = "") -> Hazard:
    """The hazard of a published band with the shares ``low`` to ``high`` (0 to 1) in ``scale``.

    The middle of the band stands for it: of an open one (up to 1) the geometric, as rates differ by factors
    there. A band around the whole prior (Azure's lowest, 0 to 5 % an *hour*, holds every band of AWS) says
    no more than that: the prior's expectation stays, the band is the interval. Raises ``Invalid``.
    """
    hours = SCALES.get(scale)
    if hours is None:
        raise Invalid(
            f"{scale} is no scale of interruptions", hint=f"scales are {', '.join(SCALES)}"
        )
    if not 0.0 <= low <= high <= 1.0:
        raise Invalid(f"an interruption band from {low} to {high} is no share", hint="0 to 1")
    ends = hazard(low, hours), hazard(high, hours)
    if ends[0] <= prior.low and prior.high <= ends[1] and low < high:
        middle = prior.expected
    elif high >= OPEN_END and low > 0.0:
        middle = hazard(sqrt(low * OPEN_END), hours)
    else:
        middle = hazard((low + high) / 2.0, hours)
    return Hazard(expected=middle, low=ends[0], high=ends[1], source=source)


def from_preemptions(shares: Sequence[float], prior: Hazard, source: str = "") -> Hazard | None:
    """The hazard of GCP's daily preempted shares (``capacityHistory``); None without a day.

    They are shares of the machines that *stopped* that day, so an upper estimate: those that ran on are not
    counted. The interval therefore reaches down to the prior's lower end.
    """
    if not shares:
        return None
    expected = hazard(sum(shares) / len(shares), 24.0)
    low = min(prior.low, expected)
    return Hazard(expected=expected, low=low, high=hazard(max(shares), 24.0), source=source)


class Survival(msgspec.Struct, frozen=True, kw_only=True):
    """Probability that an instance lasts, with its interval; ``known`` is False for the pooled prior."""

    p: float
    low: float
    high: float
    known: bool


ON_DEMAND = Hazard(
    expected=HARDWARE_HAZARD,
    low=HARDWARE_HAZARD,
    high=HARDWARE_HAZARD,
    source="not interruptible; hardware fails",
)
PUBLISHED: Mapping[str, Hazard] = {
    name: Hazard(
        expected=hazard(band.mid),
        low=hazard(band.low),
        high=hazard(band.high),
        source=f"AWS Spot Advisor: {name} a month",
    )
    for name, band in BANDS.items()
}


NOTHING: Mapping[str, Hazard] = {}


def pooled(counts: Mapping[str, int]) -> Hazard:
    """The prior for unknown pools: the mean over the known ones, and where the middle 80 % of them lie.

    ``counts`` is the number of known pools per band. Without any, the whole range of the bands is the prior.
    """
    known = {name: counts.get(name, 0) for name in BANDS}
    total = sum(known.values())
    source = f"unknown: prior of {total:,} pools that are known"
    if total == 0:
        known, total = dict.fromkeys(BANDS, 1), len(BANDS)
    expected = sum(PUBLISHED[name].expected * count for name, count in known.items()) / total
    low = high = PUBLISHED["<5%"].low
    passed = 0
    for name, count in known.items():
        if passed <= QUANTILE * total:
            low = PUBLISHED[name].low
        if passed < (1.0 - QUANTILE) * total:
            high = PUBLISHED[name].high
        passed += count
    return Hazard(expected=expected, low=low, high=max(high, expected), source=source)


def hazard_of(
    offer: Offer, prior: Hazard, live: Mapping[str, Hazard] = NOTHING
) -> tuple[Hazard, bool]:
    """The hazard of an offer and whether it is known (else it is ``prior``).

    ``live``: newer than what the offer carries, by offer key.
    """
    if offer.purchase_option is not PurchaseOption.SPOT:
        return ON_DEMAND, True
    newer = live.get(offer.key) if live else None
    if newer is not None:
        return newer, True
    published = PUBLISHED.get(offer.interruption_bucket or "")
    return (prior, False) if published is None else (published, True)


def survival(
    offer: Offer, hours: float, prior: Hazard, live: Mapping[str, Hazard] = NOTHING
) -> Survival:
    """Probability that an instance of ``offer`` is not taken back within ``hours``."""
    rate, known = hazard_of(offer, prior, live)
    return Survival(
        p=exp(-rate.expected * hours),
        low=exp(-rate.high * hours),
        high=exp(-rate.low * hours),
        known=known,
    )
