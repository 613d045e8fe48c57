"""Where a job with a deadline runs next: on spot, waiting, or on demand. Pure; used by jobs and by the
backtest.

Waiting is free, a restart is not, and on demand always works. Time to spare is worth most as restarts:
who has none left when a pool comes back pays on demand to the end. So it is spent on waiting, but
never the part that the work left will need to come and go again (the reserve).

    slack     time to the deadline - work left
    must      slack left for fewer than two restarts (this pool's and the one on demand): on demand
              now, to the end
    reserve   those two, and for every hour of work left ``KEPT`` of an hour and ``KEPT_RESTARTS``
              restarts: with less, no pool to try means on demand now, and back later
    back      from on demand to a pool that will last, while two restarts fit
    pick      while slack is more than ``PICKY`` of the work left, pools are let pass: the more slack,
              the surer the pool must be
    which     the pool of the lowest rate (``market/decision.py``): its price, and a restart paid at
              every loss

It needs no rule of its own for a single pool: replayed in one zone it is nearer to the oracle than Uniform
Progress (Wu et al., "Can't Be Late", NSDI 2024; docs/backtest.md).
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from roost.market import decision

KEPT = 0.03
KEPT_RESTARTS = 0.35
"""Slack held back for every hour of work left: share of an hour, and restarts. Cost is flat around both
(a half more or less changes it by less than its interval)."""
PICKY = 0.5
"""Pools are let pass while slack is more than this share of the work left ..."""
RISKY = 0.12
"""... when they are lost within the hour with more than this x work left / slack."""
BACK = 0.6
"""From on demand back to a pool that is lost within the hour with at most this probability."""


SOON_H = 1.0 / 6.0
"""Pools are ordered by their losses within so many hours (told apart best there), judged by those of the
next hour."""


class Where(StrEnum):
    """What the job does until the next look."""

    STAY = "stay"
    SPOT = "spot"
    WAIT = "wait"
    ON_DEMAND = "on_demand"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job stands, in seconds."""

    work_s: float
    left_s: float
    """Work left."""
    deadline_s: float
    """From its beginning to its deadline."""
    elapsed_s: float
    restart_s: float
    """A restart's cost in time: launch, restore, work done again."""
    look_s: float
    """Until the next look."""
    on: Where
    """``SPOT``, ``ON_DEMAND``, or ``WAIT`` when it runs nowhere."""

    @property
    def slack_s(self) -> float:
        """How much later than now it could begin to run without pause."""
        return self.deadline_s - self.elapsed_s - self.left_s

    @property
    def spare_s(self) -> float:
        """How long it may wait at most; below nothing, it must be on demand."""
        return self.slack_s - 2.0 * self.restart_s - self.look_s


class Chance(msgspec.Struct, frozen=True, kw_only=True):
    """A pool that may be tried now."""

    pool: str
    price: float
    """Of an hour's work that nothing interrupts."""
    soon: float
    """Probability of a loss within ``SOON_H``."""
    hour: float
    """Within the hour."""


class Verdict(msgspec.Struct, frozen=True):
    """What to do, and why."""

    where: Where
    reason: str
    pool: str = ""
    """Which, with ``SPOT``."""


def decide(standing: Standing, chances: Sequence[Chance]) -> Verdict:
    """The next step. ``chances``: the pools that are not known to refuse now."""
    if standing.on is Where.SPOT:
        return Verdict(Where.STAY, "spot runs until it is taken")
    slack_s, left_s, spare_s = standing.slack_s, standing.left_s, standing.spare_s
    best = _best(chances, standing.restart_s)
    if standing.on is Where.ON_DEMAND:
        worth = left_s > 2.0 * standing.restart_s
        if best is not None and best.hour <= BACK and spare_s >= 0.0 and worth:
            return Verdict(Where.SPOT, f"a pool is back, {_hours(slack_s)} to spare", best.pool)
        return Verdict(Where.STAY, "on demand until a pool is worth the restart")
    if spare_s < 0.0:
        return Verdict(Where.ON_DEMAND, f"only {_hours(slack_s)} to spare: on demand to be in time")
    reserve_s = left_s * (KEPT + KEPT_RESTARTS * standing.restart_s / 3600.0)
    if best is None:
        if spare_s < reserve_s:
            why = f"no pool to try, {_hours(slack_s)} to spare are for later restarts"
            return Verdict(Where.ON_DEMAND, why)
        return Verdict(Where.WAIT, f"no pool to try, {_hours(slack_s)} to spare")
    picky = spare_s > max(PICKY * left_s, reserve_s)
    if picky and best.hour * spare_s > RISKY * left_s:
        return Verdict(Where.WAIT, f"the best pool will not last, {_hours(slack_s)} to spare")
    return Verdict(Where.SPOT, f"{_hours(slack_s)} to spare", best.pool)


def _best(chances: Sequence[Chance], restart_s: float) -> Chance | None:
    """The pool of the lowest rate; the first of equals."""

    def rate(chance: Chance) -> float:
        losses = decision.hazard_hour(chance.soon, SOON_H)
        return decision.rate(chance.price, 1.0, losses, decision.loss_usd(chance.price, restart_s))

    return min(chances, key=rate, default=None)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600.0:.1f} h"
