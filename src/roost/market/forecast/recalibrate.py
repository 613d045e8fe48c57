"""Corrects forecasts of loss by what became of the earlier ones. Pure; reads only the past.

Markets drift: a model that was calibrated in one month is too calm or too nervous in the next. Each forecast
is kept until its horizon has passed, and losses that came are set against losses that were expected, fading
over days, for the market and for each pool. Both are shrunk to "the model is right" by so many losses' worth
(a gamma-Poisson estimate); their ratio shifts the log odds.
"""

import numpy as np
from numpy.typing import NDArray

from roost.market.forecast.features import HORIZONS_H

FADE_H = 72.0
MARKET_LOSSES = 40.0
POOL_LOSSES = 40.0

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Recalibration:
    """The running account of one market's forecasts. The cost of a tick does not grow."""

    def __init__(self, zones: int, gap_s: float) -> None:
        self._ticks = np.array([max(1, round(h * 3600.0 / gap_s)) for h in HORIZONS_H])
        self._fade = float(np.exp(-gap_s / 3600.0 / FADE_H))
        self._ring = np.full((int(self._ticks[-1]) + 1, zones, len(HORIZONS_H)), np.nan)
        self._tick = -1
        self._up_for = np.zeros(zones)
        self._came = np.zeros((zones, len(HORIZONS_H)))
        self._said = np.zeros((zones, len(HORIZONS_H)))

    def observe(self, up: Bools, known: Bools) -> None:
        """One tick: settle the forecasts whose horizon has passed."""
        self._tick += 1
        self._up_for = np.where(up, self._up_for + 1.0, 0.0)
        place = (self._tick - self._ticks) % len(self._ring)
        said = self._ring[place, :, np.arange(len(self._ticks))].T
        settled = np.isfinite(said) & known[:, None]
        lost = self._up_for[:, None] <= self._ticks
        # Forecasts of successive ticks tell of the same loss: together they count as one.
        self._came = self._fade * self._came + np.where(settled & lost, 1.0 / self._ticks, 0.0)
        self._said = self._fade * self._said + np.where(settled, said, 0.0) / self._ticks
        self._ring[self._tick % len(self._ring)] = np.nan

    def record(self, p_loss: Floats) -> None:
        """Keep this tick's uncorrected forecasts [zones, horizons]; NaN where there is none."""
        self._ring[self._tick % len(self._ring)] = p_loss

    def shifts(self) -> Floats:
        """[zones, horizons] what is added to the log odds of being lost."""
        came, said = self._came.sum(axis=0), self._said.sum(axis=0)
        market = (came + MARKET_LOSSES) / (said + MARKET_LOSSES)
        own = (self._came + POOL_LOSSES) / (self._said * market + POOL_LOSSES)
        return np.asarray(np.log(market * own))


def shifts_over(up: Bools, known: Bools, p_loss: Floats, gap_s: float) -> Floats:
    """[T, Z, horizons] the shifts at every tick of a recording, given the uncorrected forecasts."""
    account = Recalibration(up.shape[1], gap_s)
    made = np.empty_like(p_loss)
    for tick in range(len(up)):
        account.observe(up[tick], known[tick])
        account.record(p_loss[tick])
        made[tick] = account.shifts()
    return made


def shifted(p_loss: Floats, shifts: Floats) -> Floats:
    """Corrected probabilities; still growing with the horizon (the last axis)."""
    p = np.clip(p_loss, 1e-9, 1.0 - 1e-9)
    odds = np.log(p / (1.0 - p)) + shifts
    return np.asarray(np.maximum.accumulate(1.0 / (1.0 + np.exp(-odds)), axis=-1))
