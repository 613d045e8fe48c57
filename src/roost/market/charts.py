"""Pictures of the market, as files: offers with their frontier, and the crossover of purchase options.

It draws what it is given and decides nothing.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from roost.market.demand import MONTH_H
from roost.market.picture import Dot
from roost.market.purchase import option_words
from roost.market.tariffs import Tariff

CLOUDS = {"aws": "#e8820c", "azure": "#1a73c9", "gcp": "#2a9d55"}
OTHER = "#777777"
TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
INK, FAINT = "#22262b", "#d9dde2"


NAMES = {"aws": "AWS", "azure": "Azure", "gcp": "GCP"}
NAMED = 9
"""Offers of the frontier that are named."""
WIDEST = 150.0
"""The picture ends at so many times the lowest price: what is far dearer competes with nothing here."""
SHAKE = 0.012
"""Bands are few: dots are moved up or down by at most this share, so that they do not hide each other."""


def market_picture(dots: Sequence[Dot], title: str, note: str, span: str, path: Path) -> None:
    """Price against expected survival over ``span``, the frontier marked and named; unknown as intervals."""
    figure, axes = _axes(title, 11.0, 6.6)
    for provider in sorted({dot.provider for dot in dots}):
        colour, name = CLOUDS.get(provider, OTHER), NAMES.get(provider, provider)
        own = [d for d in dots if d.provider == provider and d.spot]
        known, guessed = [d for d in own if d.known], [d for d in own if not d.known]
        if known:
            words = f"{name} spot, published or observed ({len(known):,})"
            axes.scatter(*_places(known), s=8, color=colour, alpha=0.35, lw=0, label=words)
        if guessed:
            _guessed(axes, guessed, colour, f"{name} spot, unknown: prior ({len(guessed):,})")
    bought = [d for d in dots if not d.spot]
    if bought:
        words = f"on demand ({len(bought):,})"
        axes.scatter(*_places(bought), s=6, color="#9aa0a8", alpha=0.35, lw=0, label=words)
    _frontier(axes, [d for d in dots if d.frontier])
    axes.set_xscale("log")
    low, high = min(d.usd_useful_hour for d in dots), max(d.usd_useful_hour for d in dots)
    end = min(high, low * WIDEST) * 1.1
    axes.set_xlim(low * 0.8, end)
    axes.set_xticks([t for t in TICKS if low <= t <= end], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_ylim(min(0.0, *(d.low for d in dots)), 1.06)
    axes.xaxis.set_major_formatter(lambda value, _: f"${value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1 else "")
    axes.set_xlabel("price of a useful hour (USD an hour over measured speed, log scale)")
    axes.set_ylabel(f"expected to survive {span}")
    legend = axes.legend(loc="lower right", frameon=True, framealpha=0.95, fontsize=9)
    legend.get_frame().set_edgecolor(FAINT)
    _save(figure, note, path)


def _places(dots: Sequence[Dot]) -> tuple[list[float], list[float]]:
    """Where dots are drawn: those of a band a little apart, by their place in the list (no chance)."""
    shaken = [d.survives + SHAKE * (2.0 * ((n * 0.618034) % 1.0) - 1.0) for n, d in enumerate(dots)]
    return [dot.usd_useful_hour for dot in dots], shaken


def _guessed(axes: Any, dots: Sequence[Dot], colour: str, label: str) -> None:
    """Each with the interval of the prior; lines of a sample, as all have nearly the same."""
    some = dots[:: max(1, len(dots) // 40)]
    middles = [d.survives for d in some]
    below = [d.survives - d.low for d in some]
    above = [d.high - d.survives for d in some]
    prices = [d.usd_useful_hour for d in some]
    axes.errorbar(
        prices, middles, yerr=(below, above), fmt="none", ecolor=colour, alpha=0.3, lw=0.8
    )
    axes.scatter(
        *_places(dots), s=9, facecolors="none", edgecolors=colour, lw=0.5, alpha=0.4, label=label
    )


def _frontier(axes: Any, dots: Sequence[Dot]) -> None:
    prices = [d.usd_useful_hour for d in dots]
    survivals = [d.survives for d in dots]
    if not dots:
        return
    axes.step(prices, survivals, where="post", color=INK, lw=1.2, zorder=5)
    axes.scatter(prices, survivals, s=95, color=INK, zorder=6, label="frontier")
    lines = []
    for number, dot in enumerate(dots[:NAMED], start=1):
        place = (dot.usd_useful_hour, dot.survives)
        axes.annotate(str(number), place, ha="center", va="center", fontsize=7, color="w", zorder=7)
        bought = "" if dot.spot else ", on demand"
        name = NAMES.get(dot.provider, dot.provider)
        price = f"${dot.usd_useful_hour:.3f}, {dot.survives:.1%}"
        lines.append(f"{number}  {name} {dot.name}{bought}: {price}")
    box = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": FAINT, "alpha": 0.95}
    text = "\n".join(["nothing cheaper is known to last as long:", *lines])
    axes.text(0.015, 0.03, text, transform=axes.transAxes, fontsize=9, zorder=8, bbox=box)


def crossover_picture(tariffs: Sequence[Tariff], title: str, note: str, path: Path) -> None:
    """What one machine costs a month, by the hours it runs: by use rising, under a commitment flat."""
    figure, axes = _axes(title, 9.5, 5.4)
    ordered = sorted(tariffs, key=lambda t: (t.committed, -t.counted_usd_hour))
    colours = plt.get_cmap("viridis")
    for number, tariff in enumerate(ordered):
        colour = colours(0.05 + 0.7 * number / max(1, len(tariffs) - 1))
        month = tariff.counted_usd_hour * MONTH_H
        start, dash = (month, "--") if tariff.committed else (0.0, "-")
        axes.plot([0, MONTH_H], [start, month], dash, color=colour, lw=1.8)
        name = option_words(tariff.option) + (" (with its risk)" if tariff.risk_usd_hour else "")
        _note(axes, name, (MONTH_H, month), (6, -3), colour)
    reference = next((t for t in ordered if not t.committed and t.option != "spot"), None)
    if reference is not None:
        _crossings(axes, reference, [t for t in ordered if t.committed])
    axes.set_xlim(0, MONTH_H)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"${value:,.0f}")
    axes.set_xlabel("hours a month that the machine is needed")
    axes.set_ylabel("USD a month for one machine")
    figure.subplots_adjust(right=0.74)
    _save(figure, note, path)


def _crossings(axes: Any, reference: Tariff, committed: Sequence[Tariff]) -> None:
    for tariff in committed:
        cost = tariff.counted_usd_hour * MONTH_H
        hours = cost / reference.counted_usd_hour
        if hours <= MONTH_H:
            axes.plot([hours], [cost], "o", color=INK, ms=5, zorder=5)
            _note(axes, f"{hours:.0f} h", (hours, cost), (-4, 7), INK, "right")


def _note(
    axes: Any,
    text: str,
    at: tuple[float, float],
    offset: tuple[int, int],
    colour: Any,
    side: str = "left",
) -> None:
    axes.annotate(
        text, at, textcoords="offset points", xytext=offset, ha=side, fontsize=9, color=colour
    )


def _axes(title: str, width: float, height: float) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(width, height), dpi=120)
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=12)
    axes.grid(True, color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Any, note: str, path: Path) -> None:
    words = textwrap.fill(note, 150)
    figure.text(0.02, -0.01, words, fontsize=7.5, color="#666666", va="top")
    figure.savefig(path, bbox_inches="tight", metadata={"Software": "roost"})
    plt.close(figure)
