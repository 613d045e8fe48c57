"""Runs all checks, many at once, each alone on its lane; says what passed."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.gateway import connections, hostile, peers, requests, responses
from tests.conformance.gateway.wire import CASES, Case, Failed, Lane, Origin

MODULES = (hostile, requests, responses, connections)
"""Importing them fills ``CASES``."""
CASE_S = 20.0
ALL_S = 240.0
SETTLE_S = 0.01
"""For a proxy to notice that its pooled connections of the check before have ended."""


@dataclass(frozen=True)
class Score:
    """One scored check."""

    id: str
    level: str
    rfc: str
    failure: str
    """Empty: passed."""


async def _one(case: Case, lane: Lane) -> list[Score]:
    failed: dict[str, str] = {}
    whole = ""
    try:
        async with asyncio.timeout(CASE_S):
            failed = await case.run(lane) or {}
    except Failed as error:
        whole = str(error)
    except (TimeoutError, OSError, EOFError, IndexError, ValueError) as error:
        whole = f"{type(error).__name__} {error}"
    await lane.clear()
    await asyncio.sleep(SETTLE_S)
    return [
        Score(
            f"{case.id}{'.' if part else ''}{part}", level, case.rfc, whole or failed.get(part, "")
        )
        for part, level in case.parts
    ]


async def _lane(lane: Lane, queue: list[Case], scores: list[Score]) -> None:
    while queue:
        scores += await _one(queue.pop(0), lane)


async def run(lanes: list[Lane], only: str = "") -> list[Score]:
    """All checks whose lane is there."""
    scores: list[Score] = []
    wanted = [case for case in CASES if only in case.id]
    queues = {
        kind: [case for case in wanted if case.lane == kind and not case.alone]
        for kind in peers.KINDS
    }
    await asyncio.gather(*(_lane(lane, queues[lane.kind], scores) for lane in lanes))
    await asyncio.sleep(0.2)
    for case in [case for case in wanted if case.alone]:
        scores += await _one(case, lanes[0])
    return sorted(scores, key=lambda score: score.id)


async def judge(name: str, only: str = "") -> list[Score]:
    """Start the proxy ``name`` and run all checks against it."""
    lanes = await peers.lanes()
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        try:
            with peers.started(name, lanes, Path(folder)) as running:
                running.wait([lane.port for lane in lanes])
                for lane in lanes:
                    await lane.clear()
                async with asyncio.timeout(ALL_S):
                    return await run(lanes, only)
        finally:
            for lane in lanes:
                await lane.clear()
                for origin in lane.origins:
                    await origin.stop()


async def judge_address(port: int, origin_port: int, only: str = "") -> list[Score]:
    """Any proxy on ``port`` that has a single backend on ``origin_port`` (served here)."""
    origin = Origin()
    await origin.start(origin_port)
    try:
        return await run([Lane("plain", port, [origin])], only)
    finally:
        await origin.stop()
