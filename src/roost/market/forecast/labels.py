"""What became of each pool after each tick, as numbers to learn from and to judge by. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roost.market.forecast.features import HORIZONS_H, replay
from roost.market.traces import Trace

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
NEVER = 10**9


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """One row a tick and a pool that was looked at. Times are in ticks of ``gap_s`` seconds."""

    trace: str
    gap_s: float
    features: NDArray[np.float32]
    seen_h: Floats
    tick: Ints
    zone: Ints
    up: Bools
    down_in: Ints
    """Ticks until the pool is next seen down; ``NEVER`` if that is not recorded."""
    left: Ints
    """Ticks until the recording ends or the pool is no longer looked at: who gets there is censored."""
    later: Ints
    """Up (1) or not (0) an hour later; -1 where that is not recorded."""

    @property
    def horizons(self) -> list[int]:
        """``HORIZONS_H`` in ticks."""
        return [max(1, round(hours * 3600.0 / self.gap_s)) for hours in HORIZONS_H]

    @property
    def weight_h(self) -> float:
        """Hours a row stands for, so that recordings with short ticks do not count more."""
        return self.gap_s / 3600.0

    def where(self, keep: Bools) -> "Rows":
        """The rows that are kept."""
        return Rows(
            self.trace,
            self.gap_s,
            self.features[keep],
            self.seen_h[keep],
            self.tick[keep],
            self.zone[keep],
            self.up[keep],
            self.down_in[keep],
            self.left[keep],
            self.later[keep],
        )

    def before(self, tick: int) -> "Rows":
        """What could be known at ``tick``: earlier rows, and of what became of them what was seen by then."""
        kept = self.where(self.tick < tick)
        left = np.minimum(kept.left, tick - 1 - kept.tick)
        later = np.where(kept.tick + self.horizons[1] < tick, kept.later, -1)
        down_in = np.where(kept.down_in <= left, kept.down_in, NEVER)
        fields = (kept.features, kept.seen_h, kept.tick, kept.zone, kept.up, down_in, left, later)
        return Rows(kept.trace, kept.gap_s, *fields)

    def lost(self, horizon: int) -> tuple[Bools, Bools]:
        """(which rows tell whether the pool was lost within a horizon, whether it was)."""
        ticks = self.horizons[horizon]
        return self.up & (self.left >= ticks), self.down_in <= ticks

    def interval(self, number: int) -> tuple[Bools, Bools]:
        """(which rows got as far as an interval and tell what came, whether the pool was lost in it)."""
        begin = self.horizons[number - 1] if number else 0
        end = self.horizons[number]
        # Rows too near the end of the recording would count only if lost.
        told = self.up & (self.down_in > begin) & (self.left >= end)
        return told, self.down_in <= end


def rows_of(trace: Trace) -> Rows:
    """All rows of a recording."""
    up, known = trace.up, trace.known
    features, seen = replay(up, known, trace.regions, trace.gap_s)
    down_in, left = _waits(up, known)
    ahead = max(1, round(3600.0 / trace.gap_s))
    later = np.full(up.shape, -1)
    later[:-ahead] = np.where(known[ahead:], up[ahead:], -1) if len(up) > ahead else later[:-ahead]
    tick, zone = np.nonzero(known)
    at = (tick, zone)
    return Rows(
        trace=trace.name,
        gap_s=trace.gap_s,
        features=features[at],
        seen_h=seen[at],
        tick=tick,
        zone=zone,
        up=up[at],
        down_in=down_in[at],
        left=left[at],
        later=later[at],
    )


def _waits(up: Bools, known: Bools) -> tuple[Ints, Ints]:
    ticks, zones = up.shape
    down_in = np.empty((ticks, zones), dtype=np.int64)
    left = np.empty((ticks, zones), dtype=np.int64)
    wait = np.full(zones, NEVER)
    room = np.zeros(zones, dtype=np.int64)
    for tick in range(ticks - 1, -1, -1):
        down_in[tick], left[tick] = wait, room
        wait = np.where(known[tick], np.where(up[tick], np.minimum(wait + 1, NEVER), 1), NEVER)
        room = np.where(known[tick], room + 1, 0)
    return down_in, left
