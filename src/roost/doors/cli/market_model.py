"""``roost market train`` and ``evaluate``: fit the hazard model, and judge it. Need no control plane."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from roost.doors.cli.context import emit, errors, progress
from roost.market.forecast.evaluate import Scores, TraceScores
from roost.market.forecast.metrics import Measure
from roost.market.forecast.report import Report
from roost.market.forecast.report import evaluate as judge
from roost.market.traces import present
from roost.ports.errors import Invalid

WIDE = 150
"""From this many columns on intervals fit into the table."""
TRAINER = "roost.market.forecast.train"
MODES = (
    ("shipped", "as shipped"),
    ("rolling_origin", "rolling origin"),
    ("zones_left_out", "zones left out"),
)
COLUMNS = ("auc", "brier", "log_loss", "ece", "c_index", "macro_f1")
SHORT = ("auc", "brier", "ece", "c_index", "macro_f1")

Data = Annotated[
    Path,
    typer.Option("--data", help="Folder with traces.parquet and the like; each file is optional."),
]


def train(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", help="Where to write the model; read it with --model.")
    ] = Path("hazard.json"),
) -> None:
    """Fit the hazard model to recordings, in a process of its own, and write it as JSON.

    Coefficients are written, the recordings are not.
    """
    with errors():
        present(data)
        with progress("training") as say:
            command = [sys.executable, "-m", TRAINER, "--data", str(data), "--out", str(out)]
            last: list[str] = []
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                for line in process.stderr or ():
                    last = [*last[-5:], line.strip()]
                    say(line.strip())
        if process.returncode:
            told = next((x for x in last if x.startswith("error: ")), "; ".join(last))
            raise Invalid(told.removeprefix("error: "), hint="nothing was written")
        Console(highlight=False).print(
            f"wrote {out}; judge it: roost market evaluate --data {data} --model {out}"
        )


def evaluate(
    data: Data,
    charts: Annotated[
        Path | None,
        typer.Option("--charts", help="Draw reliability and survival into this folder."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Judge the model of this file, not the shipped one."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the model as it is; fit nothing again.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Every forecaster at every horizon (as --json has it).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judge the model on recordings, against constant hazard, Kaplan-Meier, persistence and an LSTM.

    Three ways: as shipped; fitted again to what came before; fitted again to the other zones.
    Intervals hold 95 % of block bootstrap draws.
    """
    with errors():
        with progress("reading") as say:
            report = judge(data, say, model=model, charts=charts, refits=not quick)
        if as_json:
            emit(report)
        else:
            show(Console(highlight=False), report, full)


def show(console: Console, report: Report, full: bool) -> None:
    """Print a report: a table a recording and a line for what was missing."""
    wide = console.width >= WIDE
    for name in report.missing:
        console.print(f"[dim]{name} is not there: what it would tell is left out[/]")
    for note in report.notes:
        console.print(f"[dim]{note}[/]")
    for score in report.traces:
        console.print(_trace_table(score, full, wide))
    if report.lifetimes:
        console.print(_plain_table("lifetimes of single machines", report.lifetimes))
    if report.bands:
        console.print(_plain_table("worst band (above 20 % a month) of a region", report.bands))
    if not wide:
        console.print(f"[dim]intervals: --json, or a terminal of {WIDE} columns[/]")
    for path in report.charts:
        console.print(f"drew {path}")


def _trace_table(score: TraceScores, full: bool, wide: bool) -> Table:
    seen = f"; the shipped model has learnt from {score.share_trained_on:.0%} of it"
    title = f"{score.name}: {len(score.zones)} zones, {score.days:g} days"
    table = Table(title=title + seen * bool(score.share_trained_on), title_justify="left")
    if not wide:
        table.box, table.padding, table.pad_edge = box.SIMPLE_HEAD, (0, 1, 0, 0), False
    for name in ("judged", "within", "forecaster"):
        table.add_column(name, no_wrap=True)
    columns = COLUMNS if full else SHORT
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for mode, label in MODES:
        scores: Scores | None = getattr(score, mode)
        for horizon, by_who in (scores or {}).items():
            for who, measures in by_who.items():
                if full or who == "model" or horizon in ("1h", "up_1h"):
                    cells = [_cell(measures.get(name), wide) for name in columns]
                    table.add_row(label, horizon.replace("up_1h", "1h: up"), who, *cells)
        table.add_section()
    return table


def _plain_table(title: str, scores: Mapping[str, Mapping[str, Mapping[str, Measure]]]) -> Table:
    table = Table(title=title, title_justify="left")
    names = list(dict.fromkeys(n for by_who in scores.values() for m in by_who.values() for n in m))
    for name in ("judged", "forecaster or zone", *names):
        table.add_column(name)
    for mode, by_who in scores.items():
        for who, measures in by_who.items():
            table.add_row(mode.replace("_", " "), who, *(_cell(measures.get(n)) for n in names))
    return table


def _cell(measure: Measure | None, wide: bool = True) -> str:
    if measure is None or measure.value is None:
        return "-"
    if not wide:
        return f"{measure.value:.4f}"
    return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"
