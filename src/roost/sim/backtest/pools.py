"""A recorded market as the backtest plays it: who is up when, at what price, and until when. Pure.

Prices are shares of the on-demand price (on demand = 1). A price nobody recorded is ``USUAL_SHARE``:
what the p3.2xlarge cost in the recording that has prices (0.918 of 3.06 USD an hour). The truth in
here is the world's: policies are shown ``Seen`` (``seen.py``) and the answers to their own launches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roost.market.traces import Trace

USUAL_SHARE = 0.3
ON_DEMAND = -1
"""The place that is never taken back and never refuses, at price 1."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pools:
    """``up`` and ``price`` [T][Z]; ``room`` [T][Z] instances that fit (``up`` recordings: no limit).

    ``down_at`` [T][Z] is the first tick from t on in which the pool is down (T = not within the
    recording).
    """

    name: str
    zones: tuple[str, ...]
    regions: tuple[str, ...]
    gap_s: float
    up: list[list[bool]]
    price: list[list[float]]
    room: list[list[int]]
    down_at: list[list[int]]
    shown: Bools
    """``up`` as an array [T, Z]."""
    limited: bool

    @property
    def ticks(self) -> int:
        """How many ticks the recording has."""
        return len(self.up)

    @property
    def end_s(self) -> float:
        """Length of the recording in seconds."""
        return self.ticks * self.gap_s

    def price_at(self, tick: int, place: int) -> float:
        """Price of a place (a zone's number or ``ON_DEMAND``) as a share of on-demand."""
        return 1.0 if place == ON_DEMAND else self.price[tick][place]


def pools_of(trace: Trace) -> Pools:
    """The pools of a recording. Where nobody looked a pool is down: nothing can be launched on a
    guess."""
    up = trace.up
    share = trace.price / trace.on_demand_usd_hour
    share = _carried(share)
    share = np.where(np.isfinite(share), share, USUAL_SHARE)
    limited = bool(trace.capacity.max(initial=0) > 1)
    room = np.maximum(trace.capacity, 0) if limited else np.where(up, 1 << 30, 0)
    return Pools(
        name=trace.name,
        zones=trace.zones,
        regions=trace.regions,
        gap_s=trace.gap_s,
        up=up.tolist(),
        price=share.tolist(),
        room=room.tolist(),
        down_at=_next_down(up).tolist(),
        shown=up,
        limited=limited,
    )


def _carried(share: Floats) -> Floats:
    """Each pool's last known price where a tick has none."""
    row = np.where(np.isfinite(share), np.arange(len(share))[:, None], 0)
    return np.asarray(np.take_along_axis(share, np.maximum.accumulate(row, axis=0), axis=0))


def _next_down(up: Bools) -> Whole:
    ticks, zones = up.shape
    found = np.full((ticks + 1, zones), ticks, dtype=np.int64)
    for tick in range(ticks - 1, -1, -1):
        found[tick] = np.where(up[tick], found[tick + 1], tick)
    return found[:ticks]
