"""Cells that run when a notice comes or the machine dies: each step is done once, files included."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.unit.runtime.conftest import PYTHONS, SOURCE, EngineDoor

pytestmark = pytest.mark.e2e
LIMIT_S = 60.0


class Plain:
    """A plain ipykernel of the user's own."""

    def __init__(self, base: Path, python: str) -> None:
        self._manager = KernelManager()
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self._manager.kernel_spec.argv = argv  # type: ignore[union-attr]
        env = {
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "PYTHONHASHSEED": "0",
            "IPYTHONDIR": str(base / "ipython"),
        }
        (base / "work").mkdir(exist_ok=True)
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._manager.start_kernel(cwd=str(base / "work"), env=env, **quiet)
        self.client: BlockingKernelClient = self._manager.client()  # type: ignore[assignment]
        self.client.start_channels()
        self.client.wait_for_ready(timeout=LIMIT_S)

    def send(self, code: str) -> str:
        return self.client.execute(code, allow_stdin=False)

    def run(self, code: str) -> str:
        message, shown = self.send(code), []
        while True:
            got = self.client.get_iopub_msg(timeout=LIMIT_S)
            if got["parent_header"].get("msg_id") != message:
                continue
            kind, content = got["msg_type"], got["content"]
            if kind == "stream":
                shown.append(content["text"])
            elif kind == "execute_result":
                shown.append(content["data"]["text/plain"])
            elif kind == "error":
                shown.append(f"{content['ename']}: {content['evalue']}")
            elif kind == "status" and content["execution_state"] == "idle":
                return "".join(shown)

    def kill(self) -> None:
        os.kill(int(self._manager.provisioner.pid), signal.SIGKILL)  # type: ignore[union-attr]
        self.client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()


class Moves:
    """A working directory, a store, and one kernel after the other."""

    def __init__(self, base: Path, python: str) -> None:
        self.base, self.python = base, python
        self.work, self.store = base / "work", base / "store"
        self.kernels: list[Plain] = []

    def kernel(self) -> Plain:
        made = Plain(self.base, self.python)
        self.kernels.append(made)
        made.run("%load_ext roost")
        return made

    def notice(self, within_s: float = 15.0, *more: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "roost.runtime.kernel", "capture", str(self.store)]
        done = subprocess.run(
            [*command, "--within", str(within_s), *more],
            capture_output=True,
            text=True,
            timeout=within_s + 40,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def report(self) -> dict[str, str]:
        entries = json.loads((self.store / "restore-report.json").read_text())["entries"]
        return {entry["name"]: f"{entry['outcome']}: {entry['reason']}" for entry in entries}

    def wait_lines(self, name: str, count: int) -> None:
        deadline = time.monotonic() + LIMIT_S
        path = self.work / name
        while not path.exists() or len(path.read_text().split()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def close(self) -> None:
        for kernel in self.kernels:
            kernel.kill()
        shutil.rmtree(self.base, ignore_errors=True)


@pytest.fixture(params=PYTHONS, ids=lambda python: "" if python == sys.executable else python)
def moves(request: pytest.FixtureRequest) -> Iterator[Moves]:
    made = Moves(Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp")), request.param)
    yield made
    made.close()


def test_a_loop_moved_five_times_does_each_step_once(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    kernel.run("import time\nsteps = []")
    kernel.send(
        "for i in range(120):\n"
        "    steps.append(i)\n"
        "    with open('steps.txt', 'a') as file: file.write(f'{i}\\n')\n"
        "    time.sleep(0.05)\n"
        "else:\n    steps.append('else')"
    )
    kernel.send("steps.append('queued')")
    for move in range(1, 6):
        moves.wait_lines("steps.txt", move * 15)
        assert moves.notice()["mode"] == "paused"
        kernel.kill()
        moves.kernels.remove(kernel)
        kernel = moves.kernel()
        kernel.run(f"%roost restore {moves.store}\n%roost track {moves.store}")
        assert "goes on" in moves.report()["cell 4"]
    assert kernel.run("print(steps == [*range(120), 'else', 'queued'])") == "True\n"
    assert (moves.work / "steps.txt").read_text().split() == [str(n) for n in range(120)]
    assert kernel.run("print(In[3][:5], In[4][:9], In[5], len(In))") == (
        "impor for i in  steps.append('queued') 8\n"
    )


def test_files_are_put_back_before_a_cell_is_run_again(moves: Moves) -> None:
    kernel = moves.kernel()
    (moves.work / "mine.ipynb").write_text("{}")
    kernel.run(f"%roost track {moves.store}")
    kernel.run("open('log.txt', 'w').write('start\\n'); open('old.txt', 'w').write('old')")
    kernel.run("import os, time\nos.mkdir('d')")
    kernel.send(
        "def work():\n"
        "    os.remove('old.txt'); open('d/new.txt', 'w').write('new')\n"
        "    for i in range(40):\n"
        "        with open('log.txt', 'a') as file: file.write(f'{i}\\n')\n"
        "        time.sleep(0.05)\n"
        "work()"
    )
    kernel.send("seen = sorted(os.listdir('.')), os.listdir('d')")
    moves.wait_lines("log.txt", 10)
    assert moves.notice(1.0)["mode"] == "rerun"
    (moves.work / "mine.ipynb").write_text("saved by the page")
    kernel.kill()
    moves.kernels.remove(kernel)
    kernel = moves.kernel()
    kernel.run(f"%roost restore {moves.store}")
    told = moves.report()["files"]
    assert told.startswith("rebuilt: put back as before the cell: log.txt, old.txt")
    assert "d/new.txt" in told
    assert kernel.run("print(seen)") == "(['d', 'log.txt', 'mine.ipynb'], ['new.txt'])\n"
    assert (moves.work / "log.txt").read_text().split() == ["start", *map(str, range(40))]
    assert (moves.work / "mine.ipynb").read_text() == "saved by the page"
    assert list((moves.store / "files" / "aside").rglob("new.txt"))


def test_missing_files_are_written(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    kernel.run(
        "import os; os.makedirs('a/b'); open('a/b/x.txt', 'w').write('x'); open('y', 'w').close()"
    )
    kernel.run("big = open('big.bin', 'wb'); big.truncate(65 << 20); big.close()")
    assert moves.notice()["mode"] == "idle"
    kernel.kill()
    moves.kernels.remove(kernel)
    shutil.rmtree(moves.work)
    moves.work.mkdir()
    (moves.work / "y").write_text("newer")
    kernel = moves.kernel()
    kernel.run(f"%roost restore {moves.store}")
    assert kernel.run("print(open('a/b/x.txt').read(), open('y').read())") == "x newer\n"
    assert "larger than 64 MiB" in moves.report()["file big.bin"]


def test_a_kernel_that_answered_runs_nothing_more(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    kernel.run("import time, hashlib")
    kernel.send(
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 4_000_000); open('a.txt', 'a').write('1 ')"
    )
    kernel.send("open('a.txt', 'a').write('2 ')")
    assert moves.notice(1.0)["mode"] == "rerun"
    assert moves.notice(1.0)["mode"] == "rerun"  # told twice: the same answer
    time.sleep(2)
    before = (moves.work / "a.txt").read_text() if (moves.work / "a.txt").exists() else ""
    assert "2" not in before
    kernel.kill()
    moves.kernels.remove(kernel)
    kernel = moves.kernel()
    kernel.run(f"%roost restore {moves.store}")
    assert kernel.run("print(open('a.txt').read())") == "1 2 \n"


def test_a_move_called_off_loses_nothing(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    kernel.run("import time\nsteps = []")
    cell = "for i in range(40):\n    steps.append(i)\n    open('s.txt', 'a').write(f'{i} ')\n"
    kernel.send(cell + "    time.sleep(0.05)")
    moves.wait_lines("s.txt", 10)
    assert moves.notice()["mode"] == "paused"
    moves.notice(1.0, "--call-off")
    moves.wait_lines("s.txt", 20)
    kernel.kill()  # dies all the same, later, without a word
    moves.kernels.remove(kernel)
    kernel = moves.kernel()
    kernel.run(f"%roost restore {moves.store}")
    assert kernel.run(
        "print(steps == list(range(40)), open('s.txt').read().split() == [str(n) for n in steps])"
    ) == ("True True\n")


def test_a_damaged_newest_moment_is_passed_over(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    kernel.run("a = 1")
    moves.notice()
    newest = max(moves.store.glob("manifest-*.json"), key=lambda p: int(p.stem.split("-")[1]))
    number = int(newest.stem.split("-")[1])
    (moves.store / f"manifest-{number + 1}.json").write_bytes(newest.read_bytes()[:-40])
    kernel.kill()
    moves.kernels.remove(kernel)
    kernel = moves.kernel()
    assert f"trying number {number}" in kernel.run(f"%roost restore {moves.store}")
    assert kernel.run("print(a)") == "1\n"


def test_what_became_of_the_cells_is_reported(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    kernel.run("import time; trail = []")
    kernel.send(
        "for i in range(20):\n    trail.append(i); time.sleep(0.05)\n    open('t', 'a').write('1 ')"
    )
    kernel.send("trail.append(1 / 0)")
    kernel.send("trail.append('never')")
    moves.wait_lines("t", 5)
    moves.notice()
    kernel.kill()
    moves.kernels.remove(kernel)
    kernel = moves.kernel()
    kernel.run(f"%roost restore {moves.store}")
    assert kernel.run("print(trail == list(range(20)))") == "True\n"
    report = moves.report()
    assert "goes on" in report["cell 4"]
    assert "error of its own" in report["cell 5"]
    assert report["cell 6"].startswith("refused: not run")


def test_a_cell_that_asks_is_not_asked_again_by_nobody(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    kernel.run("t = []")
    kernel.client.execute("t.append(1); x = input('?'); t.append(x)", allow_stdin=True)
    assert kernel.client.get_stdin_msg(timeout=LIMIT_S)["content"]["prompt"] == "?"
    assert moves.notice(1.0)["mode"] == "rerun"
    kernel.kill()
    moves.kernels.remove(kernel)
    kernel = moves.kernel()
    kernel.run(f"%roost restore {moves.store}")
    assert kernel.run("print(t)") == "[]\n"
    assert "asks for input" in moves.report()["cell 4"]


def test_what_was_aborted_is_not_run_elsewhere(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    kernel.run("t = []; import time")
    kernel.send("time.sleep(0.5); t.append(1); 1 / 0")
    last = kernel.send("t.append('aborted')")
    while kernel.client.get_shell_msg(timeout=LIMIT_S)["parent_header"].get("msg_id") != last:
        pass
    moves.notice()
    kernel.kill()
    moves.kernels.remove(kernel)
    kernel = moves.kernel()
    kernel.run(f"%roost restore {moves.store}")
    assert kernel.run("print(t)") == "[1]\n"


def test_dear_state_is_captured_by_a_child_here_too(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    kernel.run("many = [[i] for i in range(400_000)]; n = 0")
    kernel.run("n = 1; many[1].append(n)")
    kernel.run("import time; time.sleep(0.2)")
    door = EngineDoor(Path(json.loads((moves.store / "engine.json").read_text())["socket"]))
    deadline = time.monotonic() + LIMIT_S
    while not any((children := door.demand("status")["children"]).values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    door.close()
    assert children == {"stored": 1, "vain": 0}


def test_every_short_cell_leaves_its_moment(moves: Moves) -> None:
    kernel = moves.kernel()
    kernel.run(f"%roost track {moves.store}")
    for step in range(20):
        kernel.run(f"step_{step} = {step}")
    shown = kernel.run("%roost history")
    assert all(f"step_{step} = {step}" in shown for step in range(20))
    kernel.run("lost = 1")
    time.sleep(0.5)  # written in the pause after the last cell
    moves.kernels.pop().kill()
    again = moves.kernel()
    again.run(f"%roost restore {moves.store}")
    assert again.run("print(sum(globals()[f'step_{n}'] for n in range(20)), lost)") == "190 1\n"
