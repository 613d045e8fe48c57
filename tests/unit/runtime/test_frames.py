"""Generators, coroutines and async generators, and the iterators that hold them."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[3] / "src"
TRIALS = ("frames_trials.py", "iterators_trials.py", "tasks_trials.py")


@pytest.mark.parametrize("trials", TRIALS)
def test_frames_go_on_where_they_stood(bench: Any, trials: str) -> None:
    done = subprocess.run(
        [bench.python, "-X", "faulthandler", str(Path(__file__).parent / trials)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
