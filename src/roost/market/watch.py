"""What changed between two rankings, and why; and whether leaving the offer one holds would pay. Pure."""

from collections.abc import Mapping, Sequence

import msgspec

from roost.market import decision
from roost.market.advisor import Ranked, cost, differences
from roost.market.service import Explanation, Market
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Offer

HORIZON_H = 24.0
"""A move has to pay within this time."""
SAME = 0.001
"""Changes of the number below this share are no news."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One offer of the list that changed."""

    offer: str
    change: str
    """``entered``, ``left``, ``rose``, ``fell`` (in rank) or ``costs`` (the number alone)."""
    rank: int | None
    """Now; None = not on the list."""
    was_rank: int | None
    usd_useful_hour: float | None
    was_usd_useful_hour: float | None
    why: str


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """Whether to leave the offer one holds for the best one."""

    offer: str
    best: str
    usd_useful_hour: float
    best_usd_useful_hour: float
    move_usd: float
    """What the move itself costs: standing still, and both machines paid while it lasts."""
    move: bool
    why: str


def changes(before: Sequence[Ranked], now: Sequence[Ranked]) -> list[Change]:
    """What is different, in the order of the ranking now; those that left come last."""
    old = {entry.offer.key: entry for entry in before}
    found = [_change(old.get(entry.offer.key), entry) for entry in now]
    keys = {entry.offer.key for entry in now}
    left = [
        Change(
            offer=key,
            change="left",
            rank=None,
            was_rank=entry.rank,
            usd_useful_hour=None,
            was_usd_useful_hour=entry.usd_useful_hour,
            why="others are better now, or it is no longer offered",
        )
        for key, entry in old.items()
        if key not in keys
    ]
    return [change for change in found if change is not None] + left


def _change(old: Ranked | None, now: Ranked) -> Change | None:
    made = {
        "offer": now.offer.key,
        "rank": now.rank,
        "was_rank": None if old is None else old.rank,
        "usd_useful_hour": now.usd_useful_hour,
        "was_usd_useful_hour": None if old is None else old.usd_useful_hour,
    }
    if old is None:
        return msgspec.convert({**made, "change": "entered", "why": now.reason}, Change)
    share = now.usd_useful_hour / old.usd_useful_hour - 1.0
    own = _why(old, now) if abs(share) >= SAME else ""
    if now.rank != old.rank:
        word = "rose" if now.rank < old.rank else "fell"
        why = own or "others changed"
    elif own:
        word, why = "costs", own
    else:
        return None
    return msgspec.convert({**made, "change": word, "why": why}, Change)


def _why(old: Ranked, now: Ranked) -> str:
    parts = []
    before, after = old.offer.price_usd_hour, now.offer.price_usd_hour
    if before != after:
        parts.append(f"price ${before:.4f} -> ${after:.4f} ({after / before - 1.0:+.1%})")
    if old.survival_24h != now.survival_24h:
        a, b = old.survival_24h, now.survival_24h
        parts.append(f"survives 24 h {_survives(a.p, a.known)} -> {_survives(b.p, b.known)}")
    return ", ".join(parts) or f"${old.usd_useful_hour:.4f} -> ${now.usd_useful_hour:.4f}"


def _survives(p: float, known: bool) -> str:
    return f"{p:.3f}" if known else f"unknown ~{p:.3f}"


def better(market: Market, held: Offer, ask: Ask) -> Holding | None:
    """Whether a session on ``held`` should move to the best offer for ``ask``: when that pays within
    ``decision.HOLD_H``. None when nothing that fits is better, or the market does not know what is held.
    """
    try:
        best = market.rank(ask, 1)[0]
        now = cost(market.catalogue.resolve(held.key), market.context(ask, 1))
        if now.total <= best.usd_useful_hour:  # mostly: the rest takes ten times as long
            return None
        found = market.why(best.offer.key, ask)
        return holding(market.why(held.key, ask), found, decision.HOLD_H)
    except Invalid:
        return None


def holding(held: Explanation, best: Explanation, horizon_h: float = HORIZON_H) -> Holding:
    """Whether to leave ``held`` for ``best``: when ``horizon_h`` saves ``decision.MARGIN`` times the move's
    cost.

    For the price alone only while many cheaper types remain: else each such move is a step down the ladder
    to the pool that is taken back first.
    """
    loss = best.loss
    move = decision.move_usd(
        loss.down_usd_hour, loss.freeze_s, loss.launch_s, loss.move_s, best.offer.price_usd_hour
    )
    saves = held.usd_useful_hour - best.usd_useful_hour
    pays = decision.pays_to_move(held.usd_useful_hour, best.usd_useful_hour, horizon_h, move)
    terms: Mapping[str, float] = differences(held.cost, best.cost)
    price_alone = terms["stability"] <= 0.0
    permitted = held.may_leave_for_price or not price_alone
    period = "a day" if horizon_h == HORIZON_H else f"within {horizon_h:g} h"
    if held.offer.key == best.offer.key:
        why = "it is the best"
    elif not pays:
        why = (
            f"saves ${max(0.0, saves) * horizon_h:.3f} {period}, the move costs ${move:.3f}: "
            f"less than {decision.MARGIN:g} times that"
        )
    elif not permitted:
        why = f"only {held.cheaper_types} cheaper types: a step down the ladder for the price alone"
    else:
        what = "price" if price_alone else "price and stability"
        why = f"{what}: saves ${saves * horizon_h:.3f} {period}, the move costs ${move:.3f}"
    return Holding(
        offer=held.offer.key,
        best=best.offer.key,
        usd_useful_hour=held.usd_useful_hour,
        best_usd_useful_hour=best.usd_useful_hour,
        move_usd=move,
        move=pays and permitted,
        why=why,
    )
