"""Arrivals per minute and per few seconds, made ready for the formulas. Missing stays missing, never 0.

Never forecasts: it only measures what was.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DAY = 1440
"""Minutes."""
CLEARLY = 3.0
"""So many standard deviations above the last minute are no noise; what is launched for noise comes late."""
DISPERSION_LEAST, DISPERSION_MOST = 0.7, 30.0


class Minutes:
    """Requests per minute with prefix sums, so that any window's sum is one subtraction."""

    __slots__ = ("day_mean", "gaps", "size", "sums", "values")

    def __init__(self, values: Floats) -> None:
        y = np.asarray(values, float)
        missing = ~(y >= 0)
        self.size = len(y)
        self.values = np.where(missing, 0.0, y)
        self.sums = np.zeros(self.size + 1)
        np.cumsum(self.values, out=self.sums[1:])
        self.gaps: NDArray[np.int64] | None = None
        if missing.any():
            self.gaps = np.zeros(self.size + 1, np.int64)
            np.cumsum(missing, out=self.gaps[1:])
        self.day_mean = self.mean(max(0, self.size - DAY), self.size)

    def known(self, start: int, end: int) -> int:
        """Minutes of [start, end) that are not missing."""
        return end - start - (0 if self.gaps is None else int(self.gaps[end] - self.gaps[start]))

    def mean(self, start: int, end: int) -> float:
        """Requests per known minute of [start, end); 0 where nothing is known."""
        known = self.known(start, end)
        return float(self.sums[end] - self.sums[start]) / known if known > 0 else 0.0


def bin_minutes(per_minute: float) -> int:
    """Width of a forecast's bins: smaller ones would count the noise of few requests as growth."""
    return 1 if per_minute >= 60 else 5 if per_minute >= 3 else 15


def dispersion(recent: Floats, step_s: float, before: float | None) -> float:
    """Variance / mean of arrivals in 10-s bins inside a minute, over the last 30 minutes.

    From successive differences, without the two wildest minutes: blind to ramps and steps, which a plain
    variance takes for noise. ``before`` is the last answer: 0.8 of it stays.
    """
    per = max(1, round(10.0 / step_s))
    bins = np.asarray(recent, float)
    bins = bins[len(bins) % per :].reshape(-1, per).sum(1)
    bins = bins[len(bins) % 6 :].reshape(-1, 6)
    bins = bins[~np.isnan(bins).any(1)][-30:]
    new = None
    if len(bins) >= 5:
        half = (np.diff(bins, axis=1) ** 2).mean(1) / 2.0
        keep = half.argsort()[:-2]
        mean = float(bins[keep].mean(1).sum())
        if mean > 0:
            new = float(half[keep].sum()) / mean
    value = new if before is None else before if new is None else 0.8 * before + 0.2 * new
    return min(DISPERSION_MOST, max(DISPERSION_LEAST, 1.0 if value is None else value))


def spans(step_s: float) -> tuple[int, int]:
    """Steps in (the last minute, the last 10-15 s)."""
    return max(1, round(60.0 / step_s)), max(1, round(15.0 / step_s - 0.01))


def rate_now(recent: Floats, step_s: float, spread: float) -> tuple[float, float] | None:
    """(the rate to stand now, that of the last minute), per second; None while the newest is missing.

    The last 10-15 s count alone where they are clearly above the last minute; far above it is a jump,
    which is expected to go on for as long again.
    """
    long_n, short_n = spans(step_s)
    last = np.asarray(recent[-long_n:], float)
    if len(last) == 0 or np.isnan(last[-short_n:]).any():
        return None
    last = last[~np.isnan(last)]
    long = float(last.sum()) / (len(last) * step_s)
    short_s = min(short_n, len(last)) * step_s
    short = float(last[-short_n:].sum()) / short_s
    if short - CLEARLY * math.sqrt(short * spread / short_s) <= long:
        return long, long
    if short > 1.3 * long:
        return min(1.5 * short, 2.0 * short - long), long
    return short, long
