"""Pictures of the market, as PNG files. The only module of the market's own that imports matplotlib.

It draws what it is given and decides nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec

mpl.use("Agg")

from matplotlib import pyplot as plt

from roost.market.demand import MONTH_H
from roost.market.purchase import option_words
from roost.market.tariffs import Tariff

CLOUDS = {"aws": "#e8820c", "azure": "#1a73c9", "gcp": "#2a9d55"}
OTHER = "#777777"
INK, FAINT = "#22262b", "#d9dde2"


class Dot(msgspec.Struct, frozen=True, kw_only=True):
    """One offer of the picture."""

    name: str
    provider: str
    usd_useful_hour: float
    """Price over performance."""
    survives: float
    """Expected, over the hours of the picture."""
    low: float
    high: float
    known: bool
    frontier: bool = False


def market_picture(dots: Sequence[Dot], title: str, note: str, hours: float, path: Path) -> None:
    """Price against expected survival, the frontier marked and named; unknown ones with their interval."""
    figure, axes = _axes(title, 11.0, 6.6)
    for provider in sorted({dot.provider for dot in dots}):
        colour = CLOUDS.get(provider, OTHER)
        known = [d for d in dots if d.provider == provider and d.known]
        guessed = [d for d in dots if d.provider == provider and not d.known]
        label = {"aws": "AWS", "azure": "Azure", "gcp": "GCP"}.get(provider, provider)
        if known:
            words = f"{label} ({len(known):,} pools, published band)"
            axes.scatter(*_places(known), s=9, color=colour, alpha=0.35, lw=0, label=words)
        if guessed:
            _guessed(axes, guessed, colour, f"{label} ({len(guessed):,} pools, stability unknown)")
    _frontier(axes, [d for d in dots if d.frontier])
    axes.set_xscale("log")
    ticks = [t for t in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)]
    low, high = axes.get_xlim()
    axes.set_xticks([t for t in ticks if low <= t <= high], minor=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"${value:g}")
    axes.xaxis.set_minor_formatter(lambda _value, _place: "")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    axes.set_xlabel("price of a useful hour (USD, price over measured speed)")
    axes.set_ylabel(f"expected to survive {hours:g} h")
    legend = axes.legend(loc="lower right", frameon=True, framealpha=0.95, fontsize=9)
    legend.get_frame().set_edgecolor(FAINT)
    _save(figure, note, path)


def _places(dots: Sequence[Dot]) -> tuple[list[float], list[float]]:
    return [dot.usd_useful_hour for dot in dots], [dot.survives for dot in dots]


def _guessed(axes: Any, dots: Sequence[Dot], colour: str, label: str) -> None:
    """Their interval as thin lines: the same for all, so a sample of lines shows it as a band."""
    step = max(1, len(dots) // 60)
    some = sorted(dots, key=lambda d: d.usd_useful_hour)[::step]
    below = [max(0.0, d.survives - d.low) for d in some]
    above = [max(0.0, d.high - d.survives) for d in some]
    prices, middles = _places(some)
    axes.errorbar(
        prices, middles, yerr=(below, above), fmt="none", ecolor=colour, alpha=0.22, lw=0.9
    )
    axes.scatter(
        *_places(dots), s=9, facecolors="none", edgecolors=colour, lw=0.6, alpha=0.5, label=label
    )


def _frontier(axes: Any, dots: Sequence[Dot]) -> None:
    ordered = sorted(dots, key=lambda d: d.usd_useful_hour)
    if not ordered:
        return
    prices, survivals = _places(ordered)
    axes.step(prices, survivals, where="post", color=INK, lw=1.3, zorder=5, label="frontier")
    axes.scatter(prices, survivals, s=46, color=INK, zorder=6)
    for number, dot in enumerate(ordered):
        above = number % 2 == 0
        axes.annotate(
            dot.name,
            (dot.usd_useful_hour, dot.survives),
            textcoords="offset points",
            xytext=(6, 9 if above else -15),
            fontsize=8,
            color=INK,
            zorder=7,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8},
        )


def crossover_picture(tariffs: Sequence[Tariff], title: str, note: str, path: Path) -> None:
    """What one machine costs a month, by the hours it runs: by use rising, under a commitment flat."""
    figure, axes = _axes(title, 9.5, 5.4)
    by_use = sorted((t for t in tariffs if not t.committed), key=lambda t: -t.counted_usd_hour)
    flat = sorted((t for t in tariffs if t.committed), key=lambda t: -t.counted_usd_hour)
    colours = plt.get_cmap("viridis")
    for number, tariff in enumerate([*by_use, *flat]):
        colour = colours(0.08 + 0.8 * number / max(1, len(tariffs) - 1))
        month = tariff.counted_usd_hour * MONTH_H
        start = month if tariff.committed else 0.0
        dash = "--" if tariff.committed else "-"
        axes.plot([0, MONTH_H], [start, month], dash, color=colour, lw=1.8)
        name = option_words(tariff.option) + (" (with its risk)" if tariff.risk_usd_hour else "")
        axes.annotate(
            name,
            (MONTH_H, month),
            textcoords="offset points",
            xytext=(6, -3),
            fontsize=9,
            color=colour,
        )
    reference = next((t for t in by_use if t.option != "spot"), None)
    for tariff in flat if reference is not None else ():
        hours = tariff.counted_usd_hour * MONTH_H / reference.counted_usd_hour  # type: ignore[union-attr]
        if hours <= MONTH_H:
            cost = tariff.counted_usd_hour * MONTH_H
            axes.plot([hours], [cost], "o", color=INK, ms=5, zorder=5)
            axes.annotate(
                f"{hours:.0f} h",
                (hours, cost),
                textcoords="offset points",
                xytext=(-4, 7),
                ha="right",
                fontsize=9,
                color=INK,
            )
    axes.set_xlim(0, MONTH_H)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"${value:,.0f}")
    axes.set_xlabel("hours a month that the machine is needed")
    axes.set_ylabel("USD a month for one machine")
    figure.subplots_adjust(right=0.74)
    _save(figure, note, path)


def _axes(title: str, width: float, height: float) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(width, height), dpi=120)
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=12)
    axes.grid(True, color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Any, note: str, path: Path) -> None:
    figure.text(0.01, 0.005, note, fontsize=7.5, color="#666666")
    figure.savefig(path, bbox_inches="tight", metadata={"Software": "roost"})
    plt.close(figure)
