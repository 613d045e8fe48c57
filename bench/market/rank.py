"""How long ``Market.rank`` takes over the shipped catalogue, warm, on one core; exactness is a test.

    POLARS_MAX_THREADS=1 OMP_NUM_THREADS=1 taskset -c 0 .venv/bin/python bench/market/rank.py [--json]

Asks vary in size, cloud, place, price and options (a fixed seed); each is asked once after ten warm ones.
Prints median, 95th percentile and the slowest with the number of offers weighed, once by the clock and once
as CPU time of the process: on a machine that others use too the second says what one core needs.
"""

import argparse
import json
import os
import random
import statistics
import time

os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from roost.market.catalogue import Catalogue
from roost.market.service import Market
from roost.ports.errors import Invalid
from roost.ports.values import Ask, PurchaseOption

BOTH = (PurchaseOption.SPOT, PurchaseOption.ON_DEMAND)


def asks(count: int, seed: int) -> list[Ask]:
    """Varied asks; the first are the loosest, as they weigh the most offers."""
    draw = random.Random(seed)
    made = [Ask(vcpus=0, memory_gib=0, purchase_options=BOTH), Ask()]
    while len(made) < count:
        made.append(
            Ask(
                vcpus=draw.choice((1, 2, 4, 8, 16, 64)),
                memory_gib=draw.choice((1, 4, 8, 16, 32, 128)),
                gpus=draw.choice((0, 0, 0, 0, 1, 8)),
                arch=draw.choice(("x86_64", "x86_64", "arm64")),
                clouds=draw.choice(((), (), ("aws",), ("gcp", "azure"))),
                regions=draw.choice(((), (), (), ("us-east-1", "eastus"))),
                purchase_options=draw.choice((BOTH, (PurchaseOption.SPOT,))),
                max_usd_hour=draw.choice((None, None, 0.5, 5.0)),
                near=draw.choice(("", "Seoul", "Paris")),
                min_notice_s=draw.choice((0.0, 0.0, 60.0)),
            )
        )
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    started = time.perf_counter()
    market = Market(Catalogue.load())
    load_s = time.perf_counter() - started
    made = asks(args.count, args.seed)
    for ask in made[:10]:
        _timed(market, ask)
    took = [s for s in (_timed(market, ask) for ask in made) if s is not None]
    loosest = [s for _ in range(20) if (s := _timed(market, made[0])) is not None]
    found = {
        "offers": market.catalogue.columns.height,
        "asks": len(took),
        "load_ms": 1000 * load_s,
        **_figures("", [wall for wall, _ in took]),
        **_figures("cpu_", [cpu for _, cpu in took]),
        "all_offers_median_ms": 1000 * statistics.median(wall for wall, _ in loosest),
        "all_offers_cpu_median_ms": 1000 * statistics.median(cpu for _, cpu in loosest),
        "polars_threads": os.environ["POLARS_MAX_THREADS"],
        "cores": len(os.sched_getaffinity(0)),
    }
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:26} {value:,.2f}" if isinstance(value, float) else f"{name:26} {value}")


def _figures(prefix: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{prefix}median_ms": 1000 * statistics.median(seconds),
        f"{prefix}p95_ms": 1000 * sorted(seconds)[int(0.95 * len(seconds))],
        f"{prefix}max_ms": 1000 * max(seconds),
    }


def _timed(market: Market, ask: Ask) -> tuple[float, float] | None:
    """Seconds (clock, CPU) of one ranking; None when nothing fits (explaining that is another work)."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        market.rank(ask, 20)
    except Invalid:
        return None
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
