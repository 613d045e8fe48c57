"""The money rule, in one place: what an offer costs a useful hour, and when leaving one pays. Pure.

    rate = price / performance + losses per hour x cost of a loss
    cost of a loss = what an hour of being down costs x max(frozen, launch + move - notice)

Used by the advisor (ranking), by fleet (stay or move, spares) and by the backtest. Never reads a clock,
never draws at random.
"""

from math import ceil

CHEAPER_TYPES = 15
"""Fewest cheaper types for a move made for the price alone (Karpenter, designs/spot-consolidation.md)."""


def down_s(freeze_s: float, launch_s: float, move_s: float, notice_s: float) -> float:
    """Seconds that one loss leaves the work down: what of launch and move the notice does not cover.

    Never below the time it stands still for the copy (``freeze_s``), however long the notice.
    """
    return max(freeze_s, launch_s + move_s - notice_s)


def loss_usd(down_usd_hour: float, down_seconds: float) -> float:
    """What one loss costs (USD): an hour of being down at ``down_usd_hour``."""
    return down_usd_hour * down_seconds / 3600.0


def rate(price_usd_hour: float, performance: float, hazard_hour: float, loss: float) -> float:
    """USD per useful hour: price over performance (1.0 = the median type), and losses at their cost."""
    return price_usd_hour / performance + hazard_hour * loss


def may_move_for_price(cheaper_types: int) -> bool:
    """Whether a move for the price alone is allowed: only while many cheaper types remain.

    Else each such move walks one step down the ladder, to the pool that is taken back first.
    """
    return cheaper_types >= CHEAPER_TYPES


def region_cap(replicas: int) -> int:
    """How many of a service's replicas may stand in one region: a third, at least one."""
    return max(1, ceil(replicas / 3))
