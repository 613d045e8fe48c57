"""Hazards of pools that somebody watches now: their recent availability through the hazard model.

A pool counts when its newest look is recent; a pool that is down, or that nobody looked at, gets none, as
nothing is known of how long it would last. Pure but for the model, which the caller gives.
"""

from collections.abc import Mapping

import msgspec
import numpy as np
import polars as pl

from roost.market.decision import hazard_hour
from roost.market.forecast.features import HORIZONS_H
from roost.market.forecast.model import Forecaster, PoolStates
from roost.market.survival import HARDWARE_HAZARD, Hazard

DAYS = 3.0
"""What is looked back on: older looks hardly move the model's averages."""
RECENT_LOOKS = 3.0
"""The newest look may be so many intervals old."""
HORIZON_H = 6.0
"""The hazard that stands for a pool: constant over so many hours it gives the model's probability of loss."""

Pool = tuple[str, str, str, str]
"""(provider, region, zone, type)."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What watching a pool says of it."""

    hazard: Hazard
    source: str
    observed_at: float


def observed(facts: pl.DataFrame, as_of: float, forecaster: Forecaster) -> Mapping[Pool, Seen]:
    """The hazards of watched pools that are up at ``as_of`` (UTC seconds).

    ``facts``: availability as the history keeps it, at least the last ``DAYS``.
    """
    found: dict[Pool, Seen] = {}
    recent = facts.filter(pl.col("observed_at").is_between(as_of - DAYS * 86_400.0, as_of))
    for _, rows in recent.group_by(
        "provider", "instance_type", "series", "source", maintain_order=True
    ):
        found.update(_market(rows, as_of, forecaster))
    return found


def _market(rows: pl.DataFrame, as_of: float, forecaster: Forecaster) -> dict[Pool, Seen]:
    gap_s = float(np.median(rows["interval_s"].to_numpy()))
    newest = rows["observed_at"].to_numpy().max()
    if not gap_s > 0 or as_of - newest > RECENT_LOOKS * gap_s:
        return {}
    places = rows.select("region", "zone").unique().sort("region", "zone").rows()
    number = {place: column for column, place in enumerate(places)}
    first = rows["observed_at"].to_numpy().min()
    ticks = round((newest - first) / gap_s) + 1
    up, known = np.zeros((ticks, len(places)), np.bool_), np.zeros((ticks, len(places)), np.bool_)
    last = np.full(len(places), -np.inf)
    for region, zone, at, capacity in rows.select(
        "region", "zone", "observed_at", "capacity"
    ).iter_rows():
        tick, column = round((at - first) / gap_s), number[region, zone]
        up[tick, column], known[tick, column] = capacity > 0, True
        last[column] = max(last[column], at)
    pools = forecaster.pools([z or r for r, z in places], [r for r, _ in places], gap_s)
    for tick in range(ticks):
        pools.observe(up[tick], known=known[tick])
    head = rows.row(0, named=True)
    return _seen(pools, places, last, as_of - RECENT_LOOKS * gap_s, head)


def _seen(
    pools: PoolStates,
    places: list[tuple[str, ...]],
    last: np.ndarray[tuple[int], np.dtype[np.float64]],
    since: float,
    head: Mapping[str, str],
) -> dict[Pool, Seen]:
    forecast = pools.hazards()
    at = HORIZONS_H.index(HORIZON_H)
    found: dict[Pool, Seen] = {}
    for column, (region, zone) in enumerate(places):
        p = float(forecast.p_loss[column, at])
        if np.isnan(p) or last[column] < since:
            continue
        ends = (forecast.p_loss_low[column, at], forecast.p_loss_high[column, at])
        low, high = (max(hazard_hour(float(end), HORIZON_H), HARDWARE_HAZARD) for end in ends)
        words = f"observed: {head['series']} ({head['source']}), model over {HORIZON_H:g} h"
        middle = max(hazard_hour(p, HORIZON_H), HARDWARE_HAZARD)
        found[head["provider"], region, zone, head["instance_type"]] = Seen(
            hazard=Hazard(expected=middle, low=low, high=high, source=words),
            source=head["source"],
            observed_at=float(last[column]),
        )
    return found
