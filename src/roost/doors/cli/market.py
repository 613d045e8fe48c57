"""``roost market rank|why|compare``: ranks offers and explains ranks. Needs no control plane.

Facts of the history that are newer than the shipped catalogue count instead of it, with their age shown.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from roost.doors.cli.context import age, emit, err, errors
from roost.doors.cli.market_options import (
    BOTH,
    HistoryDir,
    Json,
    Waiting,
    asks,
)
from roost.doors.cli.market_render import show_comparison, show_explanation, show_ranking
from roost.market.advisor import Ranked
from roost.market.catalogue import Catalogue
from roost.market.history import History
from roost.market.live import Live, newest
from roost.market.service import Explanation, Market
from roost.ports.values import Ask

Replicas = Annotated[
    int, typer.Option("--replicas", min=0, help="Place so many: a third at most in one region.")
]


@asks()
def rank(
    ctx: typer.Context,
    ask: Ask,
    waiting: Waiting = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many to show.")] = 10,
    replicas: Replicas = 0,
    history: HistoryDir = None,
    as_json: Json = False,
) -> None:
    """Rank what can be bought for a workload; the best comes first.

    A useful hour costs price / performance, plus losses per hour x what a loss costs (an hour down,
    --waiting, for as long as launch and move take beyond the notice).
    """
    with errors():
        market = market_of(ctx, history, waiting)
        ranked = market.place(ask, replicas) if replicas else market.rank(ask, limit)
    if as_json:
        emit([plain(entry) for entry in ranked])
        return
    console = Console(highlight=False)
    show_ranking(console, market.catalogue, ask, ranked, newer_words(market.newer))


@asks()
def why(
    ctx: typer.Context,
    offer: Annotated[str, typer.Argument(help="provider/zone/type[/option], as rank shows it.")],
    ask: Ask,
    waiting: Waiting = None,
    history: HistoryDir = None,
    as_json: Json = False,
) -> None:
    """Say why an offer ranks where it does for a workload: every term of its number."""
    with errors():
        explained = market_of(ctx, history, waiting).why(offer, ask)
    if as_json:
        emit(plain(explained))
        return
    show_explanation(Console(highlight=False), explained)


@asks(BOTH, vcpus=0.0, memory=0.0)
def compare(
    ctx: typer.Context,
    offers: Annotated[list[str], typer.Argument(help="Two or more offers, as rank shows them.")],
    ask: Ask,
    waiting: Waiting = None,
    history: HistoryDir = None,
    as_json: Json = False,
) -> None:
    """Compare offers side by side, term by term; the cheapest a useful hour comes first."""
    with errors():
        compared = market_of(ctx, history, waiting).compare(offers, ask)
    if as_json:
        emit([plain(explained) for explained in compared])
        return
    show_comparison(Console(highlight=False), compared)


def market_of(ctx: typer.Context, history: Path | None, waiting: float | None) -> Market:
    """The market as of now: the catalogue under whatever the history holds that is newer."""
    folder = history or ctx.obj.market_folder()
    found = newest(Catalogue.load(), History(folder), time.time())
    for problem in found.problems[:3]:
        err.print(f"[yellow]skipped {problem.path}: {problem.why}[/]", highlight=False)
    if found.unplaced:
        shown = (
            f"{len(found.unplaced):,} pools the catalogue does not know ({found.unplaced[0]} ...)"
        )
        err.print(f"[dim]the history has newer prices of {shown}: left out[/]", highlight=False)
    return Market(found.catalogue, waiting, found)


def newer_words(newer: Live | None) -> str:
    """How much is newer than the shipped catalogue, and how old the newest of it is."""
    if newer is None or newer.newest_s is None:
        return ""
    return f"; {len(newer.told):,} offers have newer facts, the newest {age(newer.newest_s)} old"


def plain(value: Ranked | Explanation) -> dict[str, Any]:
    """As JSON shows it, with the offer's key."""
    made: dict[str, Any] = msgspec.to_builtins(value)
    made["offer"]["key"] = value.offer.key
    if isinstance(value, Explanation) and value.winner is not None:
        made["winner"]["offer"]["key"] = value.winner.offer.key
    return made


def keys(ranked: Iterable[Ranked]) -> list[str]:
    """The offer keys of a ranking, in order."""
    return [entry.offer.key for entry in ranked]
