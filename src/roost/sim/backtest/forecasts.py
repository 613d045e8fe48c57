"""The shipped forecasts over a recording, computed once and shared by every policy that asks. Reads
only the past."""

from collections.abc import Sequence

import numpy as np

from roost.market.forecast.model import Forecaster
from roost.market.traces import Trace
from roost.sim.backtest.pools import Bools, Floats

UNKNOWN = 0.5
"""For a pool that is up and of which nothing is known."""


class Replayed:
    """``Forecasts`` of one recording: row t was made from ticks 0 to t."""

    def __init__(self, losses: Floats, up: Bools) -> None:
        """``losses`` [T, Z, H], NaN where nothing is known."""
        known = np.where(np.isnan(losses), UNKNOWN, losses)
        certain = np.where(up[:, :, None], known, 1.0)
        self._rows: list[list[list[float]]] = certain.transpose(0, 2, 1).tolist()

    def p_loss(self, tick: int, horizon: int) -> Sequence[float]:
        return self._rows[tick][horizon]


def replayed(trace: Trace, forecaster: Forecaster) -> Replayed:
    """The forecasts of ``forecaster`` at every tick of ``trace``."""
    return Replayed(forecaster.replay(trace).p_loss, trace.up)
