"""A real kernel process with the engine in it, and a client of each of its two doors."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

SOURCE = Path(__file__).parents[3] / "src"
PYTHONS = (sys.executable, *filter(None, os.environ.get("ROOST_TEST_PYTHONS", "").split(":")))
"""Every test of kernels runs once per interpreter: ours, and those named (they need ipykernel, cloudpickle,
blake3, numpy, pandas and scikit-learn)."""
START_S = 60.0
CELL_S = 60.0


class EngineDoor:
    """The engine's unix socket: requests, and events as they come."""

    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + START_S
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                assert time.monotonic() < deadline, "the engine does not listen"
                time.sleep(0.05)
        self._socket.settimeout(CELL_S)
        self._lines = self._socket.makefile("rb")
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def send(self, op: str, **fields: Any) -> int:
        self._number += 1
        self._socket.sendall(json.dumps({"id": self._number, "op": op, **fields}).encode() + b"\n")
        return self._number

    def answer(self, number: int) -> dict[str, Any]:
        while True:
            fields: dict[str, Any] = json.loads(self._lines.readline())
            if "event" in fields:
                self.events.append(fields)
            elif fields["id"] == number:
                return fields

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.answer(self.send(op, **fields))

    def demand(self, op: str, **fields: Any) -> dict[str, Any]:
        found = self.ask(op, **fields)
        assert found["ok"], found
        return found

    def event(self, name: str, seconds: float = 30.0) -> dict[str, Any]:
        """The next event of this name."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for index, fields in enumerate(self.events):
                if fields["event"] == name:
                    del self.events[: index + 1]
                    return fields
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self.events.append(json.loads(self._lines.readline()))
            finally:
                self._socket.settimeout(CELL_S)
        raise AssertionError(f"no event {name}")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Kernel:
    """One kernel process."""

    def __init__(
        self, folder: Path, python: str, work: Path, env: dict[str, str], args: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        self.key = secrets.token_hex(8)
        stem = f"k{secrets.token_hex(3)}"
        self.connection = folder / f"{stem}.json"
        self.engine_path = folder / f"{stem}.sock"
        ports = {
            f"{n}_port": i for i, n in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)
        }
        content = {
            "transport": "ipc", "ip": str(folder / stem), "key": self.key,
            "signature_scheme": "hmac-sha256", "kernel_name": "roost", **ports,
        }  # fmt: skip
        self.connection.write_text(json.dumps(content))
        self.log = (folder / f"{stem}.log").open("w+")
        argv = [python, "-m", "roost.runtime.kernel", "-f", str(self.connection)]
        self.process = subprocess.Popen(
            [*argv, "--engine", str(self.engine_path), *args],
            cwd=work,
            env={
                **os.environ,
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": str(SOURCE),
                "IPYTHONDIR": str(folder / "ipython"),
                **env,
            },
            stdout=self.log,
            stderr=self.log,
        )
        try:
            self.door = EngineDoor(self.engine_path)
        except AssertionError as error:
            raise AssertionError(self.words()) from error
        self.client = self.connect(self.key)
        self.last_id = ""
        """msg_id of the last cell."""

    def words(self) -> str:
        return Path(self.log.name).read_text()

    def connect(self, key: str) -> BlockingKernelClient:
        client = BlockingKernelClient()
        client.load_connection_info({**json.loads(self.connection.read_text()), "key": key})
        client.start_channels()
        client.wait_for_ready(timeout=START_S)
        return client

    def rekey(self, key: str) -> None:
        self.client.stop_channels()
        self.client = self.connect(key)

    def run(self, code: str, **options: Any) -> str:
        """Run a cell; its output (streams, results) as text. Fails when the cell raises."""
        reply, text = self.execute(code, **options)
        assert reply["content"]["status"] == "ok", "\n".join(reply["content"].get("traceback", ()))
        return text

    def execute(self, code: str, **options: Any) -> tuple[dict[str, Any], str]:
        msg_id = self.last_id = self.client.execute(code, **options)
        text = []
        while True:
            message = self.client.get_iopub_msg(timeout=CELL_S)
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                text.append(content["text"])
            elif kind == "execute_result":
                text.append(content["data"]["text/plain"])
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while True:
            reply = self.client.get_shell_msg(timeout=CELL_S)
            if reply["parent_header"].get("msg_id") == msg_id:
                return reply, "".join(text)

    def eval(self, expression: str) -> str:
        """The value of an expression, without a trace in the history."""
        reply = self.client.execute("", silent=True, user_expressions={"v": expression})
        while True:
            found = self.client.get_shell_msg(timeout=CELL_S)
            if found["parent_header"].get("msg_id") == reply:
                value = found["content"]["user_expressions"]["v"]
                assert value["status"] == "ok", value
                return str(value["data"]["text/plain"])

    def kill(self) -> None:
        with contextlib.suppress(AttributeError):
            self.client.stop_channels()
        with contextlib.suppress(AttributeError):
            self.door.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.log.close()


class Bench:
    """Starts kernels, and moves a session from one to another."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder = folder
        self.python = python
        self.work = folder / "w"
        self.captures = folder / "c"
        self.work.mkdir()
        self.kernels: list[Kernel] = []

    def kernel(self, *args: str, **env: str) -> Kernel:
        made = Kernel(self.folder, self.python, self.folder, env, args)
        self.kernels.append(made)
        return made

    def session(self, **env: str) -> Kernel:
        """A kernel that has adopted the session."""
        made = self.kernel(**env)
        self.adopt(made)
        return made

    def adopt(self, kernel: Kernel) -> None:
        fields = {"cwd": str(self.work), "captures": str(self.captures), "session_id": "s-1"}
        kernel.door.demand("adopt", **fields)

    def restore(self, kernel: Kernel, manifest: str) -> dict[str, Any]:
        return kernel.door.demand("restore", dir=str(self.captures), manifest=manifest)

    def move(self, kernel: Kernel) -> tuple[Kernel, dict[str, Any]]:
        """Capture, kill, restore into a new kernel."""
        done = kernel.door.demand("capture", budget_s=60)
        kernel.kill()
        target = self.session()
        report = self.restore(target, done["manifest"])
        return target, {"capture": done, "restore": report, **_outcomes(report)}

    def close(self) -> None:
        for kernel in self.kernels:
            if kernel.process.poll() is None:
                kernel.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _outcomes(report: dict[str, Any]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {"kept": {}, "rebuilt": {}, "refused": {}}
    for entry in report["report"]:
        found[entry["outcome"]][entry["name"]] = entry["reason"]
    return found


@pytest.fixture(params=PYTHONS, ids=lambda python: "" if python == sys.executable else python)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp")), request.param)
    yield made
    made.close()
