"""Where a job with a deadline runs next: on spot, waiting, or on demand. Pure; used by jobs and by the
backtest.

Waiting is free, a restart is not, and on demand always works: so the time to spare is spent on waiting
for a pool that lasts, and the last of it is kept for the restart on demand (the safety net).

    slack     time to the deadline - work left
    must      slack left for fewer than two restarts (this pool's and the one on demand): on demand
              now, to the end
    back      from on demand to a pool that will last, while two restarts fit
    pick      while there is much slack, pools likely to be lost within ten minutes are let pass

With a single usable pool and little slack (``TIGHT`` of the work) the rule is Uniform Progress (Wu et
al., "Can't Be Late", NSDI 2024, section 4): ahead of the line work = t x work/deadline wait, behind it
on demand, and back on spot when two restarts ahead.
"""

from enum import StrEnum

import msgspec

TIGHT = 0.15
"""Slack below this share of the work is little."""
PICKY = 0.2
"""Pools are let pass while slack is more than this share of the work left ..."""
RISKY = 0.1
"""... when they are lost within ten minutes with more than this probability."""
BACK = 0.25
"""From on demand back to a pool whose ten-minute risk is at most this."""


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


class Verdict(msgspec.Struct, frozen=True):
    """What to do, and why."""

    where: Where
    reason: str


def decide(standing: Standing, best_risk: float | None, usable_pools: int) -> Verdict:
    """The next step. ``best_risk``: of the best pool that gives instances now, the probability of a
    loss within ten minutes; None when there is none (or nothing is known of it). ``usable_pools``: how
    many the job may use at all.
    """
    if standing.on is Where.SPOT:
        return Verdict(Where.STAY, "spot runs until it is taken")
    if usable_pools <= 1 and _first_slack_s(standing) < TIGHT * standing.work_s:
        return _uniform_progress(standing, best_risk)
    slack_s = standing.slack_s
    two_restarts_s = 2.0 * (standing.restart_s + standing.look_s)
    if standing.on is Where.ON_DEMAND:
        worth = standing.left_s > 2.0 * standing.restart_s
        if best_risk is not None and best_risk <= BACK and slack_s >= two_restarts_s and worth:
            return Verdict(Where.SPOT, f"a pool is back, {_hours(slack_s)} to spare")
        return Verdict(Where.STAY, "on demand until a pool is worth the restart")
    if slack_s < two_restarts_s:
        return Verdict(Where.ON_DEMAND, f"only {_hours(slack_s)} to spare: on demand to be in time")
    if best_risk is None:
        return Verdict(Where.WAIT, f"no pool to try, {_hours(slack_s)} to spare")
    if best_risk > RISKY and slack_s > PICKY * standing.left_s + two_restarts_s:
        return Verdict(Where.WAIT, f"the best pool will not last, {_hours(slack_s)} to spare")
    return Verdict(Where.SPOT, f"{_hours(slack_s)} to spare")


def _uniform_progress(standing: Standing, best_risk: float | None) -> Verdict:
    done_s = standing.work_s - standing.left_s
    speed = standing.work_s / standing.deadline_s
    must = standing.slack_s < 2.0 * standing.restart_s + standing.look_s
    if standing.on is Where.ON_DEMAND:
        ahead = done_s >= (standing.elapsed_s + 2.0 * standing.restart_s) * speed
        if ahead and best_risk is not None and not must:
            return Verdict(Where.SPOT, "two restarts ahead of the line")
        return Verdict(Where.STAY, "on demand until two restarts ahead of the line")
    if must:
        return Verdict(Where.ON_DEMAND, "the last moment to be in time")
    if best_risk is not None:
        return Verdict(Where.SPOT, "a pool is there")
    if done_s < standing.elapsed_s * speed:
        return Verdict(Where.ON_DEMAND, "behind the line of uniform progress")
    return Verdict(Where.WAIT, "ahead of the line of uniform progress")


def _first_slack_s(standing: Standing) -> float:
    return standing.deadline_s - standing.work_s


def _hours(seconds: float) -> str:
    return f"{seconds / 3600.0:.1f} h"
