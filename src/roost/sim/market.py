"""A small market for the simulated world: a handful of pools per cloud, ranked by price. Pure."""

from collections.abc import Sequence
from math import exp
from zlib import crc32

from roost.fleet.model import Better, RankedOffer
from roost.market import decision
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Offer, PurchaseOption, Resources

_CLOUDS = (
    # provider, regions, zones per region, notice in seconds
    ("aws", ("us-east-1", "us-west-2", "eu-west-1", "ap-northeast-2"), 3, 120.0),
    (
        "azure",
        ("eastus", "westeurope", "japaneast", "uksouth", "brazilsouth", "koreacentral"),
        1,
        30.0,
    ),
    ("gcp", ("us-central1", "europe-west1", "asia-east1", "us-west1"), 3, 30.0),
)
_TYPES = (
    # name, vCPU, GiB, on-demand price (USD per hour)
    ("general-4", 4, 16, 0.192),
    ("general-8", 8, 32, 0.384),
    ("memory-4", 4, 32, 0.252),
)


def offers() -> list[Offer]:
    """Every pool of the simulated market, in a fixed order."""
    return [
        Offer(
            provider=provider,
            region=region,
            zone=f"{region}-{zone}" if zones > 1 else "",
            instance_type=f"{provider}-{type_}",
            purchase_option=option,
            price_usd_hour=on_demand
            if option is PurchaseOption.ON_DEMAND
            else round(on_demand * (0.3 + 0.02 * r + 0.007 * zone), 6),
            on_demand_usd_hour=on_demand,
            resources=Resources(vcpus=vcpus, memory_gib=memory_gib),
            notice_s=notice_s,
        )
        for provider, regions, zones, notice_s in _CLOUDS
        for r, region in enumerate(regions)
        for zone in range(zones)
        for type_, vcpus, memory_gib, on_demand in _TYPES
        for option in (PurchaseOption.SPOT, PurchaseOption.ON_DEMAND)
    ]


_HAZARDS = (0.02, 0.1, 0.5, 2.0)
DOWN_USD_HOUR, FREEZE_S, LAUNCH_S, MOVE_S = 50.0, 3.0, 120.0, 3.0
"""What an hour of being down costs; how long a freeze, a launch and a move take."""
OFFERS: Sequence[Offer] = tuple(offers())


async def rank(ask: Ask) -> Sequence[RankedOffer]:
    """Implements ``fleet.model.Rank``: cheapest first. ``Invalid`` when every pool is ruled out."""
    fitting = [offer for offer in OFFERS if _fits(offer, ask)]
    if not fitting:
        raise Invalid("no pool is left", hint="wait until avoided pools may be tried again")
    fitting.sort(key=lambda offer: (offer.price_usd_hour, offer.key))
    return [
        RankedOffer(
            offer=offer,
            reason=f"{offer.price_usd_hour:.4f} USD/h",
            usd_undisturbed_hour=offer.price_usd_hour,
        )
        for offer in fitting
    ]


async def odds(offers: Sequence[Offer], hours: float) -> list[float]:
    """Implements ``fleet.model.Odds``."""
    return [exp(-hazard_hour(offer) * hours) for offer in offers]


async def advise(held: Offer, ask: Ask) -> Better | None:
    """Implements ``fleet.model.Advise``: by the rule of the market, over ``hazard_hour``."""
    best = min((entry.offer for entry in await rank(ask)), key=_usd_hour)
    move = decision.move_usd(DOWN_USD_HOUR, FREEZE_S, LAUNCH_S, MOVE_S, best.price_usd_hour)
    if not decision.pays_to_move(_usd_hour(held), _usd_hour(best), decision.HOLD_H, move):
        return None
    return Better(offer=best.key, why=f"{_usd_hour(held):.2f} -> {_usd_hour(best):.2f} USD/h")


def _usd_hour(offer: Offer) -> float:
    down_s = decision.down_s(FREEZE_S, LAUNCH_S, MOVE_S, offer.notice_s)
    loss = decision.loss_usd(DOWN_USD_HOUR, down_s)
    return decision.rate(offer.price_usd_hour, 1.0, hazard_hour(offer), loss)


def hazard_hour(offer: Offer) -> float:
    """Losses per hour, as far as anybody can tell: calm pools and shaky ones, always the same."""
    return _HAZARDS[crc32(offer.key.encode()) % len(_HAZARDS)]


def _fits(offer: Offer, ask: Ask) -> bool:
    return (
        offer.resources.vcpus >= ask.vcpus
        and offer.resources.memory_gib >= ask.memory_gib
        and offer.provider not in ask.avoid_clouds
        and offer.region not in ask.avoid_regions
        and offer.key not in ask.avoid_pools
        and offer.purchase_option in ask.purchase_options
        and (not ask.clouds or offer.provider in ask.clouds)
    )
