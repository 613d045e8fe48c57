"""Judges the model on recordings, against baselines, with bootstrap intervals. Never changes the model.

Every recording is judged three times: by the model as shipped; by models fitted again to what came before
(rolling origin); and by models fitted again to the other zones (zones left out). ``roost market evaluate``
asks for it. Intervals: metrics.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from roost.market.forecast.baselines import fit_baselines, predict
from roost.market.forecast.features import HORIZONS_H
from roost.market.forecast.labels import Rows, rows_of
from roost.market.forecast.metrics import (
    Measure,
    forecast_measures,
    reliability,
    state_measures,
)
from roost.market.forecast.model import Artefact, Forecaster
from roost.market.forecast.recalibrate import shifted, shifts_over
from roost.market.forecast.train import fit_sample, sample
from roost.market.traces import Trace
from roost.ports.errors import Invalid

HORIZON_NAMES = ("10min", "1h", "6h", "24h")
ORIGINS = (0.4, 0.6, 0.8)
"""Shares of each recording after which the model is fitted again."""
FOLDS = 5
"""Groups the zones are left out in."""
BLOCK_H = 24.0
FEW_BLOCKS = 8
SHORT_BLOCK_H = 6.0
"""Blocks of recordings that hold fewer than ``FEW_BLOCKS`` days."""

Floats = NDArray[np.float64]
Say = Callable[[str], None]
Scores = dict[str, dict[str, dict[str, Measure]]]
"""Horizon (or ``up_1h``) -> forecaster -> measure."""


class TraceScores(msgspec.Struct, frozen=True, kw_only=True):
    """How one recording was foretold."""

    name: str
    zones: list[str]
    days: float
    block_hours: float
    share_trained_on: float
    """Of its rows, those the shipped model has learnt from: above 0, ``shipped`` is not out of sample."""
    loss_share: dict[str, float]
    """Share of looks at a pool that was up after which it was lost within the horizon."""
    shipped: Scores
    rolling_origin: Scores | None
    zones_left_out: Scores | None


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A recording's rows with every forecaster's word on them."""

    rows: Rows
    losses: dict[str, Floats]
    up_1h: dict[str, Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A recording and its rows."""

    trace: Trace
    rows: Rows


def replay_all(traces: Sequence[Trace], say: Say) -> list[Replayed]:
    """The rows of every recording."""
    made = []
    for trace in traces:
        say(f"replaying {trace.name}")
        made.append(Replayed(trace, rows_of(trace)))
    return made


def foretell(artefact: Artefact, item: Replayed, keep: NDArray[np.bool_] | None = None) -> Judged:
    """What a model and its baselines say of a recording; of the rows to ``keep`` only, if given."""
    rows = item.rows
    forecaster = Forecaster(artefact)
    made = forecaster.forecast(rows.features.astype(float), rows.up, rows.seen_h)
    grid = np.full((*item.trace.up.shape, len(HORIZONS_H)), np.nan)
    grid[rows.tick, rows.zone] = made.p_loss
    shifts = shifts_over(item.trace.up, item.trace.known, grid, rows.gap_s)
    losses = {"model": shifted(made.p_loss, shifts[rows.tick, rows.zone])}
    losses |= predict(artefact.baselines, rows)
    up_1h = {"model": made.p_up_1h, "persistence": np.where(rows.up, 0.999, 0.001)}
    if keep is None:
        return Judged(rows, losses, up_1h)
    return Judged(
        rows.where(keep),
        {name: p[keep] for name, p in losses.items()},
        {name: p[keep] for name, p in up_1h.items()},
    )


def together(parts: Sequence[Judged]) -> Judged:
    """Parts of one recording as one."""
    rows = parts[0].rows
    if len(parts) > 1:
        rows = rows.joined([part.rows for part in parts[1:]])
    return Judged(
        rows,
        {name: np.concatenate([part.losses[name] for part in parts]) for name in parts[0].losses},
        {name: np.concatenate([part.up_1h[name] for part in parts]) for name in parts[0].up_1h},
    )


def score(judged: Judged, block_h: float) -> Scores:
    """Every measure of every forecaster at every horizon."""
    rows = judged.rows
    block = (rows.tick * rows.weight_h / block_h).astype(np.int64)
    found: Scores = {}
    for number, name in enumerate(HORIZON_NAMES):
        told, lost = rows.lost(number)
        if not told.any():
            continue
        event = rows.down_in[told] <= rows.left[told]
        time = np.where(event, rows.down_in[told], rows.left[told]).astype(float)
        found[name] = {
            who: forecast_measures(p[told][:, number], lost[told], block[told], time, event)
            for who, p in judged.losses.items()
        }
    known = rows.later >= 0
    if known.any():
        found["up_1h"] = {
            who: state_measures(p[known], rows.later[known] == 1, block[known])
            for who, p in judged.up_1h.items()
        }
    return found


def refit(items: Sequence[Replayed], parts: Sequence[Rows]) -> Artefact | None:
    """A model of these rows; None when they hold too little."""
    pairs = [(i, rows) for i, rows in zip(items, parts, strict=True) if len(rows.tick)]
    try:
        pooled = sample([(rows, 1.0) for _, rows in pairs], [i.trace.zones for i, _ in pairs])
        fitted = fit_baselines([rows for _, rows in pairs])
        return fit_sample(pooled, fitted, [], _nothing, resamples=0, calibrate=False)
    except (Invalid, ValueError):
        return None


def _nothing(_: str) -> None:
    return None


def rolling(items: Sequence[Replayed], say: Say) -> dict[str, Judged]:
    """Each later part of every recording, foretold by a model of the earlier parts of all."""
    found: dict[str, list[Judged]] = {}
    for number, origin in enumerate(ORIGINS):
        say(f"rolling origin {number + 1} of {len(ORIGINS)}: fitting to the first {origin:.0%}")
        cuts = [round(item.trace.ticks * origin) for item in items]
        parts = [item.rows.before(cut) for item, cut in zip(items, cuts, strict=True)]
        artefact = refit(items, parts)
        if artefact is None:
            continue
        until = ORIGINS[number + 1] if number + 1 < len(ORIGINS) else 1.0
        for item, cut in zip(items, cuts, strict=True):
            tick = item.rows.tick
            keep = (tick >= cut) & (tick < round(item.trace.ticks * until))
            if keep.any():
                found.setdefault(item.trace.name, []).append(foretell(artefact, item, keep))
    return {name: together(parts) for name, parts in found.items()}


def left_out(items: Sequence[Replayed], say: Say) -> dict[str, Judged]:
    """Every zone of every recording, foretold by a model that has not seen a zone of that name."""
    every = sorted({zone for item in items for zone in item.trace.zones})
    if len(every) < 2:
        return {}
    folds = [every[i::FOLDS] for i in range(min(FOLDS, len(every)))]
    found: dict[str, list[Judged]] = {}
    for number, fold in enumerate(folds):
        say(f"zones left out {number + 1} of {len(folds)}: {', '.join(fold)}")
        away = [
            np.isin(np.array(item.trace.zones), fold)[item.rows.zone].astype(bool) for item in items
        ]
        artefact = refit(
            items, [item.rows.where(~out) for item, out in zip(items, away, strict=True)]
        )
        if artefact is None:
            continue
        for item, out in zip(items, away, strict=True):
            if out.any():
                found.setdefault(item.trace.name, []).append(foretell(artefact, item, out))
    return {name: together(parts) for name, parts in found.items()}


def unseen(traces: Sequence[Trace], way: str, say: Say) -> dict[str, Floats]:
    """[T, Z, horizons] losses foretold for every recording by models that have not seen what they speak
    of: ``rolling`` (NaN before the first origin) or ``zones`` left out.
    """
    items = replay_all(traces, say)
    judged = {"rolling": rolling, "zones": left_out}[way](items, say)
    found = {}
    for item in items:
        grid = np.full((*item.trace.up.shape, len(HORIZONS_H)), np.nan)
        if item.trace.name in judged:
            part = judged[item.trace.name]
            grid[part.rows.tick, part.rows.zone] = part.losses["model"]
        found[item.trace.name] = grid
    return found


def judge_traces(
    traces: Sequence[Trace], shipped: Artefact, say: Say, refits: bool = True
) -> tuple[list[TraceScores], dict[str, Judged]]:
    """The scores of every recording, and the shipped model's forecasts for the charts."""
    items = replay_all(traces, say)
    say("asking the shipped model")
    first = {item.trace.name: foretell(shipped, item) for item in items}
    later = rolling(items, say) if refits else {}
    others = left_out(items, say) if refits else {}
    found = []
    for item in items:
        name, trace = item.trace.name, item.trace
        say(f"scoring {name}")
        block_h = BLOCK_H if trace.hours >= FEW_BLOCKS * BLOCK_H else SHORT_BLOCK_H
        share: dict[str, float] = {}
        for i, horizon in enumerate(HORIZON_NAMES):
            told, lost = item.rows.lost(i)
            if told.any():
                share[horizon] = round(float(lost[told].mean()), 4)
        found.append(
            TraceScores(
                name=name,
                zones=list(trace.zones),
                days=round(trace.hours / 24.0, 2),
                block_hours=block_h,
                share_trained_on=_trained_on(trace, shipped),
                loss_share=share,
                shipped=score(first[name], block_h),
                rolling_origin=score(later[name], block_h) if name in later else None,
                zones_left_out=score(others[name], block_h) if name in others else None,
            )
        )
    return found, first


def _trained_on(trace: Trace, shipped: Artefact) -> float:
    known = shipped.trained_on.get(trace.name)
    if known is None:
        return 0.0
    begin = max(trace.start_tick, known.first_tick)
    end = min(trace.start_tick + trace.ticks - 1, known.last_tick)
    zones = len(set(trace.zones) & set(known.zones))
    return round(max(0, end - begin + 1) * zones / (trace.ticks * len(trace.zones)), 4)


def headline(scores: Scores) -> dict[str, float | None]:
    """The figures issue 15 asks for, of the model."""
    wanted = (
        ("1h", ("auc", "brier", "ece", "c_index")),
        ("10min", ("auc",)),
        ("up_1h", ("macro_f1",)),
    )
    return {
        f"{measure}_{horizon}": scores[horizon]["model"][measure].value
        for horizon, measures in wanted
        for measure in measures
        if horizon in scores
    }


def curves(judged: Judged, horizon: int) -> Mapping[str, list[tuple[float, float, int]]]:
    """Reliability of every forecaster at a horizon."""
    told, lost = judged.rows.lost(horizon)
    return {who: reliability(p[told][:, horizon], lost[told]) for who, p in judged.losses.items()}


def model_at(path: Path | None) -> Artefact:
    """The artefact of a file, or the shipped one."""
    return Forecaster.load(path).artefact
