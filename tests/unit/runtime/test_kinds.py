"""Every kind of object: stored in one process, opened and used in another."""

import os
import subprocess
import weakref
from pathlib import Path
from typing import Any

import pytest

from roost.runtime.kernel.rebuild_values import target_of

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


def test_what_a_proxy_stands_for_is_had_without_asking_it_also_when_it_is_gone() -> None:
    class Loud:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"asked for {name}")

    loud = Loud()
    proxy = weakref.proxy(loud)
    assert target_of(proxy) is loud
    del loud
    assert target_of(proxy) is None
