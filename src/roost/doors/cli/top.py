"""``roost top``: services and hosts, what they use, and what idles at what cost; drawn again and again."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from roost.client.top import HistoryView, HostLine, ServiceLine, TopCalls, TopView
from roost.doors.cli.context import clock, emit, errors, installation, out
from roost.ports.errors import Invalid, Retry

STATE_STYLE = {
    "running": "green",
    "ready": "green",
    "starting": "cyan",
    "updating": "cyan",
    "booting": "cyan",
    "draining": "yellow",
    "noticed": "yellow",
    "rolling_back": "yellow",
    "failing": "red",
}
BARS = "▁▂▃▄▅▆▇█"
SORTS: dict[str, Callable[[ServiceLine], tuple[float, str]]] = {
    "name": lambda s: (0.0, s.name),
    "requests": lambda s: (-(s.requests_s or 0.0), s.name),
    "cpu": lambda s: (-(s.cpu_percent or 0.0), s.name),
    "late": lambda s: (-(s.late_share or 0.0), s.name),
    "cost": lambda s: (-s.usd_hour, s.name),
    "idle": lambda s: (-s.idle_usd_hour, s.name),
}

WIDE = 130
"""Characters from which on all columns are shown."""
L = TypeVar("L")
Column = tuple[str, bool, Callable[[L], "str | Text"], bool]
"""Title, left-aligned, value, shown on a narrow terminal too."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def top(
    ctx: typer.Context,
    of: Annotated[str, typer.Argument(help="A service or host: its history instead.")] = "",
    every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
    sort: Annotated[str, typer.Option(help=f"By {', '.join(SORTS)}.")] = "name",
    seconds: Annotated[float, typer.Option(help="Of a history: how far back.")] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """What services and hosts use now, and what idles."""
    with errors():
        if sort not in SORTS:
            raise Invalid(f"--sort {sort}?", hint=f"one of {', '.join(SORTS)}")
        if every < 0.2:
            raise Invalid("--every is at least 0.2 seconds")
        calls = TopCalls(installation(ctx).client())
        if of:
            kind = "hosts" if of.startswith("i-") else "services"
            history = calls.history(kind, of, seconds)
            emit(history) if as_json else out.print(drawn(history, of))
        elif as_json:
            emit(calls.top())
        elif once or not out.is_terminal:
            out.print(screen(calls.top(), sort))
        else:
            _watch(calls, every, sort)


def _watch(calls: TopCalls, every: float, sort: str) -> None:
    shown = screen(calls.top(), sort)
    with Live(shown, console=out, auto_refresh=False, screen=True) as live:
        while True:
            try:
                time.sleep(every)
                shown = screen(calls.top(), sort)
                live.update(shown, refresh=True)
            except KeyboardInterrupt:
                return
            except Retry as error:  # control restarts: what was seen last stays
                live.update(Group(Text(str(error), style="red"), shown), refresh=True)


def screen(view: TopView, sort: str = "name", width: int = 0) -> Group:
    """All of it, in ``width`` columns (0 = those of the terminal)."""
    wide = (width or out.width) >= WIDE
    parts: list[Text | Table] = [
        _summary(view),
        _table("Services", SERVICE, _sorted(view, sort), wide),
    ]
    parts += [_table("Hosts", HOST, view.hosts, wide)]
    notes = [(s.name, s.why) for s in view.services] + [(h.id, h.why) for h in view.hosts]
    parts += [Text(f"{name}: {why}", style="dim") for name, why in notes if why]
    return Group(*parts)


def _sorted(view: TopView, sort: str) -> Sequence[ServiceLine]:
    return sorted(view.services, key=SORTS[sort])


def _summary(view: TopView) -> Text:
    share = view.idle_usd_hour / view.usd_hour if view.usd_hour else 0.0
    text = Text(
        f"{clock(view.now_s)}  {len(view.services)} services on {len(view.hosts)} hosts, "
        f"${view.usd_hour:.3f} an hour, of which ${view.idle_usd_hour:.3f} idle ({share:.0%})"
    )
    if not view.edges:
        text.append("\nno edge reports: requests are not known", style="red")
    return text


def _table(title: str, columns: Sequence[Column[L]], lines: Sequence[L], wide: bool) -> Table:
    table = Table(
        title=title, title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0)
    )
    shown = [column for column in columns if wide or column[3]]
    for name, left, _, _ in shown:
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for line in lines:
        table.add_row(*(of(line) for _, _, of, _ in shown))
    return table


def _state(state: str) -> Text:
    return Text(state, style=STATE_STYLE.get(state, ""))


def _ready(line: ServiceLine) -> Text:
    coming = f"+{line.starting}" if line.starting else ""
    short = line.ready < line.wanted
    return Text(f"{line.ready}{coming}/{line.wanted}", style="yellow" if short else "")


def _memory(line: HostLine) -> str:
    total = f"/{number(line.memory_total_mib)}" if line.memory_total_mib else ""
    return number(line.memory_used_mib) + total


SERVICE: tuple[Column[ServiceLine], ...] = (
    ("name", True, lambda s: s.name, True),
    ("state", True, lambda s: _state(s.state), True),
    ("ready", False, _ready, True),
    ("req/s", False, lambda s: number(s.requests_s), True),
    ("minute", True, lambda s: sparkline(s.trend), False),
    ("run", False, lambda s: number(s.in_flight), True),
    ("queue", False, lambda s: number(s.queued), True),
    ("held", False, lambda s: Text(number(s.held), style="yellow" if s.held else ""), True),
    ("p50", False, lambda s: seconds_of(s.p50_s), False),
    ("p99", False, lambda s: seconds_of(s.p99_s), True),
    ("late", False, lambda s: _bad(s.late_share, 0.01), True),
    ("5xx", False, lambda s: _bad(s.errors_share, 0.001), True),
    ("cpu", False, lambda s: _percent(s.cpu_percent), False),
    ("MiB", False, lambda s: number(s.memory_mib), False),
    ("used", False, lambda s: _share(s.utilisation), True),
    ("$/h", False, lambda s: f"{s.usd_hour:.3f}", True),
    ("idle", False, lambda s: f"{s.idle_usd_hour:.3f}", True),
)
HOST: tuple[Column[HostLine], ...] = (
    ("id", True, lambda h: h.id, True),
    ("group", True, lambda h: h.group, True),
    ("state", True, lambda h: _state(h.state), True),
    ("offer", True, lambda h: h.offer, False),
    ("slots", False, lambda h: f"{h.slots_used}/{h.slots}", True),
    ("cpu", False, lambda h: _percent(h.cpu_percent), True),
    ("MiB", False, _memory, True),
    ("net/s", False, lambda h: size(h.network_bytes_s), False),
    ("req/s", False, lambda h: number(h.requests_s), True),
    ("run", False, lambda h: number(h.in_flight), False),
    ("queue", False, lambda h: number(h.queued), False),
    ("used", False, lambda h: _share(h.utilisation), True),
    ("$/h", False, lambda h: f"{h.usd_hour:.3f}", True),
    ("idle", False, lambda h: f"{h.idle_usd_hour:.3f}", True),
)


def drawn(history: HistoryView, of: str) -> Table:
    """A history as one line of bars per column."""
    unit = "seconds" if history.step_s < 60 else "minutes"
    table = Table(
        title=f"{of}, by {unit} up to {clock(history.end_s)}", title_justify="left", box=None
    )
    table.add_column("")
    for title in ("least", "most", "now"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, values in history.values.items():
        known = [v for v in values if v is not None]
        if not known:
            continue
        least, most = number(min(known)), number(max(known))
        table.add_row(name, least, most, number(values[-1]), sparkline(values, 40))
    return table


def sparkline(values: Sequence[float | None], width: int = 20) -> str:
    """Bars from zero to the largest; a gap where nobody told."""
    if not values:
        return ""
    step = max(1, math.ceil(len(values) / width))
    means: list[float | None] = []
    for at in range(0, len(values), step):
        known = [v for v in values[at : at + step] if v is not None]
        means.append(sum(known) / len(known) if known else None)
    high = max((m for m in means if m is not None), default=0.0) or 1.0
    last = len(BARS) - 1
    return "".join(
        " " if m is None else BARS[min(last, int(max(0.0, m) / high * last + 0.5))] for m in means
    )


def number(value: float | None) -> str:
    """Short; a dash for what nobody told."""
    if value is None:
        return "-"
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def seconds_of(value: float | None) -> str:
    """A duration."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def size(value: float | None) -> str:
    """Bytes."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _bad(value: float | None, bound: float) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{value:.1%}", style="red" if value > bound else "")
