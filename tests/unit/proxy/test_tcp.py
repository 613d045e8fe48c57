"""TCP routes on real sockets: retry elsewhere, limits, half-close, PROXY headers, TLS, silence."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from roost.proxy import policy
from roost.proxy.plan import Finished
from roost.proxy.proxy_protocol import Address, ProxiedConnection, render
from roost.proxy.tcp import TcpRoute
from roost.proxy.tls import ServerTls, Tickets, origin_context
from roost.proxy.tunnel import Tunnel
from roost.proxy.upstream import Upstreams
from tests.support.certificates import Authority

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Talk = Callable[[Reader, Writer], Awaitable[None]]


class Seen:
    def __init__(self) -> None:
        self.records: list[Finished] = []

    def done(self, record: Finished) -> None:
        self.records.append(record)


@asynccontextmanager
async def backend(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def guarded(reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()
        tasks.discard(task)

    server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Setup:
    def __init__(self, route: TcpRoute, port: int, tunnels: set[Tunnel], seen: Seen) -> None:
        self.route, self.port, self.tunnels, self.seen = route, port, tunnels, seen
        self.writers: list[Writer] = []

    async def client(self) -> tuple[Reader, Writer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer


@asynccontextmanager
async def routed(
    service: policy.Service,
    *,
    limits: policy.ClientLimits | None = None,
    idle_s: float = 60.0,
    tls: ssl.SSLContext | None = None,
    proxied: bool = False,
) -> AsyncIterator[Setup]:
    tunnels: set[Tunnel] = set()
    seen = Seen()
    upstreams = Upstreams(service, contexts=origin_context)
    route = TcpRoute("tcp", upstreams, tunnels=tunnels, limits=limits, idle_s=idle_s, observer=seen)

    def front() -> asyncio.Protocol:
        return ProxiedConnection(route.connection) if proxied else route.connection()

    server = await asyncio.get_running_loop().create_server(front, "127.0.0.1", 0, ssl=tls)
    async with server:
        setup = Setup(route, server.sockets[0].getsockname()[1], tunnels, seen)
        try:
            yield setup
        finally:
            for writer in setup.writers:
                writer.transport.abort()
            for tunnel in list(tunnels):
                tunnel.abort()
            await until(lambda: not tunnels)
            for _ in range(5):  # transports end in the loop's next turns
                await asyncio.sleep(0)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"bye")
    writer.write_eof()
    await writer.drain()


async def greet(reader: Reader, writer: Writer) -> None:
    """The server speaks first."""
    writer.write(b"220 ready\n")
    writer.write(b"got " + await reader.readline())
    await writer.drain()
    await reader.read()


def refusing() -> int:
    """A port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def service(*ports: int, **settings: object) -> policy.Service:
    backends = tuple(f"127.0.0.1:{port}" for port in ports)
    return policy.Service(name="s", backends=backends, **settings)  # type: ignore[arg-type]


async def test_bytes_both_ways_half_close_and_accounts() -> None:
    async with backend(echo) as port, routed(service(port)) as setup:
        reader, writer = await setup.client()
        body = b"x" * 3_000_000
        writer.write(body)
        assert await asyncio.wait_for(reader.readexactly(len(body)), 10) == body
        (upstream,) = setup.route.upstreams.members
        assert upstream.active == 1 and upstream.served == 1
        assert next(iter(setup.tunnels)).owner is upstream
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b"bye"
        await until(lambda: not setup.tunnels)
        assert upstream.active == 0 and upstream.state == "ready"
        (record,) = setup.seen.records
        assert (record.bytes_in, record.bytes_out) == (len(body), len(body) + 3)
        assert (record.status, record.outcome, record.client) == (200, "ok", "127.0.0.1")
        assert record.upstream is upstream and record.route == "tcp"


async def test_a_server_that_speaks_first() -> None:
    async with backend(greet) as port, routed(service(port)) as setup:
        for _ in range(5):
            reader, writer = await setup.client()
            assert await asyncio.wait_for(reader.readline(), 5) == b"220 ready\n"
            writer.write(b"helo\n")
            assert await asyncio.wait_for(reader.readline(), 5) == b"got helo\n"


async def test_a_refusal_goes_to_another_backend() -> None:
    async with backend(greet) as port:
        dead = [refusing(), refusing()]
        async with routed(service(*dead, port, balance="round-robin")) as setup:
            for _ in range(6):
                reader, _ = await setup.client()
                assert await asyncio.wait_for(reader.readline(), 5) == b"220 ready\n"
            states = {member.address: member for member in setup.route.upstreams.members}
            assert sum(states[f"127.0.0.1:{it}"].failures for it in dead) >= 1
            assert states[f"127.0.0.1:{port}"].active == 6


def resetting(writer: Writer) -> None:
    """Have its end be a reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def closed(reader: Reader) -> None:
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_nobody_there_is_a_closed_connection() -> None:
    async with routed(service(refusing(), refusing())) as setup:
        reader, _ = await setup.client()
        await closed(reader)
        await until(lambda: len(setup.seen.records) == 1)
        record = setup.seen.records[0]
        assert (record.status, record.refused) == (503, "no backend could be reached")
        assert record.retries == 1
        assert all(member.active == 0 for member in setup.route.upstreams.members)
    async with routed(service()) as setup:
        reader, _ = await setup.client()
        await closed(reader)


async def test_limits() -> None:
    limits = policy.ClientLimits(connections=10, connections_per_client=2)
    async with backend(greet) as port, routed(service(port), limits=limits) as setup:
        held = [await setup.client() for _ in range(2)]
        for reader, _ in held:
            assert await asyncio.wait_for(reader.readline(), 5) == b"220 ready\n"
        reader, _ = await setup.client()
        await closed(reader)
        assert setup.seen.records[0].refused == "too many connections"
        held[0][1].transport.abort()
        await until(lambda: len(setup.tunnels) == 1)
        reader, _ = await setup.client()
        assert await asyncio.wait_for(reader.readline(), 5) == b"220 ready\n"


@pytest.mark.parametrize("reset", [True, False])
async def test_waiting_for_a_slot_and_leaving_the_line(
    monkeypatch: pytest.MonkeyPatch, reset: bool
) -> None:
    monkeypatch.setattr("roost.proxy.tcp.GONE_S", 0.05)
    async with backend(greet) as port:
        spec = policy.BackendSpec(address=f"127.0.0.1:{port}", slots=1)
        full = policy.Service(name="s", backends=(spec,))
        async with routed(full) as setup:
            first_reader, first = await setup.client()
            assert await asyncio.wait_for(first_reader.readline(), 5) == b"220 ready\n"
            _, leaver = await setup.client()
            second, _ = await setup.client()
            await until(lambda: len(setup.route.upstreams.line) == 2)
            if reset:
                resetting(leaver)
            leaver.transport.abort()
            await until(lambda: len(setup.route.upstreams.line) == 1)
            first.transport.abort()
            assert await asyncio.wait_for(second.readline(), 5) == b"220 ready\n"
            await until(lambda: len(setup.seen.records) == 2)
            assert {record.outcome for record in setup.seen.records} == {"ok", "gone"}
            assert setup.route.upstreams.members[0].active == 1


async def test_too_long_a_line_is_a_closed_connection() -> None:
    async with backend(greet) as port:
        spec = policy.BackendSpec(address=f"127.0.0.1:{port}", slots=1)
        breaker = policy.Breaker(max_pending=1, pending_s=0.2)
        async with routed(policy.Service(name="s", backends=(spec,), breaker=breaker)) as setup:
            reader, _ = await setup.client()
            assert await asyncio.wait_for(reader.readline(), 5) == b"220 ready\n"
            second, _ = await setup.client()
            await until(lambda: len(setup.route.upstreams.line) == 1)
            third, _ = await setup.client()
            await closed(third)
            await closed(second)


async def test_silence_ends_a_tunnel_and_bytes_do_not() -> None:
    async with backend(echo) as port, routed(service(port), idle_s=0.4) as setup:
        reader, writer = await setup.client()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while loop.time() - began_s < 0.9:
            writer.write(b"x")
            assert await asyncio.wait_for(reader.readexactly(1), 5) == b"x"
            await asyncio.sleep(0.02)
        await closed(reader)
        await until(lambda: not setup.tunnels)


async def test_a_reset_before_a_byte_is_the_backends_fault_later_it_is_not() -> None:
    async def reset(reader: Reader, writer: Writer) -> None:
        if await reader.readexactly(1) == b"y":
            writer.write(b"something")
            await reader.readexactly(1)
        resetting(writer)
        writer.transport.abort()

    async with backend(reset) as port, routed(service(port)) as setup:
        (upstream,) = setup.route.upstreams.members
        reader, writer = await setup.client()
        writer.write(b"y")
        await asyncio.wait_for(reader.readexactly(9), 5)
        writer.write(b"z")
        await closed(reader)
        await until(lambda: not setup.tunnels)
        assert upstream.failures == 0
        reader, writer = await setup.client()
        writer.write(b"x")
        await closed(reader)
        await until(lambda: not setup.tunnels)
        assert upstream.failures == 1


@pytest.mark.parametrize("version", [1, 2])
async def test_the_backend_is_told_the_client(version: int) -> None:
    async def tell(reader: Reader, writer: Writer) -> None:
        writer.write(await reader.read(100))
        await writer.drain()
        await reader.read()

    async with backend(tell) as port:
        told = service(port, proxy_protocol=version)
        async with routed(told) as setup:
            reader, writer = await setup.client()
            own: Address = writer.get_extra_info("sockname")
            expected = render(version, own, ("127.0.0.1", setup.port))  # type: ignore[arg-type]
            assert await asyncio.wait_for(reader.readexactly(len(expected)), 5) == expected
        async with routed(told, proxied=True) as setup:
            reader, writer = await setup.client()
            writer.write(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
            expected = render(version, ("192.0.2.7", 4711), ("127.0.0.1", setup.port))  # type: ignore[arg-type]
            assert await asyncio.wait_for(reader.readexactly(len(expected)), 5) == expected


async def test_tls_on_both_sides(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("a.example")
    pem = policy.Certificate(certificate=str(pair.certificate), key=str(pair.key))
    server = ServerTls("s", policy.Tls(certificates=(pem,)), Tickets(1), alpn=())
    client = ssl.create_default_context(cafile=str(authority.file))
    origin = policy.TlsOrigin(alpn=(), ca=str(authority.file), server_name="a.example")
    wrong = policy.TlsOrigin(alpn=(), ca=str(authority.file), server_name="b.example")

    async with backend(greet, server.context) as port:
        async with routed(service(port, tls=origin), tls=server.context) as setup:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", setup.port, ssl=client, server_hostname="a.example"
            )
            setup.writers.append(writer)
            assert await asyncio.wait_for(reader.readline(), 5) == b"220 ready\n"
            writer.write(b"helo\n")
            assert await asyncio.wait_for(reader.readline(), 5) == b"got helo\n"
        async with routed(service(port, tls=wrong)) as setup:
            reader, _ = await setup.client()
            await closed(reader)


async def test_the_header_goes_before_the_handshake(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("a.example")
    pem = policy.Certificate(certificate=str(pair.certificate), key=str(pair.key))
    tls = ServerTls("s", policy.Tls(certificates=(pem,)), Tickets(1), alpn=())
    clients: list[Address | None] = []

    class Greeting(asyncio.Protocol):
        def __init__(self, client: Address | None) -> None:
            clients.append(client)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"220 ready\n")  # type: ignore[attr-defined]

    origin = await asyncio.get_running_loop().create_server(
        lambda: ProxiedConnection(Greeting, tls=tls.context), "127.0.0.1", 0
    )
    async with origin:
        port = origin.sockets[0].getsockname()[1]
        secure = policy.TlsOrigin(alpn=(), ca=str(authority.file), server_name="a.example")
        async with routed(service(port, tls=secure, proxy_protocol=2)) as setup:
            reader, writer = await setup.client()
            assert await asyncio.wait_for(reader.readline(), 5) == b"220 ready\n"
            assert clients == [writer.get_extra_info("sockname")]
