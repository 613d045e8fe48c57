"""The hazard model's figures beside issue 15's table, for any folder of recordings.

    OMP_NUM_THREADS=1 .venv/bin/python bench/market/model.py --data DIR [--json FILE]

Runs what ``roost market evaluate`` runs. "as shipped" is out of sample only where the shipped model has not
learnt from the recording (the share it has is printed); the other two ways always are.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from roost.market.forecast.evaluate import Scores
from roost.market.forecast.metrics import Measure
from roost.market.forecast.report import Report, evaluate

NINE_ZONES = "aws-2023-02-15-avail"
WANTED = (
    # measure, horizon, name, baseline, goal
    ("reclaim within 1 h: AUC", "1h", "auc", 0.837, 0.85),
    ("reclaim within 1 h: Brier", "1h", "brier", 0.1005, 0.0975),
    ("reclaim within 1 h: calibration error", "1h", "ece", 0.013, 0.010),
    ("reclaim within 1 h: C-index", "1h", "c_index", 0.740, 0.75),
    ("reclaim within 10 min: AUC", "10min", "auc", 0.855, 0.865),
    ("available in 1 h: macro F1", "up_1h", "macro_f1", 0.845, 0.855),
)
WAYS = ("shipped", "rolling_origin", "zones_left_out")


def shown(measure: Measure | None) -> str:
    """A figure with its interval."""
    if measure is None or measure.value is None:
        return "-"
    return f"{measure.value:.4f} [{measure.low:.4f}, {measure.high:.4f}]"


def rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """(measure, baseline held back, goal held back, way, figure with interval)."""
    made = []
    for score in (s for s in report.traces if s.name == NINE_ZONES):
        for text, horizon, name, baseline, goal in WANTED:
            for way in WAYS:
                found: Scores | None = getattr(score, way)
                measure = (found or {}).get(horizon, {}).get("model", {}).get(name)
                made.append((text, f"{baseline}", f"{goal}", way, shown(measure)))
    for way, by_who in report.lifetimes.items():
        for who, measures in by_who.items():
            text = f"one-VM lifetimes: C-index ({who})"
            made.append((text, "0.526", "0.58", way, shown(measures.get("c_index"))))
    for way, by_who in report.bands.items():
        for who, measures in by_who.items():
            text = f"band of an unseen region: AUC ({who})"
            made.append((text, "0.817", "0.84", way, shown(measures.get("auc"))))
    return made


def main() -> None:
    """Evaluate and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = evaluate(args.data, lambda text: print(text, file=sys.stderr, flush=True))
    if args.json is not None:
        args.json.write_bytes(msgspec.json.encode(report))
    for score in report.traces:
        print(f"{score.name}: the shipped model learnt from {score.share_trained_on:.0%} of it")
    print("\n| measure | baseline (held back) | goal (held back) | judged | here, 95 % interval |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows(report):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
