"""Everything ``roost market evaluate`` finds out about a folder, as one value. Never changes the model."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from roost.market.forecast.bands import judge_bands
from roost.market.forecast.charts import draw_lifetimes, draw_trace
from roost.market.forecast.evaluate import TraceScores, headline, judge_traces, model_at
from roost.market.forecast.lifetimes import judge_lifetimes
from roost.market.forecast.metrics import Measure
from roost.market.traces import (
    ADVISOR,
    LIFETIMES,
    TRACES,
    present,
    read_advisor,
    read_lifetimes,
    read_traces,
)

Say = Callable[[str], None]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The scores of a folder. Intervals hold 95 % of 200 block bootstrap draws."""

    data: str
    used: list[str]
    missing: list[str]
    notes: list[str]
    model_trained_on: list[str]
    headline: dict[str, dict[str, float | None]]
    """Recording -> the figures of the shipped model that issue 15 asks for."""
    traces: list[TraceScores]
    lifetimes: dict[str, dict[str, dict[str, Measure]]]
    """How it was judged -> forecaster (or zone left out) -> measure."""
    bands: dict[str, dict[str, dict[str, Measure]]]
    """How it was judged -> forecaster -> measure; the event is the band above 20 % a month."""
    charts: list[str]


def evaluate(
    directory: Path,
    say: Say,
    *,
    model: Path | None = None,
    charts: Path | None = None,
    refits: bool = True,
) -> Report:
    """Judge the shipped model (or that of a file) on a folder. Raises ``Invalid`` with what to do.

    ``refits``: also fit models again to earlier parts and to other zones, which takes most of the time.
    """
    found, missing = present(directory)
    artefact = model_at(model)
    traces = read_traces(directory)
    machines, pools = read_lifetimes(directory), read_advisor(directory)
    scores, judged = judge_traces(traces, artefact, say, refits)
    drawn: list[str] = []
    if charts is not None:
        charts.mkdir(parents=True, exist_ok=True)
        for trace in traces:
            say(f"drawing {trace.name}")
            drawn += draw_trace(judged[trace.name], charts)
        if machines is not None and artefact.lifetimes is not None:
            drawn.append(draw_lifetimes(artefact.lifetimes, machines, charts))
    say("judging lifetimes and bands")
    return Report(
        data=str(directory),
        used=[name for name in found if name in (TRACES, LIFETIMES, ADVISOR)],
        missing=missing,
        notes=list(dict.fromkeys(note for trace in traces for note in trace.notes)),
        model_trained_on=sorted(artefact.trained_on),
        headline={score.name: headline(score.shipped) for score in scores},
        traces=scores,
        lifetimes={} if machines is None else judge_lifetimes(machines, artefact.lifetimes),
        bands={} if pools is None else judge_bands(pools, artefact.bands, say),
        charts=drawn,
    )
