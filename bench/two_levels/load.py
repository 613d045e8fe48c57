"""``python -m bench.two_levels.load``: requests at a rate that follows a profile, whatever the answers do.

An open loop: each request is sent when its time has come, and its latency counts from then, so that a slow
service is not asked less. Never sends one again itself: what fails, failed for the client.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

LIMIT_S = 70.0
"""Longer than any edge holds a request."""


@dataclass(frozen=True)
class Phase:
    """A piece of the profile: the rate goes from one value to another."""

    seconds: float
    begin: float
    end: float


@dataclass(frozen=True)
class Outcome:
    """One request as its client saw it."""

    at_s: float
    """When it was due, in UTC seconds."""
    latency_s: float
    status: int
    """0 = no answer."""
    replica: str = ""
    error: str = ""


def read(text: str) -> list[Phase]:
    """``10x5,20x5-50,30x50``: 10 s at 5 a second, 20 s from 5 to 50, 30 s at 50."""
    phases = []
    for piece in text.split(","):
        seconds, _, rates = piece.partition("x")
        begin, _, end = rates.partition("-")
        phases.append(Phase(float(seconds), float(begin), float(end or begin)))
    return phases


def arrivals(phases: list[Phase], seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due: Poisson, thinned to the rate of the moment."""
    draw = random.Random(seed)
    began = 0.0
    for phase in phases:
        most = max(phase.begin, phase.end, 1e-9)
        at = 0.0
        while (at := at + draw.expovariate(most)) < phase.seconds:
            rate = phase.begin + (phase.end - phase.begin) * at / phase.seconds
            if draw.random() * most < rate:
                yield began + at
        began += phase.seconds


async def ask(session: aiohttp.ClientSession, url: str, due_s: float) -> Outcome:
    """One request."""
    now_s = time.monotonic()
    at_s = time.time() - (now_s - due_s)
    try:
        async with session.get(url) as answer:
            body = await answer.read()
            status = answer.status
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        return Outcome(at_s, time.monotonic() - due_s, 0, "", repr(error)[:200])
    replica, error_text = "", ""
    if status == 200:
        with contextlib.suppress(ValueError):
            replica = str(json.loads(body).get("replica", ""))
    else:
        error_text = body[:200].decode(errors="replace")
    return Outcome(at_s, time.monotonic() - due_s, status, replica, error_text)


async def send(url: str, phases: list[Phase], seed: int, out: Path) -> None:
    """The whole profile; a line for each request as it ends, flushed, so that others may look on."""
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=5.0)
    began = time.monotonic()
    under_way: set[asyncio.Task[None]] = set()
    with out.open("w", buffering=1) as lines:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def one(due_s: float) -> None:
                lines.write(json.dumps(asdict(await ask(session, url, due_s))) + "\n")

            for at in arrivals(phases, seed):
                await asyncio.sleep(max(0.0, began + at - time.monotonic()))
                task = asyncio.create_task(one(began + at))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            if under_way:
                await asyncio.wait(under_way)


def outcomes(path: Path) -> list[Outcome]:
    """What a run of this wrote, by the time requests were due."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return sorted((Outcome(**row) for row in rows), key=lambda one: one.at_s)


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.two_levels.load", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("profile", help="such as 10x5,20x5-50,30x50")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    asyncio.run(send(chosen.url, read(chosen.profile), chosen.seed, chosen.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
