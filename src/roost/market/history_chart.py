"""Draws what was told of a pool: prices as steps, bands, rates, scores. It reads no file."""

from datetime import UTC, datetime
from pathlib import Path

import matplotlib
import polars as pl

from roost.ports.errors import Invalid

matplotlib.use("Agg")

from matplotlib import pyplot as plt

PANELS = (
    ("offer_price", "USD an hour"),
    ("interruption_band", "interrupted, share"),
    ("preemption_rate", "preempted, share"),
    ("placement_score", "placement score"),
    ("capacity_advice", "obtainability"),
    ("availability", "machines"),
)


def draw(series: pl.DataFrame, title: str, path: Path) -> None:
    """Write a picture (PNG, SVG or PDF by its name) of ``History.series``. Raises ``Invalid``."""
    panels = [(kind, name) for kind, name in PANELS if (series["kind"] == kind).any()]
    if not panels:
        raise Invalid(f"nothing was told of {title}")
    height = 2.2 * len(panels) + 0.8
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, height), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, (kind, name) in zip(axes[:, 0], panels, strict=True):
        rows = series.filter(pl.col("kind") == kind).drop_nulls("value")
        for (unit, zone, source), part in rows.group_by("unit", "zone", "source"):
            times = [datetime.fromtimestamp(at, UTC) for at in part["observed_at"]]
            label = " ".join(str(word) for word in (unit, zone, source) if word)
            axis.step(times, part["value"], where="post", marker=".", markersize=3, label=label)
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="best")
    axes[0, 0].set_title(title)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise Invalid(f"{path} cannot be written: {error}", hint="as pool.png") from error
    finally:
        plt.close(figure)
