"""``python -m bench.two_levels``: a burst, kills and a lost pool, on real processes or with Docker.

    .venv/bin/python -m bench.two_levels [--docker] [--only burst] [--out DIR] [--policy predictive]

Prints for each scenario how many requests were asked, failed and late, and the times; draws a picture of
each into DIR. Some minutes a scenario on two cores. ``--docker`` needs root, a running engine and,
the first time, a Debian mirror.
"""

import argparse
import dataclasses
import json
import signal
import sys
from pathlib import Path

from bench.two_levels.picture import draw
from bench.two_levels.scenarios import SCENARIOS, SLOTS, Result
from bench.two_levels.world import Plan, World
from tools import base_image


def run(name: str, plan: Plan, out: Path) -> Result:
    """One scenario in an installation of its own."""
    with World(plan) as world:
        result = SCENARIOS[name](world)
        watched = world.watched
    kind = "docker" if plan.docker else "processes"
    title = f"{result.name}, {kind}: {len(result.failed)} failed, {result.late:.2%} late"
    draw(
        out / f"{name}-{kind}.png",
        title,
        result.outcomes,
        watched,
        bound_s=plan.bound_s,
        slots=SLOTS,
    )
    said = {
        "result": {**dataclasses.asdict(result), "outcomes": len(result.outcomes)},
        "failed": [dataclasses.asdict(one) for one in result.failed][:50],
        "samples": [dataclasses.asdict(one) for one in watched.samples],
    }
    (out / f"{name}-{kind}.json").write_text(json.dumps(said, indent=1))
    return result


def text(result: Result) -> str:
    """A scenario in a few lines."""
    lines = [
        f"{result.name}: {len(result.outcomes)} requests, {len(result.failed)} failed, "
        f"{result.late:.2%} late (over {result.bound_s:g} s); latency 50 % "
        f"{result.latency(50):.3f} s, 95 % {result.latency(95):.3f} s, "
        f"99 % {result.latency(99):.3f} s"
    ]
    for what, took_s in result.times.items():
        lines.append(f"    {'never' if took_s is None else f'{took_s:.1f} s':>8}  {what}")
    lines += [f"    {note}" for note in result.notes]
    for one in result.failed[:5]:
        lines.append(f"    failed: status {one.status} {one.error or one.replica}")
    return "\n".join(lines)


def main() -> int:
    """Entry point; returns the exit code: 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.two_levels", description=__doc__)
    parser.add_argument("--docker", action="store_true", help="containers instead of processes")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--policy", choices=("target", "predictive"), default="target")
    parser.add_argument("--out", type=Path, default=Path("bench-two-levels"))
    chosen = parser.parse_args()
    if chosen.docker and (why := base_image.missing()):
        print(f"no containers here: {why}")
        return 2
    names = [name for name in SCENARIOS if chosen.only in name]
    if not names:
        print(f"nothing is called like {chosen.only!r}; there are: {', '.join(SCENARIOS)}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the installation ends with us
    chosen.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names:
        result = run(name, Plan(docker=chosen.docker, policy=chosen.policy), chosen.out)
        failed += len(result.failed)
        print(text(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
