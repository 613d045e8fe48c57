"""Pictures of how good the forecasts are. The only module of the forecast that imports matplotlib."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.figure import Figure

from roost.market.forecast.evaluate import HORIZON_NAMES, Judged, curves
from roost.market.forecast.features import HORIZONS_H
from roost.market.forecast.lifetimes import (
    EDGES_H,
    LifetimeModel,
    baseline_survival,
    kaplan_meier,
    survival_of,
)

mpl.use("Agg")
DRAWN = {"model": "tab:blue", "kaplan_meier": "tab:orange", "lstm": "tab:green"}
RISKS = ("calmest third", "middle third", "most at risk")
COLOURS = ("tab:green", "tab:orange", "tab:red")
DPI = 110


def draw_trace(judged: Judged, folder: Path) -> list[str]:
    """Reliability and survival of one recording; returns the files."""
    name = judged.rows.trace.replace("/", "-")
    return [
        _reliability(judged, folder / f"reliability-{name}.png"),
        _survival(judged, folder / f"survival-{name}.png"),
    ]


def _reliability(judged: Judged, path: Path) -> str:
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for number, horizon in enumerate(HORIZON_NAMES):
        axes = figure.add_subplot(1, len(HORIZON_NAMES), number + 1)
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        told, _ = judged.rows.lost(number)
        found = curves(judged, number) if told.any() else {}
        for who, colour in DRAWN.items():
            points = found.get(who, [])
            axes.plot(
                [p[0] for p in points], [p[1] for p in points], "o-", ms=3, color=colour, label=who
            )
        axes.set(title=f"lost within {horizon}", xlabel="said", xlim=(0, 1), ylim=(0, 1))
        if number == 0:
            axes.set_ylabel("came true")
            axes.legend(frameon=False)
    figure.suptitle(f"{judged.rows.trace}: what was said and what came (shipped model)")
    figure.savefig(path, dpi=DPI)
    return str(path)


def _survival(judged: Judged, path: Path) -> str:
    """Survival of the pools, by thirds of the risk the model saw, and what the model had said."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    rows, p = judged.rows, judged.losses["model"]
    # Only rows that were watched for the longest horizon that any were: the same rows at every point.
    whole = [rows.lost(number)[0] for number in range(len(HORIZONS_H))]
    longest = max((number for number, told in enumerate(whole) if told.any()), default=-1)
    if longest >= 0:
        told = whole[longest]
        risk = p[told][:, min(1, longest)]
        third = np.searchsorted(np.quantile(risk, [1 / 3, 2 / 3]), risk)
        hours = [0.0, *HORIZONS_H[: longest + 1]]
        for number, (label, colour) in enumerate(zip(RISKS, COLOURS, strict=True)):
            own = third == number
            came = [1.0] + [1.0 - rows.lost(i)[1][told][own].mean() for i in range(longest + 1)]
            said = [1.0] + [1.0 - p[told][own][:, i].mean() for i in range(longest + 1)]
            axes.plot(hours, came, "o-", color=colour, label=f"{label}, observed")
            axes.plot(hours, said, "x--", color=colour, label=f"{label}, forecast")
        axes.legend(frameon=False, fontsize=8)
    axes.set_xscale("symlog", linthresh=HORIZONS_H[0])
    axes.set(xlabel="hours from now", ylabel="share still up", ylim=(0, 1.02))
    axes.set_title(f"{rows.trace}: survival by risk seen at the start")
    figure.savefig(path, dpi=DPI)
    return str(path)


def draw_lifetimes(model: LifetimeModel, frame: pl.DataFrame, folder: Path) -> str:
    """Lifetimes of single machines; returns the file."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    hours, lost = frame["lifetime_h"].to_numpy(), frame["preempted"].to_numpy()
    grid = np.linspace(0.0, 25.0, 200)
    axes.plot(grid, kaplan_meier(hours, lost, grid), color="black", label="observed (Kaplan-Meier)")
    mean = survival_of(model, frame).mean(axis=0)
    axes.plot([0.0, *EDGES_H], [1.0, *mean], "x--", color="tab:blue", label="model")
    constant = baseline_survival(frame, 1)["constant"][0]
    axes.plot([0.0, *EDGES_H], [1.0, *constant], ":", color="grey", label="constant hazard")
    axes.set(xlabel="hours since launch", ylabel="share alive", ylim=(0, 1.02))
    axes.set_title("Single machines")
    axes.legend(frameon=False)
    path = folder / "lifetimes.png"
    figure.savefig(path, dpi=DPI)
    return str(path)
