"""How many hosts may be disrupted now of our own will. Pure: the moment is an argument."""

from math import ceil

from roost.fleet.groups.model import Budget
from roost.fleet.groups.snapshot import GOING, Snapshot

DAY_S = 86_400.0
UNBOUNDED = 1 << 30


def allowance(s: Snapshot, reason: str) -> int:
    """How many more hosts may begin to go for ``reason``: the strictest budget less those that go.

    Those a cloud takes count as well: while it disturbs, we do not on top.
    """
    total = len(s.pick(lambda v: not v.member.warm))
    going = len(s.pick(lambda v: v.member.state in GOING or v.noticed))
    most = [
        share(budget.most, total)
        for budget in s.group.spec.budgets
        if applies(budget, reason, s.now_s)
    ]
    return max(0, min(most, default=UNBOUNDED) - going)


def share(most: str, total: int) -> int:
    """``10%`` of ``total``, rounded up, or the number."""
    if most.endswith("%"):
        return ceil(total * float(most[:-1]) / 100.0 - 1e-9)
    return int(most)


def applies(budget: Budget, reason: str, now_s: float) -> bool:
    """Whether a budget counts now for ``reason``."""
    if budget.reasons and reason not in budget.reasons:
        return False
    day = int(now_s // DAY_S)
    hour = (now_s % DAY_S) / 3600.0
    overnight = budget.to_hour <= budget.from_hour
    if overnight and hour < budget.to_hour:
        day -= 1  # it began yesterday
    # 1970-01-01 was a Thursday, the fourth day of the week.
    if budget.days and (day + 3) % 7 not in budget.days:
        return False
    if overnight:
        return hour >= budget.from_hour or hour < budget.to_hour
    return budget.from_hour <= hour < budget.to_hour
