"""How rankings, explanations and comparisons look on a terminal of any width."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from roost.doors.cli.context import age
from roost.market.advisor import Ranked, differences
from roost.market.catalogue import Catalogue
from roost.market.service import Explanation
from roost.ports.values import Ask, Offer

ROOMY = 140
"""From this many columns on an offer takes one line, else two."""
WIDE = 190
"""From this many columns on the reason stands in the table, else below it."""


def show_ranking(
    console: Console,
    catalogue: Catalogue,
    ask: Ask,
    ranked: Sequence[Ranked],
    newer: str = "",
) -> None:
    """Print a ranking with the reason for each rank, laid out for the width of the console.

    ``newer``: what is newer than the shipped catalogue, in words.
    """
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
    words = f"Prices as of {dates}{newer}. Speed: Spare Cores (CC BY-SA 4.0)."
    console.print(Text(words, style="dim"))


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


def show_explanation(console: Console, explained: Explanation) -> None:
    """Print every term of an offer's number, and what sets it apart from the best."""
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
    table.add_column("how", overflow="fold")
    for name, value, how in terms_of(explained):
        if value or name in ("price", "losses"):
            table.add_row(name, f"{value:+.5f}", how)
    table.add_row("total", f"{explained.usd_useful_hour:.5f}", "", style="bold")
    console.print(table)
    _show_winner(console, explained)
    console.print(Text(_guard(explained), style="dim"))


def terms_of(explained: Explanation) -> list[tuple[str, float, str]]:
    """Every term of the number: name, USD per useful hour, and how it came about."""
    terms, loss, offer = explained.cost, explained.loss, explained.offer
    floor = "a spot price counts as 15 % of on-demand at least" if terms.floor else ""
    speed = (
        "not measured: the lower quartile"
        if explained.performance is None
        else f"price / {explained.performance:.2f}"
    )
    far = explained.distance_km
    distance = "" if far is None else f"{far:,.0f} km, 10 % per 1,000 km"
    return [
        ("price", terms.price, f"on demand {offer.on_demand_usd_hour:.4f}{_age(explained)}"),
        ("price floor", terms.floor, floor),
        ("speed", terms.speed, speed),
        ("distance", terms.distance, distance),
        (
            "losses",
            terms.losses,
            f"{loss.hazard.expected:.2e} an hour [{loss.hazard.low:.1e}-{loss.hazard.high:.1e}] "
            f"x ${loss.usd:.2f} a loss; {loss.hazard.source}",
        ),
        (
            "  one loss",
            0.0 if not loss.down_usd_hour else loss.usd,
            f"down {loss.down_s:.0f} s = max(frozen {loss.freeze_s:g}, launch {loss.launch_s:.0f} "
            f"+ move {loss.move_s:g} - notice {loss.notice_s:g}) at ${loss.down_usd_hour:g} an hour",
        ),
    ]


def _age(explained: Explanation) -> str:
    return "".join(f"; {t.what}: {t.source}, {age(t.observed_at)} old" for t in explained.told)


def _guard(explained: Explanation) -> str:
    said = "permit" if explained.may_leave_for_price else "are too few for"
    return f"{explained.cheaper_types} cheaper types {said} a move for the price alone"


def show_comparison(console: Console, compared: Sequence[Explanation]) -> None:
    """Print offers side by side, term by term; the best of each line is green."""
    table = Table(header_style="bold", title_justify="left")
    table.add_column("USD a useful hour")
    for explained in compared:
        table.add_column(explained.offer.key.replace("/", "/\n"), justify="right", overflow="fold")
    names = [name for name, _, _ in terms_of(compared[0])]
    every = [terms_of(explained) for explained in compared]
    for place, name in enumerate(names):
        values = [terms[place][1] for terms in every]
        if any(values):
            table.add_row(name, *_marked(values, "+.5f"))
    table.add_row("total", *_marked([e.usd_useful_hour for e in compared], ".5f"), style="bold")
    table.add_section()
    table.add_row("survives 24 h", *[_lasts(e) for e in compared])
    table.add_row("down a loss", *[f"{e.loss.down_s:.0f} s" for e in compared])
    table.add_row("vCPU, GiB", *[_size(e.offer) for e in compared])
    speeds = ["unknown" if e.performance is None else f"{e.performance:.2f}x" for e in compared]
    table.add_row("speed", *speeds)
    ranks = ["excluded" if e.rank is None else f"{e.rank:,}" for e in compared]
    table.add_row("rank", *ranks)
    console.print(table)
    best = compared[0]
    for other in compared[1:]:
        extra = other.usd_useful_hour / best.usd_useful_hour - 1.0
        found = differences(other.cost, best.cost)
        said = [f"{name} {share:+.0%}" for name, share in found.items() if abs(share) >= 0.005]
        words = f"{other.offer.key}: +{extra:.1%} to {best.offer.key}"
        console.print(Text(f"{words} ({', '.join(said) or 'no difference'})"))


def _marked(values: Sequence[float], form: str) -> list[Text]:
    best = min(values)
    return [Text(format(v, form), style="green" if v == best else "") for v in values]


def _lasts(explained: Explanation) -> Text:
    lasts = explained.survival_24h
    words = f"{lasts.p:.3f} [{lasts.low:.2f}-{lasts.high:.2f}]"
    return Text(
        words if lasts.known else f"unknown ~{words}", style="" if lasts.known else "yellow"
    )


def _size(offer: Offer) -> str:
    return f"{offer.resources.vcpus:g}, {offer.resources.memory_gib:g}"


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
