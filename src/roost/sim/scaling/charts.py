"""Pictures of a run: load, capacity and latency over time. Imports matplotlib; decides nothing."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from roost.sim.scaling.oracle import Oracle
from roost.sim.scaling.scenario import MINUTE_S, Scenario
from roost.sim.scaling.traces import Floats
from roost.sim.scaling.world import Result

mpl.use("Agg")
LOAD, CAPACITY, ORACLE, LATE = "#5c7c8a", "#1b4965", "#c98b2b", "#b3261e"
HOUR_S = 3600.0


def draw(path: Path, scenario: Scenario, result: Result, best: Oracle | None) -> None:
    """Two panels a service, load with capacity and p99 latency with who was late; below, the hosts."""
    tracks = result.tracks
    count = len(scenario.loads)
    figure = Figure(figsize=(12, 2.2 + 4.6 * count), layout="constrained")
    panels = figure.subplots(2 * count + 1, 1, sharex=True)
    hours: Floats = np.arange(len(tracks.hosts), dtype=np.float64) * (MINUTE_S / HOUR_S)
    for number, load in enumerate(scenario.loads):
        rate = tracks.arrivals[number] / MINUTE_S
        _capacity(panels[2 * number], hours, tracks.containers[number], load.name)
        need = rate * load.mean_s / load.concurrency
        panels[2 * number].plot(hours, need, color=LOAD, linewidth=0.7, label="load (containers)")
        panels[2 * number].legend(loc="upper right", fontsize=7, frameon=False, ncols=2)
        _latency(panels[2 * number + 1], hours, tracks.latency_s[number], load.bound_s)
        _late(panels[2 * number + 1], hours, tracks.late[number], rate * MINUTE_S)
    _hosts(panels[-1], hours, tracks.hosts, best, tracks.first_s)
    for panel in panels:
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[-1].set_xlabel("hours")
    panels[-1].set_xlim(0, hours[-1])
    words = f"{result.host_hours:.0f} host-hours, {result.late:.2%} late"
    if best is not None:
        words += f", {result.host_hours / best.host_hours:.2f} x the clairvoyant cost"
    figure.suptitle(f"{scenario.name}: {result.policy}: {words}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _capacity(panel: object, hours: Floats, containers: Floats, name: str) -> None:
    panel.step(  # type: ignore[attr-defined]
        hours, containers, where="post", color=CAPACITY, linewidth=0.9, label="containers ready"
    )
    panel.set_ylabel(name, fontsize=8)  # type: ignore[attr-defined]
    panel.set_ylim(bottom=0)  # type: ignore[attr-defined]


def _latency(panel: object, hours: Floats, latency_s: Floats, bound_s: float) -> None:
    panel.plot(hours, latency_s, color=CAPACITY, linewidth=0.8)  # type: ignore[attr-defined]
    panel.axhline(bound_s, color=LATE, linewidth=0.7, linestyle="--")  # type: ignore[attr-defined]
    panel.set_yscale("log")  # type: ignore[attr-defined]
    panel.yaxis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]
    panel.set_ylabel("p99 s", fontsize=8)  # type: ignore[attr-defined]


def _late(panel: object, hours: Floats, late: Floats, arrived: Floats) -> None:
    share = late / np.maximum(arrived, 1.0)
    twin = panel.twinx()  # type: ignore[attr-defined]
    twin.fill_between(hours, share, color=LATE, alpha=0.6, linewidth=0.6, step="post")
    twin.set_ylim(0, 1)
    twin.set_ylabel("late", fontsize=8, color=LATE)


def _hosts(
    panel: object, hours: Floats, hosts: Floats, best: Oracle | None, first_s: float
) -> None:
    panel.step(hours, hosts, where="post", color=CAPACITY, linewidth=0.9, label="hosts")  # type: ignore[attr-defined]
    if best is not None:
        edges = (best.edges[:-1] - first_s) / HOUR_S
        panel.step(  # type: ignore[attr-defined]
            edges, best.hosts, where="post", color=ORACLE, linewidth=0.8, label="clairvoyant"
        )
    panel.legend(loc="upper right", fontsize=7, frameon=False, ncols=2)  # type: ignore[attr-defined]
    panel.set_ylabel("hosts", fontsize=8)  # type: ignore[attr-defined]
    panel.set_ylim(bottom=0)  # type: ignore[attr-defined]
