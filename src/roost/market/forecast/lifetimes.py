"""How long single machines live, from their type and zone: a discrete-time hazard. numpy only.

Google's preemptible machines of 2019 die in their first hours or at the 24-hour cap (Kadupitige and others,
arXiv 1911.05160): the shape is what a constant hazard misses. What is known at the launch orders lifetimes
little; clock features and losses seen in the hours before did not survive splits by time and zone.
"""

import re

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from roost.market.forecast.metrics import Measure, lifetime_measures
from roost.market.forecast.ridge import fit_logistic, logistic

EDGES_H = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 18.0, 23.5, 25.0)
RIDGE = 100.0
"""On what sets machines apart; chosen over splits by time and zones left out."""
LOOSE = 0.1
UNTIL_H = 22.0
"""The integrated Brier score ends here, before the cap."""

Floats = NDArray[np.float64]


class LifetimeModel(msgspec.Struct, frozen=True, kw_only=True):
    """Log odds of dying in each interval, and what moves them all."""

    intervals: list[float]
    size: float
    """Per doubling of the vCPUs."""
    highcpu: float
    zones: dict[str, float]
    mean: list[float]
    """Of log2 vCPUs and highcpu, which are centred."""
    machines: int


def fit_lifetimes(frame: pl.DataFrame) -> LifetimeModel:
    """Fit to machines (the columns of ``traces.LIFETIMES``)."""
    zones = sorted(frame["zone"].unique().to_list())
    facts = _facts(frame)
    mean = facts.mean(axis=0)
    spread = facts.std(axis=0) + 1e-6
    sides = [(frame["zone"] == zone).to_numpy().astype(float) for zone in zones]
    own = np.concatenate([(facts - mean) / spread, np.stack(sides, axis=1)], axis=1)
    design, died = [], []
    hours = frame["lifetime_h"].to_numpy()
    lost = frame["preempted"].to_numpy()
    for number, end in enumerate(EDGES_H):
        begin = EDGES_H[number - 1] if number else 0.0
        dies = lost & (hours <= end)
        told = (hours > begin) & (dies | (hours >= end))
        which = np.zeros((int(told.sum()), len(EDGES_H)))
        which[:, number] = 1.0
        design.append(np.concatenate([which, own[told]], axis=1))
        died.append(dies[told].astype(float))
    penalty = np.r_[np.full(len(EDGES_H), LOOSE), np.full(own.shape[1], RIDGE)]
    found = fit_logistic(np.concatenate(design), np.concatenate(died), penalty)
    more = found[len(EDGES_H) :]
    return LifetimeModel(
        intervals=[round(float(x), 5) for x in found[: len(EDGES_H)]],
        size=round(float(more[0] / spread[0]), 5),
        highcpu=round(float(more[1] / spread[1]), 5),
        zones={zone: round(float(x), 5) for zone, x in zip(zones, more[2:], strict=True)},
        mean=[round(float(x), 5) for x in mean],
        machines=frame.height,
    )


def survival_of(model: LifetimeModel, frame: pl.DataFrame) -> Floats:
    """[N, intervals] probability of living past each of ``EDGES_H``; unknown zones are average ones."""
    facts = _facts(frame) - np.array(model.mean)
    moved = facts @ np.array([model.size, model.highcpu])
    moved = moved + np.array([model.zones.get(zone, 0.0) for zone in frame["zone"]])
    hazard = logistic(np.array(model.intervals)[None] + moved[:, None])
    return np.asarray(np.cumprod(1.0 - hazard, axis=1))


def _facts(frame: pl.DataFrame) -> Floats:
    kinds = frame["machine_type"].to_list()
    sizes = [re.search(r"(\d+)$", kind) for kind in kinds]
    cores = np.log2([float(found[1]) if found else 2.0 for found in sizes])
    return np.stack([cores, np.array([float("highcpu" in kind) for kind in kinds])], axis=1)


def baseline_survival(train: pl.DataFrame, count: int) -> dict[str, Floats]:
    """[count, intervals] by one constant hazard and by Kaplan and Meier, fitted to ``train``."""
    hours = train["lifetime_h"].to_numpy()
    lost = train["preempted"].to_numpy()
    rate = lost.sum() / max(hours.sum(), 1e-9)
    constant = np.exp(-rate * np.array(EDGES_H))
    return {
        "constant": np.tile(constant, (count, 1)),
        "kaplan_meier": np.tile(kaplan_meier(hours, lost, np.array(EDGES_H)), (count, 1)),
    }


def kaplan_meier(hours: Floats, lost: NDArray[np.bool_], at: Floats) -> Floats:
    """Share that lives past each of ``at`` (Kaplan and Meier, 1958)."""
    times = np.unique(hours[lost])
    left = np.array([(hours >= time).sum() for time in times])
    dead = np.array([(lost & (hours == time)).sum() for time in times])
    curve = np.r_[1.0, np.cumprod(1.0 - dead / np.maximum(left, 1))]
    return np.asarray(curve[np.searchsorted(times, at, side="right")])


def score_lifetimes(
    frame: pl.DataFrame, survivals: dict[str, Floats]
) -> dict[str, dict[str, Measure]]:
    """C-index and integrated Brier score of survival curves [N, intervals] by who drew them."""
    return {
        who: lifetime_measures(
            survival,
            np.array(EDGES_H),
            frame["lifetime_h"].to_numpy(),
            frame["preempted"].to_numpy(),
            frame["start_utc"].dt.epoch("d").to_numpy(),
            UNTIL_H,
        )
        for who, survival in survivals.items()
    }


def judge_lifetimes(
    frame: pl.DataFrame, shipped: LifetimeModel | None
) -> dict[str, dict[str, dict[str, Measure]]]:
    """The shipped model on all machines, and models fitted to the first 70 % of launches on the rest."""
    found: dict[str, dict[str, dict[str, Measure]]] = {}
    if shipped is not None:
        baselines = baseline_survival(frame, frame.height)
        model = {"model": survival_of(shipped, frame)}
        found["shipped"] = score_lifetimes(frame, model | baselines)
    ordered = frame.sort("start_utc")
    cut = round(0.7 * ordered.height)
    train, test = ordered[:cut], ordered[cut:]
    if train["preempted"].sum() >= 10 and test["preempted"].sum() >= 10:
        model = {"model": survival_of(fit_lifetimes(train), test)}
        found["later_launches"] = score_lifetimes(
            test, model | baseline_survival(train, test.height)
        )
    zones: dict[str, dict[str, Measure]] = {}
    for zone in frame["zone"].unique(maintain_order=True):
        away = frame.filter(pl.col("zone") == zone)
        rest = frame.filter(pl.col("zone") != zone)
        if away["preempted"].sum() >= 30 and rest["preempted"].sum() >= 30:
            scores = score_lifetimes(away, {"model": survival_of(fit_lifetimes(rest), away)})
            zones[zone] = scores["model"]
    if zones:
        found["zones_left_out"] = zones
    return found
