"""How much of a surge is still there when a new host would be: learned from the surges there were.

A host takes minutes to come: where surges pass in one minute none is launched for them, where they last all
are. Never says how many replicas run on the hosts there are: for those the present counts as it is.
"""

from bisect import bisect_right

import numpy as np

from roost.scaling.arrivals import CLEARLY, DAY, Floats, Minutes, spans

SIZES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0, 4.0)
"""Excess over the level before, relative to it: classes of surges, from the smallest on."""
LEVEL = 10
"""Minutes of the level a surge rises from."""
_AFTER = 3
"""Minutes over which what is left of a surge is counted."""
_ROOM = 0.6
"""What replicas that suit a level can take beyond it without being late."""
_BELIEF = 3.0
"""Surges of each class that lasted, taken as seen before the first: what is not known is taken to last."""
_FLOOR = 0.05
"""Part of the daily mean added to a level: near zero an excess relative to it says nothing."""
_FADE = 0.9
"""Weight of a surge that is one day older."""


def lasting(y: Minutes, ahead: int) -> tuple[float, ...]:
    """Per class: the part of a minute's excess that is left ``ahead`` minutes later."""
    last = y.size - ahead - _AFTER
    if last <= LEVEL:
        return ()
    at = np.arange(LEVEL, last)
    if y.gaps is not None:
        at = at[y.gaps[at + ahead + _AFTER] == y.gaps[at - LEVEL]]
    level = (y.sums[at] - y.sums[at - LEVEL]) / LEVEL
    after = (y.sums[at + ahead + _AFTER] - y.sums[at + ahead]) / _AFTER
    age = (y.size - at) / DAY
    return parts(*_seen(y.values[at], level, after, y.day_mean, _FADE**age))


def sudden(y: Minutes, ahead: int, dispersion: float) -> float:
    """Share of all requests that came in surges faster than hosts: late ones of a service that only reacts.

    Counted is what a minute has clearly above what would do for the level ``ahead`` minutes before. 1 = not
    known, for less than a day of history.
    """
    before = ahead + _AFTER
    at = np.arange(before, y.size)
    if y.gaps is not None:
        at = at[y.gaps[at + 1] == y.gaps[at - before]]
    if len(at) < DAY:
        return 1.0
    level = (y.sums[at - ahead] - y.sums[at - before]) / _AFTER
    there = (1.0 + _ROOM) * level + CLEARLY * np.sqrt(np.maximum(level, 1.0) * dispersion)
    every = float(y.values[at].sum())
    return float(np.maximum(y.values[at] - there, 0.0).sum()) / every if every > 0 else 1.0


def jumps(
    recent: Floats, step_s: float, spread: float, day_mean: float, last: int
) -> tuple[Floats, Floats]:
    """What was seen of jumps of a few seconds, and what of it the minute after them had: for ``parts``.

    Of the newest ``last`` moments that have a minute after them. ``day_mean`` = requests per minute.
    """
    per, few = spans(step_s)
    bins = np.asarray(recent, float)
    missing = np.flatnonzero(np.isnan(bins))
    bins = bins[missing[-1] + 1 :] if len(missing) else bins
    sums = np.concatenate([[0.0], np.cumsum(bins)])
    at = np.arange(per, max(per, len(bins) - per + 1))[-last:]
    level = (sums[at] - sums[at - per]) / (per * step_s)
    short = (sums[at] - sums[at - few]) / (few * step_s)
    after = (sums[at + per] - sums[at]) / (per * step_s)
    clear = short - CLEARLY * np.sqrt(short * spread / (few * step_s)) > level
    return _seen(short[clear], level[clear], after[clear], day_mean / 60.0, np.ones(clear.sum()))


def parts(seen: Floats, kept: Floats) -> tuple[float, ...]:
    """Per class the part that lasts."""
    belief = _BELIEF * np.maximum(SIZES, SIZES[1]) ** 2
    return tuple(np.clip((kept + belief) / (seen + belief), 0.0, 1.0).tolist())


def part(rate: float, level: float, usual: float, known: tuple[float, ...]) -> float:
    """Which part of the excess of ``rate`` over ``level`` lasts; all three rates in one unit."""
    if not known or rate <= level:
        return 1.0
    excess = (rate - level) / (level + _FLOOR * usual + 1e-9)
    return known[bisect_right(SIZES, excess) - 1]


def left(rate: float, level: float, share: float) -> float:
    """What of ``rate`` is still there if ``share`` of its excess lasts."""
    return level + share * (rate - level) if rate > level else rate


def _seen(
    rate: Floats, level: Floats, after: Floats, usual: float, weight: Floats
) -> tuple[Floats, Floats]:
    """Per class: squares of the excess, and its products with what was left of it."""
    up = rate > level
    rate, level, after, weight = rate[up], level[up], after[up], weight[up]
    base = level + _FLOOR * usual + 1e-9
    size, still = (rate - level) / base, (after - level) / base
    kind = np.searchsorted(SIZES, size, side="right") - 1
    seen = np.bincount(kind, weight * size**2, len(SIZES))
    kept = np.bincount(kind, weight * size * still, len(SIZES))
    return seen.astype(float), kept.astype(float)
