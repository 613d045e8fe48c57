"""The distribution of the highest load in the next minutes: growth that was seen at like moments.

A sampler looks at past moments (lags), takes how much load grew after each, and applies that growth to the
present level. Several samplers compete per quantile by their pinball loss. Never fits a model.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from roost.scaling.arrivals import DAY, Floats, Minutes

Ints = NDArray[np.int64]

LEVELS = np.array([0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995])
"""Quantiles of a forecast."""
MASS = np.diff(np.concatenate([[0.0], (LEVELS[1:] + LEVELS[:-1]) / 2.0, [1.0]]))
"""Probability each of them stands for."""
SAMPLERS = ("hours", "days", "alike")
_DAYS = 14
_FLOOR = 0.05
"""Part of the daily mean added to both sides of a growth ratio: near zero a ratio says nothing."""
_LIKE = 0.4
"""How much the logarithm of a peak may differ between like moments (one standard deviation)."""
_SAME_HOUR = 9.0
"""How much a moment of the same hour of the day weighs beyond one that is only like the present."""
_UNLIKE = 0.03
"""What a moment that is not like the present still weighs: likeness is not proof."""


@lru_cache(maxsize=1)
def _lags() -> tuple[Ints, Floats, Ints, tuple[slice, slice, slice]]:
    """(minutes ago, weight, hours ago, which belong to whom) of the samples of all samplers.

    ``hours``: the same minute ± 1 of the last 72 hours. ``days``: the same minute ± 2 of 14 days, of the
    last 36 hours, and the last two hours. ``alike``: the same minute of every hour of 14 days, as far as it
    is like the present, the same hour of the day before all: what begins on the minute is not blurred.
    """
    hour, shift = np.meshgrid(np.arange(1, 73), (-1, 0, 1), indexing="ij")
    hours = (hour * 60 + shift).ravel(), (0.985**hour).ravel()
    day, shift = np.meshgrid(np.arange(1, _DAYS + 1), np.arange(-2, 3), indexing="ij")
    late, nudge = np.meshgrid(np.arange(1, 37), (-1, 0, 1), indexing="ij")
    near = np.arange(10, 141)
    days = (
        np.concatenate([(day * DAY + shift).ravel(), (late * 60 + nudge).ravel(), near]),
        np.concatenate(
            [
                (0.9**day * np.where(day % 7 == 0, 2.0, 1.0)).ravel(),
                np.full(late.size, 0.35 / 3),
                np.full(near.size, 0.06),
            ]
        ),
    )
    past = np.arange(1, _DAYS * 24)
    alike = past * 60, 0.998**past * np.where(past % 24 == 0, 1.0 + _SAME_HOUR, 1.0)
    lags = np.concatenate([hours[0], days[0], alike[0]]).astype(np.int64)
    weight = np.concatenate([hours[1], days[1], alike[1]])
    one, two = len(hours[0]), len(hours[0]) + len(days[0])
    return lags, weight, past, (slice(0, one), slice(one, two), slice(two, len(lags)))


_MARKS = {
    10: ((0, 1), (1, 4), (4, 7), (7, 10), (10, 13), (13, 16), (16, 19)),
    30: ((0, 1), (1, 2), (2, 3), (3, 4), (4, 6)),
}
"""Block of minutes -> windows of the past hours, in blocks, whose peaks say how like two moments are."""
_BACK = 240
"""Minutes of the past that the windows need at most."""


def _likeness(y: Minutes, rolled: Floats, at: int, width: int) -> Floats | None:
    """Weight of each moment a whole number of hours ago, by the peaks of the hours before it."""
    block = 30 if width == 15 else 10
    ahead = _BACK // block
    n = min(at - width, _DAYS * DAY) // block
    if n < ahead + 2 * (60 // block):
        return None
    peaks = rolled[at - width + 1 - n * block : at - width + 1].reshape(n, block).max(1)
    logs = np.log(peaks + y.day_mean * _FLOOR * 4 + 1e-9)
    views = np.lib.stride_tricks.sliding_window_view(logs, ahead)[::-1][:: 60 // block]
    feature = np.stack([views[:, ahead - b : ahead - a].max(1) for a, b in _MARKS[block]], 1)
    feature -= feature[:, :1].copy()
    gap = feature[1:] - feature[0]
    far = np.minimum((gap * gap).sum(1) / _LIKE**2, 60.0)
    weight: Floats = np.exp(-0.5 * far) + _UNLIKE
    return weight


def quantiles(y: Minutes, at: int, horizons: tuple[int, ...], width: int) -> Floats | None:
    """[horizon, sampler, level] of the highest bin (requests per minute) after minute ``at``.

    ``horizons`` in minutes, ascending; ``width`` of a bin in minutes. NaN for a sampler that has nothing to
    say; None where the present level is not known.
    """
    base = 3 * width
    if at < base or y.known(at - base, at) < base:
        return None
    lags, weight, hour, parts = _lags()
    rolled = y.values if width == 1 else (y.sums[width:] - y.sums[:-width]) / width
    steps = [max(1, -(-horizon // width)) for horizon in horizons]
    fits = (lags <= at - base) & (lags >= steps[-1] * width)
    close = _likeness(y, rolled, at, width)
    odds = weight.copy()
    if close is None:
        fits[parts[2]] = False
    else:
        odds[parts[2]] *= close[np.minimum(hour, len(close)) - 1]
        fits[parts[2]] &= hour <= len(close)
    start = at - lags[fits]
    odds = odds[fits]
    if y.gaps is not None:
        odds[y.gaps[start + steps[-1] * width] != y.gaps[start - base]] = 0.0
    floor = _FLOOR * y.day_mean + 1e-9
    level = (y.sums[start] - y.sums[start - base]) / base + floor
    now = float(y.sums[at] - y.sums[at - base]) / base + floor
    slow, slow_now = _slow(y, start, at)
    counts = np.concatenate([[0], np.cumsum([int(fits[part].sum()) for part in parts])])
    out = np.full((len(horizons), len(SAMPLERS), len(LEVELS)), np.nan)
    peak = np.zeros(len(start))
    done = 0
    for i, step in enumerate(steps):
        while done < step:
            np.maximum(peak, rolled[start + done * width], out=peak)
            done += 1
        reached = (peak + floor) / slow * slow_now
        ahead = np.minimum((peak + floor) / level * now, np.maximum(reached, now))
        for j in range(len(SAMPLERS)):
            mine = slice(counts[j], counts[j + 1])
            out[i, j] = _weighted(ahead[mine], odds[mine]) - floor
    found: Floats = np.maximum(out, 0.0)
    return found


def _slow(y: Minutes, start: Ints, at: int) -> tuple[Floats, float]:
    """(load of the hours before each past moment, before now): growth ends where it ended then.

    Of two and six hours' means the one that lets growth go further.
    """
    floor = _FLOOR * y.day_mean + 1e-9

    def mean(end: Ints, back: int) -> Floats:
        first = np.maximum(end - back, 0)
        found: Floats = (y.sums[end] - y.sums[first]) / np.maximum(end - first, 1)
        return found

    then = np.minimum(mean(start, 120), mean(start, 360)) + floor
    here = np.array([at])
    now = float(np.maximum(mean(here, 120), mean(here, 360))[0]) + floor
    return then, now


def _weighted(values: Floats, odds: Floats) -> Floats:
    """Weighted quantiles; NaN of fewer than three values."""
    if len(values) < 3:
        return np.full(len(LEVELS), np.nan)
    order = values.argsort()
    cumulated = odds[order].cumsum()
    if not cumulated[-1] > 0:
        return np.full(len(LEVELS), np.nan)
    found = np.searchsorted(cumulated, LEVELS * cumulated[-1])
    picked: Floats = values[order[np.minimum(found, len(values) - 1)]]
    return picked


def truth(y: Minutes, at: int, horizon: int, width: int) -> float | None:
    """What the highest bin after minute ``at`` was; None where it is missing or not over yet."""
    end = at + max(1, -(-horizon // width)) * width
    if end > y.size or y.known(at, end) < end - at:
        return None
    return float(np.diff(y.sums[at : end + 1 : width]).max()) / width


def pinball(forecasts: Floats, true: float) -> Floats:
    """Loss of each quantile."""
    over = true - forecasts
    return np.maximum(LEVELS * over, (LEVELS - 1.0) * over)


def choose(forecasts: Floats, losses: Floats) -> Floats:
    """Per level the sampler with the smaller loss, ascending; both [sampler, level]."""
    best = np.where(np.isnan(forecasts), np.inf, losses).argmin(0)
    picked = forecasts[best, np.arange(len(LEVELS))]
    ascending: Floats = np.maximum.accumulate(picked)
    return ascending


def denoise(rates: Floats, width: int, dispersion: float) -> Floats:
    """Take the noise of counting out of a distribution of rates per minute: queueing adds it again."""
    counts = rates * width
    mean = float((counts * MASS).sum())
    spread = float(((counts - mean) ** 2 * MASS).sum())
    if spread <= 0 or mean <= 0:
        return rates
    shrink = max(0.0, 1.0 - mean * dispersion / spread) ** 0.5
    shrunk: Floats = (mean + (counts - mean) * shrink) / width
    return shrunk
