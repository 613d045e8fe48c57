"""Which pools new hosts come from: by tier, apart, then by rank, no pool or region beyond its share. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil

from roost.fleet.groups.model import GroupSpec
from roost.fleet.model import RankedOffer
from roost.fleet.plan import place_of
from roost.market import decision
from roost.ports.values import Allocation, Offer

IN_ORDER = (Allocation.LOWEST_PRICE, Allocation.PRIORITIZED)
"""Who asks for these wants the first that has room."""


def allocate(
    spec: GroupSpec, ranked: Sequence[RankedOffer], held: Sequence[Offer], count: int
) -> list[RankedOffer]:
    """``count`` offers for new hosts, the first first; fewer where the tiers' bounds leave no more.

    ``ranked``: best first, in the order of the group's allocation strategy. ``held``: the offers of the hosts
    it has. Shares are of all hosts, the new ones with them; a share gives way before a host is missing, the
    bound of a tier does not. Of pools that cost about the same each gets as many (``decision.apart``), unless
    the strategy is an order of its own.
    """
    total = len(held) + count
    pools = Counter(offer.key for offer in held)
    places = Counter(place_of(offer) for offer in held)
    clouds = Counter(offer.provider for offer in held)
    most_pool = max(1, ceil(total * spec.pool_share - 1e-9))
    most_place = max(1, ceil(total * spec.region_share - 1e-9))
    ordered = sorted(enumerate(ranked), key=lambda item: (_tier(spec, item[1].offer), item[0]))
    chosen: list[RankedOffer] = []
    for _ in range(count):
        open_ = [r for _, r in ordered if _room(spec, r.offer, clouds)]
        if not open_:
            break
        under = [
            r
            for r in open_
            if pools[r.offer.key] < most_pool and places[place_of(r.offer)] < most_place
        ]
        # All are at their share: the one that has the fewest, the better of equals.
        best = _next(spec, under, pools) or min(
            open_, key=lambda r: (_tier(spec, r.offer), pools[r.offer.key])
        )
        chosen.append(best)
        pools[best.offer.key] += 1
        places[place_of(best.offer)] += 1
        clouds[best.offer.provider] += 1
    return chosen


def _next(
    spec: GroupSpec, under: Sequence[RankedOffer], pools: Mapping[str, int]
) -> RankedOffer | None:
    """The one of the first tier that has any; ``under``: by tier, then best first."""
    mine = [r for r in under if _tier(spec, r.offer) == _tier(spec, under[0].offer)]
    if spec.allocation in IN_ORDER or len(mine) < 2:
        return next(iter(mine), None)
    best = decision.apart(
        {r.offer.key: float(rank) for rank, r in enumerate(mine)},
        {r.offer.key: r.usd_undisturbed_hour for r in mine},
        pools,
    )
    return next(r for r in mine if r.offer.key == best)


def full_clouds(spec: GroupSpec, held: Sequence[Offer]) -> tuple[str, ...]:
    """The clouds of tiers that have as many hosts as they may."""
    clouds = Counter(offer.provider for offer in held)
    return tuple(
        cloud
        for tier in spec.tiers
        if tier.most is not None and sum(clouds[c] for c in tier.clouds) >= tier.most
        for cloud in tier.clouds
    )


def _tier(spec: GroupSpec, offer: Offer) -> int:
    for number, tier in enumerate(spec.tiers):
        if offer.provider in tier.clouds:
            return number
    return len(spec.tiers)


def _room(spec: GroupSpec, offer: Offer, clouds: Counter[str]) -> bool:
    for tier in spec.tiers:
        if offer.provider in tier.clouds:
            return tier.most is None or sum(clouds[c] for c in tier.clouds) < tier.most
    return not spec.tiers
