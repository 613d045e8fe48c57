"""A proxy in front of a scriptable backend, on real sockets, on both event loops."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from roost.proxy.answers import Answer
from roost.proxy.front import Limits, Proxy
from roost.proxy.heads import Request
from roost.proxy.plan import Stream
from roost.proxy.pool import Backend, BackendConnection, Pool
from roost.proxy.server import ProxyServer


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test runs on the loop of production and on the one used where that has no wheel."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class OneBackend:
    """Everything goes to one place; a failed connect is a 503."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seen: list[Request] = []
        self.found = 0

    def decide(self, request: Request) -> Backend | Answer | None:
        self.seen.append(request)
        if request.path == b"/answer":
            return Answer(200, body=b"own")
        return self.backend

    async def find(self, request: Request, pool: Pool) -> BackendConnection | Stream | Answer:
        self.found += 1
        try:
            return await pool.connect(self.backend)
        except OSError:
            return Answer(503, "down", problem=False, retry_after_s=1)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Setup:
    """What a test gets."""

    def __init__(self, proxy: Proxy, router: OneBackend, port: int) -> None:
        self.proxy = proxy
        self.router = router
        self.port = port
        self.writers: list[asyncio.StreamWriter] = []

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        self.writers.append(writer)
        return reader, writer

    async def ask(self, request: bytes, *, eof: bool = False) -> bytes:
        """Send, then read until the proxy closes."""
        reader, writer = await self.client()
        writer.write(request)
        if eof:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 20)


@asynccontextmanager
async def running(
    serve: Serve, limits: Limits | None = None, *, backend: Backend | None = None
) -> AsyncIterator[Setup]:
    tasks: set[asyncio.Task[None]] = set()
    origins: set[asyncio.StreamWriter] = set()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        origins.add(writer)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            origins.discard(writer)
            writer.close()

    origin = await asyncio.start_server(guarded, "127.0.0.1", 0, limit=1 << 22)
    port = origin.sockets[0].getsockname()[1]
    router = OneBackend(backend or Backend(host="127.0.0.1", port=port))
    proxy = Proxy(router, limits or Limits())
    server = ProxyServer(proxy)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    await server.listen(sock)
    setup = Setup(proxy, router, sock.getsockname()[1])
    try:
        yield setup
    finally:
        for writer in setup.writers:
            writer.transport.abort()
        await server.close(drain_s=0)
        origin.close()
        for writer in list(origins):
            writer.transport.abort()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(5):  # transports end in the loop's next turns
            await asyncio.sleep(0)


@pytest.fixture
def proxied() -> Callable[..., object]:
    """``async with proxied(serve) as setup``."""
    return running
