"""``roost market watch``: ranks again as facts come in, and tells what changed and why."""

import json
import sys
import time
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from roost.doors.cli.context import clock, errors, out
from roost.doors.cli.market import market_of, newer_words, plain
from roost.doors.cli.market_options import (
    HistoryDir,
    Waiting,
    asks,
)
from roost.doors.cli.market_render import show_ranking
from roost.market.advisor import Ranked
from roost.market.service import Market
from roost.market.watch import Change, Holding, changes, holding
from roost.ports.values import Ask

Interval = Annotated[float, typer.Option("--interval", min=1, help="Seconds between rounds.")]
Once = Annotated[bool, typer.Option("--once", help="One round, then end.")]
Held = Annotated[str, typer.Option("--holding", help="The offer you run on: say if a move pays.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print JSON, one line an event.")]
STYLES = {"entered": "green", "rose": "green", "left": "red", "fell": "yellow", "costs": "cyan"}


@asks()
def watch(
    ctx: typer.Context,
    ask: Ask,
    waiting: Waiting = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many to watch.")] = 10,
    held: Held = "",
    interval: Interval = 60.0,
    once: Once = False,
    history: HistoryDir = None,
    as_json: JsonLines = False,
) -> None:
    """Rank, then rank again as facts come in (`roost market record`): prints what changed and why.

    With --holding it also says, each time the answer changes, whether leaving that offer would pay.
    """
    with errors():
        watcher = _Watcher(ask, limit, held, as_json)
        while True:
            watcher.look(market_of(ctx, history, waiting), time.time())
            if once:
                return
            time.sleep(interval)


class _Watcher:
    """Remembers the last round."""

    def __init__(self, ask: Ask, limit: int, held: str, as_json: bool) -> None:
        self._ask = ask
        self._limit = limit
        self._held = held
        self._as_json = as_json
        self._before: list[Ranked] | None = None
        self._advice: Holding | None = None

    def look(self, market: Market, at_s: float) -> None:
        """One round."""
        ranked = market.rank(self._ask, self._limit)
        if self._before is None:
            self._first(market, ranked, at_s)
        else:
            for change in changes(self._before, ranked):
                self._tell(change, at_s)
        self._before = ranked
        if self._held:
            best = market.why(ranked[0].offer.key, self._ask)
            advice = holding(market.why(self._held, self._ask), best)
            if self._advice is None or advice.why != self._advice.why:
                self._advise(advice, at_s)
            self._advice = advice

    def _first(self, market: Market, ranked: list[Ranked], at_s: float) -> None:
        if self._as_json:
            _line({"at_s": at_s, "event": "ranking", "offers": [plain(e) for e in ranked]})
            return
        console = Console(highlight=False)
        show_ranking(console, market.catalogue, self._ask, ranked, newer_words(market.newer))

    def _tell(self, change: Change, at_s: float) -> None:
        if self._as_json:
            _line({"at_s": at_s, "event": "change", **msgspec.to_builtins(change)})
            return
        rank = "-" if change.rank is None else str(change.rank)
        words = f"{clock(at_s)[:8]} {change.change:8} #{rank:3} {change.offer}: {change.why}"
        out.print(Text(words, style=STYLES[change.change]))

    def _advise(self, advice: Holding, at_s: float) -> None:
        if self._as_json:
            _line({"at_s": at_s, "event": "holding", **msgspec.to_builtins(advice)})
            return
        word = "move" if advice.move else "stay"
        where = f" to {advice.best}" if advice.move else ""
        out.print(Text(f"{word}{where}: {advice.why}", style="yellow" if advice.move else "dim"))


def _line(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
