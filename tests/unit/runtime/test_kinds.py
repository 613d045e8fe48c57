"""Every kind of object: stored in one process, opened and used in another."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parents[2] / "src"


@pytest.mark.parametrize("program", ["kinds_trials.py", "arrays_trials.py"])
def test_kinds_come_back_in_another_process(bench: Any, tmp_path: Path, program: str) -> None:
    for action in ("dump", "load"):
        done = subprocess.run(
            [bench.python, "-X", "faulthandler", str(HERE / program), action],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{SOURCE}:{HERE}", "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
