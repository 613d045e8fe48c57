"""Small recordings of pools, made up for tests."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from roost.market.traces import Trace


def flapping(
    ticks: int, zones: int, seed: int, up_h: float = 3.0, down_h: float = 1.0, gap_s: float = 300.0
) -> NDArray[np.bool_]:
    """[T, Z] pools that go and come; every other one four times as often."""
    random = np.random.default_rng(seed)
    up = np.zeros((ticks, zones), dtype=bool)
    for zone in range(zones):
        pace = 4.0 if zone % 2 else 1.0
        tick, state = 0, True
        while tick < ticks:
            mean_h = (up_h if state else down_h) / pace
            run = max(1, round(random.exponential(mean_h) * 3600.0 / gap_s))
            up[tick : tick + run, zone] = state
            tick, state = tick + run, not state
    return up


def trace_of(
    up: NDArray[np.bool_], name: str = "made-up", gap_s: float = 300.0, start_tick: int = 0
) -> Trace:
    """A recording of these states in zones of three regions."""
    zones = tuple(f"region-{number % 3}{'abcdef'[number // 3]}" for number in range(up.shape[1]))
    return Trace(
        name=name,
        zones=zones,
        instance="p3.2xlarge",
        gap_s=gap_s,
        capacity=up.astype(np.int16),
        price=np.full(up.shape, np.nan),
        on_demand_usd_hour=3.06,
        start_tick=start_tick,
    )


def frame_of(trace: Trace) -> pl.DataFrame:
    """The rows of ``traces.parquet`` for a recording."""
    tick, zone = np.nonzero(np.ones(trace.capacity.shape))
    return pl.DataFrame(
        {
            "dataset": [trace.name] * len(tick),
            "zone": [trace.zones[z] for z in zone],
            "instance": [trace.instance] * len(tick),
            "gap_s": np.full(len(tick), trace.gap_s),
            "tick": tick + trace.start_tick,
            "capacity": trace.capacity[tick, zone],
            "price": np.full(len(tick), np.nan),
        }
    ).sort("zone", "tick")


def folder_of(trace: Trace, path: Path) -> Path:
    """A folder with ``traces.parquet``."""
    frame_of(trace).write_parquet(path / "traces.parquet")
    return path
