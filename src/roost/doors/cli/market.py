"""``roost market``: ranks the offers of the shipped catalogue and explains ranks. Needs no control plane."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from roost.market.advisor import Ranked
from roost.market.catalogue import Catalogue
from roost.market.service import Explanation, Market
from roost.ports.errors import Invalid, RoostError
from roost.ports.values import Ask, Offer, PurchaseOption

ROOMY = 140
"""From this many columns on an offer takes one line, else two."""
WIDE = 190
"""From this many columns on the reason stands in the table, else below it."""

Vcpus = Annotated[float, typer.Option("--vcpus", min=0, help="At least this many vCPUs.")]
Memory = Annotated[float, typer.Option("--memory", min=0, help="At least this much memory, GiB.")]
Gpus = Annotated[float, typer.Option("--gpus", min=0, help="At least this many GPUs.")]
Arch = Annotated[str, typer.Option("--arch", help="x86_64 or arm64.")]
Clouds = Annotated[
    list[str] | None,
    typer.Option("--cloud", "--clouds", help="Only these (repeat, or use commas)."),
]
Regions = Annotated[
    list[str] | None,
    typer.Option("--region", "--regions", help="Only these (repeat, or use commas)."),
]
Types = Annotated[list[str] | None, typer.Option("--type", help="Only these instance types.")]
MaxPrice = Annotated[
    float | None, typer.Option("--max-price", help="The most to pay, USD per hour.")
]
Near = Annotated[str, typer.Option("--near", help="A city or region: closer ones rank higher.")]
MinNotice = Annotated[
    float, typer.Option("--min-notice", min=0, help="Seconds of warning before an interruption.")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="spot, on_demand; default spot.")
]
Waiting = Annotated[
    float | None,
    typer.Option("--waiting", min=0, help="What an hour of waiting costs, USD; 0 if nobody waits."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def rank(
    vcpus: Vcpus = 2.0,
    memory: Memory = 8.0,
    gpus: Gpus = 0.0,
    arch: Arch = "x86_64",
    cloud: Clouds = None,
    region: Regions = None,
    instance_type: Types = None,
    max_price: MaxPrice = None,
    near: Near = "",
    min_notice: MinNotice = 0.0,
    option: Options = None,
    waiting: Waiting = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many to show.")] = 10,
    as_json: Json = False,
) -> None:
    """Rank what can be bought for a workload; the best comes first."""
    with _errors():
        ask = _ask(
            vcpus,
            memory,
            gpus,
            arch,
            cloud,
            region,
            instance_type,
            max_price,
            near,
            min_notice,
            option,
        )
        market = Market(Catalogue.load(), waiting)
        ranked = market.rank(ask, limit)
    if as_json:
        _print_json([_plain(entry) for entry in ranked])
        return
    show_ranking(Console(highlight=False), market.catalogue, ask, ranked)


def why(
    offer: Annotated[str, typer.Argument(help="provider/zone/type[/option], as rank shows it.")],
    vcpus: Vcpus = 2.0,
    memory: Memory = 8.0,
    gpus: Gpus = 0.0,
    arch: Arch = "x86_64",
    cloud: Clouds = None,
    region: Regions = None,
    instance_type: Types = None,
    max_price: MaxPrice = None,
    near: Near = "",
    min_notice: MinNotice = 0.0,
    option: Options = None,
    waiting: Waiting = None,
    as_json: Json = False,
) -> None:
    """Say why an offer ranks where it does for a workload."""
    with _errors():
        ask = _ask(
            vcpus,
            memory,
            gpus,
            arch,
            cloud,
            region,
            instance_type,
            max_price,
            near,
            min_notice,
            option,
        )
        explained = Market(Catalogue.load(), waiting).why(offer, ask)
    if as_json:
        _print_json(_plain(explained))
        return
    _show_explanation(explained)


def _ask(
    vcpus: float,
    memory: float,
    gpus: float,
    arch: str,
    clouds: list[str] | None,
    regions: list[str] | None,
    types: list[str] | None,
    max_price: float | None,
    near: str,
    min_notice: float,
    options: list[str] | None,
) -> Ask:
    return Ask(
        vcpus=vcpus,
        memory_gib=memory,
        gpus=gpus,
        arch=arch,
        clouds=_names(clouds),
        regions=_names(regions),
        instance_types=_names(types),
        max_usd_hour=max_price,
        near=near,
        min_notice_s=min_notice,
        purchase_options=tuple(_option(name) for name in _names(options) or ("spot",)),
    )


def _names(given: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for item in given or () for name in item.split(",") if name.strip())


def _option(name: str) -> PurchaseOption:
    try:
        return PurchaseOption(name.replace("-", "_").lower())
    except ValueError:
        hint = f"options are {', '.join(PurchaseOption)}"
        raise Invalid(f"{name} is not a purchase option", hint=hint) from None


@contextmanager
def _errors() -> Iterator[None]:
    """Turn a typed error into a message, a hint and exit code 2."""
    try:
        yield
    except RoostError as error:
        console = Console(stderr=True, highlight=False)
        console.print(Text.assemble(("error: ", "bold red"), error.message))
        if error.hint:
            console.print(Text.assemble(("hint: ", "bold"), error.hint))
        raise typer.Exit(2) from None


def _plain(value: Ranked | Explanation) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(value)
    made["offer"]["key"] = value.offer.key
    if isinstance(value, Explanation) and value.winner is not None:
        made["winner"]["offer"]["key"] = value.winner.offer.key
    return made


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def show_ranking(
    console: Console, catalogue: Catalogue, ask: Ask, ranked: Sequence[Ranked]
) -> None:
    """Print a ranking with the reason for each rank, laid out for the width of the console."""
    wide = console.width >= WIDE
    near = bool(ask.near)
    roomy = console.width >= ROOMY
    table = _full_table(ranked, near, wide) if roomy else _narrow_table(ranked, near)
    table.title = f"{catalogue.count(ask):,} offers fit; the best {len(ranked)}"
    table.title_justify = "left"
    console.print(table)
    if not wide:
        reasons = Table.grid(padding=(0, 1))
        reasons.add_column(justify="right", style="bold")
        reasons.add_column(overflow="fold")
        for entry in ranked:
            reasons.add_row(str(entry.rank), Text(entry.reason))
        console.print(reasons)
    dates = ", ".join(f"{cloud} {day}" for cloud, day in sorted(catalogue.prices_as_of.items()))
    console.print(Text(f"Prices as of {dates}. Speed: Spare Cores (CC BY-SA 4.0).", style="dim"))


def _full_table(ranked: Sequence[Ranked], near: bool, with_reason: bool) -> Table:
    """A line for each offer."""
    table = Table(header_style="bold")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("offer", overflow="fold")
    for name in ("$/h", "on demand", "saving", "survives 24 h", "speed"):
        table.add_column(name, justify="right", no_wrap=True)
    if near:
        table.add_column("km", justify="right", no_wrap=True)
    table.add_column("$/useful h", justify="right", style="bold", no_wrap=True)
    if with_reason:
        table.add_column("why", overflow="fold", ratio=1)
    for entry in ranked:
        offer = entry.offer
        row: list[str | Text] = [
            str(entry.rank),
            offer.key,
            f"{offer.price_usd_hour:.4f}",
            f"{offer.on_demand_usd_hour:.4f}",
            f"{_saving(offer):.0%}",
            _survival_text(entry, " "),
            _speed_text(entry),
        ]
        row += [_distance_text(entry)] * near
        row += [f"{entry.usd_useful_hour:.4f}"]
        row += [Text(entry.reason)] * with_reason
        table.add_row(*row, style="green" if entry.rank == 1 else "")
    return table


def _narrow_table(ranked: Sequence[Ranked], near: bool) -> Table:
    """Two lines for each offer, so that 80 columns hold it; the reasons are printed below."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("offer", overflow="fold")
    table.add_column("$/h\non demand", justify="right", no_wrap=True)
    table.add_column("survives\n24 h", justify="right", no_wrap=True)
    table.add_column("speed", justify="right", no_wrap=True)
    if near:
        table.add_column("km", justify="right", no_wrap=True)
    table.add_column("$ a useful\nhour", justify="right", style="bold", no_wrap=True)
    for entry in ranked:
        offer = entry.offer
        place, kind, option = offer.key.rsplit("/", 2)
        row: list[str | Text] = [
            str(entry.rank),
            f"{place}/\n{kind}/{option}",
            f"{offer.price_usd_hour:.4f}\n{offer.on_demand_usd_hour:.4f} -{_saving(offer):.0%}",
            _survival_text(entry, "\n"),
            _speed_text(entry),
        ]
        row += [_distance_text(entry)] * near
        row += [f"{entry.usd_useful_hour:.4f}"]
        table.add_row(*row, style="green" if entry.rank == 1 else "")
    return table


def _saving(offer: Offer) -> float:
    return 1.0 - offer.price_usd_hour / offer.on_demand_usd_hour


def _survival_text(entry: Ranked, gap: str) -> Text:
    lasts = entry.survival_24h
    if lasts.known:
        return Text(f"{lasts.p:.3f}")
    prior = f"{gap}~{lasts.p:.2f} [{lasts.low:.2f}-{lasts.high:.2f}]"
    return Text.assemble(("unknown", "yellow"), prior)


def _speed_text(entry: Ranked) -> str:
    return "unknown" if entry.performance is None else f"{entry.performance:.2f}x"


def _distance_text(entry: Ranked) -> str:
    return "?" if entry.distance_km is None else f"{entry.distance_km:,.0f}"


def _show_explanation(explained: Explanation) -> None:
    console = Console(highlight=False)
    offer = explained.offer
    console.print(Text(offer.key, style="bold"), Text(_describe(offer)))
    if explained.excluded_by:
        console.print(Text(f"excluded by {', '.join(explained.excluded_by)}", style="red"))
    else:
        console.print(Text(f"rank {explained.rank:,} of {explained.candidates:,} candidates"))
    lasts = explained.survival_24h
    interval = f"{lasts.p:.3f} [{lasts.low:.3f}-{lasts.high:.3f}]"
    console.print(Text(f"{explained.stability}; survives 24 h: {interval}"))
    table = Table(title="cost per useful hour", title_justify="left", header_style="bold")
    table.add_column("term")
    table.add_column("USD", justify="right")
    terms = explained.cost
    for name, value in (
        ("price", terms.price),
        ("price below 15 % of on-demand", terms.floor),
        ("speed", terms.speed),
        ("distance", terms.distance),
        ("losses x the cost of one", terms.losses),
    ):
        if value or name == "price":
            table.add_row(name, f"{value:+.5f}")
    table.add_row("total", f"{terms.total:.5f}", style="bold")
    console.print(table)
    _show_winner(console, explained)


def _show_winner(console: Console, explained: Explanation) -> None:
    winner = explained.winner
    if winner is None:
        console.print(Text("nothing meets these constraints", style="red"))
        return
    if winner.offer.key == explained.offer.key:
        console.print(Text(f"it is the best: {winner.reason}", style="green"))
        return
    console.print(
        Text(f"the best is {winner.offer.key} at ${winner.usd_useful_hour:.5f}: {winner.reason}")
    )
    said = [
        f"{name} {share:+.0%}"
        for name, share in explained.against_winner.items()
        if abs(share) >= 0.005
    ]
    console.print(Text(f"against it: {', '.join(said) or 'no difference'}"))


def _describe(offer: Offer) -> str:
    size = offer.resources
    gpus = f", {size.gpus:g} GPUs" if size.gpus else ""
    return (
        f"{size.vcpus:g} vCPU, {size.memory_gib:g} GiB{gpus}, {offer.arch}, {offer.region}, "
        f"${offer.price_usd_hour:.4f}/h (on demand ${offer.on_demand_usd_hour:.4f}), "
        f"notice {offer.notice_s:g} s"
    )
