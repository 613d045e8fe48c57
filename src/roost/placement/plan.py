"""Chooses places for a workload. Pure: a snapshot in, choices with reasons out; never launches or waits."""

from enum import StrEnum

import msgspec

from roost.market.advisor import Ranked
from roost.ports.values import Ask, Offer, PurchaseOption


class Spread(StrEnum):
    """How far a choice must be from ``spread_from``."""

    POOL = "pool"
    REGION = "region"
    PROVIDER = "provider"


class StandbyHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host that is ready and free to take a workload at once."""

    host_id: str
    offer: Offer


class Avoid(msgspec.Struct, frozen=True, kw_only=True):
    """A pool (offer key) that refused or interrupted, left out until ``until_s`` (UTC seconds)."""

    pool: str
    until_s: float


class PlacementSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the choice may look at."""

    ask: Ask
    ranked: tuple[Ranked, ...] = ()
    hosts: tuple[StandbyHost, ...] = ()
    avoid: tuple[Avoid, ...] = ()
    now_s: float
    spread_from: Offer | None = None
    spread: Spread = Spread.POOL


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One place, in order of preference."""

    offer: Offer
    host_id: str = ""
    """The standby host to use; empty = launch an instance of ``offer``."""
    reason: str


def choose(snapshot: PlacementSnapshot) -> list[Choice]:
    """Places for the ask, best first: fitting standby hosts, then launches in rank order. May be empty."""
    avoided = {a.pool for a in snapshot.avoid if a.until_s > snapshot.now_s}
    ranks = {r.offer.key: r for r in snapshot.ranked}
    apart = _apart_words(snapshot)
    last = len(ranks) + 1
    standbys = sorted(
        (
            h
            for h in snapshot.hosts
            if meets(h.offer, snapshot.ask) and _may(h.offer, avoided, snapshot)
        ),
        key=lambda h: (ranks[h.offer.key].rank if h.offer.key in ranks else last, h.host_id),
    )
    choices = [
        Choice(
            offer=host.offer,
            host_id=host.host_id,
            reason=_join("a standby host is ready: no boot", apart, _rank_words(host.offer, ranks)),
        )
        for host in standbys
    ]
    launches = (
        Choice(offer=entry.offer, reason=_join(f"rank {entry.rank}: {entry.reason}", apart))
        for entry in sorted(snapshot.ranked, key=lambda r: (r.rank, r.offer.key))
        if _may(entry.offer, avoided, snapshot)
    )
    return [*choices, *launches]


def meets(offer: Offer, ask: Ask) -> bool:
    """Whether an offer satisfies the constraints of an ask (``avoid_*`` apart)."""
    size = offer.resources
    wanted = (
        (offer.provider, ask.clouds),
        (offer.region, ask.regions),
        (offer.instance_type, ask.instance_types),
    )
    return (
        size.vcpus >= ask.vcpus
        and size.memory_gib >= ask.memory_gib
        and size.gpus >= ask.gpus
        and offer.arch == ask.arch
        and (offer.notice_s >= ask.min_notice_s or offer.purchase_option is not PurchaseOption.SPOT)
        and offer.purchase_option in ask.purchase_options
        and (ask.max_usd_hour is None or offer.price_usd_hour <= ask.max_usd_hour)
        and all(not names or name in names for name, names in wanted)
    )


def _may(offer: Offer, avoided: set[str], snapshot: PlacementSnapshot) -> bool:
    ask = snapshot.ask
    key = offer.key
    return (
        key not in avoided
        and key not in ask.avoid_pools
        and offer.provider not in ask.avoid_clouds
        and offer.region not in ask.avoid_regions
        and _is_apart(offer, snapshot.spread_from, snapshot.spread)
    )


def _is_apart(offer: Offer, other: Offer | None, spread: Spread) -> bool:
    if other is None:
        return True
    match spread:
        case Spread.POOL:
            return offer.key != other.key
        case Spread.REGION:
            return (offer.provider, offer.region) != (other.provider, other.region)
        case Spread.PROVIDER:
            return offer.provider != other.provider


def _apart_words(snapshot: PlacementSnapshot) -> str:
    other = snapshot.spread_from
    if other is None:
        return ""
    match snapshot.spread:
        case Spread.POOL:
            return f"another pool than {other.key}"
        case Spread.REGION:
            return f"another region than {other.provider}/{other.region}"
        case Spread.PROVIDER:
            return f"another cloud than {other.provider}"


def _rank_words(offer: Offer, ranks: dict[str, Ranked]) -> str:
    entry = ranks.get(offer.key)
    return f"rank {entry.rank}: {entry.reason}" if entry else "not among the best now"


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
