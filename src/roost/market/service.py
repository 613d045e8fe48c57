"""What doors and fleet ask of the market: the ranking, and why an offer ranks where it does. Never writes."""

from collections.abc import Sequence

import msgspec
import numpy as np

from roost.market.advisor import (
    Cost,
    Loss,
    RankContext,
    Ranked,
    cost,
    describe,
    differences,
    loss_of,
    spread,
    stability,
)
from roost.market.catalogue import Catalogue
from roost.market.decision import may_move_for_price, region_cap
from roost.market.live import Live, Told
from roost.market.survival import Survival, survival
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Offer

PREFIX = 256
"""How much of the order is looked at first; more only where the spread over regions needs it."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why an offer ranks where it does for an ask."""

    offer: Offer
    rank: int | None
    """Among all candidates, without spreading; None = a constraint excludes it."""
    candidates: int
    excluded_by: tuple[str, ...]
    """The constraints it does not meet."""
    cost: Cost
    loss: Loss
    usd_useful_hour: float
    survival_24h: Survival
    stability: str
    performance: float | None
    distance_km: float | None
    winner: Ranked | None
    """The best offer for the ask; None when nothing fits."""
    against_winner: dict[str, float]
    """What makes it dearer (positive) or cheaper than the winner, as shares, by term."""
    cheaper_types: int
    """Instance types of which some candidate costs less a useful hour."""
    may_leave_for_price: bool
    """Whether that many cheaper types permit a move for the price alone."""
    told: tuple[Told, ...] = ()
    """Facts newer than the shipped catalogue that it rests on; empty: it stands as shipped."""


class Market:
    """The market over one catalogue."""

    def __init__(
        self, catalogue: Catalogue, down_usd_hour: float | None = None, newer: Live | None = None
    ) -> None:
        """``down_usd_hour``: what an hour of being down costs (USD); 0 for work nobody waits for.

        ``newer``: the catalogue under the facts of a history, for their age.
        """
        self.catalogue = catalogue if newer is None else newer.catalogue
        self.newer = newer
        self._down_usd_hour = down_usd_hour

    def rank(self, ask: Ask, limit: int = 20, per_region: int | None = None) -> list[Ranked]:
        """The best ``limit`` offers, best first, spread over regions: what ``advisor.rank`` gives over all.

        Ordered as ``ask.allocation`` says: by what a useful hour costs unless it names another.

        ``per_region``: at most so many of a region while others are left. Raises ``Invalid`` saying which
        constraint leaves nothing.
        """
        if limit < 1:
            raise Invalid(f"limit={limit} shows nothing", hint="ask for at least 1")
        context = self.context(ask, limit)
        if per_region is not None:
            context = msgspec.structs.replace(context, per_region=per_region)
        columns, rows = self.catalogue.columns, self.catalogue.rows(ask)
        if not len(rows):
            raise self._nothing(ask)
        totals = columns.order(context, rows, ask)
        size = max(PREFIX, 4 * limit)
        while True:
            ordered, all_of_them = columns.best(totals, rows, size)
            chosen, full = spread(columns.groups(ordered), limit, context.per_region)
            if full or all_of_them:
                break
            size *= 16
        offers = [columns.offer(int(ordered[place])) for place in chosen]
        return describe(offers, float(columns.price[rows].min()), ask, context)

    def place(self, ask: Ask, replicas: int) -> list[Ranked]:
        """Where the replicas of a service go: the best offers, at most a third of them in one region."""
        return self.rank(ask, replicas, region_cap(replicas))

    def compare(self, offer_keys: Sequence[str], ask: Ask) -> list[Explanation]:
        """The same as ``why`` for several offers, cheapest a useful hour first."""
        explained = {key: self.why(key, ask) for key in offer_keys}
        return sorted(explained.values(), key=lambda e: (e.usd_useful_hour, e.offer.key))

    def why(self, offer_key: str, ask: Ask) -> Explanation:
        """Why an offer ranks where it does. Raises ``Invalid`` if there is no such offer."""
        offer = self.catalogue.resolve(offer_key)
        context = self.context(ask, 1)
        terms = cost(offer, context)
        excluded = self.catalogue.excluded_by(offer, ask)
        columns, rows = self.catalogue.columns, self.catalogue.rows(ask)
        totals = columns.totals(context, rows)
        own = int(columns.find(*offer.key.split("/"))[0])
        before = np.count_nonzero(totals < terms.total)
        before += np.count_nonzero((totals == terms.total) & (rows < own))
        cheaper = len(np.unique(columns.type[rows[totals < terms.total]]))
        try:
            winner = self.rank(ask, 1)[0]
        except Invalid:
            winner = None
        speed = context.speeds.get((offer.provider, offer.instance_type))
        lasts = survival(offer, 24.0, context.prior, context.hazards)
        return Explanation(
            offer=offer,
            rank=None if excluded else int(before) + 1,
            candidates=len(rows),
            excluded_by=excluded,
            cost=terms,
            loss=loss_of(offer, context),
            usd_useful_hour=terms.total,
            survival_24h=lasts,
            stability=stability(offer, lasts),
            performance=None if speed is None else speed.relative,
            distance_km=context.distances_km.get((offer.provider, offer.region)),
            winner=winner,
            against_winner={}
            if winner is None
            else differences(terms, cost(winner.offer, context)),
            cheaper_types=cheaper,
            may_leave_for_price=may_move_for_price(cheaper),
            told=() if self.newer is None else self.newer.told.get(offer.key, ()),
        )

    def odds(self, offers: Sequence[Offer], hours: float) -> list[float]:
        """The probability of each offer that an instance of it is not taken within ``hours``."""
        if not offers:
            return []
        prior, hazards = self.catalogue.prior, self.catalogue.hazards
        return [survival(o, hours, prior, hazards).p for o in offers]

    def context(self, ask: Ask, limit: int | None = None) -> RankContext:
        """What the advisor needs for this ask. Raises ``Invalid`` when ``near`` is no known place."""
        context = self.catalogue.context(ask, limit)
        if self._down_usd_hour is None:
            return context
        return msgspec.structs.replace(context, down_usd_hour=self._down_usd_hour)

    def _nothing(self, ask: Ask) -> Invalid:
        return Invalid(
            self.catalogue.explain_empty(ask),
            hint="loosen that constraint, or name other clouds, regions or types",
        )
