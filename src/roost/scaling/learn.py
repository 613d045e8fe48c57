"""Once a minute: measure a service anew, judge the last forecasts, make the next ones.

It changes the service's memory only, and never looks at a clock.
"""

import math
from dataclasses import dataclass

import numpy as np

from roost.scaling import forecast, idle, risk, surges
from roost.scaling.arrivals import Floats, Minutes, bin_minutes, dispersion
from roost.scaling.memory import Memory

HOLD_S = 900.0
"""The horizon that decides what may go."""
MEASURED = 50
"""Finished requests before their times are believed."""
SAMPLES = 2000
TESTS = 190
"""Past moments the samplers are tried at: two days, one each quarter of an hour."""
SPACING = 17
"""Minutes between two of them: they fall on every part of an hour."""
_DISCOUNT = 1.0 - 1.0 / TESTS
COLD = 0.75
"""Of the late share an objective allows, what starts from zero may use."""
_FADE = 1.0 - 1.0 / 2880
"""Of what was seen of jumps, what still counts a minute later: they are remembered for two days."""
_UNHEARD = 10.0
"""Loss of a sampler that had nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What is measured of one service, and what bounds it."""

    minutes: Floats
    end_s: float
    recent: Floats
    recent_s: float
    times: Floats
    mean_s: float
    cv: float
    concurrency: int
    late: Floats
    total: Floats
    failing: bool
    bound_s: float
    late_share: float
    ahead_s: float
    """How long capacity takes: boot, start and one period, nearly always."""
    start_s: float
    """How long a start from zero takes."""
    sleeps: bool
    hold_s: float = HOLD_S


@dataclass(frozen=True, slots=True)
class Forecast:
    """Rates per second by ``forecast.LEVELS``: over the time to capacity, and over the longer one."""

    up: Floats
    hold: Floats


def refresh(m: Memory, use: Usage, tests: int, surging: bool) -> Forecast | None:
    """Bring ``m`` to the newest minute; None where nothing can be forecast.

    ``tests`` = how many past moments the samplers may be tried at now, ``surging`` = whether all of
    history may be searched for surges.
    """
    y = Minutes(use.minutes)
    m.day_mean = y.day_mean
    _measure(m, use)
    _judge(m, use)
    if use.sleeps and (not m.idle_s or use.end_s >= m.idle_until_s):
        m.idle_s = idle.limits_s(y, m.service_s, use.start_s, COLD * use.late_share)
        m.idle_until_s = use.end_s + 3600.0
    _surges(m, use, y, surging)
    m.minute_s = use.end_s
    width = bin_minutes(y.day_mean)
    horizons = (max(1, math.ceil(use.ahead_s / 60.0)), max(1, math.ceil(use.hold_s / 60.0)))
    losses = _tried(m, y, horizons, width, use.end_s, tests)
    found = forecast.quantiles(y, y.size, horizons, width)
    if found is None or y.size < width:
        return None
    if not m.asked:
        m.asked, m.asked_s = found.astype(np.float32).tobytes(), use.end_s
    bins = (y.sums[width:] - y.sums[:-width]) / (60.0 * width)
    m.highest = 1.1 * float(y.values.max()) / 60.0
    cap = max(1.1 * float(bins.max()), 1.25 * float(bins[-1]))
    noise = max(1.0, m.dispersion)
    rates = [
        np.minimum(forecast.denoise(forecast.choose(q, loss), width, noise) / 60.0, cap)
        for q, loss in zip(found, losses, strict=True)
    ]
    return Forecast(*rates)


def _measure(m: Memory, use: Usage) -> None:
    times = use.times[-SAMPLES:]
    if len(times) >= MEASURED:
        m.service_s = max(1e-6, float(times.mean()))
        m.cv = float(times.std()) / m.service_s
    else:
        m.service_s, m.cv = max(1e-6, use.mean_s), use.cv
    m.dispersion = dispersion(use.recent, use.recent_s, m.dispersion if m.minute_s else None)


def _surges(m: Memory, use: Usage, y: Minutes, surging: bool) -> None:
    """What of a surge lasts: of whole minutes from history, of seconds from what was seen since."""
    m.level = y.mean(max(0, y.size - surges.LEVEL), y.size) / 60.0
    if surging:
        m.lasting = surges.lasting(y, round(use.start_s / 60.0))
        # To a service that sleeps the few requests that wake it are all there is to learn from.
        if not use.sleeps:
            share = surges.sudden(y, math.ceil(use.ahead_s / 60.0), max(1.0, m.dispersion))
            m.sudden = min(1.0, share / use.late_share)
        m.lasting_until_s = use.end_s + 3600.0
    # Each moment once: those of the new minute, at first all there are.
    last = round((use.end_s - m.minute_s) / use.recent_s) if m.jumps_seen else len(use.recent)
    seen, kept = surges.jumps(use.recent, use.recent_s, m.dispersion, y.day_mean, max(1, last))
    if m.jumps_seen:
        seen, kept = seen + _FADE * np.array(m.jumps_seen), kept + _FADE * np.array(m.jumps_kept)
    m.jumps_seen, m.jumps_kept = tuple(seen.tolist()), tuple(kept.tolist())
    m.jumping = surges.parts(seen, kept)


def _judge(m: Memory, use: Usage) -> None:
    """Correct the risk by the minutes that can be judged by now."""
    until_s = use.end_s - math.ceil((use.bound_s + 60.0) / 60.0) * 60.0
    size = len(use.total)
    if m.judged_s and not use.failing and until_s > m.judged_s:
        first = max(0, size - round((use.end_s - m.judged_s) / 60.0))
        last = max(first, size - round((use.end_s - until_s) / 60.0))
        late, total = use.late[first:last], use.total[first:last]
        # What starts from zero uses its own part of the objective.
        target = use.late_share * (risk.TARGET_AWAKE if use.sleeps else risk.TARGET)
        gain = risk.gain(use.end_s - m.born_s, m.sudden)
        m.z = risk.corrected(m.z, late, total, m.day_mean, target, gain)
    m.judged_s = max(m.judged_s, until_s)


def _tried(
    m: Memory, y: Minutes, horizons: tuple[int, ...], width: int, end_s: float, tests: int
) -> Floats:
    """Losses of the samplers, after ``tests`` more past moments and the last forecast that can be judged."""
    shape = (len(horizons), len(forecast.SAMPLERS), len(forecast.LEVELS))
    if len(m.losses) == 4 * math.prod(shape):
        losses = np.frombuffer(m.losses, np.float32).reshape(shape).astype(float)
    else:
        losses, m.tested = np.zeros(shape), 0
    span = -(-horizons[-1] // width) * width
    for place in range(m.tested, min(TESTS, m.tested + tests)):
        at = y.size - span - (TESTS - place) * SPACING
        found = forecast.quantiles(y, at, horizons, width) if at > 0 else None
        losses = _compared(losses, found, y, at, horizons, width)
    m.tested = min(TESTS, m.tested + tests)
    back = round((end_s - m.asked_s) / 60.0)
    if m.asked and back >= span:
        asked = np.frombuffer(m.asked, np.float32).reshape(shape).astype(float)
        losses = _compared(losses, asked, y, y.size - back, horizons, width)
        m.asked = b""
    m.losses = losses.astype(np.float32).tobytes()
    return losses


def _compared(
    losses: Floats, found: Floats | None, y: Minutes, at: int, horizons: tuple[int, ...], width: int
) -> Floats:
    if found is None or at < 0:
        return losses
    losses = losses * _DISCOUNT
    for i, horizon in enumerate(horizons):
        true = forecast.truth(y, at, horizon, width)
        if true is not None and y.day_mean > 0:
            loss = forecast.pinball(found[i], true) / y.day_mean
            losses[i] += np.where(np.isnan(loss), _UNHEARD, loss)
    return losses
