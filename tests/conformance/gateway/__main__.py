"""``python -m tests.conformance.gateway --proxy roost|nginx|haproxy|envoy|PORT:ORIGIN_PORT [--json]``."""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict

from tests.conformance.gateway import peers, runner
from tests.conformance.gateway.runner import Score


def table(name: str, scores: list[Score], *, verbose: bool) -> str:
    lines = []
    failed = [score for score in scores if score.failure]
    for score in failed:
        if verbose or score.level == "must":
            lines.append(
                f"  {score.level:6} {score.id:40} RFC {score.rfc:12} {score.failure[:160]}"
            )
    by_level = []
    for level in ("must", "should", "may"):
        of_level = [score for score in scores if score.level == level]
        bad = sum(1 for score in of_level if score.failure)
        by_level.append(f"{level} {len(of_level) - bad} of {len(of_level)}")
    scored = [score for score in scores if score.level != "may"]
    good = sum(1 for score in scored if not score.failure)
    lines.append(f"{name}: {good} of {len(scored)} ({', '.join(by_level)})")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance.gateway", description=__doc__
    )
    parser.add_argument(
        "--proxy", default="roost", help="a name, or PORT:ORIGIN_PORT of a running one"
    )
    parser.add_argument("--only", default="", help="checks whose id contains this")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="list failed shoulds and mays too")
    options = parser.parse_args()
    if options.proxy in peers.PROXIES:
        if peers.missing(options.proxy):
            print(f"{options.proxy} is not installed here")
            return 2
        scores = asyncio.run(runner.judge(options.proxy, options.only))
    else:
        port, origin = (int(part) for part in options.proxy.split(":"))
        scores = asyncio.run(runner.judge_address(port, origin, options.only))
    if options.json:
        json.dump([asdict(score) for score in scores], sys.stdout, indent=1)
    else:
        print(table(options.proxy, scores, verbose=options.verbose))
    return 1 if any(score.failure and score.level == "must" for score in scores) else 0


if __name__ == "__main__":
    sys.exit(main())
