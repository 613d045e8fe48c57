"""A control side and agents on real sockets, with fakes only where ports are."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from roost.adapters.link.control import ControlLink, Ticket
from roost.adapters.link.identity import Identity
from roost.adapters.link.outbox import Outbox
from roost.adapters.link.server import LinkServer, Tls
from roost.kit.ids import SystemIds
from roost.ports import wire
from roost.ports.errors import Denied
from roost.ports.values import HostReport

SECRET = b"data-secret"


class WallClock:
    """Time as it is."""

    def now_s(self) -> float:
        import time

        return time.time()

    def monotonic_s(self) -> float:
        import time

        return time.monotonic()


class Book:
    """A join book in memory."""

    def __init__(self, *tokens: str) -> None:
        self.tokens: dict[str, bytes | None] = dict.fromkeys(tokens)

    async def admit(self, host_id: str, join_token: str, public_key: bytes) -> None:
        if join_token not in self.tokens:
            raise Denied("unknown join token", hint="launch the host again")
        if self.tokens[join_token] not in (None, public_key):
            raise Denied("this join token was used by another key")
        self.tokens[join_token] = public_key


def listener(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


class Control:
    """One life of the control side."""

    def __init__(self, server: LinkServer, address: str) -> None:
        self.server = server
        self.address = address
        self.events: list[tuple[str, wire.EventBody]] = []
        self.changes: list[str] = []
        server.subscribe(lambda h, e: self.events.append((h, e)), self.changes.append)


@asynccontextmanager
async def control(
    book: Book,
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    data: tuple[str, ...] = (),
    tls: Tls | None = None,
    silence_s: float = 5.0,
    handshake_s: float = 5.0,
    patience_s: float = 5.0,
    heartbeat_s: float = 0.1,
) -> AsyncIterator[Control]:
    server = LinkServer(
        clock=WallClock(),
        ids=SystemIds(),
        book=book,
        data_secret=SECRET,
        data_addresses=lambda: data,
        tls=tls,
        heartbeat_s=heartbeat_s,
        silence_s=silence_s,
        handshake_s=handshake_s,
        patience_s=patience_s,
    )
    sock = listener(host, port)
    address = f"{host}:{sock.getsockname()[1]}"
    await server.serve(sock)
    try:
        yield Control(server, address)
    finally:
        await server.close()


async def echo(command: wire.Command) -> wire.ReplyBody:
    return wire.Done()


class Agent:
    """The agent's end, with handlers of the test."""

    def __init__(
        self,
        address: str,
        folder: Path,
        *,
        host_id: str = "h-1",
        ticket: str = "join",
        handle: Callable[[wire.Command], Awaitable[wire.ReplyBody]] = echo,
        first_seq: int = 0,
    ) -> None:
        self.welcomes: list[wire.Welcome] = []
        self.ready = False
        self.reports = 0
        self.host_id = host_id
        self.link = ControlLink(
            address=address,
            ticket=Ticket(host_id, ticket, Identity.load(folder)),
            outbox=Outbox(folder / "outbox", first_seq=first_seq),
            clock=WallClock(),
            draw=random.random,
            handle=handle,
            report=self.report,
            on_welcome=self.welcomes.append,
        )

    def report(self) -> HostReport:
        self.reports += 1
        return HostReport(host_id=self.host_id, at_s=1.0, ready=self.ready)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Agent"]:
        task = asyncio.create_task(self.link.run())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class Cuttable:
    """A TCP relay that can cut its connections: the network between agent and control."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.address = ""
        self.open = True

    async def start(self) -> None:
        sock = listener()
        self.address = f"127.0.0.1:{sock.getsockname()[1]}"
        self._server = await asyncio.start_server(self._accept, sock=sock)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if not self.open:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, far_writer]

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


async def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Poll with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions are plain values
            await asyncio.sleep(0.005)


@contextmanager
def no_more(seconds: float) -> Iterator[None]:
    """The block must end within this time."""
    clock = WallClock()
    before = clock.monotonic_s()
    yield
    assert clock.monotonic_s() - before < seconds
