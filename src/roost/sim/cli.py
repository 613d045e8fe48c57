"""``simulate``: runs seeds one after the other and says how to repeat each that fails."""

import argparse
from collections import Counter
from collections.abc import Sequence

from roost.ports.clock import Clock
from roost.sim.scenario import Outcome, run_seed

SHOWN = (
    "launches",
    "notices",
    "deaths",
    "kernel deaths",
    "crashes",
    "replies lost",
    "kernels started",
    "captures",
    "cells run",
    "cells run again",
    "jobs",
    "runs",
)
"""What the summary counts."""


def command(seed: int, hours: float) -> str:
    """The one command that repeats a seed."""
    return f"python -m roost.main.simulate --seed {seed} --seeds 1 --hours {hours:g}"


def simulate(argv: Sequence[str] | None, clock: Clock) -> int:
    """Run the seeds of ``argv``; 0 when every checker held on every seed."""
    parser = argparse.ArgumentParser(
        prog="simulate", description="Run the controllers in a world that breaks, on virtual time."
    )
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument(
        "--hours", type=float, default=0.2, help="simulated hours in which things go wrong"
    )
    parser.add_argument("--verbose", action="store_true", help="say what happened in each seed")
    options = parser.parse_args(argv)
    began_s = clock.monotonic_s()
    outcomes = []
    for seed in range(options.seed, options.seed + options.seeds):
        outcome = run_seed(seed, options.hours)
        outcomes.append(outcome)
        if outcome.violations or options.verbose:
            _show(outcome)
    return _sum_up(outcomes, clock.monotonic_s() - began_s)


def _show(outcome: Outcome) -> None:
    print(f"seed {outcome.seed}: faults: {', '.join(outcome.faults) or 'none'}")
    print(f"  story {outcome.digest}, {outcome.simulated_s:.0f} simulated seconds")
    print("  " + ", ".join(f"{name} {count}" for name, count in outcome.tally.items()))
    for violation in outcome.violations:
        print(f"  VIOLATED {violation}")
    if outcome.violations:
        print(f"  repeat: {command(outcome.seed, outcome.hours)}", flush=True)


def _sum_up(outcomes: Sequence[Outcome], took_s: float) -> int:
    total: Counter[str] = Counter()
    for outcome in outcomes:
        total.update(outcome.tally)
    simulated_s = sum(outcome.simulated_s for outcome in outcomes)
    failed = [outcome.seed for outcome in outcomes if outcome.violations]
    print(
        f"{len(outcomes)} seeds, {simulated_s / 3600:.1f} simulated hours in {took_s:.1f} s "
        f"({simulated_s / max(took_s, 1e-9):.0f} times real time)"
    )
    print(", ".join(f"{name} {total[name]}" for name in SHOWN))
    if failed:
        print(f"{len(failed)} FAILED: seeds {', '.join(map(str, failed))}")
        return 1
    print("every checker held")
    return 0
