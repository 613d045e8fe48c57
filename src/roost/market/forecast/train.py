"""Fits the hazard model to recordings and writes the artefact that is shipped. A process of its own.

    python -m roost.market.forecast.train --data DIR [--out FILE]

``roost market train`` starts it. scikit-learn is used here and never where the model serves. Fitted
coefficients are written, the recordings are not.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from roost.market.forecast.bands import fit_bands
from roost.market.forecast.baselines import Baselines, fit_baselines
from roost.market.forecast.features import HORIZONS_H, names
from roost.market.forecast.labels import Rows, rows_of
from roost.market.forecast.lifetimes import fit_lifetimes
from roost.market.forecast.model import (
    FORMAT,
    Artefact,
    Forecaster,
    Head,
    Linear,
    TrainedOn,
    expand,
)
from roost.market.forecast.ridge import logistic
from roost.market.traces import Trace, read_advisor, read_lifetimes, read_traces
from roost.ports.errors import Invalid, RoostError

STRENGTHS = (400.0, 200.0, 40.0, 8.0)
"""By interval, how many independent rows the data counts as against coefficients of zero; chosen over zones
left out and rolling origins: the longer the interval, the fewer independent events a recording holds.
(Boosted trees averaged in gave less than 0.001 of AUC at an hour on both kinds of split: not used.)
"""
UP_STRENGTH = 200.0
STEP_S = 570.0
"""Rows closer together than this tell nearly the same."""
COLD_DAYS = 4.0
"""Recordings are also read as if they began every so many days, so that young states are learnt from."""
COLD_WEIGHT = 0.3
RESAMPLES = 8
FEW = 10
"""Rows of a kind from which on there is something to learn."""
DAY_H = 24.0
LICENCE = "Apache-2.0; fitted numbers only, the recordings they were fitted to are not included"

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Rows of all recordings, expanded and pooled."""

    expanded: Floats
    raw: NDArray[np.float32]
    weight: Floats
    block: NDArray[np.int64]
    """Rows of one pool and day share a number: what is resampled together."""
    zone: NDArray[np.int64]
    """Rows of one zone name share a number: what is left out together."""
    up: Bools
    told: list[Bools]
    lost: list[Bools]
    later: NDArray[np.int64]


def gather(traces: Sequence[Trace], say: Say, cold: bool = True) -> list[tuple[Rows, float]]:
    """Rows of each recording with their weights, also as seen after cold starts."""
    found: list[tuple[Rows, float]] = []
    for trace in traces:
        say(f"replaying {trace.name}")
        found.append((rows_of(trace), 1.0))
        length = round(COLD_DAYS * 86_400.0 / trace.gap_s)
        if cold and trace.ticks > 2 * length:
            for start in range(length, trace.ticks - length, 2 * length):
                found.append((rows_of(trace.part(start, start + 2 * length)), COLD_WEIGHT))
    return found


def sample(gathered: Sequence[tuple[Rows, float]], zones: Sequence[tuple[str, ...]]) -> Sample:
    """Thin the rows out and pool them. ``zones``: the zone names of each entry."""
    numbers = {name: i for i, name in enumerate(sorted({z for names_ in zones for z in names_}))}
    parts = []
    for entry, ((rows, factor), own) in enumerate(zip(gathered, zones, strict=True)):
        step = max(1, round(STEP_S / rows.gap_s))
        kept = rows.where(rows.tick % step == entry % step)
        day = (kept.tick * kept.gap_s / 86_400.0).astype(np.int64)
        intervals = [kept.interval(i) for i in range(len(HORIZONS_H))]
        parts.append(
            (
                expand(kept.features.astype(float)),
                kept.features,
                np.full(len(kept.tick), factor * step * rows.weight_h),
                entry * 1_000_000 + kept.zone * 10_000 + day,
                np.array([numbers[name] for name in own])[kept.zone],
                kept.up,
                np.stack([told for told, _ in intervals]),
                np.stack([lost for _, lost in intervals]),
                kept.later,
            )
        )
    columns = list(zip(*parts, strict=True))
    told, lost = (np.concatenate(columns[i], axis=1) for i in (6, 7))
    return Sample(
        expanded=np.concatenate(columns[0]),
        raw=np.concatenate(columns[1]),
        weight=np.concatenate(columns[2]),
        block=np.concatenate(columns[3]),
        zone=np.concatenate(columns[4]),
        up=np.concatenate(columns[5]),
        told=list(told),
        lost=list(lost),
        later=np.concatenate(columns[8]),
    )


def fit(
    traces: Sequence[Trace], say: Say, resamples: int = RESAMPLES, cold: bool = True
) -> Artefact:
    """The model of these recordings. Raises ``Invalid`` when they hold too little."""
    gathered = gather(traces, say, cold)
    by_name = {trace.name: trace for trace in traces}
    pooled = sample(gathered, [by_name[rows.trace].zones for rows, _ in gathered])
    say("fitting the baselines")
    fitted = fit_baselines([rows for rows, factor in gathered if factor == 1.0])
    return fit_sample(pooled, fitted, traces, say, resamples)


def fit_sample(
    pooled: Sample,
    fitted: Baselines,
    traces: Sequence[Trace],
    say: Say,
    resamples: int,
    calibrate: bool = True,
) -> Artefact:
    """The model of pooled rows; calibrated on zones left out, unless ``calibrate`` is False (much faster)."""
    total = pooled.weight.sum()
    mean = (pooled.weight @ pooled.expanded) / total
    scale = np.sqrt((pooled.weight @ (pooled.expanded - mean) ** 2) / total) + 1e-6
    scaled = (pooled.expanded - mean) / scale
    losses = sum(int((pooled.told[i] & pooled.lost[i]).sum()) for i in (0, 1))
    if losses < FEW:
        raise Invalid(
            f"only {losses} of {len(pooled.weight)} rows saw a loss: too few to learn from",
            hint="give longer recordings, or more of them",
        )
    heads = []
    for i, hours in enumerate(HORIZONS_H):
        say(f"fitting losses up to {hours:.3g} h")
        head = _head(
            pooled, scaled, pooled.told[i], pooled.lost[i], STRENGTHS[i], resamples, calibrate
        )
        heads.append(head)
    say("fitting what is up in an hour")
    seen = pooled.later >= 0
    is_up = pooled.later == 1
    stays = _head(pooled, scaled, seen & pooled.up, is_up, UP_STRENGTH, resamples, calibrate)
    comes = _head(pooled, scaled, seen & ~pooled.up, is_up, UP_STRENGTH, resamples, calibrate)
    return Artefact(
        format=FORMAT,
        features=list(names()),
        mean=_short(mean),
        scale=_short(scale),
        losses=heads,
        stays_up=stays,
        comes_up=comes,
        baselines=fitted,
        lifetimes=None,
        bands=None,
        trained_on={trace.name: _described(trace) for trace in traces},
        made_by="roost market train",
        licence=LICENCE,
    )


def _described(trace: Trace) -> TrainedOn:
    return TrainedOn(
        instance=trace.instance,
        zones=list(trace.zones),
        gap_s=trace.gap_s,
        first_tick=trace.start_tick,
        last_tick=trace.start_tick + trace.ticks - 1,
        days=round(trace.hours / 24.0, 2),
    )


def _head(
    pooled: Sample,
    scaled: Floats,
    told: Bools,
    true: Bools,
    strength: float,
    resamples: int,
    calibrate: bool,
) -> Head:
    x, y, weight = scaled[told], true[told], pooled.weight[told]
    if y.sum() < FEW or (~y).sum() < FEW:
        return _constant(int(y.sum()), int((~y).sum()), x.shape[1])
    full = _line(x, y, weight, strength)
    zone = pooled.zone[told]
    slope, shift, pool_sd = 1.0, 0.0, 0.0
    if calibrate:
        out = _left_out(full, x, y, weight, zone, strength)
        slope, shift = _calibrate(out, y, weight)
        pool_sd = _pool_sd(slope * out + shift, y, weight, zone)
    block = np.unique(pooled.block[told], return_inverse=True)[1]
    random = np.random.default_rng(0)
    resampled = []
    for _ in range(resamples):
        drawn = random.poisson(1.0, int(block.max()) + 1)[block].astype(float)
        keep = drawn > 0
        if 0 < y[keep].sum() < keep.sum():
            resampled.append(_line(x[keep], y[keep], weight[keep] * drawn[keep], strength))
    return Head(
        linear=full,
        resampled=resampled,
        slope=round(slope, 5),
        shift=round(shift, 5),
        pool_sd=round(pool_sd, 4),
    )


def _constant(events: int, others: int, features: int) -> Head:
    """Where nearly all or nearly nobody is lost, there is nothing to learn but that."""
    intercept = round(float(np.log((events + 1.0) / (others + 1.0))), 6)
    return Head(
        linear=Linear(coefficients=[0.0] * features, intercept=intercept),
        resampled=[],
        slope=1.0,
        shift=0.0,
        pool_sd=1.0,
    )


def _left_out(
    full: Linear,
    x: Floats,
    y: Bools,
    weight: Floats,
    zone: NDArray[np.int64],
    strength: float,
) -> Floats:
    """Log odds of every row by a fit without its zone."""
    out = np.empty(len(y))
    for number in np.unique(zone):
        away = zone == number
        mixed = 0 < y[~away].sum() < (~away).sum()
        line = _line(x[~away], y[~away], weight[~away], strength) if mixed else full
        out[away] = _odds(line, x[away])
    return out


def _line(x: Floats, y: Bools, weight: Floats, strength: float) -> Linear:
    share = weight / weight.sum()
    model = LogisticRegression(C=strength, max_iter=300, tol=1e-4)
    model.fit(x, y, sample_weight=share)
    return Linear(
        coefficients=_short(model.coef_[0]), intercept=round(float(model.intercept_[0]), 6)
    )


def _odds(line: Linear, x: Floats) -> Floats:
    return np.asarray(x @ np.array(line.coefficients) + line.intercept)


def _calibrate(odds: Floats, y: Bools, weight: Floats) -> tuple[float, float]:
    """Slope and shift of the log odds that fit best (Platt), with the slope kept from running away."""
    model = LogisticRegression(C=1e4)
    model.fit(odds[:, None], y, sample_weight=weight / weight.sum() * 100.0)
    slope = float(np.clip(model.coef_[0][0], 0.6, 1.2))
    return slope, _offset(slope * odds, y, weight)


def _offset(odds: Floats, y: Bools, weight: Floats, prior: float = 0.0) -> float:
    """The shift of log odds that makes the expected number of events the observed one (Newton)."""
    shift = 0.0
    for _ in range(20):
        p = logistic(odds + shift)
        curve = float(weight @ (p * (1 - p))) + prior
        shift += float(np.clip((weight @ (y - p) - prior * shift) / max(curve, 1e-9), -1.0, 1.0))
    return shift


def _pool_sd(odds: Floats, y: Bools, weight: Floats, zone: NDArray[np.int64]) -> float:
    shifts, hours = [], []
    for number in np.unique(zone):
        own = zone == number
        shifts.append(_offset(odds[own], y[own], weight[own], prior=5.0))
        hours.append(float(weight[own].sum()))
    return float(np.sqrt(np.average(np.square(shifts), weights=hours)))


def _short(values: Floats) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _fit_all(data: Path) -> Artefact:
    traces = read_traces(data)
    if not traces:
        raise Invalid(f"{data} has no traces.parquet", hint="there is nothing to learn from")
    machines, pools = read_lifetimes(data), read_advisor(data)
    return msgspec.structs.replace(
        fit(traces, lambda text: print(text, file=sys.stderr, flush=True)),
        lifetimes=None if machines is None else fit_lifetimes(machines),
        bands=None if pools is None else fit_bands(pools),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and write. Returns the exit status; progress goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        with threadpool_limits(1):  # more gain nothing here
            given.out.write_bytes(msgspec.json.encode(_fit_all(given.data)))
        Forecaster.load(given.out)
    except RoostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {given.out} ({given.out.stat().st_size / 1000:.0f} kB)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
