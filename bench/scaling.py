"""The table of scaling policies: cost relative to a clairvoyant one, and who was late, on recorded load.

    .venv/bin/python -m bench.scaling --data DIR [--trace all] [--policy all] [--seeds 1] [--days N]
                                      [--spot 0.05] [--together] [--rows FILE] [--cache DIR] [--charts DIR]

Baselines are shown in the best of the settings tried for each trace (the cheapest that has at most 1 % late),
Roost in its one setting. ``--rows`` keeps each row as it is finished and goes on from there when run again.
The oracle is worked out on the first seed and used for all. Six traces take minutes per policy on one core.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from roost.sim.scaling.charts import draw
from roost.sim.scaling.cli import spot_of
from roost.sim.scaling.compare import POLICIES, play, remembered
from roost.sim.scaling.scenario import SCENARIOS, build

PUBLISHED = {
    "fixed": "6 of 6, 3.05, 0.1 %",
    "karpenter": "4 of 6, 1.62-1.77, 2.1-2.4 %",
    "knative": "4 of 6, 2.65, 0.7 %",
    "aws": "4 of 6, 1.71, 1.6 %",
    "gcp": "5 of 6, 1.89, 0.7 %",
    "skyserve": "4 of 6, 1.64, 3.2 %",
    "roost": "goal 6 of 6, 1.24, 0.6 %",
}
"""Met, cost and late of the study notes, with another simulator on the same recordings."""


def main() -> None:
    """Play what is asked for and not yet in the file, and print the table."""
    options = _options()
    rows: list[dict[str, object]] = []
    if options.rows is not None and options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    done = {(row["scenario"], row["policy"], row["seed"]) for row in rows}
    for name in SCENARIOS if options.trace == "all" else options.trace.split(","):
        for seed in range(1, options.seeds + 1):
            policies = POLICIES if options.policy == "all" else options.policy.split(",")
            missing = [one for one in policies if (name, one, seed) not in done]
            if not missing:
                continue
            scenario = build(name, options.data, seed, options.days)
            first = scenario if seed == 1 else build(name, options.data, 1, options.days)
            best = remembered(first, options.cache)
            for policy in missing:
                spot = spot_of(options.spot, options.together, scenario.end_s)
                row = play(scenario, policy, best, spot)
                rows.append(row.plain())
                print(json.dumps(row.plain()), flush=True)
                if options.rows is not None:
                    with options.rows.open("a") as file:
                        file.write(json.dumps(row.plain()) + "\n")
                if options.charts is not None:
                    path = options.charts / f"scaling-{name}-{policy}-{seed}.png"
                    draw(path, scenario, row.result, best)
    _print(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the load traces")
    parser.add_argument("--trace", default="all")
    parser.add_argument("--policy", default="all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--days", type=float)
    parser.add_argument("--spot", type=float, default=0.0, help="losses per host and hour")
    parser.add_argument(
        "--together", action="store_true", help="a third of the hosts at once, daily"
    )
    parser.add_argument("--rows", type=Path, help="file that keeps finished rows")
    parser.add_argument("--cache", type=Path, help="folder that keeps oracles")
    parser.add_argument("--charts", type=Path, help="folder for pictures")
    return parser.parse_args()


def _print(rows: list[dict[str, object]]) -> None:
    names = list(SCENARIOS)
    table = Table(title="cost x oracle, late; * more than 1 % late")
    table.add_column("policy")
    for name in [*names, "met", "cost", "late", "launches", "starts/d", "study notes"]:
        table.add_column(name, justify="right")
    for policy in dict.fromkeys(str(row["policy"]) for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        cells = [_cell([row for row in own if row["scenario"] == name]) for name in names]
        table.add_row(policy, *cells, *_together(own), PUBLISHED.get(policy, ""))
    Console(width=180).print(table)


def _cell(rows: list[dict[str, object]]) -> str:
    if not rows:
        return ""
    cost = sum(float(str(row["cost"])) for row in rows) / len(rows)
    late = sum(float(str(row["late"])) for row in rows) / len(rows)
    return f"{cost:.2f} {late:.2%}{'' if all(row['met'] for row in rows) else '*'}"


def _together(rows: list[dict[str, object]]) -> list[str]:
    cost, size = 1.0, len(rows)
    for row in rows:
        cost *= float(str(row["cost"])) ** (1.0 / size)
    means = [
        sum(float(str(row[name])) for row in rows) / size
        for name in ("late", "launches_oracle", "starts_day")
    ]
    met = sum(bool(row["met"]) for row in rows)
    return [f"{met}/{size}", f"{cost:.3f}", f"{means[0]:.2%}", f"{means[1]:.2f}", f"{means[2]:.0f}"]


if __name__ == "__main__":
    main()
