"""``roost market backtest``: replay policies over recordings; a table or JSON, and pictures of where
they ran."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from roost.doors.cli.context import emit, err, errors, out
from roost.market.forecast.model import Forecaster
from roost.market.traces import TRACES, Trace, read_traces
from roost.ports.errors import Invalid
from roost.sim.backtest import run
from roost.sim.backtest.charts import draw
from roost.sim.backtest.forecasts import replayed
from roost.sim.backtest.session import Timing

LAUNCH_S = {"session": 150.0, "service": 120.0, "job": 0.0}
MOVE_S = {"session": 30.0, "service": 0.0, "job": 0.0}
NOTICE_S = {"session": 120.0, "service": 0.0, "job": 0.0}
"""What the published baselines were measured with."""


def backtest(
    data: Annotated[Path, typer.Option(help=f"Folder with {TRACES}.")],
    workload: Annotated[str, typer.Option(help="session, service or job.")] = "session",
    policy: Annotated[str, typer.Option(help="all, or names with commas between.")] = "all",
    launch_s: Annotated[
        float | None, typer.Option(min=0, help="Create call to running host; 150, services 120.")
    ] = None,
    move_s: Annotated[
        float | None, typer.Option(min=0, help="To bring the state over; sessions 30.")
    ] = None,
    notice_s: Annotated[
        float | None, typer.Option(min=0, help="Warning before a loss; sessions 120, services 0.")
    ] = None,
    freeze_s: Annotated[float, typer.Option(min=0, help="A planned move stands still for.")] = 2.0,
    replicas: Annotated[int, typer.Option(min=1, help="Of a service.")] = 4,
    starts: Annotated[int, typer.Option(min=1, help="Times each job begins at.")] = run.STARTS,
    dataset: Annotated[str, typer.Option(help="Only data sets whose name holds this.")] = "",
    zones: Annotated[str, typer.Option(help="Only these zones, with commas between.")] = "",
    first: Annotated[int, typer.Option(min=0, help="Leave out this many ticks.")] = 0,
    model: Annotated[
        Path | None, typer.Option(help="A trained model; default the shipped.")
    ] = None,
    charts: Annotated[Path | None, typer.Option(help="Folder for pictures.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay recorded markets: what would each policy have cost, and how often would it have been down?

    Compares Roost's decisions (the code that decides in production) with the published baselines and
    with oracles that know the future. Policies see only the past and the answers to their own launches.
    """
    with errors():
        timing = _timing(workload, launch_s, move_s, notice_s, freeze_s)
        chosen = run.with_starts(run.setting(workload, policy, timing, replicas), starts)
        traces = [_cut(trace, zones, first) for trace in read_traces(data) if dataset in trace.name]
        if not traces:
            raise Invalid(
                f"nothing to replay in {data}", hint=f"it needs {TRACES} with that data set"
            )
        results, skipped = _replay(traces, chosen, model)
        if charts is not None:
            _draw(charts, traces, results)
    if json:
        _print_json(traces, chosen, results, skipped)
    else:
        _print_tables(traces, results, skipped)


def _timing(
    workload: str,
    launch_s: float | None,
    move_s: float | None,
    notice_s: float | None,
    freeze_s: float,
) -> Timing:
    return Timing(
        launch_s=LAUNCH_S.get(workload, 0.0) if launch_s is None else launch_s,
        move_s=MOVE_S.get(workload, 0.0) if move_s is None else move_s,
        notice_s=NOTICE_S.get(workload, 0.0) if notice_s is None else notice_s,
        freeze_s=freeze_s,
    )


def _print_json(
    traces: Sequence[Trace],
    chosen: run.Setting,
    results: Sequence[run.Result],
    skipped: dict[str, str],
) -> None:
    together = run.overall(results)
    one = msgspec.to_builtins(together[0]) if len(together) == 1 else {}
    emit(
        {
            **one,
            "workload": chosen.workload,
            "timing": _plain(chosen.timing),
            "replicas": chosen.replicas if chosen.workload == "service" else 1,
            "overall": together,
            "results": [_row(result) for result in results],
            "skipped": skipped,
            "notes": [note for trace in traces for note in trace.notes],
        }
    )


def _print_tables(
    traces: Sequence[Trace], results: Sequence[run.Result], skipped: dict[str, str]
) -> None:
    for trace in traces:
        rows = [result for result in results if result.dataset == trace.name]
        if rows:
            out.print(_table(trace, rows))
    for name, why in skipped.items():
        err.print(f"[yellow]not replayed: {name}: {why}[/]")
    for trace in traces:
        for note in trace.notes:
            err.print(f"[dim]{note}[/]")


def _cut(trace: Trace, zones: str, first: int) -> Trace:
    if zones:
        wanted = zones.split(",")
        unknown = [zone for zone in wanted if zone not in trace.zones]
        if unknown:
            raise Invalid(
                f"{trace.name} has no zone {', '.join(unknown)}",
                hint=f"it has {', '.join(trace.zones)}; choose the set with --dataset",
            )
        trace = trace.only(wanted)
    if first >= trace.ticks:
        raise Invalid(f"{trace.name} has {trace.ticks} ticks", hint="leave out fewer")
    return trace.part(first, trace.ticks) if first else trace


def _replay(
    traces: Sequence[Trace], chosen: run.Setting, model: Path | None
) -> tuple[list[run.Result], dict[str, str]]:
    forecaster = Forecaster.load(model)
    results: list[run.Result] = []
    skipped: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as progress:
        task = progress.add_task("reading", total=len(traces) * (run.steps(chosen) + 1))
        for number, trace in enumerate(traces):
            progress.update(task, completed=number * (run.steps(chosen) + 1))
            why = run.too_short(trace, chosen)
            if why:
                skipped[trace.name] = why
                continue

            def step(what: str, name: str = trace.name) -> None:
                progress.update(task, description=f"{name}: {what}")
                if "job" not in what:
                    progress.advance(task)

            step("forecasts")
            results += run.replay(trace, replayed(trace, forecaster), chosen, step)
    return results, skipped


def _draw(folder: Path, traces: Sequence[Trace], results: Sequence[run.Result]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for trace in traces:
        rows = [result for result in results if result.dataset == trace.name]
        if rows:
            name = f"backtest-{rows[0].workload}-{trace.name.replace('/', '-')}.png"
            draw(folder / name, trace, rows)
            err.print(f"drawn: {folder / name}")


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _row(result: run.Result) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(result)
    del found["places"]
    return found


def _table(trace: Trace, rows: Sequence[run.Result]) -> Table:
    workload = rows[0].workload
    zones = f"{len(trace.zones)} zones, {rows[0].days:.1f} days"
    table = Table(title=f"{trace.name}: {workload}, {zones}", box=box.SIMPLE_HEAD)
    table.add_column("policy")
    for head in ("cost", "available", "lost/d", "down min/d", "J", "±", "above oracle"):
        table.add_column(head, justify="right")
    if workload == "job":
        table.add_column("late", justify="right")
    for row in rows:
        between = row.intervals.get("j") or row.intervals.get("cost")
        span = f"{(between.high - between.low) / 2:.4f}" if between else ""
        cells = [
            f"[bold]{row.policy}[/]" if row.policy == "roost" else row.policy,
            f"{row.cost:.3f}",
            f"{row.availability:.2%}" if workload == "session" else f"{row.availability:.4f}",
            f"{row.reclaims_per_day:.2f}",
            f"{row.down_min_per_day:.2f}" if workload != "job" else "-",
            f"{row.j:.4f}",
            span,
            f"{row.over_oracle_pct:.1f} %",
        ]
        table.add_row(*cells, *([f"{row.late}/{row.runs}"] if workload == "job" else []))
    what = "J or cost" if workload != "service" else "cost floor"
    table.caption = (
        f"oracle ({what}): {rows[0].oracle_j:.4f}; on demand = 1; ±: half of the 80 % interval"
    )
    return table
