"""A few seeds, and that a seed means one story."""

import os
import subprocess
import sys

import pytest

from roost.main.simulate import main
from roost.sim.cli import command
from roost.sim.faults import CALM
from roost.sim.scenario import run_seed

HOURS = 0.15


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_checker_holds(seed: int) -> None:
    outcome = run_seed(seed, HOURS)
    assert outcome.violations == (), f"repeat: {command(seed, HOURS)}"
    assert outcome.tally["cells run"] > 0


@pytest.mark.parametrize(
    ("seed", "hours"),
    [
        pytest.param(
            4, 0.2, id="a standby host with a recommendation was neither used nor replaced"
        ),
        pytest.param(339, 0.25, id="a kernel that died before its route was asked for for ever"),
        pytest.param(1010, 0.25, id="a standby host nobody wanted was kept"),
        pytest.param(2021, 0.25, id="the sweep ended a machine launched while it listed"),
    ],
)
def test_seeds_that_found_something(seed: int, hours: float) -> None:
    """Each also has a unit test where its fix is."""
    assert run_seed(seed, hours).violations == ()


def test_nothing_goes_wrong_on_a_calm_day() -> None:
    outcome = run_seed(1, HOURS, CALM)
    assert outcome.violations == ()
    assert outcome.faults == ()
    troubles = {"calls failed", "replies lost", "deaths", "notices", "crashes", "cells run again"}
    assert troubles.isdisjoint(outcome.tally)


def test_one_seed_is_one_story_under_any_hash_seed() -> None:
    """Sets, object addresses or threads in the controllers would make these differ."""
    code = "import sys; from roost.sim.scenario import run_seed; print(run_seed(9, 0.15).digest)"
    digests = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        digests.append(done.stdout.strip())
    assert len(digests[0]) == 32
    assert digests[0] == digests[1]
    assert run_seed(10, 0.15).digest != digests[0]


def test_the_command_runs_seeds_and_sums_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--seed", "5", "--hours", "0.05", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert "seed 5: faults:" in said
    assert "every checker held" in said


def test_a_failing_seed_says_how_to_repeat_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "roost.sim.checkers.EVERY_SECOND", (("planted", lambda scene, sessions: iter(["x"])),)
    )
    assert main(["--seeds", "1", "--seed", "5", "--hours", "0.05"]) == 1
    said = capsys.readouterr().out
    assert "VIOLATED planted: at 1.0 s: x" in said
    assert "repeat: python -m roost.main.simulate --seed 5 --seeds 1 --hours 0.05" in said
