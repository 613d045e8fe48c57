"""What the model is measured against. numpy only; fits to rows, never reads a file.

constant       one hazard an hour for every pool and time
kaplan_meier   being lost within a horizon by the age of the run (Kaplan and Meier, 1958), in age groups
persistence    nothing changes
lstm           the idea this project began with: an LSTM reads 24 hours of availability and predicts the share
               of the next 24 h the pool will be up, a stability score; horizons are logistic in that score
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from roost.market.forecast.features import HORIZONS_H, names
from roost.market.forecast.labels import Rows

AGES_H = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
HIDDEN = 8
STEPS = 250
BATCH = 64
RATE = 0.02
MOST = 6000
"""Sequences the LSTM learns from."""
CERTAIN = 1e-3
"""Persistence is never surer than this, else one surprise would cost an endless log-loss."""

Floats = NDArray[np.float64]


class Lstm(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of ``HIDDEN`` cells (gates: input, forget, output, candidate) and a logistic output."""

    inputs: list[float]
    recurrent: list[list[float]]
    bias: list[float]
    out: list[float]
    out_bias: float
    slopes: list[float]
    shifts: list[float]


class Baselines(msgspec.Struct, frozen=True, kw_only=True):
    """Fitted baselines."""

    constant: list[float]
    """Probability of loss by horizon."""
    by_age: list[list[float]]
    """The same by age group."""
    lstm: Lstm


def fit_baselines(parts: Sequence[Rows]) -> Baselines:
    """Fit to rows; those of each part are weighed by the hours they stand for."""
    constant, by_age = [], []
    for horizon in range(len(HORIZONS_H)):
        lost, total = np.zeros(len(AGES_H) + 1), np.zeros(len(AGES_H) + 1)
        for rows in parts:
            told, was = rows.lost(horizon)
            group = _age_group(rows)[told]
            total += rows.weight_h * np.bincount(group, minlength=len(total))
            lost += rows.weight_h * np.bincount(group, weights=was[told], minlength=len(total))
        mean = float(lost.sum() / max(total.sum(), 1e-9))
        constant.append(round(mean, 6))
        by_age.append([round(float(p), 6) for p in (lost + 2.0 * mean) / (total + 2.0)])
    return Baselines(constant=constant, by_age=by_age, lstm=_fit_lstm(parts))


def predict(fitted: Baselines, rows: Rows) -> dict[str, Floats]:
    """Probability of loss [N, horizons] by each baseline."""
    score = _logit(_run(_arrays(fitted.lstm), rows.hourly.astype(float))[0])
    odds = score[:, None] * np.array(fitted.lstm.slopes) + np.array(fitted.lstm.shifts)
    shape = (len(rows.tick), len(HORIZONS_H))
    return {
        "constant": np.broadcast_to(np.array(fitted.constant), shape),
        "kaplan_meier": np.array(fitted.by_age).T[_age_group(rows)],
        "persistence": np.full(shape, CERTAIN),
        "lstm": 1.0 / (1.0 + np.exp(-odds)),
    }


def _age_group(rows: Rows) -> NDArray[np.intp]:
    age = np.exp(rows.features[:, names().index("age")])
    return np.searchsorted(AGES_H, age)


def _logit(p: Floats) -> Floats:
    p = np.clip(p, 1e-6, 1.0 - 1e-6)
    return np.asarray(np.log(p / (1.0 - p)))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0))))


Weights = dict[str, Floats]


def _arrays(lstm: Lstm) -> Weights:
    return {
        "inputs": np.array(lstm.inputs),
        "recurrent": np.array(lstm.recurrent),
        "bias": np.array(lstm.bias),
        "out": np.array(lstm.out),
        "out_bias": np.array([lstm.out_bias]),
    }


def _run(weights: Weights, x: Floats) -> tuple[Floats, list[tuple[Floats, ...]]]:
    """The score [N] of sequences [N, hours], and what the gradient needs of every step."""
    hidden, cell = np.zeros((len(x), HIDDEN)), np.zeros((len(x), HIDDEN))
    kept: list[tuple[Floats, ...]] = []
    for hour in range(x.shape[1]):
        value = x[:, hour : hour + 1] - 0.5
        gates = value * weights["inputs"] + hidden @ weights["recurrent"] + weights["bias"]
        let, keep, out = (_sigmoid(gates[:, i * HIDDEN : (i + 1) * HIDDEN]) for i in range(3))
        new = np.tanh(gates[:, 3 * HIDDEN :])
        before, cell = cell, keep * cell + let * new
        kept.append((value, hidden, before, cell, let, keep, out, new))
        hidden = out * np.tanh(cell)
    kept.append((hidden,))
    return _sigmoid(hidden @ weights["out"] + weights["out_bias"]), kept


def _gradient(weights: Weights, x: Floats, y: Floats) -> Weights:
    """Of the cross entropy between score and share, through time."""
    score, kept = _run(weights, x)
    error = (score - y) / len(y)
    (last,) = kept[-1]
    made = {name: np.zeros_like(value) for name, value in weights.items()}
    made["out"], made["out_bias"] = last.T @ error, np.array([error.sum()])
    d_hidden = error[:, None] * weights["out"]
    d_cell = np.zeros_like(d_hidden)
    for value, hidden, before, cell, let, keep, out, new in reversed(kept[:-1]):
        squashed = np.tanh(cell)
        d_cell = d_cell + d_hidden * out * (1.0 - squashed**2)
        d_gates = np.concatenate(
            [
                d_cell * new * let * (1.0 - let),
                d_cell * before * keep * (1.0 - keep),
                d_hidden * squashed * out * (1.0 - out),
                d_cell * let * (1.0 - new**2),
            ],
            axis=1,
        )
        made["inputs"] += (value * d_gates).sum(axis=0)
        made["recurrent"] += hidden.T @ d_gates
        made["bias"] += d_gates.sum(axis=0)
        d_hidden = d_gates @ weights["recurrent"].T
        d_cell = d_cell * keep
    return made


def _fit_lstm(parts: Sequence[Rows]) -> Lstm:
    random = np.random.default_rng(0)
    x = np.concatenate([rows.hourly[rows.ahead >= 0.0] for rows in parts]).astype(float)
    y = np.concatenate([rows.ahead[rows.ahead >= 0.0] for rows in parts]).astype(float)
    chosen = random.permutation(len(x))[:MOST]
    x, y = x[chosen], y[chosen]
    weights: Weights = {
        "inputs": random.normal(0.0, 0.5, 4 * HIDDEN),
        "recurrent": random.normal(0.0, 0.3, (HIDDEN, 4 * HIDDEN)),
        "bias": np.repeat([0.0, 1.0, 0.0, 0.0], HIDDEN),
        "out": random.normal(0.0, 0.3, HIDDEN),
        "out_bias": np.zeros(1),
    }
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    for step in range(1, STEPS + 1 if len(x) else 1):
        batch = random.integers(0, len(x), BATCH)
        for name, slope in _gradient(weights, x[batch], y[batch]).items():
            # Adam (Kingma and Ba, 2015).
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.999 * second[name] + 0.001 * slope**2
            size = np.sqrt(second[name] / (1.0 - 0.999**step)) + 1e-8
            weights[name] = weights[name] - RATE * first[name] / (1.0 - 0.9**step) / size
    slopes, shifts = _by_score(weights, parts)
    return Lstm(
        inputs=_short(weights["inputs"]),
        recurrent=[_short(row) for row in weights["recurrent"]],
        bias=_short(weights["bias"]),
        out=_short(weights["out"]),
        out_bias=round(float(weights["out_bias"][0]), 5),
        slopes=slopes,
        shifts=shifts,
    )


def _by_score(weights: Weights, parts: Sequence[Rows]) -> tuple[list[float], list[float]]:
    """Logistic of each horizon in the score's log odds (Newton, slightly penalised)."""
    scores = [_logit(_run(weights, rows.hourly.astype(float))[0]) for rows in parts]
    slopes, shifts = [], []
    for horizon in range(len(HORIZONS_H)):
        told = [rows.lost(horizon) for rows in parts]
        x = np.concatenate([s[t] for s, (t, _) in zip(scores, told, strict=True)])
        y = np.concatenate([w[t] for t, w in told]).astype(float)
        hours = [np.full(int(t.sum()), r.weight_h) for r, (t, _) in zip(parts, told, strict=True)]
        weight = np.concatenate(hours)
        design = np.stack([x, np.ones_like(x)], axis=1)
        found = np.zeros(2)
        for _ in range(12):
            p = _sigmoid(design @ found)
            slope = design.T @ (weight * (y - p)) - 1e-3 * found
            curve = (design * (weight * p * (1.0 - p))[:, None]).T @ design + 1e-3 * np.eye(2)
            found = found + np.clip(np.linalg.solve(curve, slope), -1.0, 1.0)
        slopes.append(round(float(found[0]), 5))
        shifts.append(round(float(found[1]), 5))
    return slopes, shifts


def _short(values: Floats) -> list[float]:
    return [round(float(value), 5) for value in values]
