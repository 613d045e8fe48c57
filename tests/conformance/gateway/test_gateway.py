"""``roost gateway --config`` against every MUST and SHOULD of the harness."""

import asyncio
from collections import Counter

import pytest

from tests.conformance.gateway import runner
from tests.conformance.gateway.runner import Score
from tests.conformance.gateway.wire import CASES

ACCEPTED: dict[str, str] = {}
"""Checks that fail on purpose, and why."""


@pytest.fixture(scope="module")
def scores() -> list[Score]:
    return asyncio.run(runner.judge("roost"))


def test_the_gateway_does_what_the_standards_ask_for(scores: list[Score]) -> None:
    failed = {
        score.id: f"{score.level} {score.failure}"
        for score in scores
        if score.failure and score.level != "may"
    }
    assert {key: why for key, why in failed.items() if key not in ACCEPTED} == {}
    assert set(ACCEPTED) <= set(failed), "accepted deviations that pass by now"


def test_every_check_was_scored(scores: list[Score]) -> None:
    assert len(scores) == sum(len(case.parts) for case in CASES) > 484


def test_every_check_has_a_name_of_its_own() -> None:
    assert not [key for key, count in Counter(case.id for case in CASES).items() if count > 1]
