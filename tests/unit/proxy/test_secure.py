"""TLS on one accepted connection: bytes both ways, backpressure, both kinds of ends, broken handshakes."""

import asyncio
import gc
import socket
import ssl
import struct
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from roost.proxy import policy
from roost.proxy.secure import Clock, SecureConnection
from roost.proxy.tls import ServerTls, Tickets
from tests.support.certificates import Authority

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


class App(asyncio.Protocol):
    """Echoes; a few first bytes ask for something else."""

    def __init__(self, made: list["App"]) -> None:
        self.transport: Any = None
        self.got = 0
        self.paused = 0
        self.ended = False
        self.lost: list[Exception | None] = []
        self.keep_open = False
        made.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.set_write_buffer_limits(high=128 << 10)

    def data_received(self, data: bytes) -> None:
        assert not self.ended and not self.lost
        self.got += len(data)
        if data.startswith(b"close "):
            self.transport.write(b"x" * int(data[6:]))
            self.transport.close()
            self.transport.write(b"too late")
            self.transport.close()
        elif data.startswith(b"abort"):
            self.transport.abort()
        elif data.startswith(b"keep"):
            self.keep_open = True
        else:
            self.transport.writelines([data[:1], data[1:]])

    def pause_writing(self) -> None:
        self.paused += 1
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def eof_received(self) -> bool:
        self.ended = True
        if self.keep_open:
            asyncio.get_running_loop().call_soon(self.transport.write, b"answer")
            asyncio.get_running_loop().call_soon(self.transport.close)
        return self.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Setup:
    def __init__(self, port: int, apps: list[App], client: ssl.SSLContext) -> None:
        self.port, self.apps, self.context = port, apps, client
        self.writers: list[Writer] = []

    async def client(self) -> tuple[Reader, Writer]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.context, server_hostname="a.example", limit=1 << 20
        )
        self.writers.append(writer)
        return reader, writer


@pytest.fixture(params=["1.2", "1.3"])
def contexts(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ServerTls, ssl.SSLContext]:
    authority = Authority(tmp_path)
    pair = authority.issue("a.example")
    pem = policy.Certificate(certificate=str(pair.certificate), key=str(pair.key))
    client = ssl.create_default_context(cafile=str(authority.file))
    version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[request.param]
    client.minimum_version = client.maximum_version = version
    client.set_alpn_protocols(["http/1.1"])
    return ServerTls("web", policy.Tls(certificates=(pem,)), Tickets(1)), client


@asynccontextmanager
async def secured(contexts: tuple[ServerTls, ssl.SSLContext]) -> AsyncIterator[Setup]:
    apps: list[App] = []
    server = await asyncio.get_running_loop().create_server(
        partial(SecureConnection, contexts[0].context, partial(App, apps)), "127.0.0.1", 0
    )
    async with server:
        setup = Setup(server.sockets[0].getsockname()[1], apps, contexts[1])
        yield setup
        for writer in setup.writers:
            writer.transport.abort()
        await until(lambda: all(app.lost for app in apps))
        assert all(len(app.lost) == 1 for app in apps)
        for _ in range(5):  # transports end in the loop's next turns
            await asyncio.sleep(0)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_bytes_both_ways(contexts: Any) -> None:
    async with secured(contexts) as setup:
        reader, writer = await setup.client()
        for size in (1, 2, 100, 16384, 16385, 100_000, 3_000_000):
            body = bytes(size - 1) + b"z"
            writer.write(body)
            assert await asyncio.wait_for(reader.readexactly(size), 10) == body
        (app,) = setup.apps
        transport = app.transport
        assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert transport.get_extra_info("peername") == writer.get_extra_info("sockname")
        assert transport.get_extra_info("sslcontext") is not None
        assert transport.get_extra_info("peercert") is None
        assert transport.get_protocol() is app and transport.is_reading()
        assert not transport.can_write_eof() and not transport.is_closing()
        with pytest.raises(NotImplementedError):
            transport.write_eof()


async def test_who_does_not_read_is_not_read(contexts: Any) -> None:
    async with secured(contexts) as setup:
        reader, writer = await setup.client()
        writer.transport.pause_reading()
        total = 64 << 20
        sender = asyncio.create_task(send(writer, total))
        await until(lambda: bool(setup.apps and setup.apps[0].paused))
        (app,) = setup.apps
        last = -1
        while last != app.got:
            last = app.got
            await asyncio.sleep(0.1)
        assert app.got < total // 2
        assert app.transport.get_write_buffer_size() < 2 << 20
        writer.transport.resume_reading()
        left = total
        while left:
            left -= len(await asyncio.wait_for(reader.read(1 << 20), 10))
        await sender
        assert app.got == total


async def send(writer: Writer, total: int) -> None:
    for _ in range(total >> 16):
        writer.write(bytes(1 << 16))
        await writer.drain()


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
async def test_all_that_was_written_arrives_before_the_end(contexts: Any, size: int) -> None:
    async with secured(contexts) as setup:
        assert await asyncio.to_thread(read_all, setup, b"close %d" % size) == size
        await until(lambda: setup.apps[0].lost == [None])


def read_all(setup: Setup, request: bytes) -> int:
    """How many bytes come before the end. A plain client: uvloop loses some when its reader is full."""
    got = 0
    with (
        socket.create_connection(("127.0.0.1", setup.port), timeout=10) as raw,
        setup.context.wrap_socket(
            raw, server_hostname="a.example", suppress_ragged_eofs=False
        ) as client,
    ):
        client.sendall(request)
        while data := client.recv(1 << 16):
            got += len(data)
        client.unwrap()
    return got


async def test_a_slow_client_gets_all_of_it(contexts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.proxy.secure.LINGER_S", 0.05)
    monkeypatch.setattr("roost.proxy.secure.STALLS", 1000)  # however busy the machine is
    async with secured(contexts) as setup:
        reader, writer = await setup.client()
        writer.transport.set_read_buffer_limits(high=1 << 16)  # type: ignore[attr-defined]
        size = 12_000_000
        writer.write(b"close %d" % size)
        got = 0
        while data := await asyncio.wait_for(reader.read(600_000), 10):
            got += len(data)
            await asyncio.sleep(0.02)
        assert got == size


async def test_who_takes_nothing_more_is_cut(
    contexts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.proxy.secure.LINGER_S", 0.05)
    async with secured(contexts) as setup:
        _, writer = await setup.client()
        writer.write(b"close 30000000")
        writer.transport.pause_reading()
        await until(lambda: bool(setup.apps and setup.apps[0].lost))


async def test_the_client_ends_first(contexts: Any) -> None:
    async with secured(contexts) as setup:
        reader, writer = await setup.client()
        writer.write(b"x")
        await reader.readexactly(1)
        writer.close()
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
        await until(lambda: setup.apps[0].lost == [None])
        assert setup.apps[0].ended

        reader, writer = await setup.client()
        writer.write(b"abort")
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""

        reader, writer = await setup.client()
        writer.write(b"x")
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await until(lambda: len(setup.apps[2].lost) == 1)


@pytest.mark.parametrize("goodbye", [True, False])
async def test_an_answer_after_the_clients_end(contexts: Any, goodbye: bool) -> None:
    async with secured(contexts) as setup:

        def talk() -> bytes:
            to_us, to_it = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = setup.context.wrap_bio(to_us, to_it, server_hostname="a.example")
            with socket.create_connection(("127.0.0.1", setup.port), timeout=5) as sock:
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        sock.sendall(to_it.read())
                        to_us.write(sock.recv(65536))
                tls.write(b"keep")
                if goodbye:
                    with suppress(ssl.SSLError):
                        tls.unwrap()
                sock.sendall(to_it.read())
                sock.shutdown(socket.SHUT_WR)
                while data := sock.recv(65536):
                    to_us.write(data)
                return tls.read(100)

        assert await asyncio.to_thread(talk) == b"answer"


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"", b"\x16\x03\x01\x00\x05hello", b"\x16"]
)
async def test_no_handshake_no_connection(
    contexts: Any, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr("roost.proxy.secure.HANDSHAKE_S", 0.1)
    async with secured(contexts) as setup:
        reader, writer = await asyncio.open_connection("127.0.0.1", setup.port)
        writer.write(first)
        with suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
        writer.transport.abort()
        assert not setup.apps


async def test_a_broken_record_ends_the_connection(contexts: Any) -> None:
    async with secured(contexts) as setup:
        loop = asyncio.get_running_loop()
        raw, plain = await loop.create_connection(asyncio.Protocol, "127.0.0.1", setup.port)
        reader = asyncio.StreamReader()
        secured_ = await loop.start_tls(
            raw, asyncio.StreamReaderProtocol(reader), setup.context, server_hostname="a.example"
        )
        assert secured_ is not None
        secured_.write(b"x")
        await asyncio.wait_for(reader.readexactly(1), 5)
        raw.write(b"\x17\x03\x03\x00\x20" + b"broken" * 6)
        await until(lambda: bool(setup.apps[0].lost))
        secured_.abort()
        del plain


class Wire:
    """A client without a loop, to see what arrives together."""

    def __init__(self, setup: Setup) -> None:
        self.sock = socket.create_connection(("127.0.0.1", setup.port), timeout=5)
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = setup.context.wrap_bio(self.into, self.out, server_hostname="a.example")
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(self.out.read())
                self.into.write(self.sock.recv(65536))
        self.sock.sendall(self.out.read())

    def ask(self, data: bytes) -> bytes:
        """Send; what one read brings."""
        self.tls.write(data)
        self.sock.sendall(self.out.read())
        self.into.write(self.sock.recv(65536))
        return self.tls.read(65536)

    def tickets(self) -> bool:
        """Whether a session can be resumed by what has come."""
        with suppress(ssl.SSLWantReadError):
            self.tls.read(1)
        session = self.tls.session
        return session is not None and session.has_ticket


async def test_tickets_come_with_the_first_answer(
    contexts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.proxy.secure.TICKET_S", 60.0)
    async with secured(contexts) as setup:

        def talk() -> tuple[bytes, bool]:
            wire = Wire(setup)
            with wire.sock:
                return wire.ask(b"h"), wire.tickets()

        assert await asyncio.to_thread(talk) == (b"h", True)


async def test_tickets_come_without_an_answer_too(contexts: Any) -> None:
    async with secured(contexts) as setup:

        def talk() -> bool:
            wire = Wire(setup)
            with wire.sock:
                if wire.tls.version() == "TLSv1.3":
                    wire.into.write(wire.sock.recv(65536))
                return wire.tickets()

        assert await asyncio.to_thread(talk)


async def test_who_sends_nothing_more_is_not_waited_for(contexts: Any) -> None:
    async with secured(contexts) as setup:

        def last(app: App, data: bytes) -> None:
            app.transport.hold()
            app.transport.write(data)
            app.transport.finish()
            app.transport.finish()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(App, "data_received", last)
            patch.setattr("roost.proxy.secure.TICKET_S", 60.0)

            def talk() -> tuple[bytes, bytes, bytes]:
                wire = Wire(setup)
                with wire.sock:
                    first = wire.ask(b"bye")
                    return first, wire.tls.read(10), wire.sock.recv(10)

            # The answer and the last record in one piece, then the end; nobody said goodbye to us.
            assert await asyncio.to_thread(talk) == (b"bye", b"", b"")
            await until(lambda: setup.apps[0].lost == [None])


async def test_an_ended_connection_is_freed_at_once(contexts: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        async with secured(contexts) as setup:
            reader, writer = await setup.client()
            writer.write(b"x")
            await reader.readexactly(1)
            kept = weakref.ref(setup.apps[0].transport.get_extra_info("ssl_object"))
            writer.transport.abort()
            await until(lambda: bool(setup.apps[0].lost))
            assert setup.apps[0].transport.is_closing()
            setup.apps[0].transport = None
            await until(lambda: kept() is None)
    finally:
        gc.enable()


async def test_many_silent_ones_are_ended_by_one_timer(
    contexts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.proxy.secure.HANDSHAKE_S", 0.2)
    clock = Clock()
    server = await asyncio.get_running_loop().create_server(
        partial(SecureConnection, contexts[0].context, partial(App, []), clock), "127.0.0.1", 0
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
        for reader, writer in silent:
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.transport.abort()
