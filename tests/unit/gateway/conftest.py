"""An edge in this process: real sockets, a raw agent, routes set by hand."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from roost.adapters.blobs.local import LocalBlobs
from roost.gateway.holding import Waiting
from roost.gateway.model import Route, RouteSnapshot, RouteTable
from roost.gateway.router import EdgeRouter
from roost.gateway.streams import DataHosts, data_credential
from roost.gateway.transfer import BlobTransfer
from roost.kit.ids import SeededIds
from roost.ports import wire
from roost.proxy.front import Limits, Proxy
from roost.proxy.server import ProxyServer

SECRET = b"data secret"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class EdgeSetup:
    """What a test gets."""

    def __init__(self, folder: Path, waiting: Waiting | None, stream_hold_s: float) -> None:
        self.waits: list[str] = []
        self.ups: list[tuple[str, bool]] = []
        ids = SeededIds(1)
        self.router = EdgeRouter(
            ids, waiting=waiting, stream_hold_s=stream_hold_s, on_waiting=self.waits.append
        )
        self.blobs = LocalBlobs(folder / "blobs", sync=False)
        self.hosts = DataHosts(
            SECRET,
            ids,
            BlobTransfer(self.blobs).answer,
            self.router.changed.fire,
            self._host_changed,
        )
        self.router.hosts = self.hosts
        counting = self.router.counting
        self.proxy = Proxy(self.router, Limits(), observer=counting, tally=counting.tally)
        self.router.look_again = self.proxy.look_again
        self.router.abandon = self.proxy.pool.abandon
        self.version = 0
        self.public = self.data = 0
        self.open: list[asyncio.StreamWriter] = []

    def _host_changed(self, host_id: str, up: bool) -> None:
        self.ups.append((host_id, up))
        self.router.host_changed()

    def routes(self, *routes: Route) -> None:
        self.version += 1
        snapshot = RouteSnapshot(version=self.version, routes=routes)
        self.router.replace(RouteTable(snapshot.routes, version=snapshot.version))

    async def dial(self, port: int) -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        self.open.append(writer)
        return reader, writer

    async def data_connection(
        self, host_id: str, purpose: str = "park", credential: str | None = None
    ) -> Stream:
        reader, writer = await self.dial(self.data)
        challenge = await wire.data_to_agent().read(reader)
        assert isinstance(challenge, wire.Challenge)
        shown = data_credential(SECRET, host_id) if credential is None else credential
        hello = wire.DataHello(host_id=host_id, credential=shown, purpose=purpose)
        writer.write(wire.data_to_edge().encode(hello))
        return reader, writer

    async def serve_next(
        self, host_id: str, *, error: wire.OpenFailed | None = None
    ) -> tuple[wire.Open, Stream]:
        """Park one connection, wait until it is opened, answer."""
        reader, writer = await self.data_connection(host_id)
        opened = await wire.data_to_agent().read(reader)
        assert isinstance(opened, wire.Open)
        writer.write(wire.data_to_edge().encode(error or wire.Opened()))
        return opened, (reader, writer)

    async def ask(self, path: str, *lines: str, method: str = "GET") -> tuple[int, bytes, bytes]:
        """Status, head and body of one request."""
        reader, writer = await self.dial(self.public)
        head = (f"{method} {path} HTTP/1.1", "Host: h", *lines, "Connection: close", "", "")
        writer.write("\r\n".join(head).encode())
        answer = await asyncio.wait_for(reader.read(), 15)
        head_, _, body = answer.partition(b"\r\n\r\n")
        return int(head_.split(b" ")[1]), head_, body

    async def stream(self, path: str, token: str = "") -> tuple[int, Stream]:
        reader, writer = await self.dial(self.public)
        lines = [f"GET {path} HTTP/1.1", "Host: h", "Connection: Upgrade", "Upgrade: roost-stream"]
        if token:
            lines.append(f"Authorization: Bearer {token}")
        writer.write("\r\n".join((*lines, "", "")).encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)
        return int(head.split(b" ")[1]), (reader, writer)


def bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


@asynccontextmanager
async def edge_running(
    folder: Path, *, waiting: Waiting | None = None, stream_hold_s: float = 30.0
) -> AsyncIterator[EdgeSetup]:
    setup = EdgeSetup(folder, waiting, stream_hold_s)
    public, data = bound(), bound()
    setup.public, setup.data = public.getsockname()[1], data.getsockname()[1]
    server = ProxyServer(setup.proxy)
    await setup.hosts.listen(data)
    await server.listen(public)
    try:
        yield setup
    finally:
        for writer in setup.open:
            writer.transport.abort()
        setup.hosts.close()
        await server.close(drain_s=0)
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
def edge(tmp_path: Path) -> Callable[..., object]:
    """``async with edge() as setup``."""
    return lambda **options: edge_running(tmp_path, **options)
