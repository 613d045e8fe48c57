"""Real keepers, kernels and bridges, and a splice that stands where edge and agent stand."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

from roost.agent.keeper_client import KeeperClient
from roost.ports.keeper import Adopt, KeeperEvent

KERNEL_PYTHON = sys.executable
KEY = "0123456789abcdef"
SESSION = "s-test"


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Poll with a deadline."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("not in time")


class Splice:
    """HTTP upgrade on a TCP port, then raw bytes to a unix socket: what edge and agent do."""

    def __init__(self) -> None:
        self.target: Path | None = None
        self.status = "503 Service Unavailable"
        self.loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self.call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.served = 0

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def cut(self) -> None:
        """Break every connection, as a killed edge does."""

        async def close() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self.call(close())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert f"GET /_roost/kernel/{SESSION} " in head
        assert "Authorization: Bearer secret" in head
        try:
            assert self.target is not None
            keeper = await asyncio.open_unix_connection(str(self.target))
        except (OSError, AssertionError):
            writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\n\r\n".encode())
            writer.close()
            return
        self.served += 1
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        self._writers |= {writer, keeper[1]}
        await asyncio.wait(
            [
                asyncio.create_task(self._pump(reader, keeper[1])),
                asyncio.create_task(self._pump(keeper[0], writer)),
            ]
        )
        self._writers -= {writer, keeper[1]}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        writer.close()

    def stop(self) -> None:
        self.cut()
        self._server.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


class KeeperProcess:
    """A keeper as the agent starts it, with a synchronous management client."""

    def __init__(self, folder: Path, task: str, loop: asyncio.AbstractEventLoop) -> None:
        self.folder, self.task, self._loop = folder, task, loop
        self.socket = folder / f"k-{task}.sock"
        self.log = folder / f"{task}.log"
        self.events: list[KeeperEvent] = []
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "roost.main.keeper",
                "--task",
                task,
                "--run-dir",
                str(folder),
                "--kernel-python",
                KERNEL_PYTHON,
                "--log",
                str(self.log),
            ],
        )

    def connect(self) -> None:
        """Wait until it listens."""
        until(self.socket.exists)
        connecting = KeeperClient.connect(self.socket, self.events.append)
        self.client: KeeperClient = self.call(connecting)

    def call(self, work: Any, timeout_s: float = 60) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def adopt(self, epoch: int = 1, **fields: Any) -> Any:
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        captures = self.folder / f"captures-{self.task}"
        captures.mkdir(exist_ok=True)
        order = Adopt(
            session_id=SESSION,
            epoch=epoch,
            key=KEY,
            cwd=str(work),
            captures_dir=str(captures),
            **fields,
        )
        return self.call(self.client.adopt(order))

    def status(self) -> Any:
        return self.call(self.client.status())

    def stop(self) -> None:
        with suppress(Exception):
            self.call(self.client.close(), 5)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class BridgeProcess:
    """A bridge as a kernelspec starts it, and a client on its ports."""

    def __init__(self, folder: Path, url: str, *, own: bool = False) -> None:
        self.own = own
        self.file = folder / "kernel.json"
        self.folder, self.url = folder, url
        sockets = [socket.socket() for _ in range(5)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
        self.ports = ports = {
            n: one.getsockname()[1] for n, one in zip(names, sockets, strict=True)
        }
        for one in sockets:
            one.close()
        self.file.write_text(
            json.dumps(
                {
                    **ports,
                    "ip": "127.0.0.1",
                    "key": KEY,
                    "transport": "tcp",
                    "signature_scheme": "hmac-sha256",
                }
            )
        )
        self.start()

    def start(self) -> None:
        env = {**os.environ, "ROOST_STATE_DIR": str(self.folder), "ROOST_FOLDER": "off"}
        argv = [sys.executable, "-m", "roost.main.bridge", "-f", str(self.file), "--verbose"]
        if not self.own:
            env["ROOST_TOKEN"] = "secret"
            argv += ["--session", SESSION, "--edge", self.url]
        with (self.folder / "bridge.log").open("ab") as log:
            self.process = subprocess.Popen(argv, env=env, stderr=log)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports["hb_port"])) == 0

    def worker(self) -> int:
        """Pid of the worker, once there is one."""

        def find() -> int:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            pids = children.read_text().split()
            return int(pids[0]) if pids else 0

        return until(find)

    def kill_worker(self) -> None:
        os.kill(self.worker(), signal.SIGKILL)

    def connect(self, *, wait: bool = True) -> BlockingKernelClient:
        # A client without a manager takes a first heartbeat of over a second for a dead kernel.
        until(self._listens)
        client = BlockingKernelClient()
        client.load_connection_file(str(self.file))
        client.start_channels()
        if wait:
            client.wait_for_ready(timeout=60)
        return client

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def follow(
    client: BlockingKernelClient, msg_id: str, timeout_s: float = 60
) -> list[dict[str, Any]]:
    """Messages on iopub caused by ``msg_id``, up to its idle."""
    messages = []
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        message = client.get_iopub_msg(timeout=max(0.1, end - time.monotonic()))
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        messages.append(message)
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return messages
    raise AssertionError("no idle")


def text_of(messages: list[dict[str, Any]]) -> str:
    return "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")


def reply_to(client: BlockingKernelClient, msg_id: str, timeout_s: float = 60) -> dict[str, Any]:
    """The content of the shell reply to ``msg_id``."""
    end = time.monotonic() + timeout_s
    while True:
        message = client.get_shell_msg(timeout=max(0.1, end - time.monotonic()))
        if message["parent_header"].get("msg_id") == msg_id:
            return message["content"]


class World:
    """Everything one test starts."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
        self.splice = Splice()
        self.keepers: list[KeeperProcess] = []
        self.bridges: list[BridgeProcess] = []
        self.clients: list[BlockingKernelClient] = []

    def keeper(self, task: str = "a") -> KeeperProcess:
        keeper = KeeperProcess(self.folder, task, self.splice.loop)
        self.keepers.append(keeper)
        keeper.connect()
        return keeper

    def bridge(self, *, own: bool = False) -> BridgeProcess:
        bridge = BridgeProcess(self.folder, self.splice.url, own=own)
        self.bridges.append(bridge)
        return bridge

    def client(self, bridge: BridgeProcess, *, wait: bool = True) -> BlockingKernelClient:
        client = bridge.connect(wait=wait)
        self.clients.append(client)
        return client

    def session(self) -> tuple[KeeperProcess, BridgeProcess, BlockingKernelClient]:
        """One keeper with the session, one bridge, one client that is ready."""
        keeper = self.keeper()
        keeper.adopt()
        self.splice.target = keeper.socket
        bridge = self.bridge()
        return keeper, bridge, self.client(bridge)

    def stop(self) -> None:
        for client in self.clients:
            client.stop_channels()
        for process in (*self.bridges, *self.keepers):
            process.stop()
        self.splice.stop()
        if os.environ.get("ROOST_TEST_KEEP"):
            print("kept", self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    try:
        yield world
    finally:
        world.stop()


@pytest.fixture
def tools() -> Any:
    """The helpers above, for tests (which cannot import this file)."""

    class Tools:
        pass

    tools = Tools()
    tools.until, tools.follow = until, follow  # type: ignore[attr-defined]
    tools.text_of, tools.reply_to = text_of, reply_to  # type: ignore[attr-defined]
    return tools
