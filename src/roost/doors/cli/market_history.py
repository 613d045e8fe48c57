"""``roost market history``: what the history holds, and what was told of a pool. It fetches nothing."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.table import Table
from rich.text import Text

from roost.doors.cli.context import emit, err, errors, out, progress
from roost.doors.cli.market_data import Folder, Json, data
from roost.market.history import History
from roost.market.history_chart import draw
from roost.ports.errors import Invalid

SHOWN = 40
"""Rows of a series shown in a terminal; all of them with ``--json``."""


def history(
    ctx: typer.Context,
    pool: Annotated[
        str, typer.Argument(help="provider/zone/type or provider/region/type; empty: a summary.")
    ] = "",
    chart: Annotated[
        Path | None, typer.Option("--chart", help="Draw it into this file (png, svg, pdf).")
    ] = None,
    since: Annotated[str, typer.Option("--since", help="From this day, as 2026-01-31.")] = "",
    compact: Annotated[
        bool, typer.Option("--compact", help="Merge small files and duplicates first.")
    ] = False,
    history_folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Show what was told of a pool over time: prices, bands, scores, rates; who told it and when."""
    with errors():
        store = History(history_folder or data(ctx).folder())
        if compact:
            with progress("compacts", quiet=as_json):
                done = store.compact()
            said = f"{done.files_before:,} files are {done.files_after:,}"
            err.print(f"[dim]{said}; {done.duplicates:,} duplicates left out[/]", highlight=False)
        if not pool:
            _summary(store, as_json)
            return
        _pool(store, pool, chart, since, as_json)


def _summary(store: History, as_json: bool) -> None:
    rows = store.summary()
    if as_json:
        emit({"facts": rows.to_dicts(), "problems": [_problem(p) for p in store.problems]})
        return
    if not rows.height:
        raise Invalid(
            f"the history {store.root} is empty",
            hint="`roost market update`, or `roost market import FILE`",
        )
    table = Table(title=f"{store.root}", title_justify="left")
    for name in ("kind", "source", "facts", "from", "to", "files", "MB"):
        table.add_column(name, overflow="fold")
    for kind, source, facts, first, last, files, size in rows.iter_rows():
        table.add_row(
            kind, source, f"{facts:,}", _at(first), _at(last), str(files), f"{size / 1e6:.2f}"
        )
    out.print(table)
    _show_problems(store)


def _pool(store: History, pool: str, chart: Path | None, since: str, as_json: bool) -> None:
    parts = pool.split("/")
    if len(parts) not in (3, 4) or not all(parts):
        raise Invalid(f"{pool} is no pool", hint="provider/zone/type, as aws/use1-az4/m5.large")
    with progress("reads", quiet=as_json):
        rows = store.series(parts[1], parts[2], parts[0])
    if since:
        try:
            begin = datetime.fromisoformat(since).replace(tzinfo=UTC).timestamp()
        except ValueError as error:
            raise Invalid(f"--since {since} is no day", hint="--since 2026-01-31") from error
        rows = rows.filter(pl.col("observed_at") >= begin)
    if len(parts) == 4:
        rows = rows.filter(
            (pl.col("kind") != "offer_price") | pl.col("unit").str.ends_with(f" {parts[3]}")
        )
    if not rows.height:
        _show_problems(store)
        raise Invalid(
            f"the history has nothing of {pool}",
            hint="`roost market history` shows what it has; --history names another one",
        )
    if chart is not None:
        draw(rows, pool, chart)
    if as_json:
        emit(
            {
                "pool": pool,
                "series": rows.to_dicts(),
                "problems": list(map(_problem, store.problems)),
            }
        )
        return
    table = Table(
        title=f"{pool}: {rows.height:,} fact{'s' * (rows.height > 1)}", title_justify="left"
    )
    for name in ("when (UTC)", "told", "value", "unit", "zone", "source"):
        table.add_column(name, overflow="fold")
    for kind, at, value, unit, zone, source in rows.tail(SHOWN).iter_rows():
        said = "no longer offered" if value is None else f"{value:g}"
        table.add_row(_at(at), kind, said, unit, zone or "-", source)
    out.print(table)
    if rows.height > SHOWN:
        out.print(Text(f"the last {SHOWN} of {rows.height:,}; --json shows all", style="dim"))
    if chart is not None:
        out.print(Text(f"drawn in {chart}", style="green"))
    _show_problems(store)


def _show_problems(store: History) -> None:
    for problem in store.problems:
        err.print(Text(f"skipped {problem.path}: {problem.why}", style="yellow"))


def _problem(problem: object) -> dict[str, str]:
    return {"path": getattr(problem, "path", ""), "why": getattr(problem, "why", "")}


def _at(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}"
