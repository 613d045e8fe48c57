"""Policies over recorded markets: the issue's table beside ours, each figure with its interval.

    .venv/bin/python bench/market/policies.py --data DIR [--forecasts shipped|rolling|zones] [--dataset NAME]
        [--zones A,B] [--workload NAME] [--starts N] [--json FILE]

Runs what ``roost market backtest`` runs: sessions (launch 150 s, move 30 s, notice 120 s), a slow and
a fast preset, services of four replicas (cold start 120 s; without notice, with 120 s, with 60 s), the
five batch jobs. ``--forecasts``: by the shipped model (which may have learnt from the recording), or by
models fitted again: to what came before (``rolling``; only the last 60 % are replayed), or to other zones
(``zones``). ``published`` is what the issue's table and the study notes measured with another
simulator: on data held back (the goals) or on the first 30.6 days of seven p3.2xlarge zones (the
baselines by name). ``ours`` is what the given folder yields here.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from roost.market.forecast.evaluate import ORIGINS, unseen
from roost.market.forecast.model import Forecaster
from roost.market.traces import Trace, read_traces
from roost.sim.backtest import run
from roost.sim.backtest.forecasts import Replayed, replayed
from roost.sim.backtest.session import Timing

NINE_ZONES = "aws-2023-02-15-avail"
SESSION = Timing()
SERVICE = Timing(launch_s=120.0, move_s=0.0, notice_s=0.0)
CASES: Sequence[tuple[str, str, Timing, str]] = (
    ("session, base", "session", SESSION, "J goal 0.310, reclaims 1.1, down 1.3 min"),
    ("session, slow", "session", Timing(launch_s=300.0, move_s=60.0, notice_s=30.0), ""),
    ("session, fast", "session", Timing(launch_s=60.0, move_s=20.0, notice_s=120.0), ""),
    ("service, no notice", "service", SERVICE, "0.9982 at 0.325 (SpotHedge +1: 0.382)"),
    ("service, 120 s", "service", Timing(120.0, 0.0, 120.0), "0.9997 at 0.310"),
    ("service, 60 s", "service", Timing(120.0, 0.0, 60.0), "robust"),
    ("job", "job", Timing(0.0, 0.0, 0.0), "0.6 % above the oracle, none late"),
)
PUBLISHED = {
    ("session, base", "on-demand"): "J 1.001, down 0.10",
    ("session, base", "greedy"): "J 0.346, down 4.76, reclaims 2.88",
    ("session, base", "round-robin"): "J 0.340, down 3.89, reclaims 2.68",
    ("session, base", "ewma"): "J 0.333, down 2.62, reclaims 2.42",
    ("session, base", "oracle-placement"): "J 0.328, down 2.08, reclaims 1.96",
    ("session, base", "oracle"): "J 0.316",
    ("service, no notice", "spothedge"): "0.9950 at 0.332",
    ("service, no notice", "spothedge+1"): "0.9973 at 0.411",
    ("service, no notice", "oracle"): "floor 0.311",
    ("job", "on-demand"): "1.007",
    ("job", "greedy"): "0.321, 5.2 % above",
    ("job", "uniform-progress"): "0.324, 6.1 % above",
    ("job", "ewma"): "0.318, 4.2 % above",
    ("job", "oracle"): "0.305",
}
"""On the first 30.6 days of seven zones (study notes, section 3)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with traces.parquet")
    parser.add_argument("--dataset", default=NINE_ZONES, help="part of the data set's name")
    parser.add_argument("--starts", type=int, default=run.STARTS, help="start times of each job")
    parser.add_argument("--forecasts", choices=("shipped", "rolling", "zones"), default="shipped")
    parser.add_argument("--zones", default="", help="only these zones, with commas between")
    parser.add_argument("--workload", default="", help="only session, service or job")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    for trace, forecasts in _recordings(options):
        rows += _measure(trace, forecasts, options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


def _recordings(options: argparse.Namespace) -> Iterator[tuple[Trace, Replayed]]:
    """Each recording with its forecasts; of ``rolling`` what comes after the first origin."""
    traces = read_traces(options.data)
    foretold = (
        unseen(traces, options.forecasts, lambda text: print(text, file=sys.stderr))
        if options.forecasts != "shipped"
        else {}
    )
    forecaster = Forecaster.load()
    for trace in traces:
        if options.dataset not in trace.name:
            continue
        kept = options.zones.split(",") if options.zones else list(trace.zones)
        columns = [number for number, zone in enumerate(trace.zones) if zone in kept]
        first = round(trace.ticks * ORIGINS[0]) if options.forecasts == "rolling" else 0
        part = trace.only(kept).part(first, trace.ticks)
        if trace.name in foretold:
            yield part, Replayed(foretold[trace.name][first:, columns], part.up)
        else:
            yield part, replayed(part, forecaster)


def _measure(
    trace: Trace, forecasts: Replayed, options: argparse.Namespace
) -> list[dict[str, object]]:
    print(f"{trace.name}: {len(trace.zones)} zones, {trace.hours / 24:.1f} days")
    known = trace.name == NINE_ZONES and not options.zones and options.forecasts != "rolling"
    rows: list[dict[str, object]] = []
    for name, workload, timing, goal in CASES:
        if options.workload not in workload:
            continue
        print(f"\n{name}{f'   (goal on held-back data: {goal})' if goal and known else ''}")
        chosen = run.with_starts(run.setting(workload, "all", timing, 4), options.starts)
        why = run.too_short(trace, chosen)
        if why:
            print(f"  not replayed: {why}")
            continue
        results = run.replay(trace, forecasts, chosen)
        for result in results:
            said = PUBLISHED.get((name, result.policy), "") if known else ""
            print(f"  {result.policy:18}{figures(result):62}{said}")
            rows.append({"case": name, **{k: getattr(result, k) for k in KEYS}})
        said = PUBLISHED.get((name, "oracle"), "") if known else ""
        print(f"  {'oracle':18}{results[0].oracle_j:<62.4f}{said}")
        sys.stdout.flush()
    return rows


KEYS = (
    *("dataset", "policy", "cost", "availability", "reclaims_per_day", "down_min_per_day"),
    *("j", "oracle_j", "over_oracle_pct", "late", "runs"),
)


def figures(result: run.Result) -> str:
    """The figures of a row that its case is about, with 80 % intervals."""
    spans = result.intervals
    if result.workload == "job":
        span = spans["over_oracle_pct"]
        return (
            f"{result.cost:.3f}, {result.over_oracle_pct:.1f} % above "
            f"[{span.low:.1f}-{span.high:.1f}], late {result.late}/{result.runs}"
        )
    if result.workload == "service":
        span = spans["availability"]
        return f"{result.availability:.4f} [{span.low:.4f}-{span.high:.4f}] at {result.cost:.3f}"
    span = spans["j"]
    return (
        f"J {result.j:.4f} [{span.low:.3f}-{span.high:.3f}], down {result.down_min_per_day:.2f}, "
        f"reclaims {result.reclaims_per_day:.2f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
