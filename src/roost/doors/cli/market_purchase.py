"""``roost market purchase``: which mix of purchase options costs least over months. It buys nothing."""

import csv
import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from roost.client.model import CostView
from roost.doors.cli.context import emit, err, errors, installation, out, progress
from roost.doors.cli.market import market_of
from roost.doors.cli.market_options import (
    HistoryDir,
    Json,
    Waiting,
    asks,
)
from roost.market.advisor import loss_of
from roost.market.charts import crossover_picture
from roost.market.demand import Demand, assumed, metered, per_hour
from roost.market.history import History
from roost.market.purchase import (
    Crossover,
    Mix,
    crossovers,
    least_cost,
    option_words,
    sentence,
)
from roost.market.service import Market
from roost.market.tariffs import Tariff, Tariffs, read_options, tariffs, told
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Offer

Instances = Annotated[int, typer.Option("--instances", min=1, help="Machines wanted at once.")]
HoursADay = Annotated[float, typer.Option("--hours-a-day", help="Hours a day they are wanted.")]
DaysAWeek = Annotated[float, typer.Option("--days-a-week", help="Days a week they are wanted.")]
Always = Annotated[int, typer.Option("--always", min=0, help="So many of them at all times.")]
Growth = Annotated[float, typer.Option("--growth", help="Change a month: 0.05 is 5 % more.")]
Months = Annotated[int, typer.Option("--months", help="Months to look ahead.")]
NeverSpot = Annotated[
    float, typer.Option("--never-spot", min=0, max=1, help="Share that must not be spot.")
]
Dedicated = Annotated[bool, typer.Option("--dedicated", help="On hardware nobody else uses.")]
Use = Annotated[
    Path | None,
    typer.Option("--use", help="Use per hour: CSV or JSON, or what `roost cost --json` printed."),
]
Metered = Annotated[bool, typer.Option("--metered", help="The use that this installation metered.")]
Prices = Annotated[
    Path | None, typer.Option("--prices", help="Purchase options of your own (CSV or Parquet).")
]
Chart = Annotated[Path | None, typer.Option("--chart", help="Draw the crossover (PNG).")]


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What the command answers."""

    offer: str
    demand: str
    sentence: str
    mix: Mix
    crossovers: list[Crossover]
    tariffs: Tariffs


@asks()
def purchase(
    ctx: typer.Context,
    ask: Ask,
    offer: Annotated[
        str, typer.Argument(help="provider/zone/type; empty: the best for the constraints.")
    ] = "",
    instances: Instances = 1,
    hours_a_day: HoursADay = 24.0,
    days_a_week: DaysAWeek = 7.0,
    always: Always = 0,
    growth: Growth = 0.0,
    months: Months = 12,
    never_spot: NeverSpot = 0.0,
    dedicated: Dedicated = False,
    use: Use = None,
    use_metered: Metered = False,
    prices: Prices = None,
    waiting: Waiting = None,
    history: HistoryDir = None,
    chart: Chart = None,
    as_json: Json = False,
) -> None:
    """Say which mix of spot, on demand and commitments costs least over months, and why.

    The use is assumed (--instances, --hours-a-day ...), read (--use) or what was metered (--metered). What
    interruptions cost counts. Options without a published price are named, never guessed.
    """
    with errors():
        market = market_of(ctx, history, waiting)
        folder = history or ctx.obj.market_folder()
        priced = _tariffs(market, ask, offer, prices, History(folder) if folder.is_dir() else None)
        hours = _use(ctx, use, use_metered)
        demand = (
            assumed(instances, hours_a_day, days_a_week, growth, months, always)
            if hours is None
            else metered(hours, growth, months)
        )
        with progress("looks for the cheapest mix", quiet=as_json):
            advice = advise(priced, demand, never_spot, dedicated=dedicated)
        if chart is not None:
            _draw(advice, dedicated, chart)
    if as_json:
        emit(advice)
        return
    _show(advice)
    if chart is not None:
        err.print(f"[dim]the crossover is drawn in {chart}[/]", highlight=False)


def advise(priced: Tariffs, demand: Demand, never_spot: float, *, dedicated: bool) -> Advice:
    """The cheapest mix among the tariffs that are allowed. Raises ``Invalid`` when none is priced."""
    allowed = _allowed(priced, dedicated)
    if not allowed:
        why = "; ".join(f"{u.option}: {u.why}" for u in priced.unpriced if "dedicated" in u.option)
        raise Invalid(
            f"no price of dedicated hardware is known for {priced.offer.instance_type}",
            hint=why or "name another type or cloud",
        )
    mix = least_cost(demand, allowed, never_spot)
    return Advice(
        offer=priced.offer.key,
        demand=demand.described,
        sentence=sentence(demand, mix, allowed, never_spot),
        mix=mix,
        crossovers=crossovers(allowed),
        tariffs=priced,
    )


def _allowed(priced: Tariffs, dedicated: bool) -> list[Tariff]:
    return [tariff for tariff in priced.priced if tariff.dedicated == dedicated]


def _tariffs(
    market: Market, ask: Ask, name: str, prices: Path | None, history: History | None
) -> Tariffs:
    chosen = market.catalogue.resolve(name) if name else market.rank(ask, 1)[0].offer
    pool = chosen.key.rsplit("/", 1)[0]
    on_demand = market.catalogue.resolve(f"{pool}/on_demand")
    spot = _spot(market, pool)
    context = market.context(ask)
    loss = None if spot is None else loss_of(spot, context)
    newer = [] if history is None else told(history.latest("savings_rate"), on_demand)
    return tariffs(on_demand, spot, loss, read_options(prices), newer)


def _spot(market: Market, pool: str) -> Offer | None:
    try:
        return market.catalogue.resolve(f"{pool}/spot")
    except Invalid:
        return None


def _use(ctx: typer.Context, path: Path | None, of_installation: bool) -> list[float] | None:
    if path is not None and of_installation:
        raise Invalid("--use and --metered are two sources of the same", hint="give one")
    if of_installation:
        return _hours(installation(ctx).client().cost(), "the installation")
    return None if path is None else read_use(path)


def read_use(path: Path) -> list[float]:
    """Instances running in each hour, from a file: numbers, rows with a number last, or a bill."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read: {error}", hint="a CSV or JSON file") from None
    if text.lstrip().startswith(("[", "{")):
        return _json_use(path, text)
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if rows and not _is_number(rows[0][-1]):
        rows = rows[1:]  # the header
    for number, row in enumerate(rows, start=1):
        if not _is_number(row[-1]):
            raise Invalid(f"{path}: line {number}: {row[-1]!r} is no number of instances")
    return [float(row[-1]) for row in rows]


def _json_use(path: Path, text: str) -> list[float]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Invalid(f"{path} is no JSON: {error}") from None
    if isinstance(found, list) and all(isinstance(v, int | float) for v in found):
        return [float(value) for value in found]
    try:
        return _hours(msgspec.convert(found, CostView), str(path))
    except msgspec.ValidationError as error:
        hint = "a list of numbers, one an hour, or what `roost cost --json` prints"
        raise Invalid(f"{path}: {error}", hint=hint) from None


def _hours(bill: CostView, where: str) -> list[float]:
    spans = [(x.started_s, x.started_s + x.seconds) for x in bill.lines if x.started_s > 0]
    if not spans:
        raise Invalid(f"{where} has metered nothing yet", hint="assume a use: --instances ...")
    return per_hour(spans)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show(advice: Advice) -> None:
    mix = advice.mix
    out.print(Text(f"{advice.offer.rsplit('/', 1)[0]}: {advice.demand}", style="bold"))
    table = Table(header_style="bold", show_footer=True)
    table.add_column("option", "total")
    table.add_column("machines", justify="right")
    table.add_column("hours", justify="right")
    table.add_column("USD", f"{mix.usd:,.0f}", justify="right")
    table.add_column("risk", f"{mix.risk_usd:,.0f}", justify="right")
    table.add_column("from month", overflow="fold")
    for part in mix.parts:
        starts = ", ".join(f"{n} from {month + 1}" for month, n in part.starts.items())
        table.add_row(
            option_words(part.option),
            f"{part.instances:,}",
            f"{part.hours:,.0f}",
            f"{part.usd:,.0f}",
            f"{part.risk_usd:,.0f}",
            starts,
        )
    out.print(table)
    out.print(Text(advice.sentence, style="green"))
    if mix.unused_hours > 0.5:
        out.print(Text(f"{mix.unused_hours:,.0f} hours of commitments are paid and not needed."))
    out.print(_options(advice))
    for option in advice.tariffs.unpriced:
        out.print(Text(f"not counted: {option_words(option.option)}: {option.why}", style="yellow"))


def _options(advice: Advice) -> Table:
    table = Table(title="an hour of one machine", title_justify="left", header_style="bold")
    for name in ("option", "USD", "with its risk", "pays from", "basis"):
        table.add_column(name, overflow="fold", justify="left" if name != "USD" else "right")
    pays = {c.option: c.hours_a_month for c in advice.crossovers if c.against == "on_demand"}
    for tariff in sorted(advice.tariffs.priced, key=lambda t: t.counted_usd_hour):
        hours = pays.get(tariff.option)
        begins = "" if tariff.option not in pays else "never" if hours is None else f"{hours:.0f} h"
        dated = f", {tariff.as_of}" if tariff.as_of else ""
        table.add_row(
            option_words(tariff.option),
            f"{tariff.usd_hour:.4f}",
            f"{tariff.counted_usd_hour:.4f}",
            f"{begins} a month" if begins not in ("", "never") else begins,
            f"{tariff.basis}: {tariff.source}{dated}",
        )
    return table


def _draw(advice: Advice, dedicated: bool, path: Path) -> None:
    offer = advice.tariffs.offer
    said = [f"{option_words(u.option)}: {u.why}" for u in advice.tariffs.unpriced]
    note = "Not drawn: " + "; ".join(said[:3]) if said else ""
    title = f"{offer.provider} {offer.instance_type}, {offer.region}: what a machine costs a month"
    crossover_picture(_allowed(advice.tariffs, dedicated), title, note, checked(path))


def checked(path: Path) -> Path:
    """A path that a picture can be written to. Raises ``Invalid``."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise Invalid(f"{path} is no name of a picture", hint="end it in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise Invalid(f"{path.parent} is no directory", hint="make it first")
    return path
