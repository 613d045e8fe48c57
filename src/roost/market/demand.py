"""How many instances run in each hour of a stretch of months: assumed, or as they were metered. Pure.

The hours of a month are kept as levels: "d instances for h hours". Their order within a month does not
matter to any tariff, so a year of hours is a few numbers a month.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil

import msgspec

from roost.ports.errors import Invalid

MONTH_H = 730.0
WEEKS_A_MONTH = MONTH_H / 168.0
MOST_LEVELS = 24
"""Different counts kept of a month; more are rounded up into these, never down."""
LONGEST_MONTHS = 120


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What has to run. ``months[m]`` maps a number of instances to its hours in month ``m``."""

    months: tuple[Mapping[int, float], ...]
    described: str

    @property
    def instance_hours(self) -> float:
        """Of all months."""
        return sum(count * hours for month in self.months for count, hours in month.items())

    @property
    def peak(self) -> int:
        """The most instances at once."""
        return max((count for month in self.months for count in month), default=0)


def assumed(
    instances: int,
    hours_a_day: float = 24.0,
    days_a_week: float = 7.0,
    growth: float = 0.0,
    months: int = 12,
    always: int = 0,
) -> Demand:
    """``instances`` for so many hours a day and days a week, ``always`` of them at all times.

    ``growth``: share added each month (0.05 = 5 %); counts are rounded up. Raises ``Invalid``.
    """
    _check(instances >= 1, f"instances={instances}", "at least 1")
    _check(0 < hours_a_day <= 24, f"hours-a-day={hours_a_day:g}", "more than 0, at most 24")
    _check(0 < days_a_week <= 7, f"days-a-week={days_a_week:g}", "more than 0, at most 7")
    _check(0 <= always <= instances, f"always={always}", "at most the instances")
    busy_h = hours_a_day * days_a_week * WEEKS_A_MONTH
    every: list[Mapping[int, float]] = []
    for number in range(_months(months)):
        scale = (1.0 + growth) ** number
        busy, base = ceil(instances * scale - 1e-9), ceil(always * scale - 1e-9)
        levels = {busy: busy_h}
        if base and busy_h < MONTH_H:
            levels[base] = levels.get(base, 0.0) + MONTH_H - busy_h
        every.append(levels)
    grown = f", {growth:+.0%} a month" if growth else ""
    base_words = f", {always} of them always" if always else ""
    wanted = "1 instance" if instances == 1 else f"{instances} instances"
    words = f"{wanted}, {hours_a_day:g} h a day, {days_a_week:g} days a week"
    return Demand(months=tuple(every), described=f"{words}{base_words}{grown}, {months} months")


def metered(per_hour: Sequence[float], growth: float = 0.0, months: int = 12) -> Demand:
    """The use of a stretch of hours (instances running in each), repeated month after month.

    A fraction of an hour is a fraction of an instance-hour. Raises ``Invalid``.
    """
    _check(len(per_hour) > 0, "no hour of use", "give one number an hour")
    wrong = next((n for n, v in enumerate(per_hour) if not 0 <= v < 1e6), None)
    _check(wrong is None, f"hour {wrong} of the use is no number of instances", "0 or more")
    _check(max(per_hour) > 0, "nothing ran in any hour", "give a stretch in which something ran")
    to_month = MONTH_H / len(per_hour)
    every = []
    for number in range(_months(months)):
        scale = (1.0 + growth) ** number
        every.append(_levels([value * scale for value in per_hour], to_month))
    grown = f", {growth:+.0%} a month" if growth else ""
    said = f"metered: {len(per_hour):,} hours, {sum(per_hour):,.1f} instance-hours{grown}"
    return Demand(months=tuple(every), described=f"{said}, as {months} months")


def _levels(values: Sequence[float], hours: float) -> Mapping[int, float]:
    """Hours at each count. An hour of 2.25 is a quarter hour of 3 and three quarters of 2."""
    weights: dict[int, float] = {}
    for value in values:
        whole = int(value)
        part = value - whole
        weights[whole] = weights.get(whole, 0.0) + (1.0 - part) * hours
        if part > 0:
            weights[whole + 1] = weights.get(whole + 1, 0.0) + part * hours
    weights.pop(0, None)
    if len(weights) <= MOST_LEVELS:
        return weights
    step = ceil(max(weights) / MOST_LEVELS)
    rounded: dict[int, float] = {}
    for count, of_it in weights.items():
        up = -(-count // step) * step
        rounded[up] = rounded.get(up, 0.0) + of_it
    return rounded


def per_hour(spans: Iterable[tuple[float, float]]) -> list[float]:
    """Instances running in each hour, from (start, end) in UTC seconds; empty without any."""
    found = [(start, end) for start, end in spans if end > start]
    if not found:
        return []
    first = int(min(start for start, _ in found) // 3600)
    last = ceil(max(end for _, end in found) / 3600)
    use = [0.0] * (last - first)
    for start, end in found:
        for hour in range(int(start // 3600), ceil(end / 3600)):
            inside = min(end, (hour + 1) * 3600) - max(start, hour * 3600)
            use[hour - first] += inside / 3600
    return use


def _months(months: int) -> int:
    _check(1 <= months <= LONGEST_MONTHS, f"months={months}", f"1 to {LONGEST_MONTHS}")
    return months


def _check(right: bool, message: str, hint: str) -> None:
    if not right:
        raise Invalid(message, hint=hint)
