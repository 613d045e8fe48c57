"""A kernel of another language behind the engine's door: ``-f CONNECTION --engine SOCKET --name bash ...``.

It moves at the level of files: a capture holds the session's folder (the host adds it) and which cells have
run; the kernel itself begins anew, and the report says so. The real kernel listens on TCP ports of this host;
this process carries messages between it and the keeper's sockets, so it knows when a cell has ended. It never
looks into what it carries beyond the headers.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.connect import write_connection_file
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_client.session import DELIM

from roost.runtime.kernel.door import Door
from roost.runtime.kernel.format import FINISHED_LIMIT, REFUSED, Entry, read
from roost.runtime.kernel.jobs import Fields, answer
from roost.runtime.kernel.recorder import Facts, Recorder, Seal, Written
from roost.runtime.kernel.restore import CannotRestore
from roost.runtime.kernel.server import Become
from roost.runtime.kernel.snapshot import Snapshot

CHANNELS = {"shell": (1, zmq.DEALER), "stdin": (3, zmq.DEALER), "control": (4, zmq.DEALER)}
"""Of a connection file: the keeper's number of the port, and the kind of our socket to the kernel."""
IOPUB = 2
BUDGET_S = 30.0
BUSY_S = 0.05


def find(name: str) -> list[str]:
    """The command of an installed kernel, with ``{connection_file}`` in it. Raises ``CannotRestore``."""
    specs = KernelSpecManager()
    try:
        return list(specs.get_kernel_spec(name).argv)
    except NoSuchKernel:
        pass
    module = f"{name}_kernel"  # a package whose kernel was never registered
    if name.isidentifier() and importlib.util.find_spec(module) is not None:
        return [sys.executable, "-m", module, "-f", "{connection_file}"]
    known = ", ".join(sorted(specs.find_kernel_specs())) or "none"
    raise CannotRestore(
        "no_kernel", f"no kernel {name!r} is installed on this host; there: {known}"
    )


def becoming(connection: Path, engine: Path) -> Become:
    """What puts such a kernel in the place of this process, with what its session's adoption asks.

    What it returns does not return; it raises ``CannotRestore`` when there is no such kernel.
    """

    def become(request: Fields) -> Callable[[], None]:
        name = str(request["kernel"])
        find(name)
        argv = [sys.executable, "-m", __name__, "-f", str(connection), "--engine", str(engine)]
        argv += ["--name", name, "--captures", str(request.get("captures") or "")]
        argv += ["--session", str(request.get("session_id") or "")]

        def deed() -> None:
            told = json.loads(connection.read_text())
            connection.write_text(json.dumps({**told, "key": str(request["key"])}))
            os.environ.update({str(k): str(v) for k, v in (request.get("env") or {}).items()})
            os.chdir(str(request["cwd"]))
            for number, stream in ((1, sys.stdout), (2, sys.stderr)):
                # ipykernel reads what is written there, to show it; nobody will.
                kept = getattr(stream, "_original_stdstream_copy", None)
                if kept is not None:
                    os.dup2(kept, number)
            os.execv(sys.executable, argv)

        return deed

    return become


class Carrier:
    """The kernel process and its sockets; tells of cells that begin and end."""

    def __init__(self, name: str, connection: Path, told: Callable[[str, str], None]) -> None:
        """``told(what, msg_id)``: ``busy`` when the kernel gets a cell, ``idle`` when it has ended."""
        self._name = name
        self._told = told
        self._ours: Fields = json.loads(connection.read_text())
        self._context = zmq.asyncio.Context()
        self._file = Path(tempfile.mkdtemp(prefix="roost-other-")) / "kernel.json"
        self._tasks: list[asyncio.Task[None]] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the kernel and carry its messages."""
        key = str(self._ours["key"]).encode()
        _, ports = write_connection_file(str(self._file), key=key, ip="127.0.0.1")
        argv = [part.replace("{connection_file}", str(self._file)) for part in find(self._name)]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        for channel, (number, kind) in CHANNELS.items():
            near = self._context.socket(zmq.ROUTER)
            near.bind(f"ipc://{self._ours['ip']}-{number}")
            far = self._context.socket(kind)
            far.connect(f"tcp://127.0.0.1:{ports[f'{channel}_port']}")
            self._tasks.append(asyncio.create_task(self._carry(near, far, channel)))
        near = self._context.socket(zmq.PUB)
        near.sndhwm = 0
        near.bind(f"ipc://{self._ours['ip']}-{IOPUB}")
        far = self._context.socket(zmq.SUB)
        far.rcvhwm = 0
        far.subscribe(b"")
        far.connect(f"tcp://127.0.0.1:{ports['iopub_port']}")
        self._tasks.append(asyncio.create_task(self._publish(far, near)))

    async def _carry(self, near: zmq.asyncio.Socket, far: zmq.asyncio.Socket, channel: str) -> None:
        """One client, the keeper: its identity is put back in front of what comes from the kernel."""
        peer = b""

        async def onwards() -> None:
            nonlocal peer
            while True:
                peer, *parts = await near.recv_multipart()
                if channel == "shell" and _of(parts, 1).get("msg_type") == "execute_request":
                    self._told("busy", str(_of(parts, 1).get("msg_id", "")))
                await far.send_multipart(parts)

        async def back() -> None:
            while True:
                parts = await far.recv_multipart()
                await near.send_multipart([peer, *parts])

        await asyncio.gather(onwards(), back())

    async def _publish(self, far: zmq.asyncio.Socket, near: zmq.asyncio.Socket) -> None:
        while True:
            parts = await far.recv_multipart()
            await near.send_multipart(parts)
            if _of(parts, 1).get("msg_type") != "status":
                continue
            parent = _of(parts, 2)
            idle = _of(parts, 4).get("execution_state") == "idle"
            if idle and parent.get("msg_type") == "execute_request":
                self._told("idle", str(parent.get("msg_id", "")))


class Other:
    """The engine's operations for a kernel that has no engine."""

    def __init__(self, name: str, connection: Path, captures: str, session_id: str) -> None:
        self._name = name
        self._session_id = session_id
        self._recorder = Recorder(Path(captures), None) if captures else None
        self._carrier = Carrier(name, connection, self._told)
        self._busy: set[str] = set()
        self._finished: deque[str] = deque(maxlen=FINISHED_LIMIT)
        self._count = 0
        self._held: dict[int, int] = {}
        self._last: Written | None = None
        self._door = Door(
            {
                "status": self._status,
                "warm": self._warm,
                "restore": self._restore,
                "capture": self._capture,
                "hold": self._hold,
                "release": self._release,
                "pause": self._pause,
                "go_on": self._go_on,
            }
        )

    async def run(self, engine: Path) -> int:
        """Until the kernel ends; its exit code."""
        self._carrier.start()
        process = self._carrier.process
        assert process is not None
        await self._door.listen(engine)
        while process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(BUSY_S)
        code = process.returncode
        return code if code >= 0 else 128 - code

    def _told(self, what: str, msg_id: str) -> None:
        if what == "busy":
            self._busy.add(msg_id)
            return
        self._busy.discard(msg_id)
        self._finished.append(msg_id)
        self._count += 1
        if self._recorder is not None and not self._busy:
            try:
                done = self._write(sync=False)
            except OSError as error:
                reason = error.strerror or str(error)
                self._door.push({"event": "capture_failed", "reason": reason, "refused": []})
            else:
                short = {name: value for name, value in done.items() if name != "report"}
                self._door.push({"event": "captured", **short})

    def _write(self, *, sync: bool) -> Fields:
        if self._recorder is None:
            raise CannotRestore("no_directory", "adopt with a captures directory")
        begun = time.perf_counter()
        snapshot = Snapshot(execution_count=self._count + 1, refused=[self._entry()])
        facts = Facts(
            self._session_id, str(Path.cwd()), tuple(self._finished), frozenset(self._held)
        )
        self._last = self._recorder.write(snapshot, facts, Seal(), sync=sync)
        return answer(self._last, time.perf_counter() - begun)

    def _entry(self) -> Entry:
        return Entry(
            f"state of the {self._name} kernel",
            REFUSED,
            "such a kernel moves with its files only and begins anew",
            "run the cells again that define what the next ones need",
        )

    # --- operations ------------------------------------------------------------------------------

    async def _status(self, _request: Fields) -> Fields:
        return {
            "busy": bool(self._busy),
            "pid": os.getpid(),
            "execution_count": self._count + 1,
            "imports": [],
            "number": self._last.manifest.number if self._last else 0,
            "manifest": str(self._last.path) if self._last else "",
            "session_id": self._session_id,
            "capturing": self._recorder is not None,
        }

    async def _warm(self, _request: Fields) -> Fields:
        return {"imported": [], "failed": [], "missing": {}, "seconds": 0.0}

    async def _restore(self, request: Fields) -> Fields:
        try:
            manifest = read(Path(request["manifest"]))
        except OSError as error:
            raise CannotRestore("missing", f"no checkpoint: {error.strerror}") from error
        self._finished.extend(manifest.finished)
        return {
            "report": [asdict(self._entry())],
            "seconds": 0.0,
            "execution_count": 0,
            "number": manifest.number,
            "finished": list(manifest.finished),
        }

    async def _capture(self, request: Fields) -> Fields:
        until = time.monotonic() + float(request.get("budget_s", BUDGET_S))
        while self._busy:
            if time.monotonic() >= until:
                raise CannotRestore("busy", "a cell still runs")
            await asyncio.sleep(BUSY_S)
        try:
            return self._write(sync=True)
        except OSError as error:
            raise CannotRestore("disk", error.strerror or str(error)) from error

    async def _hold(self, request: Fields) -> Fields:
        number = int(request["number"])
        self._held[number] = self._held.get(number, 0) + 1
        return {}

    async def _release(self, request: Fields) -> Fields:
        number = int(request["number"])
        self._held[number] = self._held.get(number, 0) - 1
        if self._held[number] <= 0:
            del self._held[number]
        return {}

    async def _pause(self, _request: Fields) -> Fields:
        return {"mode": "cannot", "reason": "it has no engine"}

    async def _go_on(self, _request: Fields) -> Fields:
        return {}


def _of(parts: list[bytes], place: int) -> dict[str, Any]:
    """A part behind the delimiter: 1 header, 2 parent header, 4 content; {} where it is odd."""
    try:
        found = json.loads(parts[parts.index(DELIM) + 1 + place])
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def main(argv: list[str]) -> int:
    """Run until the kernel ends."""
    parser = argparse.ArgumentParser(
        prog="python -m roost.runtime.kernel.other", description=__doc__
    )
    parser.add_argument("-f", dest="connection", required=True, type=Path)
    parser.add_argument("--engine", required=True, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--captures", default="")
    parser.add_argument("--session", default="")
    told = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the kernel, in our process group
    other = Other(told.name, told.connection, told.captures, told.session)
    return asyncio.run(other.run(told.engine))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
