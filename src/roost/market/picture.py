"""What the picture of the market shows: each offer's price against its expected survival, and the frontier.

An offer is on the frontier when none is cheaper that lasts at least as long. Offers of unknown stability are
drawn with the interval of the prior and are never on the frontier: it is made of what somebody published or
observed. Pure.
"""

from collections.abc import Iterable, Sequence

import msgspec

from roost.market.advisor import RankContext
from roost.market.survival import survival
from roost.ports.values import Offer, PurchaseOption


class Dot(msgspec.Struct, frozen=True, kw_only=True):
    """One offer of the picture."""

    name: str
    provider: str
    usd_useful_hour: float
    """Price over performance."""
    survives: float
    """Expected, over the hours of the picture."""
    low: float
    high: float
    known: bool
    spot: bool = True
    frontier: bool = False


def dots(offers: Iterable[Offer], context: RankContext, hours: float) -> list[Dot]:
    """A dot an offer, cheapest first; of pools alike (type, region, price, band) the first by key.

    The price is that of a useful hour: price over performance (the lower quartile where not measured).
    """
    found: dict[tuple[object, ...], Dot] = {}
    for offer in sorted(offers, key=lambda o: o.key):
        speed = context.speeds.get((offer.provider, offer.instance_type))
        relative = context.unknown_speed if speed is None else speed.relative
        lasts = survival(offer, hours, context.prior, context.hazards)
        kind = (offer.provider, offer.region, offer.instance_type, offer.purchase_option)
        place = (*kind, offer.price_usd_hour, lasts.p)
        found.setdefault(
            place,
            Dot(
                name=f"{offer.instance_type}, {offer.region}",
                provider=offer.provider,
                usd_useful_hour=offer.price_usd_hour / relative,
                survives=lasts.p,
                low=lasts.low,
                high=lasts.high,
                known=lasts.known,
                spot=offer.purchase_option is PurchaseOption.SPOT,
            ),
        )
    return frontier(sorted(found.values(), key=lambda d: (d.usd_useful_hour, -d.survives, d.name)))


def frontier(cheapest_first: Sequence[Dot]) -> list[Dot]:
    """The same dots with those marked that no cheaper known one outlasts."""
    marked = []
    best = 0.0
    for dot in cheapest_first:
        ahead = dot.known and dot.survives > best
        best = max(best, dot.survives) if dot.known else best
        marked.append(msgspec.structs.replace(dot, frontier=True) if ahead else dot)
    return marked
