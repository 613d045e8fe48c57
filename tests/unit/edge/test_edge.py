"""The edge as a process: started, killed, restarted from its file, with the real agent half of the link."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.adapters.link.blobs import LinkedBlobs
from roost.adapters.link.data import DataPool
from roost.client.stream import open_stream
from roost.gateway.model import Host, Route, RouteSnapshot, Unix, default_prefix
from roost.gateway.publisher import Publisher
from roost.gateway.streams import data_credential
from roost.ports import wire
from roost.ports.errors import Denied
from roost.testing.blobs import digest_of

TOKEN = "token"
HASH = hashlib.sha256(TOKEN.encode()).hexdigest()


class Process:
    """One edge process on a state directory."""

    def __init__(self, state: Path, *options: str, fds: tuple[int, ...] = ()) -> None:
        argv = [sys.executable, "-m", "roost.main.edge", "--state", str(state), *options]
        self.process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=fds
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.addresses: dict[str, str] = {}
            self.process.wait(10)
        else:
            self.addresses = json.loads(line)["serving"]

    @property
    def url(self) -> str:
        return f"http://{self.addresses['public']}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(15)
        self.errors = self.process.stderr.read().decode() if self.process.stderr else ""
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return code


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    (folder / "run").mkdir()
    (folder / "data.secret").write_text("the data secret")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def started() -> Iterator[list[Process]]:
    running: list[Process] = []
    yield running
    for process in running:
        if process.process.poll() is None:
            process.stop(signal.SIGKILL)


def kernel(epoch: int = 1) -> Route:
    name = "kernel/s-1"
    return Route(
        name=name,
        prefix=default_prefix(name),
        target=Host(host_id="i-1", service=name),
        epoch=epoch,
        tokens=(HASH,),
    )


def page(path: Path) -> Route:
    return Route(name="n/s-1", prefix="/n/s-1", target=Unix(path=str(path)), epoch=1)


async def hello(path: Path) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, str(path))


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(url)


async def published(publisher: Publisher, snapshot: RouteSnapshot) -> None:
    for _ in range(200):
        if await publisher.publish(snapshot, wait_s=5):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("no edge took the routes")


def agent_pool(process: Process) -> DataPool:
    """An agent's data connections; every service answers what it gets, in capitals."""

    async def open_service(request: wire.Open) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data.upper())
                await writer.drain()

        return serve

    pool = DataPool("i-1", open_service=open_service, draw=lambda: 0.5)
    credential = data_credential(b"the data secret", "i-1")
    pool.welcome((process.addresses["data"],), credential)
    return pool


async def shout(process: Process, text: bytes) -> bytes:
    reader, writer = await open_stream(process.url, "/_roost/kernel/s-1", TOKEN, timeout_s=15)
    writer.write(text)
    got = await asyncio.wait_for(reader.readexactly(len(text)), 10)
    writer.close()
    return got


async def test_routes_streams_and_blobs_through_a_real_edge(
    state: Path, started: list[Process]
) -> None:
    process = await asyncio.to_thread(Process, state)
    started.append(process)
    publisher = Publisher(state / "run")
    publisher.start()
    server = await hello(state / "s")
    snapshot = RouteSnapshot(version=1, routes=(kernel(), page(state / "s")))
    await published(publisher, snapshot)
    assert (await get(f"{process.url}/n/s-1/lab")).text == "hello"
    health = (await get(f"{process.url}/_roost/health")).json()
    assert (health["version"], health["routes"]) == (1, 2)
    pool = agent_pool(process)
    assert await shout(process, b"through the edge") == b"THROUGH THE EDGE"
    assert await shout(process, b"and again") == b"AND AGAIN"
    with pytest.raises(Denied):
        await open_stream(process.url, "/_roost/kernel/s-1", "wrong", timeout_s=5)
    blobs = LinkedBlobs("i-1")
    credential = data_credential(b"the data secret", "i-1")
    blobs.welcome((process.addresses["data"],), credential)
    content = os.urandom(5_000_000)
    await blobs.put(digest_of(content), content)
    assert await blobs.missing([digest_of(content), digest_of(b"no")]) == [digest_of(b"no")]
    assert await blobs.get(digest_of(content)) == content
    assert list((state / "blobs").glob(f"*/{digest_of(content)}"))
    blobs.close()
    await pool.close()
    await publisher.close()
    server.close()
    assert await asyncio.to_thread(process.stop) == 0
    assert not (state / "run" / "edge-0.sock").exists()


async def test_killed_and_started_again_without_control(
    state: Path, started: list[Process]
) -> None:
    """The supervisor keeps the listening sockets; routes come from the file; the agent parks again."""
    public, data = socket.socket(), socket.socket()
    for sock in (public, data):
        sock.bind(("127.0.0.1", 0))
    fds = (public.fileno(), data.fileno())
    options = ("--public-fd", str(fds[0]), "--data-fd", str(fds[1]))
    first = await asyncio.to_thread(lambda: Process(state, *options, fds=fds))
    started.append(first)
    publisher = Publisher(state / "run")
    publisher.start()
    await published(publisher, RouteSnapshot(version=4, routes=(kernel(3),)))
    await publisher.close()  # control is away from here on
    pool = agent_pool(first)
    reader, _writer = await open_stream(first.url, "/_roost/kernel/s-1", TOKEN, timeout_s=15)
    assert await asyncio.to_thread(first.stop, signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 10)
    _writer.close()
    waiting = asyncio.create_task(shout(first, b"queued in the kernel"))  # nobody serves: it waits
    second = await asyncio.to_thread(lambda: Process(state, *options, fds=fds))
    started.append(second)
    assert second.addresses["public"] == first.addresses["public"]
    assert await waiting == b"QUEUED IN THE KERNEL"
    health = (await get(f"{second.url}/_roost/health")).json()
    assert health["version"] == 4
    await pool.close()
    assert await asyncio.to_thread(second.stop) == 0
    public.close()
    data.close()


def test_a_taken_port_is_named(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = Process(state, "--public", f"127.0.0.1:{port}")
        assert process.stop() == 2
        assert f"port {port} on 127.0.0.1 for clients cannot be used" in process.errors
        assert "choose another port" in process.errors
        assert "Traceback" not in process.errors


def test_what_else_stops_it_is_explained(state: Path, started: list[Process]) -> None:
    running = Process(state)
    started.append(running)
    twin = Process(state)
    assert twin.stop() == 2
    assert "runs already" in twin.errors
    assert running.stop() == 0
    bad = Process(state, "--public", "nonsense")
    assert bad.stop() == 2
    assert "write it as host:port" in bad.errors
    (state / "data.secret").unlink()
    lost = Process(state)
    assert lost.stop() == 2
    assert "data.secret cannot be read" in lost.errors
    assert "roost up" in lost.errors


async def test_a_request_in_flight_may_end_when_the_edge_stops(
    state: Path, started: list[Process]
) -> None:
    began = asyncio.Event()
    finish = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        began.set()
        await finish.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(state / "s"))
    content = json.dumps(
        {
            "type": "RouteSnapshot",
            "version": 1,
            "routes": [
                {
                    "name": "n/s-1",
                    "prefix": "/n/s-1",
                    "target": {"type": "Unix", "path": str(state / "s")},
                }
            ],
        }
    )
    (state / "routes.json").write_text(content)
    process = await asyncio.to_thread(Process, state)
    started.append(process)
    request = asyncio.create_task(get(f"{process.url}/n/s-1"))
    await asyncio.wait_for(began.wait(), 10)
    process.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.1)
    finish.set()
    answer = await request
    assert answer.text == "late"
    assert answer.headers["connection"] == "close"
    server.close()
    assert await asyncio.to_thread(process.process.wait, 15) == 0
