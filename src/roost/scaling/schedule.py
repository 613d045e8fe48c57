"""Scheduled limits: which cron entry of a service holds now. The library reads the expressions.

It is stateless: what was missed while nobody looked still holds, because the last time is searched
backwards. It never changes a number itself.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from roost.scaling.policies import Scheduled


def problem(policy: Scheduled) -> str | None:
    """What is wrong with a schedule, with what to write instead; None if nothing is."""
    try:
        CronSim(policy.cron, datetime(2026, 1, 1))
    except CronSimError as error:
        return f"cron {policy.cron!r}: {error}; five fields are expected: minute hour day month weekday"
    try:
        ZoneInfo(policy.timezone)
    except (ZoneInfoNotFoundError, ValueError):
        return f"no time zone {policy.timezone!r}: give a name like Europe/Zurich, or UTC"
    if policy.min is not None and policy.max is not None and policy.max < policy.min:
        return f"schedule {policy.cron!r}: max {policy.max} is below min {policy.min}"
    return None


def began_s(policy: Scheduled, now_s: float) -> float | None:
    """When the schedule last came up (UTC seconds), None if never or if it is over."""
    if problem(policy) is not None:
        return None
    zone = ZoneInfo(policy.timezone)
    # Backwards from the next second on: a time that is exactly now has come.
    after = datetime.fromtimestamp(now_s, zone).replace(microsecond=0) + timedelta(seconds=1)
    found = next(CronSim(policy.cron, after, reverse=True), None)
    if found is None:
        return None
    at_s = found.timestamp()
    if policy.lasts_s > 0 and now_s >= at_s + policy.lasts_s:
        return None
    return at_s


def holding(policies: Sequence[Scheduled], now_s: float) -> Scheduled | None:
    """The schedule that came up last; of two at once the one named later."""
    best: tuple[float, int] | None = None
    for place, policy in enumerate(policies):
        at_s = began_s(policy, now_s)
        if at_s is not None and (best is None or (at_s, place) > best):
            best = (at_s, place)
    return None if best is None else policies[best[1]]
