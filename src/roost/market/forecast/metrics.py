"""Measures of forecasts and their bootstrap intervals. Pure.

Whole blocks of time are drawn again (a block bootstrap: the rows of a day are far from independent), so every
measure is kept as sums by block: drawing again is then a matter of weights. AUC is counted over 512 groups of
forecasts, equal within a group; calibration error over ten equally wide bins (Guo et al., 2017).
"""

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

DRAWS = 200
GROUPS = 512
BINS = 10
PAIRS = 1500
"""Rows whose pairs are compared for the C-index."""
LOW, HIGH = 0.025, 0.975
TINY = 1e-6

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """A figure and the interval that holds 95 % of the redrawn ones; None where it cannot be told."""

    value: float | None
    low: float | None
    high: float | None


def _draws(blocks: int) -> Floats:
    """[1 + DRAWS, blocks] how often each block counts; the first row is the data as it is."""
    random = np.random.default_rng(0)
    drawn = random.multinomial(blocks, np.full(blocks, 1.0 / blocks), size=DRAWS)
    return np.concatenate([np.ones((1, blocks)), drawn.astype(float)])


def _measure(values: Floats) -> Measure:
    good = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or len(good) < DRAWS // 2:
        return Measure(value=None, low=None, high=None)
    low, high = np.quantile(good, [LOW, HIGH])
    return Measure(
        value=round(float(values[0]), 5), low=round(float(low), 5), high=round(float(high), 5)
    )


def _by_block(block: NDArray[np.intp], count: int, values: Floats) -> Floats:
    return np.bincount(block, weights=values, minlength=count).astype(np.float64)


def _auc(weights: Floats, block: NDArray[np.intp], p: Floats, y: Bools) -> Floats:
    """[draws] share of pairs (lost, kept) in the right order, ties counting half."""
    edges = np.unique(np.quantile(p, np.linspace(0, 1, GROUPS + 1)[1:-1]))
    group = np.searchsorted(edges, p, side="right")
    width = len(edges) + 1
    cell = block * width + group
    size = weights.shape[1] * width
    lost = weights @ np.bincount(cell[y], minlength=size).reshape(-1, width)
    kept = weights @ np.bincount(cell[~y], minlength=size).reshape(-1, width)
    below = np.cumsum(kept, axis=1) - 0.5 * kept
    pairs = lost.sum(axis=1) * kept.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((lost * below).sum(axis=1) / pairs)


def _calibration(weights: Floats, block: NDArray[np.intp], p: Floats, y: Bools) -> Floats:
    """[draws] expected calibration error."""
    cell = block * BINS + np.minimum((p * BINS).astype(int), BINS - 1)
    size = weights.shape[1] * BINS
    said = weights @ np.bincount(cell, weights=p, minlength=size).reshape(-1, BINS)
    came = weights @ np.bincount(cell, weights=y, minlength=size).reshape(-1, BINS)
    total = weights @ np.bincount(cell, minlength=size).reshape(-1, BINS)
    return np.asarray(np.abs(said - came).sum(axis=1) / np.maximum(total.sum(axis=1), 1))


def concordance(
    weights: Floats, block: NDArray[np.intp], risk: Floats, time: Floats, event: Bools
) -> Floats:
    """[draws] Harrell's C: share of pairs whose earlier loss had the higher risk, ties counting half.

    Censored rows count only against losses before their last look. Of many rows an even sample is taken.
    """
    pick = np.random.default_rng(1).permutation(len(risk))[:PAIRS]
    block, risk, time, event = block[pick], risk[pick], time[pick], event[pick]
    earlier = event[:, None] & (time[:, None] < time[None, :])
    right = np.sign(risk[:, None] - risk[None, :]) * 0.5 + 0.5
    blocks = weights.shape[1]
    hot = np.zeros((len(pick), blocks))
    hot[np.arange(len(pick)), block] = 1.0
    good = hot.T @ (earlier * right) @ hot
    pairs = hot.T @ earlier.astype(float) @ hot
    with np.errstate(invalid="ignore", divide="ignore"):
        top = np.einsum("db,bc,dc->d", weights, good, weights)
        return np.asarray(top / np.einsum("db,bc,dc->d", weights, pairs, weights))


def forecast_measures(
    p: Floats, y: Bools, block: Ints, time: Floats, event: Bools
) -> dict[str, Measure]:
    """AUC, Brier score, log-loss, calibration error and C-index of probabilities.

    ``time``: until the loss or the last look, ``event``: whether there was a loss. All [N].
    """
    number, at = np.unique(block, return_inverse=True)
    weights = _draws(len(number))
    rows = weights @ _by_block(at, len(number), np.ones(len(p)))
    sure = np.clip(p, TINY, 1.0 - TINY)
    losses = -np.where(y, np.log(sure), np.log(1.0 - sure))
    with np.errstate(invalid="ignore", divide="ignore"):
        brier = (weights @ _by_block(at, len(number), (p - y) ** 2)) / rows
        log_loss = (weights @ _by_block(at, len(number), losses)) / rows
    return {
        "auc": _measure(_auc(weights, at, p, y)),
        "brier": _measure(brier),
        "log_loss": _measure(log_loss),
        "ece": _measure(_calibration(weights, at, p, y)),
        "c_index": _measure(concordance(weights, at, p, time, event)),
    }


def state_measures(p: Floats, y: Bools, block: Ints) -> dict[str, Measure]:
    """Macro F1 at even odds, and Brier score, of whether something is up."""
    number, at = np.unique(block, return_inverse=True)
    weights = _draws(len(number))
    said = p >= 0.5
    rows = weights @ _by_block(at, len(number), np.ones(len(p)))
    with np.errstate(invalid="ignore", divide="ignore"):
        both = []
        for kind in (True, False):
            hit = weights @ _by_block(at, len(number), (said == kind) & (y == kind))
            wrong = weights @ _by_block(at, len(number), said != y)
            both.append(2.0 * hit / (2.0 * hit + wrong))
        brier = (weights @ _by_block(at, len(number), (p - y) ** 2)) / rows
    return {"macro_f1": _measure((both[0] + both[1]) / 2.0), "brier": _measure(brier)}


def reliability(p: Floats, y: Bools) -> list[tuple[float, float, int]]:
    """(mean forecast, share that came true, rows) of each bin that holds any."""
    group = np.minimum((p * BINS).astype(int), BINS - 1)
    held = [(group == i) for i in range(BINS) if (group == i).any()]
    return [(float(p[g].mean()), float(y[g].mean()), int(g.sum())) for g in held]


def band_measures(p: Floats, y: Bools, block: Ints) -> dict[str, Measure]:
    """AUC and Brier score; blocks are redrawn."""
    number, at = np.unique(block, return_inverse=True)
    weights = _draws(len(number))
    rows = weights @ _by_block(at, len(number), np.ones(len(p)))
    with np.errstate(invalid="ignore", divide="ignore"):
        brier = (weights @ _by_block(at, len(number), (p - y) ** 2)) / rows
    return {"auc": _measure(_auc(weights, at, p, y)), "brier": _measure(brier)}


def lifetime_measures(
    survival: Floats, edges_h: Floats, hours: Floats, lost: Bools, block: Ints, until_h: float
) -> dict[str, Measure]:
    """C-index of mean survival, and integrated Brier score to ``until_h`` weighted for censoring (IPCW).

    ``survival`` [N, K] at ``edges_h``; Graf and others, 1999. Blocks are redrawn.
    """
    number, at = np.unique(block, return_inverse=True)
    weights = _draws(len(number))
    inside = edges_h <= until_h
    risk = -survival[:, inside].mean(axis=1)
    stays = _censoring(hours, lost)
    times = np.linspace(0.25, until_h, 60)
    errors = np.zeros(len(hours))
    ends = np.r_[0.0, edges_h]
    curve = np.concatenate([np.ones((len(hours), 1)), survival], axis=1)
    for time in times:
        right = int(np.searchsorted(ends, time))
        share = (time - ends[right - 1]) / (ends[right] - ends[right - 1])
        after = (1.0 - share) * curve[:, right - 1] + share * curve[:, right]
        dead = lost & (hours <= time)
        alive = hours > time
        weight = np.where(dead, 1.0 / stays(hours), np.where(alive, 1.0 / stays(time), 0.0))
        errors += weight * (after - alive) ** 2 / len(times)
    rows = weights @ _by_block(at, len(number), np.ones(len(hours)))
    with np.errstate(invalid="ignore", divide="ignore"):
        brier = (weights @ _by_block(at, len(number), errors)) / rows
    c_index = concordance(weights, at, risk, hours, lost)
    return {"c_index": _measure(c_index), "integrated_brier": _measure(brier)}


def _censoring(hours: Floats, lost: Bools) -> Callable[[Floats | float], Floats]:
    """The share not yet censored just before a time, by Kaplan and Meier with the roles swapped."""
    times = np.unique(hours[~lost])
    left = np.array([(hours >= time).sum() for time in times])
    gone = np.array([(~lost & (hours == time)).sum() for time in times])
    curve = np.r_[1.0, np.cumprod(1.0 - gone / np.maximum(left, 1))]
    return lambda at: np.maximum(curve[np.searchsorted(times, at, side="left")], 0.05)
