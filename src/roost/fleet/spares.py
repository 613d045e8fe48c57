"""How many spare replicas a service keeps: none while all is calm, one while trouble is likely. Pure.

A spare that always stands costs 1/N of the service. Most of what it is worth it is worth in few hours:
when the summed risk of the replicas being taken within ten minutes is high. Called by groups of hosts and
by the backtest alike.
"""

from collections.abc import Sequence

RISK = 0.05
"""Summed ten-minute risk from which on a spare stands by."""
LINE = 2.0 * RISK
"""The same for spares that stand in for a whole pool: those are mostly two or more."""
CALM = 0.6
"""A spare goes again when the risk falls below this share of ``RISK``: no coming and going around the
line."""


def spares(
    risks: Sequence[float],
    standing: int = 0,
    *,
    threshold: float = RISK,
    most: int = 1,
) -> int:
    """How many spares to keep.

    ``risks``: of each replica, the probability of being taken within ten minutes (0 for on-demand).
    Replicas of one zone count each: a loss there takes them all. ``standing``: how many spares there
    are now. ``most``: never more than this; the n-th is kept while the summed risk is above n x
    ``threshold``.
    """
    risk = sum(risks)
    wanted = 0
    for number in range(1, most + 1):
        line = threshold * number * (CALM if standing >= number else 1.0)
        if risk > line:
            wanted = number
    return wanted


def covering(spares: int, replicas: int, pools: int) -> int:
    """How many spares it takes, ``spares`` at least, to stand in for any pool; 0 if none can.

    A pool is lost as a whole: s spares make up for pools that hold at most s, and in ``pools`` pools
    as even as can be (replicas + s) / pools stand in each. More spares than replicas are never kept:
    then fewer would not have helped, and none are.
    """
    if not spares:
        return 0
    return next((s for s in range(spares, replicas + 1) if replicas + s <= pools * s), 0)


def kept(risks: Sequence[float], standing: int, replicas: int, pools: int) -> int:
    """How many spares a service of ``replicas`` keeps now: enough to stand in for a whole pool while the
    risk is high, else none.

    ``risks``: of each that stands, ``exposed``; the safest ``replicas`` of them count. ``standing``: its
    spares now. ``pools``: how many it may stand in.
    """
    safest = sorted(risks)[:replicas]
    return covering(spares(safest, standing, threshold=LINE, most=replicas), replicas, pools)


def exposed(risk: float, cold_start_s: float, notice_s: float) -> float:
    """The ten-minute risk of a loss as far as it is felt: a loss that the notice covers needs no spare, one
    it covers half is worth half a spare."""
    missing_s = max(0.0, cold_start_s - notice_s)
    return risk * missing_s / cold_start_s if missing_s else 0.0
