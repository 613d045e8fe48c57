"""What doors and fleet ask of the market: the ranking, and why an offer ranks where it does. Never writes."""

from math import inf

import msgspec

from roost.market.advisor import (
    Cost,
    RankContext,
    Ranked,
    cost,
    differences,
    rank,
    stability,
)
from roost.market.catalogue import Catalogue
from roost.market.survival import Survival, survival
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Offer

SHORTLIST = 5_000
"""Offers weighed one by one in the first round; more only where these could not settle the order."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why an offer ranks where it does for an ask."""

    offer: Offer
    rank: int | None
    """Among all candidates, without spreading; None = a constraint excludes it."""
    candidates: int
    excluded_by: tuple[str, ...]
    """The constraints it does not meet."""
    cost: Cost
    usd_useful_hour: float
    survival_24h: Survival
    stability: str
    performance: float | None
    distance_km: float | None
    winner: Ranked | None
    """The best offer for the ask; None when nothing fits."""
    against_winner: dict[str, float]
    """What makes it dearer (positive) or cheaper than the winner, as shares, by term."""


class Market:
    """The market over one catalogue."""

    def __init__(self, catalogue: Catalogue, person_usd_hour: float | None = None) -> None:
        """``person_usd_hour``: what an hour of the waiting person costs (USD); 0 for unattended work."""
        self.catalogue = catalogue
        self._person_usd_hour = person_usd_hour

    def rank(self, ask: Ask, limit: int = 20) -> list[Ranked]:
        """The best ``limit`` offers, best first, spread over regions.

        Raises ``Invalid`` saying which constraint leaves nothing.
        """
        if limit < 1:
            raise Invalid(f"limit={limit} shows nothing", hint="ask for at least 1")
        context = self._context(ask, limit)
        size = SHORTLIST
        while True:
            offers, bound = self.catalogue.shortlist(ask, context, size)
            ranked = rank(offers, ask, context)
            if not ranked:
                raise self._nothing(ask)
            # Exact once nothing that was cut could stand before the last one shown.
            full = len(ranked) == limit
            if bound == inf or (full and ranked[-1].usd_useful_hour <= bound):
                return ranked
            size *= 4

    def why(self, offer_key: str, ask: Ask) -> Explanation:
        """Why an offer ranks where it does. Raises ``Invalid`` if there is no such offer."""
        offer = self.catalogue.resolve(offer_key)
        context = self._context(ask, 1)
        terms = cost(offer, context)
        excluded = self.catalogue.excluded_by(offer, ask)
        rivals = self.catalogue.below(ask, context, terms.total)
        before = sum(_order(rival, context) < _order(offer, context) for rival in rivals)
        try:
            winner = self.rank(ask, 1)[0]
        except Invalid:
            winner = None
        speed = context.speeds.get((offer.provider, offer.instance_type))
        lasts = survival(offer, 24.0, context.prior)
        return Explanation(
            offer=offer,
            rank=None if excluded else before + 1,
            candidates=self.catalogue.count(ask),
            excluded_by=excluded,
            cost=terms,
            usd_useful_hour=terms.total,
            survival_24h=lasts,
            stability=stability(offer, lasts),
            performance=None if speed is None else speed.relative,
            distance_km=context.distances_km.get((offer.provider, offer.region)),
            winner=winner,
            against_winner={}
            if winner is None
            else differences(terms, cost(winner.offer, context)),
        )

    def _context(self, ask: Ask, limit: int) -> RankContext:
        context = self.catalogue.context(ask, limit)
        if self._person_usd_hour is None:
            return context
        return msgspec.structs.replace(context, person_usd_hour=self._person_usd_hour)

    def _nothing(self, ask: Ask) -> Invalid:
        return Invalid(
            self.catalogue.explain_empty(ask),
            hint="loosen that constraint, or name other clouds, regions or types",
        )


def _order(offer: Offer, context: RankContext) -> tuple[float, str]:
    return cost(offer, context).total, offer.key
