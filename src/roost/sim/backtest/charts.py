"""Pictures of a backtest: where each policy ran over time, over when each pool was up. Imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from roost.market.traces import Trace
from roost.sim.backtest.pools import ON_DEMAND
from roost.sim.backtest.run import Result

mpl.use("Agg")
DAY_S = 86_400.0
INK, UP, ON_DEMAND_INK, DOWN = "#1b4965", "#d7e8e4", "#c98b2b", "#b3261e"
MOST = 6
"""Policies in a picture."""


def draw(path: Path, trace: Trace, rows: Sequence[Result]) -> None:
    """One panel a policy: pools that were up in pale, where it ran in ink, on demand and nowhere below."""
    shown = list(rows)[-MOST:]
    lines = len(trace.zones) + 2
    figure = Figure(figsize=(11, 0.6 + len(shown) * (0.5 + 0.17 * lines)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for panel, row in zip(panels, shown, strict=True):
        _pools(panel, trace)
        _places(panel, trace, row)
        panel.set_yticks(range(lines), [*trace.zones, "on demand", "nowhere"], fontsize=7)
        panel.set_ylim(lines - 0.4, -0.6)
        words = f"cost {row.cost:.3f}, available {row.availability:.4f}"
        words += f", {row.reclaims_per_day:.2f} losses a day"
        panel.set_title(f"{row.policy}: {words}", fontsize=9, loc="left")
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[-1].set_xlabel("days")
    panels[-1].set_xlim(0, trace.hours / 24.0)
    what = "the first job" if shown[0].workload == "job" else f"a {shown[0].workload}"
    figure.suptitle(f"{trace.name}: where {what} ran (pale: the pool was up)", fontsize=11)
    figure.savefig(path, dpi=110)


def _pools(panel: object, trace: Trace) -> None:
    for zone in range(len(trace.zones)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], trace.up[:, zone].astype(int), [0]])))
        spans = edges.reshape(-1, 2) * trace.gap_s / DAY_S
        bars = [(float(a), float(b - a)) for a, b in spans]
        panel.broken_barh(bars, (zone - 0.4, 0.8), color=UP, linewidth=0)  # type: ignore[attr-defined]


def _places(panel: object, trace: Trace, row: Result) -> None:
    lines = len(trace.zones)
    for start_s, end_s, place in row.places:
        line, ink = (lines + 1, DOWN) if place is None else (place, INK)
        if place == ON_DEMAND:
            line, ink = lines, ON_DEMAND_INK
        bar = [(start_s / DAY_S, max(end_s - start_s, 600.0) / DAY_S)]
        panel.broken_barh(bar, (line - 0.3, 0.6), color=ink, linewidth=0)  # type: ignore[attr-defined]
