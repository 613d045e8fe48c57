"""How long an offer lasts, from the published interruption band. Pure; never reads a file or a clock.

A band is the share of instances taken back in a month; the hazard per hour is the constant rate that gives
that share. Where nothing is published, the pooled prior of all known pools stands in, with a wide interval:
unknown is neither safe nor lost.
"""

from collections.abc import Mapping
from math import exp, log, sqrt

import msgspec

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


def hazard(monthly_share: float) -> float:
    """Losses per hour that take this share of instances in a month; never below that of the hardware."""
    return max(-log(1.0 - monthly_share) / HOURS_PER_MONTH, HARDWARE_HAZARD)


class Hazard(msgspec.Struct, frozen=True, kw_only=True):
    """Losses per hour: expected, and the ends of the interval."""

    expected: float
    low: float
    high: float


class Survival(msgspec.Struct, frozen=True, kw_only=True):
    """Probability that an instance lasts, with its interval; ``known`` is False for the pooled prior."""

    p: float
    low: float
    high: float
    known: bool


ON_DEMAND = Hazard(expected=HARDWARE_HAZARD, low=HARDWARE_HAZARD, high=HARDWARE_HAZARD)
PUBLISHED: Mapping[str, Hazard] = {
    name: Hazard(expected=hazard(band.mid), low=hazard(band.low), high=hazard(band.high))
    for name, band in BANDS.items()
}


def pooled(counts: Mapping[str, int]) -> Hazard:
    """The prior for unknown pools: the mean over the known ones, and where the middle 80 % of them lie.

    ``counts`` is the number of known pools per band. Without any, the whole range of the bands is the prior.
    """
    known = {name: counts.get(name, 0) for name in BANDS}
    total = sum(known.values())
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
    return Hazard(expected=expected, low=low, high=max(high, expected))


def hazard_of(offer: Offer, prior: Hazard) -> tuple[Hazard, bool]:
    """The hazard of an offer and whether it is known (else it is ``prior``)."""
    if offer.purchase_option is not PurchaseOption.SPOT:
        return ON_DEMAND, True
    published = PUBLISHED.get(offer.interruption_bucket or "")
    return (prior, False) if published is None else (published, True)


def survival(offer: Offer, hours: float, prior: Hazard) -> Survival:
    """Probability that an instance of ``offer`` is not taken back within ``hours``."""
    rate, known = hazard_of(offer, prior)
    return Survival(
        p=exp(-rate.expected * hours),
        low=exp(-rate.high * hours),
        high=exp(-rate.low * hours),
        known=known,
    )
