"""What became of each pool after each tick, as numbers to learn from and to judge by. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    hourly: NDArray[np.float16]
    """Availability in each of the 24 hours before [N, 24], the latest last; a half where nobody looked."""
    ahead: NDArray[np.float32]
    """Availability over the 24 hours after; -1 where that is not recorded whole."""

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
        columns = {name: getattr(self, name)[keep] for name in COLUMNS}
        return Rows(trace=self.trace, gap_s=self.gap_s, **columns)

    def joined(self, others: Sequence["Rows"]) -> "Rows":
        """These rows and those of other parts of the same recording."""
        every = [self, *others]
        columns = {name: np.concatenate([getattr(r, name) for r in every]) for name in COLUMNS}
        return Rows(trace=self.trace, gap_s=self.gap_s, **columns)

    def before(self, tick: int) -> "Rows":
        """What could be known at ``tick``: earlier rows, and of what became of them what was seen by then."""
        kept = self.where(self.tick < tick)
        left = np.minimum(kept.left, tick - 1 - kept.tick)
        later = np.where(kept.tick + self.horizons[1] < tick, kept.later, -1)
        down_in = np.where(kept.down_in <= left, kept.down_in, NEVER)
        ahead = np.where(left >= kept.horizons[3], kept.ahead, -1.0).astype(np.float32)
        return replace(kept, down_in=down_in, left=left, later=later, ahead=ahead)

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


COLUMNS = (
    "features",
    "seen_h",
    "tick",
    "zone",
    "up",
    "down_in",
    "left",
    "later",
    "hourly",
    "ahead",
)


def rows_of(trace: Trace) -> Rows:
    """All rows of a recording."""
    up, known = trace.up, trace.known
    features, seen = replay(up, known, trace.regions, trace.gap_s)
    down_in, left = _waits(up, known)
    ahead = max(1, round(3600.0 / trace.gap_s))
    later = np.full(up.shape, -1)
    later[:-ahead] = np.where(known[ahead:], up[ahead:], -1) if len(up) > ahead else later[:-ahead]
    hourly, coming = _availability(up, known, ahead)
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
        hourly=hourly[at],
        ahead=coming[at],
    )


def _availability(
    up: Bools, known: Bools, hour: int
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """By tick and zone: availability of each of the 24 hours before, and over the 24 hours after."""
    ticks, zones = up.shape
    nothing = np.zeros((1, zones))
    ups = np.concatenate([nothing, np.cumsum(up & known, axis=0)])
    looks = np.concatenate([nothing, np.cumsum(known, axis=0)])
    now = np.arange(1, ticks + 1)
    hourly = np.empty((ticks, zones, 24), dtype=np.float16)
    for back in range(24):
        end = np.maximum(now - back * hour, 0)
        begin = np.maximum(end - hour, 0)
        seen = looks[end] - looks[begin]
        share = (ups[end] - ups[begin]) / np.maximum(seen, 1)
        hourly[:, :, 23 - back] = np.where(seen > 0, share, 0.5)
    end = np.minimum(now + 24 * hour, ticks)
    whole = (looks[end] - looks[now]) == 24 * hour
    coming = np.where(whole, (ups[end] - ups[now]) / (24 * hour), -1.0).astype(np.float32)
    return hourly, coming


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
