"""One kernel process and the ZMQ sockets to it. Knows nothing of sessions, epochs or bridges.

The kernel is a child in a process group of its own (an interrupt reaches it and its children, never
the keeper) and dies with the keeper: an unwatched kernel would compute for nobody.
"""

import asyncio
import ctypes
import json
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.asyncio

from roost.ports.jupyter import Parts

PR_SET_PDEATHSIG = 1
PEER = b"roost-keeper"
"""Our one identity towards the kernel; the client's own identity travels behind it."""
PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
Received = Callable[[str, Parts], None]

log = logging.getLogger("roost.keeper")


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How kernels of this keeper are started."""

    python: str
    """Interpreter of the user's environment."""
    run_dir: Path
    """Short directory for sockets."""
    task_id: str
    hash_seed: str = "0"
    """PYTHONHASHSEED: the same wherever the session goes, so that hashes of strings agree."""
    log_path: str = ""


class KernelProcess:
    """A running kernel. ``on_message(channel, parts)`` gets everything it sends."""

    def __init__(
        self, config: KernelConfig, generation: int, key: str, on_message: Received
    ) -> None:
        self._config = config
        self._on_message = on_message
        stem = f"{config.task_id}-{generation}"
        self.engine_path = config.run_dir / f"e-{config.task_id}.sock"
        self._connection = config.run_dir / f"c-{stem}.json"
        self._address = config.run_dir / f"z-{stem}"
        self._key = key
        self._context = zmq.asyncio.Context()
        self._sockets: dict[str, zmq.asyncio.Socket] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.heard = asyncio.Event()
        """Its outputs reach us. A kernel greets a new subscriber (JEP 65); what it says before is lost."""

    @property
    def pid(self) -> int:
        """Process id, 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def ended(self) -> asyncio.Future[int]:
        """Resolves to the exit code (negative: the signal)."""
        return self._ended

    def start(self) -> None:
        """Start the process and connect to where its sockets will be."""
        self.engine_path.unlink(missing_ok=True)
        self._write_connection()
        log = os.open(
            self._config.log_path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        try:
            self._process = subprocess.Popen(
                self._argv(),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=_die_with_parent,
            )
        finally:
            os.close(log)
        self._watch(self._process)
        for channel in ("shell", "control", "stdin", "iopub"):
            self._open(channel)

    async def send(self, channel: str, parts: Parts) -> None:
        """Give a message to the kernel."""
        await self._sockets[channel].send_multipart(parts)

    def signal(self, number: int) -> None:
        """Signal the kernel and its children."""
        if self._process is not None and not self._ended.done():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def kill(self, grace_s: float = 0.0) -> int:
        """End it: SIGTERM when there is a grace, then SIGKILL to the group; returns the exit code."""
        if self._process is None:
            return 0
        if grace_s > 0:
            self.signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._ended), grace_s)
        self.signal(signal.SIGKILL)
        return await asyncio.shield(self._ended)

    async def close(self, *, deliver: bool) -> None:
        """Free sockets and files; ``deliver`` what the dead kernel still sent before that."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in ("iopub", "shell", "control") if deliver else ():
            await self._drain(channel)
        self._context.destroy(linger=0)
        for path in (self._connection, self.engine_path):
            path.unlink(missing_ok=True)
        for number in PORTS.values():
            Path(f"{self._address}-{number}").unlink(missing_ok=True)

    def _argv(self) -> list[str]:
        module = [self._config.python, "-m", "roost.runtime.kernel"]
        return [*module, "-f", str(self._connection), "--engine", str(self.engine_path)]

    def _environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
        env["PYTHONHASHSEED"] = self._config.hash_seed
        return env

    def _write_connection(self) -> None:
        ports = {f"{channel}_port": number for channel, number in PORTS.items()}
        content = {
            "transport": "ipc",
            "ip": str(self._address),
            "key": self._key,
            "signature_scheme": "hmac-sha256",
            "kernel_name": "roost",
            **ports,
        }
        self._connection.unlink(missing_ok=True)
        handle = os.open(self._connection, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(content, file)

    def _open(self, channel: str) -> None:
        kind = zmq.SUB if channel == "iopub" else zmq.DEALER
        socket = self._context.socket(kind)
        # Nothing may be lost between kernel and spool: no high-water mark on our side.
        socket.rcvhwm = 0
        socket.sndhwm = 0
        socket.linger = 0
        if channel == "iopub":
            socket.subscribe(b"")
        else:
            socket.setsockopt(zmq.IDENTITY, PEER)
        socket.connect(f"ipc://{self._address}-{PORTS[channel]}")
        self._sockets[channel] = socket
        self._tasks.append(asyncio.create_task(self._receive(channel, socket)))

    async def _receive(self, channel: str, socket: zmq.asyncio.Socket) -> None:
        while True:
            parts = tuple(await socket.recv_multipart())
            if channel == "iopub":
                self.heard.set()
            try:
                self._on_message(channel, parts)
            except Exception:  # one odd message must not make the kernel silent
                log.exception("a message on %s could not be handled", channel)

    async def _drain(self, channel: str) -> None:
        socket = self._sockets.get(channel)
        while socket is not None and await socket.poll(20):
            self._on_message(channel, tuple(await socket.recv_multipart()))

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        handle = os.pidfd_open(process.pid)

        def reap() -> None:
            loop.remove_reader(handle)
            os.close(handle)
            code = process.wait()
            if not self._ended.done():
                self._ended.set_result(code)

        loop.add_reader(handle, reap)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
