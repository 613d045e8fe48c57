"""The picture of a run: load, capacity and latency over time. Never measures anything."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bench.two_levels.load import Outcome
from bench.two_levels.world import Watched

STEP_S = 2.0
INK, GREY, BLUE, ORANGE, RED = "#222222", "#9a9a9a", "#2b6cb0", "#dd8a1d", "#c53030"


def draw(
    path: Path,
    title: str,
    outcomes: Sequence[Outcome],
    watched: Watched,
    *,
    bound_s: float,
    slots: int,
) -> None:
    """Three panels with one time axis; dashed lines where somebody did something."""
    began = outcomes[0].at_s
    at = np.array([one.at_s - began for one in outcomes])
    latency = np.array([one.latency_s for one in outcomes])
    bad = np.array([one.status != 200 for one in outcomes])
    seen = [sample for sample in watched.samples if sample.at_s >= began - 5]
    moment = np.array([sample.at_s - began for sample in seen])
    edges = np.arange(0.0, max(at.max(), moment.max(initial=0.0)) + STEP_S, STEP_S)

    figure, (load, capacity, delay) = plt.subplots(
        3, 1, sharex=True, figsize=(10, 8), height_ratios=(2, 3, 2), layout="constrained"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    rate = np.histogram(at, edges)[0] / STEP_S
    load.stairs(rate, edges, color=BLUE, fill=True, alpha=0.25)
    load.stairs(rate, edges, color=BLUE)
    if bad.any():
        load.plot(at[bad], np.zeros(bad.sum()), "x", color=RED, label="failed")
    load.set_ylabel("requests / s")

    ready = np.array([sample.ready for sample in seen])
    starting = np.array([sample.starting for sample in seen])
    hosts = np.array([sample.hosts for sample in seen])
    booting = np.array([sample.booting for sample in seen])
    how = {"step": "post"}
    capacity.fill_between(moment, ready, color=BLUE, alpha=0.3, label="containers ready", **how)
    capacity.fill_between(
        moment, ready, ready + starting, color=ORANGE, alpha=0.5, label="starting", **how
    )
    capacity.step(moment, hosts * slots, where="post", color=INK, label="slots of ready hosts")
    capacity.step(
        moment,
        (hosts + booting) * slots,
        where="post",
        color=GREY,
        linestyle=":",
        label="with booting hosts",
    )
    capacity.set_ylabel("containers")
    capacity.legend(loc="upper left", frameon=False, fontsize=8)

    for share, colour in ((50, BLUE), (95, ORANGE)):
        values = _by_step(at, latency, edges, share)
        delay.plot(edges[:-1] + STEP_S / 2, values, color=colour, label=f"{share} %")
    delay.axhline(bound_s, color=RED, linewidth=0.8, label="bound")
    delay.set_yscale("log")
    delay.set_ylabel("latency (s)")
    delay.set_xlabel("seconds")
    delay.legend(loc="upper right", frameon=False, fontsize=8)
    for panel in (load, capacity, delay):
        panel.spines[["top", "right"]].set_visible(False)
        for mark_s, _ in watched.marks:
            panel.axvline(mark_s - began, color=RED, linestyle="--", linewidth=0.8)
    for mark_s, text in watched.marks:
        load.annotate(
            text, (mark_s - began, 1.0), xycoords=("data", "axes fraction"), fontsize=8, color=RED
        )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _by_step(
    at: "np.ndarray", latency: "np.ndarray", edges: "np.ndarray", share: int
) -> list[float]:
    which = np.digitize(at, edges) - 1
    return [
        float(np.percentile(latency[which == step], share)) if (which == step).any() else np.nan
        for step in range(len(edges) - 1)
    ]
