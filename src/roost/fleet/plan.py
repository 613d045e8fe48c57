"""What fleet does next for one claim. Pure: a snapshot in, instructions with reasons out."""

from collections.abc import Sequence

import msgspec

from roost.fleet.model import Claim, ClaimState, Instance, InstanceState, Pool, RankedOffer, Spread
from roost.market import decision
from roost.market.refusals import Refusal, avoid_s, classify
from roost.ports.values import Ask, NoticeKind, Offer, PurchaseOption

BOOT_LIMIT_S = 600.0
"""An instance that is not ready after this long is given up (seconds; cold boots take up to 274 s)."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the plan may look at."""

    claim: Claim
    instance: Instance | None
    """The newest instance of the claim, after ``observe``."""
    now_s: float


class Choose(msgspec.Struct, frozen=True, kw_only=True):
    """Rank offers, record a planned instance for the best one."""

    reason: str


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """Call the provider with the instance's token (again, if the reply was lost)."""

    instance: Instance


class Terminate(msgspec.Struct, frozen=True, kw_only=True):
    """End the instance at the provider."""

    instance: Instance
    reason: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Stop the instance at the provider; its disk stays."""

    instance: Instance


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Start the stopped instance again."""

    instance: Instance


class Settle(msgspec.Struct, frozen=True, kw_only=True):
    """Move the claim to a state that follows from its instance."""

    state: ClaimState
    reason: str


Instruction = Choose | Launch | Terminate | Stop | Start | Settle


def plan(snapshot: Snapshot) -> list[Instruction]:
    """The next instructions for a claim; empty when there is nothing to do but wait."""
    claim, instance = snapshot.claim, snapshot.instance
    if claim.state in (ClaimState.RELEASED, ClaimState.SPENT):
        return _wind_down(claim, instance)
    if claim.state is ClaimState.ENDED:
        return []
    if instance is None:
        return [Choose(reason=f"{claim.role} host for {claim.parent}")]
    return _pursue(snapshot, instance)


def _wind_down(claim: Claim, instance: Instance | None) -> list[Instruction]:
    if instance is None or instance.ended:
        if claim.state is ClaimState.SPENT:
            return []
        return [Settle(state=ClaimState.ENDED, reason="its instance is gone")]
    return [Terminate(instance=instance, reason=f"claim {claim.state}")]


def _pursue(snapshot: Snapshot, instance: Instance) -> list[Instruction]:
    claim = snapshot.claim
    match instance.state:
        case InstanceState.PLANNED | InstanceState.REQUESTED:
            return [Launch(instance=instance)]
        case InstanceState.BOOTING:
            if snapshot.now_s - _began_s(instance) > BOOT_LIMIT_S:
                return [Terminate(instance=instance, reason="not ready in time")]
        case InstanceState.READY:
            if claim.state is ClaimState.WANTED:
                return [Settle(state=ClaimState.HELD, reason=f"{instance.id} is ready")]
            if claim.paused:
                return [Stop(instance=instance)]
        case InstanceState.STOPPED if not claim.paused:
            return [Start(instance=instance)]
        case InstanceState.DRAINING:
            return [Terminate(instance=instance, reason="draining")]
        case _ if instance.ended and claim.state is ClaimState.HELD:
            return [Settle(state=ClaimState.SPENT, reason=f"{instance.id} {instance.ended_reason}")]
        case _ if instance.ended and claim.only:
            why = f"{claim.prefer}: {instance.ended_reason or instance.state}"
            return [Settle(state=ClaimState.SPENT, reason=why)]
        case _ if instance.ended:
            return [Choose(reason=f"{instance.id} {instance.state} before it was ready")]
    return []


def _began_s(instance: Instance) -> float:
    """When its present boot began: a stopped one may be older than that."""
    return max(instance.created_s, instance.spans[-1].started_s if instance.spans else 0.0)


def narrowed(claim: Claim, pools: Sequence[Pool], now_s: float) -> Ask:
    """The claim's ask without the pools to avoid and away from the offers it must be apart from."""
    ask = claim.ask
    avoid_pools = [p.id for p in pools if p.avoid_until_s > now_s]
    clouds, regions = list(ask.avoid_clouds), list(ask.avoid_regions)
    for offer in claim.away_from:
        avoid_pools.append(offer.key)
        if claim.spread is Spread.PROVIDER:
            clouds.append(offer.provider)
        if claim.spread is Spread.REGION:
            regions.append(offer.region)
    return msgspec.structs.replace(
        ask,
        avoid_clouds=_unique(clouds),
        avoid_regions=_unique(regions),
        avoid_pools=_unique([*ask.avoid_pools, *avoid_pools]),
    )


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def avoidance(instance: Instance, now_s: float) -> Pool | None:
    """The pool to avoid for a while because of how this instance ended or was refused."""
    offer = instance.offer
    noticed = instance.notice is not None and instance.notice.kind is NoticeKind.INTERRUPTION
    if instance.state is InstanceState.FAILED:
        spot = offer.purchase_option is PurchaseOption.SPOT
        refusal = classify(offer.provider, instance.ended_code, instance.ended_reason, spot=spot)
    elif noticed or instance.state is InstanceState.LOST:
        refusal = Refusal.INTERRUPTED
    else:
        return None
    until_s = now_s + avoid_s(offer.provider, refusal)
    return Pool(id=offer.key, avoid_until_s=until_s, reason=str(refusal))


def first(ranked: Sequence[RankedOffer], away_from: Sequence[Offer] = ()) -> tuple[Offer, str]:
    """The winner and why, with how many it beat.

    Zones of a region share much of their fate: away from the region of the offer left last
    (``away_from``), unless the best there is clearly better.
    """
    lost = place_of(away_from[-1]) if away_from else ""
    rates = {number: entry.usd_useful_hour for number, entry in enumerate(ranked)}
    regions = {number: place_of(entry.offer) for number, entry in enumerate(ranked)}
    winner = decision.best_place(rates, regions, lost) or 0
    best = ranked[winner]
    why = f"{best.reason} (best of {len(ranked)})"
    if winner:
        why = f"{best.reason} (away from {lost}; number {winner + 1} of {len(ranked)})"
    return best.offer, why


def preferred(ranked: Sequence[RankedOffer], claim: Claim) -> tuple[Offer, str] | None:
    """The offer the claim's owner wants while it is to be had, else the winner; None for a claim that
    is of no use elsewhere."""
    for number, entry in enumerate(ranked):
        if claim.prefer == entry.offer.key:
            return entry.offer, f"{entry.reason} (number {number + 1} of {len(ranked)})"
    return None if claim.only else first(ranked, claim.away_from)


def place_of(offer: Offer) -> str:
    """The region of an offer, e.g. ``aws/us-east-1``."""
    return f"{offer.provider}/{offer.region}"
