"""``roost gateway top``: what a running gateway does now, as a table that is drawn again and again.

Everything comes from its admin port (``/state``); two looks make a rate.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from roost.ports.errors import Invalid

TIMEOUT_S = 5.0
State = Mapping[str, Any]
_STYLES = {"ready": "green", "draining": "yellow", "half-open": "yellow", "gone": "dim"}


def fetch(admin: str) -> State:
    """The state of the gateway at ``host:port``. Raises ``Invalid``."""
    try:
        with closing(HTTPConnection(admin, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", "/state")
            body = connection.getresponse().read()
        found: State = msgspec.json.decode(body, type=dict[str, Any])
    except (OSError, HTTPException, msgspec.MsgspecError) as error:
        raise Invalid(
            f"no gateway answers at {admin}: {error}",
            hint='set admin = "127.0.0.1:9900" in its configuration, and give that address',
        ) from error
    return found


def show(admin: str, *, every_s: float, once: bool, as_json: bool) -> None:
    """Print once, or draw until interrupted. Rates of the first look are since the start."""
    if as_json:
        while True:
            sys.stdout.write(msgspec.json.encode(fetch(admin)).decode() + "\n")
            sys.stdout.flush()
            if once:
                return
            time.sleep(every_s)
    console = Console(highlight=False)
    before, before_s = fetch(admin), time.monotonic()
    if once:
        console.print(screen(before, None, 0.0))
        return
    with Live(screen(before, None, 0.0), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            now, now_s = fetch(admin), time.monotonic()
            live.update(screen(now, before, now_s - before_s), refresh=True)
            before, before_s = now, now_s


def screen(now: State, before: State | None, passed_s: float) -> Group:
    """All of it; with an earlier state, numbers per second between the two."""
    return Group(
        _summary(now),
        _routes(now["routes"], before["routes"] if before else None, passed_s),
        _backends(now["backends"], before["backends"] if before else None, passed_s),
    )


def _summary(state: State) -> Text:
    gauges, totals = state["gauges"], state["totals"]
    parts = [
        f"pid {state['pid']}",
        f"{state['running']} workers ({state['worker_restarts']} restarts)",
        f"configuration {state['version']}",
        f"{gauges.get('connections', 0)} connections",
        f"{gauges.get('in_flight', 0)} in flight",
        f"{gauges.get('tunnels', 0)} tunnels",
        f"{gauges.get('held', 0)} held",
        f"{totals.get('tls_handshakes', 0)} TLS handshakes",
        f"{sum(state['refused'].values())} refused",
    ]
    text = Text("  ".join(parts))
    if not state["config_ok"]:
        text.append(f"\nthe file is not in use: {state['error']}", style="red")
    return text


def _rates(
    rows: Sequence[State], before: Sequence[State] | None, keys: tuple[str, ...], passed_s: float
) -> list[State]:
    """Each row as it grew since ``before``; without it, as it is."""
    if before is None:
        return list(rows)
    known = {tuple(row[key] for key in keys): row for row in before}
    grown = []
    for row in rows:
        old = known.get(tuple(row[key] for key in keys))
        if old is None:
            grown.append(row)
            continue
        more: dict[str, Any] = dict(row)
        for name in ("requests", "retries", "hedges", "bytes_in", "bytes_out"):
            more[name] = max(0.0, (row[name] - old[name]) / passed_s)
        more["statuses"] = {
            code: max(0.0, (count - old["statuses"][code]) / passed_s)
            for code, count in row["statuses"].items()
        }
        grown.append(more)
    return grown


def _table(first: Sequence[str], live: bool) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 1, 0, 0), expand=False)
    for name in first:
        table.add_column(name, overflow="fold")
    unit = "/s" if live else ""
    for name in (f"req{unit}", f"4xx{unit}", f"5xx{unit}", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _figures(row: State) -> list[Text]:
    statuses = row["statuses"]
    bad = statuses["5xx"] + statuses["none"]
    return [
        Text(_number(row["requests"])),
        Text(_number(statuses["4xx"])),
        Text(_number(bad), style="red" if bad else ""),
        Text(f"{row['p50_s'] * 1000:.1f}"),
        Text(f"{row['p99_s'] * 1000:.1f}"),
    ]


def _number(value: float) -> str:
    if value >= 100_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _routes(rows: Sequence[State], before: Sequence[State] | None, passed_s: float) -> Table:
    table = _table(("route",), before is not None)
    for name in ("retries", "hedges", "MB out"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(_rates(rows, before, ("route",), passed_s), key=lambda r: -r["requests"]):
        table.add_row(
            row["route"] or "(none)",
            *_figures(row),
            _number(row["retries"]),
            _number(row["hedges"]),
            f"{row['bytes_out'] / 1e6:,.1f}",
        )
    return table


def _backends(rows: Sequence[State], before: Sequence[State] | None, passed_s: float) -> Table:
    table = _table(("service", "backend", "state"), before is not None)
    for name in ("in flight", "mean ms", "ejections"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _rates(rows, before, ("service", "backend"), passed_s):
        table.add_row(
            row["service"],
            row["backend"],
            Text(row["state"], style=_STYLES.get(row["state"], "red")),
            *_figures(row),
            str(row["in_flight"]),
            f"{row['latency_s'] * 1000:.1f}",
            str(row["ejections"]),
        )
    return table
