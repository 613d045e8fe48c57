"""``roost.checkpoint()`` and ``roost.resume()``: scripts that are killed and started again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "src"

TRAIN = """
import os, random, signal, sys
import numpy as np
import roost

class Model:
    def __init__(self):
        self.weights = np.zeros(50_000)
        self.view = self.weights[::2]
        self.log = []
        self.act = lambda x: x * factor

factor = 3
random.seed(1)
np.random.seed(1)
state = roost.resume() or {"epoch": 0, "model": Model(), "best": None}
assert type(state["model"]) is Model
while state["epoch"] < 6:
    model = state["model"]
    model.view[state["epoch"]] += 1
    model.log.append((random.random(), np.random.rand()))
    state["best"] = model
    state["epoch"] += 1
    print("epoch", state["epoch"], flush=True)
    roost.checkpoint(state)
    if state["epoch"] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
model = state["model"]
print(model.weights[:12].tolist(), model.act(2), state["best"] is model)
print(np.shares_memory(model.view, model.weights))
print([round(sum(pair), 12) for pair in model.log])
"""


def script(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = folder / "train.py"
    path.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    env.pop("ROOST_CHECKPOINTS", None)
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_a_script_killed_twice_ends_as_one_left_alone(tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    expected = script(alone, TRAIN, "0")
    assert expected.returncode == 0, expected.stderr
    first, second, last = (script(killed, TRAIN, at) for at in ("2", "4", "0"))
    assert first.returncode == second.returncode == -signal.SIGKILL, first.stderr + second.stderr
    assert first.stdout + second.stdout + last.stdout == expected.stdout, last.stderr
    assert len(list((killed / ".roost" / "chunks").iterdir())) < 20


REFUSES = """
import roost, socket, sys
assert roost.resume() is None
roost.checkpoint(x=1, y=[2])
gate = socket.socketpair()
try:
    roost.checkpoint(x=2, gate=gate)
except roost.NotCheckpointed as error:
    print(sorted(error.reasons), "gate" in str(error))
print(roost.resume())
"""


def test_what_cannot_be_stored_is_named_and_the_last_checkpoint_stands(tmp_path: Path) -> None:
    done = script(tmp_path, REFUSES)
    assert done.stdout == "['gate'] True\n{'x': 1, 'y': [2]}\n", done.stderr


DAMAGED = """
import pathlib, roost, warnings
roost.checkpoint(n=1, data=bytes(range(256)) * 2000)
roost.checkpoint(n=2, data=bytes(range(255)) * 2000)
newest = max(pathlib.Path(".roost").glob("*.json"))
newest.write_text(newest.read_text()[:-20])
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    print(roost.resume()["n"], len(told))
"""


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tmp_path: Path) -> None:
    done = script(tmp_path, DAMAGED)
    assert done.stdout == "1 1\n", done.stderr


def test_importing_roost_imports_nothing_of_it(tmp_path: Path) -> None:
    code = "import sys, roost; print([m for m in sys.modules if m.startswith('roost.')])"
    assert script(tmp_path, code).stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error(tmp_path: Path) -> None:
    done = script(tmp_path, "import roost; roost.nothing")
    assert "AttributeError" in done.stderr and done.returncode == 1


@pytest.mark.parametrize("where", ["elsewhere", ""])
def test_the_directory_can_be_chosen(tmp_path: Path, where: str) -> None:
    chosen = repr(str(tmp_path / "elsewhere"))
    before = f"import os; os.environ['ROOST_CHECKPOINTS'] = {chosen}\n" if where else ""
    done = script(
        tmp_path, before + "import roost; print(roost.checkpoint(a=1), roost.checkpoint(a=2))"
    )
    assert done.stdout == "1 2\n", done.stderr
    assert (tmp_path / (where or ".roost") / "chunks").is_dir()
