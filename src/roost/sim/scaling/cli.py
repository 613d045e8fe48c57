"""``roost simulate scaling``: policies on recorded load, two levels, against a clairvoyant one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from roost.doors.cli.context import emit, err, errors, out
from roost.ports.errors import Invalid
from roost.sim.scaling.charts import draw
from roost.sim.scaling.compare import POLICIES, Row, play, remembered, summary
from roost.sim.scaling.oracle import Oracle
from roost.sim.scaling.pool import Spot
from roost.sim.scaling.scenario import SCENARIOS, START_S, Kind, Scenario, build, own
from roost.sim.scaling.traces import DAY_S

CORRELATED_HOUR = 12.5
"""Hour of each day at which ``--together`` takes a third of the hosts."""


def scaling(
    data: Annotated[Path, typer.Option(help="Folder of the load traces.")] = Path(),
    trace: Annotated[
        str, typer.Option(help=f"all, of {', '.join(SCENARIOS)}, or a file NAME.csv.gz of counts.")
    ] = "all",
    policy: Annotated[str, typer.Option(help=f"all, or of {', '.join(POLICIES)}.")] = "roost",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 1,
    days: Annotated[
        float | None, typer.Option(min=0.05, help="Score only so many days of each trace.")
    ] = None,
    spot: Annotated[float, typer.Option(min=0, help="Losses per host and hour.")] = 0.0,
    together: Annotated[
        bool, typer.Option(help="Once a day a third of the hosts gets notice at once.")
    ] = False,
    step_s: Annotated[int, typer.Option(min=1, help="Own file: seconds a count.")] = 60,
    service_s: Annotated[float, typer.Option(min=0.001, help="Own file: mean service time.")] = 0.5,
    bound_s: Annotated[float, typer.Option(min=0.001, help="Own file: latency bound.")] = 2.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Own file: requests at once.")] = 1,
    minimum: Annotated[int, typer.Option(min=0, help="Own file: fewest containers.")] = 1,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps what the oracle found.")
    ] = None,
    charts: Annotated[Path | None, typer.Option(help="Folder for pictures.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay recorded load: who would have been late under each policy, and what would it have cost?

    Cost is host-hours from launch to release, relative to a clairvoyant policy that knows every arrival.
    Baselines are tried in several settings and the best for each trace is shown; Roost has one.
    """
    with errors():
        kind = Kind("", 0, 1, 1.0, service_s, 1.0, bound_s, concurrency, minimum, step_s)
        makers = _makers(trace, data, days, kind)
        policies = _chosen(policy, list(POLICIES), "policy")
        rows: list[Row] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as progress:
            task = progress.add_task("reading", total=len(makers) * seeds * (len(policies) + 1))
            for name, make in makers.items():
                for number in range(seed, seed + seeds):
                    scenario = make(number)
                    progress.update(task, description=f"{name} {number}: oracle")
                    best = remembered(scenario, cache)
                    progress.advance(task)
                    for one in policies:
                        progress.update(task, description=f"{name} {number}: {one}")
                        rows.append(
                            play(scenario, one, best, spot_of(spot, together, scenario.end_s))
                        )
                        progress.advance(task)
                        _draw(charts, scenario, rows[-1], best)
    if json:
        emit({"rows": [one.plain() for one in rows], "overall": [vars(s) for s in summary(rows)]})
        return
    out.print(_table(rows))
    out.print(_overall(rows))


def _makers(
    trace: str, data: Path, days: float | None, kind: Kind
) -> dict[str, Callable[[int], Scenario]]:
    """By name, what makes a scenario from a seed."""
    if trace.endswith(".csv.gz"):
        mine = replace(kind, days=ceil(days or 1.0))
        return {trace: lambda seed: own(Path(trace), mine, seed)}
    names = _chosen(trace, list(SCENARIOS), "trace")
    return {name: partial(build, name, data, days=days) for name in names}


def _chosen(asked: str, known: list[str], what: str) -> list[str]:
    if asked == "all":
        return known
    names = asked.split(",")
    for name in names:
        if name not in known:
            raise Invalid(f"no {what} {name}", hint=f"all, or of {', '.join(known)}")
    return names


def spot_of(rate: float, together: bool, end_s: float) -> Spot:
    """Losses of hosts on their own, and of a third of them at once each day until ``end_s``."""
    at_s = START_S + CORRELATED_HOUR * 3600.0
    times: list[float] = []
    while together and at_s < end_s:
        times.append(at_s)
        at_s += DAY_S
    return Spot(per_host_hour=rate, together_s=tuple(times))


def _draw(folder: Path | None, scenario: Scenario, row: Row, best: Oracle) -> None:
    if folder is not None:
        path = folder / f"scaling-{row.scenario}-{row.policy}-{row.seed}.png"
        draw(path, scenario, row.result, best)
        err.print(f"drawn: {path}")


def _table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("trace", "policy", "setting"):
        table.add_column(head)
    for head in (
        "seed",
        "cost x oracle",
        "late",
        "worst service",
        "launches/d",
        "x",
        "starts/d",
        "lost",
    ):
        table.add_column(head, justify="right")
    for one in rows:
        ink = "" if one.met else "[red]"
        table.add_row(
            one.scenario,
            one.policy,
            one.setting,
            str(one.seed),
            f"{one.cost:.3f}",
            f"{ink}{one.late:.2%}",
            f"{one.worst_late:.2%}",
            f"{one.launches_day:.0f}",
            f"{one.launches_oracle:.2f}",
            f"{one.starts_day:.0f}",
            str(one.losses),
        )
    return table


def _overall(rows: list[Row]) -> Table:
    table = Table(title="over all: met = at most 1 % late", box=box.SIMPLE_HEAD)
    table.add_column("policy")
    for head in ("met", "cost x oracle", "late", "launches x oracle", "starts/d"):
        table.add_column(head, justify="right")
    for one in summary(rows):
        table.add_row(
            one.policy,
            f"{one.met} of {one.played}",
            f"{one.cost:.3f}",
            f"{one.late:.2%}",
            f"{one.launches_oracle:.2f}",
            f"{one.starts_day:.0f}",
        )
    return table
