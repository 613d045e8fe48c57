"""What those who hold hosts (sessions, jobs) ask of the fleet: the instructions they share. Pure.

A holder names its claims by role in fields of its own and keeps those it is leaving in ``old_claims``.
"""

from typing import Protocol, TypeVar

import msgspec

from roost.fleet.model import Claim, ClaimState, Spread
from roost.ports.values import Ask, Image, Offer, PurchaseOption


class NeedHost(msgspec.Struct, frozen=True, kw_only=True):
    """Claim a host."""

    role: str
    """``active``, or the holder's own word for the place it goes to next."""
    away_from: tuple[Offer, ...]
    reason: str
    purchase_options: tuple[PurchaseOption, ...] = ()
    """Instead of those of the holder's ask; empty = those."""
    pool: str = ""
    """No other than this one (an offer's key); empty = the best."""


class DropHost(msgspec.Struct, frozen=True, kw_only=True):
    """Release a claim and forget it."""

    claim_id: str
    reason: str


class Holder(Protocol):
    """A row that holds hosts."""

    @property
    def id(self) -> str: ...
    @property
    def image(self) -> Image: ...
    @property
    def spread(self) -> Spread: ...
    @property
    def tenant(self) -> str: ...
    @property
    def old_claims(self) -> tuple[str, ...]: ...


Held = TypeVar("Held", bound=msgspec.Struct)


def wanted(holder: Holder, need: NeedHost, ask: Ask, *, claim_id: str, now_s: float) -> Claim:
    """The claim that meets a need."""
    if need.purchase_options:
        ask = msgspec.structs.replace(ask, purchase_options=need.purchase_options)
    return Claim(
        id=claim_id,
        state=ClaimState.WANTED,
        parent=holder.id,
        role=need.role,
        ask=ask,
        image=holder.image,
        away_from=need.away_from,
        spread=holder.spread,
        created_s=now_s,
        prefer=need.pool,
        only=bool(need.pool),
        tenant=holder.tenant,
    )


def without(holder: Held, claim_id: str, *fields: str) -> Held:
    """The holder without a claim: not in ``fields``, not among those it is leaving."""
    old: tuple[str, ...] = holder.old_claims  # type: ignore[attr-defined]
    kept = {name: "" for name in fields if getattr(holder, name) == claim_id}
    return msgspec.structs.replace(
        holder, old_claims=tuple(c for c in old if c != claim_id), **kept
    )
