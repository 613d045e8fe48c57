"""``roost market picture``: draws the offers that meet an ask, price against expected survival."""

from pathlib import Path
from typing import Annotated

import typer

from roost.doors.cli.context import errors, out, progress
from roost.doors.cli.market import market_of, newer_words
from roost.doors.cli.market_options import (
    BOTH,
    HistoryDir,
    asks,
)
from roost.doors.cli.market_purchase import checked
from roost.market.charts import market_picture
from roost.market.picture import dots
from roost.ports.errors import Invalid
from roost.ports.values import Ask

Days = Annotated[float, typer.Option("--days", min=0.01, help="Survival over so many days.")]


@asks(BOTH, vcpus=4.0, memory=16.0)
def picture(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="Where to draw it: .png, .svg or .pdf.")],
    ask: Ask,
    days: Days = 30.0,
    history: HistoryDir = None,
) -> None:
    """Draw every offer that fits: its price against how likely it lasts, with the frontier.

    The frontier are the offers that no cheaper one outlasts. Offers whose stability nobody publishes are
    drawn with the interval of the prior and are never on it.
    """
    with errors(), progress("draws") as say:
        target = checked(path)
        market = market_of(ctx, history, None)
        candidates = market.catalogue.candidates(ask)
        if not candidates:
            raise Invalid(market.catalogue.explain_empty(ask), hint="loosen that constraint")
        found = dots(candidates, market.context(ask), days * 24.0)
        say(f"draws {len(found):,} offers")
        named = f"{ask.vcpus:g} vCPU and {ask.memory_gib:g} GiB"
        if ask.gpus:
            named += f" and {ask.gpus:g} GPUs"
        title = f"Offers of {named} or more: price against expected survival"
        dates = ", ".join(f"{c} {d}" for c, d in sorted(market.catalogue.prices_as_of.items()))
        note = (
            f"Prices as of {dates}{newer_words(market.newer)}. AWS: Spot Advisor bands of 2025-06-28, the "
            "middle of the band. Azure and GCP publish no band in the shipped data: the prior of all known "
            "pools, lines are its interval. Dots of a band are drawn a little apart. Speed: Spare Cores "
            "(CC BY-SA 4.0)."
        )
        market_picture(found, title, note, f"{days:g} days", target)
    frontier = [dot for dot in found if dot.frontier]
    out.print(f"{len(found):,} offers, {len(frontier)} on the frontier: {target}", highlight=False)
