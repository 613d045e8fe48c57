"""Ranks offers by expected cost per useful hour and says why. Pure; never reads a file, a clock or a network.

    rate = counted price x (1 + distance) / performance + losses per hour x cost of a loss
    cost of a loss = what an hour of being down costs x max(frozen, launch + move - notice)

- counted price: the price, but never below ``PRICE_FLOOR`` of on-demand. This is the guard against walking
  down the ladder: the last rungs of ever cheaper, ever less sought-after pools earn nothing.
- performance: measured, relative to the median type; unmeasured types get the lower quartile.
- distance: ``PER_KM`` for every kilometre to the place asked for.
- losses: the hazard of ``survival``, one scale for all clouds. On-demand is the pool that only its hardware
  takes away. An hour down costs what the waiting person's does: machines are cheap beside people, so this is
  the term by which stability counts, and by which a notice longer than launch and move is worth its money.

The formula itself is ``decision.rate``. Spread is the second guard: a short list holds few pools of a region,
each type once, while others are left.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

import msgspec

from roost.market import decision
from roost.market.survival import Hazard, Survival, hazard_of, survival
from roost.ports.values import Ask, Offer, PurchaseOption

PRICE_FLOOR = 0.15
"""A spot price counts as at least this share of on-demand."""
PER_KM = 1e-4
"""10 % per 1,000 km, roughly 20 ms of round trip."""
UNKNOWN_BOOT_S = 240.0
"""Create call to running container where a cloud's boot times were not measured."""
CLEARLY = 0.02
"""Differences below 2 % are not worth a word."""


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a type is; 1.0 is the median type."""

    relative: float
    burstable: bool = False
    """``relative`` already counts only the share of the vCPU that may be used for ever."""


class RankContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranking needs to know besides the offers and the ask."""

    prior: Hazard
    """For pools without a published band."""
    speeds: Mapping[tuple[str, str], Speed] = {}
    """By (provider, instance type); absent = not measured."""
    unknown_speed: float = 0.75
    distances_km: Mapping[tuple[str, str], float] = {}
    """By (provider, region), to the place asked for; empty = distance does not count."""
    boot_s: Mapping[str, float] = {}
    """Launch: seconds from the create call to a running container, by provider."""
    move_s: float = 3.0
    """Seconds to bring the state over once both machines run."""
    freeze_s: float = 3.0
    """Seconds the work stands still for the copy, however long the notice."""
    down_usd_hour: float = 50.0
    """What an hour of being down costs; 0 for work nobody waits for."""
    hazards: Mapping[str, Hazard] = {}
    """Newer than the published bands, by offer key."""
    per_region: int = 2
    limit: int | None = None
    """How many to return; None = all, without spreading."""


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What stands behind the losses of an offer: how often, how long down, at what cost."""

    hazard: Hazard
    known: bool
    launch_s: float
    move_s: float
    notice_s: float
    freeze_s: float
    down_s: float
    """max(freeze, launch + move - notice)."""
    down_usd_hour: float
    usd: float
    """One loss."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the cost per useful hour, in USD; they add up to ``total``."""

    price: float
    floor: float
    """Added where the price is below the floor."""
    speed: float
    """Added by a slow machine, negative for a fast one."""
    distance: float
    losses: float
    total: float
    """USD per useful hour: ``decision.rate``."""


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """An offer in its rank, with everything a person needs to judge it."""

    rank: int
    offer: Offer
    usd_useful_hour: float
    usd_undisturbed_hour: float
    """Without what losses cost."""
    survival_24h: Survival
    survival_known: bool
    performance: float | None
    """Relative to the median type; None = not measured."""
    distance_km: float | None
    reason: str


def loss_of(offer: Offer, context: RankContext) -> Loss:
    """How often an offer is lost and what one loss costs, factor by factor."""
    rate, known = hazard_of(offer, context.prior, context.hazards)
    launch_s = context.boot_s.get(offer.provider, UNKNOWN_BOOT_S)
    down = decision.down_s(context.freeze_s, launch_s, context.move_s, offer.notice_s)
    return Loss(
        hazard=rate,
        known=known,
        launch_s=launch_s,
        move_s=context.move_s,
        notice_s=offer.notice_s,
        freeze_s=context.freeze_s,
        down_s=down,
        down_usd_hour=context.down_usd_hour,
        usd=decision.loss_usd(context.down_usd_hour, down),
    )


def cost(offer: Offer, context: RankContext) -> Cost:
    """The expected cost per useful hour of one offer, term by term."""
    price = offer.price_usd_hour
    counted = price
    if offer.purchase_option is PurchaseOption.SPOT:
        counted = max(price, PRICE_FLOOR * offer.on_demand_usd_hour)
    speed = context.speeds.get((offer.provider, offer.instance_type))
    relative = context.unknown_speed if speed is None else speed.relative
    far = 1.0 + context.distances_km.get((offer.provider, offer.region), 0.0) * PER_KM
    loss = loss_of(offer, context)
    useful = counted / relative
    near = decision.rate(counted * far, relative, 0.0, 0.0)
    return Cost(
        price=price,
        floor=counted - price,
        speed=useful - counted,
        distance=near - useful,
        losses=loss.hazard.expected * loss.usd,
        total=decision.rate(counted * far, relative, loss.hazard.expected, loss.usd),
    )


def allowed(offers: Iterable[Offer], ask: Ask) -> list[Offer]:
    """The offers that are not to be avoided, each once (the cheaper where a key appears twice)."""
    pools, clouds, regions = set(ask.avoid_pools), set(ask.avoid_clouds), set(ask.avoid_regions)
    by_key: dict[str, Offer] = {}
    for offer in offers:
        if offer.provider in clouds or offer.region in regions:
            continue
        key = offer.key
        if key in pools:
            continue
        other = by_key.get(key)
        if other is None or offer.price_usd_hour < other.price_usd_hour:
            by_key[key] = offer
    return list(by_key.values())


def rank(offers: Iterable[Offer], ask: Ask, context: RankContext) -> list[Ranked]:
    """Best first. Constraints of the ask are taken as met, ``avoid_*`` is checked here.

    Ties are broken by the offer's key, so that the order of ``offers`` never matters.
    """
    scored = [(cost(offer, context), offer) for offer in allowed(offers, ask)]
    if not scored:
        return []
    ordered = sorted(scored, key=lambda s: (s[0].total, s[1].key))
    cheapest = min(offer.price_usd_hour for _, offer in scored)
    if context.limit is not None:
        groups = [(_region(offer), _kind(offer)) for _, offer in ordered]
        chosen, _ = spread(groups, context.limit, context.per_region)
        ordered = [ordered[place] for place in chosen]
    return describe([offer for _, offer in ordered], cheapest, ask, context)


def _region(offer: Offer) -> Hashable:
    return offer.provider, offer.region


def _kind(offer: Offer) -> Hashable:
    return offer.instance_type, offer.purchase_option


def spread(
    groups: Iterable[tuple[Hashable, Hashable]], limit: int, per_region: int
) -> tuple[list[int], bool]:
    """Which of the offers, given best first as (region, type), make the short list: their places, in order.

    Also whether it is full without filling up: then no offer after these changes it.

    Of a region ``per_region`` at most, each type once, while others are left; the best others fill up.
    The zones of a region share much of their fate: a list of one type's zones is no choice.
    """
    seen: Counter[Hashable] = Counter()
    chosen: list[int] = []
    rest: list[int] = []
    for place, (region, kind) in enumerate(groups):
        pool = (region, kind)
        if seen[region] < per_region and not seen[pool]:
            seen.update((region, pool))
            chosen.append(place)
            if len(chosen) == limit:
                break
        elif len(rest) < limit:
            rest.append(place)
    return sorted(chosen + rest[: limit - len(chosen)]), len(chosen) == limit


def describe(
    ordered: Sequence[Offer], cheapest: float, ask: Ask, context: RankContext
) -> list[Ranked]:
    """The offers in their order, each with its numbers and the reason; ``cheapest``: of all candidates."""
    entries = [(cost(offer, context), offer) for offer in ordered]
    return [
        _ranked(number, entry, entries[0], cheapest, ask, context)
        for number, entry in enumerate(entries, start=1)
    ]


def _ranked(
    number: int,
    entry: tuple[Cost, Offer],
    best: tuple[Cost, Offer],
    cheapest: float,
    ask: Ask,
    context: RankContext,
) -> Ranked:
    terms, offer = entry
    lasts = survival(offer, 24.0, context.prior, context.hazards)
    speed = context.speeds.get((offer.provider, offer.instance_type))
    distance = context.distances_km.get((offer.provider, offer.region))
    lead = _lead_best(offer, cheapest) if number == 1 else _lead(terms, best[0])
    parts = [lead, stability(offer, lasts), _speed_words(speed, context)]
    if terms.floor > 0:
        parts.append(f"price counted as {PRICE_FLOOR:.0%} of on-demand")
    if distance is not None:
        parts.append(f"{distance:,.0f} km from {ask.near}")
    return Ranked(
        rank=number,
        offer=offer,
        usd_useful_hour=terms.total,
        usd_undisturbed_hour=terms.total - terms.losses,
        survival_24h=lasts,
        survival_known=lasts.known,
        performance=None if speed is None else speed.relative,
        distance_km=distance,
        reason="; ".join(parts),
    )


def _lead_best(offer: Offer, cheapest: float) -> str:
    if offer.price_usd_hour <= cheapest:
        return "best, and the cheapest"
    dearer = offer.price_usd_hour / cheapest
    return f"best a useful hour, though {dearer:.2f}x the lowest price"


def differences(terms: Cost, other: Cost) -> dict[str, float]:
    """What makes ``terms`` cost more (positive) or less than ``other``, each as a share."""

    def shares(c: Cost) -> tuple[float, float, float]:
        counted = max(c.price + c.floor, 1e-9)
        useful = counted + c.speed
        return counted, useful / counted, 1.0 + c.distance / useful

    mine, others = shares(terms), shares(other)
    found = {
        name: a / b - 1.0
        for name, a, b in zip(("price", "speed", "distance"), mine, others, strict=True)
    }
    found["stability"] = (terms.losses - other.losses) / other.total
    return found


WORDS: Mapping[str, tuple[str, str]] = {
    "price": ("dearer", "cheaper"),
    "speed": ("slower", "faster"),
    "distance": ("farther", "nearer"),
    "stability": ("losses cost more", "losses cost less"),
}
"""How a difference is called: worse, better."""


def _lead(terms: Cost, best: Cost) -> str:
    extra = terms.total / best.total - 1.0
    if extra < 0.0005:
        return "as good as the best"
    found = differences(terms, best)
    clearly = min(CLEARLY, max(found.values()))  # the largest difference always has its word
    worse = [WORDS[n][0] for n, v in sorted(found.items(), key=lambda i: -i[1]) if v >= clearly > 0]
    better = [WORDS[n][1] for n, v in sorted(found.items(), key=lambda i: i[1]) if v < -CLEARLY]
    words = " and ".join(worse[:2])
    if better:
        words += f"{', ' if words else ''}though {better[0]}"
    return f"+{extra:.1%} to the best{': ' if words else ''}{words}"


def stability(offer: Offer, lasts: Survival) -> str:
    """The stability of an offer in words; what is unknown is said to be unknown."""
    if offer.purchase_option is not PurchaseOption.SPOT:
        return "not interruptible"
    if lasts.known and offer.interruption_bucket is not None:
        return f"{offer.interruption_bucket} interrupted a month"
    if lasts.known:
        return f"observed: survives 24 h {lasts.p:.3f} [{lasts.low:.3f}-{lasts.high:.3f}]"
    return f"stability unknown: pooled prior {lasts.p:.2f} [{lasts.low:.2f}-{lasts.high:.2f}]"


def _speed_words(speed: Speed | None, context: RankContext) -> str:
    if speed is None:
        return f"speed unknown, counted {context.unknown_speed:.2f}x"
    return f"{speed.relative:.2f}x speed{' (burstable)' if speed.burstable else ''}"
