"""``roost market update|record|import``: brings facts of the market into the history. Never ranks."""

import asyncio
import random
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
import typer
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from roost.doors.cli.context import clock, emit, err, errors, out, progress
from roost.market.collect import Collector, Outcome
from roost.market.history import History
from roost.market.importers import FORMATS, Imported, read
from roost.ports.errors import Denied, Invalid, RoostError
from roost.ports.sources import PriceSource

T = TypeVar("T")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a person narrows sources to; each source takes what fits its cloud."""

    regions: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    days: float = 0.0
    since: datetime | None = None
    until: datetime | None = None
    every_s: float = 3600.0
    capacity: int = 1


class About(msgspec.Struct, frozen=True, kw_only=True):
    """A source before it is opened."""

    name: str
    licence: str
    needs: str
    consent: bool
    cadence_s: float
    what: str
    default: bool
    """Read when no source is named: needs no account and reads little."""


class MarketData(Protocol):
    """What these commands need of the program; main provides it."""

    def folder(self) -> Path:
        """Where the history lies unless ``--history`` says otherwise."""

    def sources(self) -> list[About]:
        """Every source there is."""

    def open(self, name: str, wanted: Wanted, folder: Path) -> PriceSource:
        """A source, ready to fetch. Raises ``Invalid`` or ``Denied`` with what is missing."""


Sources = Annotated[
    list[str] | None,
    typer.Option("--source", help="These (repeat). Default: needs no account, reads little."),
]
Folder = Annotated[
    Path | None, typer.Option("--history", help="The history's folder (default: in the state).")
]
Regions = Annotated[
    list[str] | None, typer.Option("--region", help="Only these regions (repeat, any cloud's).")
]
Types = Annotated[
    list[str] | None, typer.Option("--type", help="Only these machine types (repeat).")
]
Accept = Annotated[
    list[str] | None,
    typer.Option("--accept-licence", help="Accept the restricted licence of this source."),
]
Days = Annotated[
    float, typer.Option("--days", min=0, max=90, help="AWS: days of price history to begin with.")
]
Since = Annotated[str, typer.Option("--since", help="SpotLake: from this day, as 2025-06-01.")]
Until = Annotated[str, typer.Option("--until", help="SpotLake: to this day.")]
Every = Annotated[float, typer.Option("--every", min=10, help="SpotLake: minutes a snapshot.")]
Capacity = Annotated[
    int, typer.Option("--capacity", min=1, help="Machines a placement score is asked for.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def data(ctx: typer.Context) -> MarketData:
    """The program's sources."""
    found: MarketData = ctx.obj.market_data()
    return found


def update(
    ctx: typer.Context,
    source: Sources = None,
    history: Folder = None,
    region: Regions = None,
    machine_type: Types = None,
    accept_licence: Accept = None,
    days: Days = 0.0,
    since: Since = "",
    until: Until = "",
    every: Every = 60.0,
    capacity: Capacity = 1,
    listing: Annotated[
        bool, typer.Option("--list", help="List the sources, what they need and their licences.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read the sources once, now. Ends with 1 when one of them failed; the others are kept."""
    with errors():
        program = data(ctx)
        if listing:
            _show_sources(program.sources(), as_json)
            return
        wanted = _wanted(region, machine_type, days, since, until, every, capacity)
        folder = history or program.folder()
        opened, refused = _open(program, source, wanted, folder, accept_licence or [])
        outcomes = _run(_update(opened, History(folder), _scope(wanted), quiet=as_json))
    _finish(refused + outcomes, folder, as_json)


async def _update(
    sources: Sequence[PriceSource], history: History, scope: str, *, quiet: bool
) -> list[Outcome]:
    collector = Collector(history, now=time.time, random=random.Random(), scope=scope)
    with _lines(quiet) as say:
        try:
            return await asyncio.gather(
                *(collector.collect(s, lambda text, s=s: say(s.name, text)) for s in sources)  # type: ignore[misc]
            )
        finally:
            await asyncio.gather(*(s.close() for s in sources))


def record(
    ctx: typer.Context,
    source: Sources = None,
    history: Folder = None,
    region: Regions = None,
    machine_type: Types = None,
    accept_licence: Accept = None,
    days: Days = 0.0,
    capacity: Capacity = 1,
    once: Annotated[bool, typer.Option("--once", help="Read each source once, then end.")] = False,
    as_json: Json = False,
) -> None:
    """Read each source at its cadence until ended: keeps what clouds do not tell later.

    Advisor bands, eviction rates, placement scores and preemption rates of yesterday cannot be had
    today; AWS keeps spot prices for 90 days. It may be killed at any time and goes on where it was.
    """
    with errors():
        program = data(ctx)
        wanted = _wanted(region, machine_type, days, "", "", 60.0, capacity)
        folder = history or program.folder()
        opened, refused = _open(program, source, wanted, folder, accept_licence or [])
        for outcome in refused:
            _tell(outcome, as_json)
        if not opened:
            raise Invalid("no source can be read", hint="`roost market update --list`")
        if not as_json:
            names = ", ".join(s.name for s in opened)
            err.print(f"[dim]records {names} into {folder}[/]", highlight=False)
        scope = _scope(wanted)
        outcomes = _run(_record(opened, History(folder), scope, once=once, as_json=as_json))
    if not all(outcome.ok for outcome in refused + outcomes):
        raise typer.Exit(1)


async def _record(
    sources: Sequence[PriceSource], history: History, scope: str, *, once: bool, as_json: bool
) -> list[Outcome]:
    collector = Collector(history, now=time.time, random=random.Random(), scope=scope)
    work = asyncio.ensure_future(
        collector.record(sources, once=once, tell=lambda outcome: _tell(outcome, as_json))
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, work.cancel)
    try:
        return await work
    except asyncio.CancelledError:
        return []
    finally:
        await asyncio.gather(*(s.close() for s in sources))


def import_file(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Parquet, CSV, JSON, or output of `aws`.")],
    kind: Annotated[
        str, typer.Option("--as", help=f"What the file is: {', '.join(FORMATS)}.")
    ] = "",
    name: Annotated[str, typer.Option("--source", help="The source's name in the history.")] = "",
    history: Folder = None,
    as_json: Json = False,
) -> None:
    """Bring files into the history: recognised by their columns, checked; what is dropped is told.

    Takes what `aws ec2 describe-spot-price-history` prints in any output format.
    """
    with errors():
        store = History(history or data(ctx).folder())
        told = []
        with progress("reads", quiet=as_json) as say:
            for file in files:
                say(f"reads {file}")
                found = read(file, kind, name)
                new = known = 0
                for table, rows in found.tables.items():
                    say(f"stores {rows.height:,} facts of {file.name}")
                    stored = store.append_frame(table, rows)
                    new, known = new + stored.new, known + stored.known
                told.append((file, found, new, known))
    if as_json:
        emit([_imported(*entry) for entry in told])
        return
    for entry in told:
        _show_import(*entry)


def _imported(file: Path, found: Imported, new: int, known: int) -> dict[str, Any]:
    return {
        "file": str(file),
        "format": found.format,
        "source": found.source,
        "rows": found.rows,
        "facts": {kind: rows.height for kind, rows in found.tables.items()},
        "new": new,
        "known": known,
        "dropped": found.dropped,
        "notes": list(found.notes),
    }


def _show_import(file: Path, found: Imported, new: int, known: int) -> None:
    kinds = ", ".join(f"{rows.height:,} {kind}" for kind, rows in found.tables.items())
    out.print(
        Text(f"{file.name}: {found.rows:,} rows of {found.format} → {kinds}"),
        Text(f"({new:,} new, {known:,} known) as {found.source}", style="dim"),
    )
    for why, count in found.dropped.items():
        out.print(Text(f"  dropped {count:,}: {why}", style="yellow"))
    for note in found.notes:
        out.print(Text(f"  {note}", style="dim"))


def _wanted(
    regions: list[str] | None,
    types: list[str] | None,
    days: float,
    since: str,
    until: str,
    every_min: float,
    capacity: int,
) -> Wanted:
    return Wanted(
        regions=_names(regions),
        types=_names(types),
        days=days,
        since=_day(since, "--since"),
        until=_day(until, "--until"),
        every_s=every_min * 60.0,
        capacity=capacity,
    )


def _scope(wanted: Wanted) -> str:
    """What the sources are narrowed to, as a text; empty = nothing."""
    return "" if wanted == Wanted() else msgspec.json.encode(wanted).decode()


def _names(given: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for item in given or () for name in item.split(",") if name.strip())


def _day(text: str, option: str) -> datetime | None:
    if not text:
        return None
    try:
        made = datetime.fromisoformat(text)
    except ValueError as error:
        raise Invalid(f"{option} {text} is no day", hint=f"{option} 2025-06-01") from error
    return made if made.tzinfo else made.replace(tzinfo=UTC)


def _open(
    program: MarketData,
    names: list[str] | None,
    wanted: Wanted,
    folder: Path,
    accepted: Sequence[str],
) -> tuple[list[PriceSource], list[Outcome]]:
    """The sources to read, and those that cannot be, with the reason."""
    known = {about.name: about for about in program.sources()}
    chosen = _names(names) or tuple(about.name for about in known.values() if about.default)
    strange = [name for name in chosen if name not in known]
    if strange:
        raise Invalid(f"{', '.join(strange)}: no such source", hint=f"sources: {', '.join(known)}")
    opened: list[PriceSource] = []
    refused: list[Outcome] = []
    for name in dict.fromkeys(chosen):
        about = known[name]
        try:
            if about.consent and name not in accepted:
                raise Denied(f"its licence is {about.licence}", hint=f"--accept-licence {name}")
            opened.append(program.open(name, wanted, folder))
        except RoostError as error:
            refused.append(Outcome(source=name, error=error.message, hint=error.hint))
    return opened, refused


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextmanager
def _lines(quiet: bool) -> Iterator[Callable[[str, str], None]]:
    """A line of progress a source, on standard error."""
    if quiet:
        yield lambda _source, _text: None
        return
    if not err.is_terminal:
        yield lambda source, text: err.print(Text(f"{source}: {text}", style="dim"))
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def say(source: str, text: str) -> None:
            if source not in tasks:
                tasks[source] = bar.add_task(source, total=None)
            bar.update(tasks[source], description=f"{source}: {text}")

        yield say


def _finish(outcomes: Sequence[Outcome], folder: Path, as_json: bool) -> None:
    if as_json:
        emit({"history": str(folder), "sources": [_plain(outcome) for outcome in outcomes]})
    else:
        _show(outcomes, folder)
    if not all(outcome.ok for outcome in outcomes):
        raise typer.Exit(1)


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {**msgspec.to_builtins(outcome), "ok": outcome.ok}


def _show(outcomes: Sequence[Outcome], folder: Path) -> None:
    table = Table(title=f"Facts into {folder}", title_justify="left")
    table.add_column("source", no_wrap=True)
    for name in ("new", "known", "pages", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what happened", overflow="fold")
    for outcome in outcomes:
        table.add_row(
            outcome.source,
            f"{outcome.new:,}",
            f"{outcome.known:,}",
            str(outcome.pages),
            f"{outcome.seconds:.1f}",
            _told(outcome),
        )
    out.print(table)


def _told(outcome: Outcome) -> Text:
    said = Text("ok", style="green") if outcome.ok else Text()
    if outcome.error:
        said.append(f"failed: {outcome.error}", style="red")
        if outcome.hint:
            said.append(f"\n→ {outcome.hint}", style="dim")
    for part in outcome.failed:
        said.append(f"{chr(10) if said else ''}failed: {part}", style="yellow")
    for why, count in outcome.skipped.items():
        said.append(f"{chr(10) if said else ''}left out {count:,}: {why}", style="dim")
    return said


def _tell(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        line = msgspec.json.encode({"at_s": time.time(), **_plain(outcome)}).decode()
        typer.echo(line)
        return
    said = Text(f"{clock(time.time())} {outcome.source}: {outcome.new:,} new facts ")
    out.print(said, Text("ok", style="green") if outcome.ok else _told(outcome))


def _show_sources(sources: Sequence[About], as_json: bool) -> None:
    if as_json:
        emit(sources)
        return
    title = "Sources (* read when none is named)"
    table = Table(title=title, title_justify="left")
    table.add_column("source", no_wrap=True)
    for name in ("tells", "needs", "every", "licence"):
        table.add_column(name, overflow="fold")
    for about in sources:
        hours = about.cadence_s / 3600.0
        every = f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.0f} h"
        table.add_row(
            about.name + (" *" if about.default else ""),
            about.what,
            about.needs or "nothing",
            every,
            about.licence + (" (to be accepted)" if about.consent else ""),
        )
    out.print(table)
