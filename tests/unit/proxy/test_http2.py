"""HTTP/2 in front of a real backend: real TLS sockets, an h2 client that may misbehave, and httpx."""

import asyncio
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from roost.proxy import policy
from roost.proxy.front import Limits
from roost.proxy.http2 import STREAM_WINDOW, STREAMS, Http2Front
from roost.proxy.http2_stream import WRITE_HIGH
from roost.proxy.plan import Finished, Plan
from roost.proxy.server import ProxyServer
from roost.proxy.upstream import Upstreams
from tests.support.certificates import Authority
from tests.support.h2client import H2Client, Pair, Reply

ONE_READ = 256 << 10
"""The most a loop reads at once."""
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    directory = tmp_path_factory.mktemp("h2")
    authority = Authority(directory)
    pair = authority.issue("localhost", "127.0.0.1")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.certificate, pair.key)
    server.set_alpn_protocols(["h2", "http/1.1"])
    return server, authority.file


class Served:
    """A proxy whose TLS port picks by ALPN."""

    def __init__(self, proxy: object, server: ProxyServer, port: int, ca: Path) -> None:
        self.proxy = proxy
        self.server = server
        self.port = port
        self.ca = ca
        self.clients: list[H2Client] = []

    def tls(self, *protocols: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.set_alpn_protocols(list(protocols or ("h2",)))
        return context

    async def client(
        self, *, auto: bool = True, settings: dict[int, int] | None = None
    ) -> H2Client:
        client = H2Client(auto=auto)
        self.clients.append(client)
        await client.connect(self.port, self.tls(), settings)
        return client

    @property
    def fronts(self) -> list[Http2Front]:
        return [c for c in self.proxy.clients if isinstance(c, Http2Front)]


@pytest.fixture
def h2served(contexts: tuple[ssl.SSLContext, Path], proxied: Callable[..., object]) -> object:
    @asynccontextmanager
    async def running(serve: Serve, limits: Limits | None = None) -> AsyncIterator[Served]:
        async with proxied(serve, limits) as setup:
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            server = ProxyServer(setup.proxy)
            await server.listen(sock, tls=contexts[0])
            served = Served(setup.proxy, server, sock.getsockname()[1], contexts[1])
            try:
                yield served
            finally:
                for client in served.clients:
                    await client.close()
                await server.close(drain_s=0)

    return running


async def eventually(true: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not true():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.01)


# --- backends -----------------------------------------------------------------------------------


async def head_of(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    return lines[0], {name.lower(): value for name, value in fields.items()}


async def body_of(reader: asyncio.StreamReader, fields: dict[str, str]) -> AsyncIterator[bytes]:
    if "transfer-encoding" in fields:
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        while line := (await reader.readline()).strip():
            yield b"trailer " + line
        return
    left = int(fields.get("content-length", "0"))
    while left:
        data = await reader.read(min(left, 1 << 16))
        if not data:
            raise ConnectionResetError
        left -= len(data)
        yield data


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the request line, the fields, then the body's bytes as they come."""
    while True:
        line, fields = await head_of(reader)
        seen = "\n".join([line, *(f"{k}: {v}" for k, v in sorted(fields.items()))]).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Echo: yes\r\n\r\n")
        if not line.startswith("HEAD"):
            if "/echo" not in line:
                writer.write(b"%x\r\n%b\r\n" % (len(seen), seen))
            async for data in body_of(reader, fields):
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        await writer.drain()


def answering(answer: bytes, *, close: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, fields = await head_of(reader)
            async for _ in body_of(reader, fields):
                pass
            writer.write(answer)
            await writer.drain()
            if close:
                return

    return serve


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# --- what is passed on --------------------------------------------------------------------------


async def test_httpx_speaks_it(h2served: Callable[..., object]) -> None:
    async with (
        h2served(echo) as served,
        httpx.AsyncClient(http2=True, verify=served.tls()) as client,
    ):
        url = f"https://localhost:{served.port}"
        answer = await client.get(f"{url}/a?b=c", headers={"X-One": "1"})
        assert answer.http_version == "HTTP/2"
        assert answer.headers["x-echo"] == "yes"
        lines = answer.text.split("\n")
        assert lines[0] == "GET /a?b=c HTTP/1.1"
        assert f"host: localhost:{served.port}" in lines
        assert "x-one: 1" in lines
        assert "x-forwarded-proto: https" in lines
        assert "x-forwarded-for: 127.0.0.1" in lines
        posted = await client.post(f"{url}/echo", content=b"x" * 100_000)
        assert posted.content == b"x" * 100_000
        assert (await client.head(url)).status_code == 200


async def test_a_client_without_it_gets_http11(h2served: Callable[..., object]) -> None:
    async with h2served(echo) as served, httpx.AsyncClient(verify=served.tls("http/1.1")) as client:
        answer = await client.get(f"https://localhost:{served.port}/")
        assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")


async def test_cookies_are_joined_and_trace_context_passes(h2served: Callable[..., object]) -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with h2served(echo) as served:
        client = await served.client()
        fields = [
            (b"cookie", b"a=1"),
            (b"cookie", b"b=2"),
            (b"traceparent", trace),
            (b"tracestate", b"vendor=1"),
            (b"x-request-id", b"theirs"),
            (b"te", b"trailers"),
        ]
        reply = await client.reply(client.ask(fields=fields))
        lines = bytes(reply.body).split(b"\n")
        assert b"cookie: a=1; b=2" in lines
        assert b"traceparent: " + trace in lines
        assert b"tracestate: vendor=1" in lines
        assert not [line for line in lines if line.startswith(b"te:")]


async def test_many_streams_at_once(h2served: Callable[..., object]) -> None:
    gate = asyncio.Event()
    waiting = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        line, _ = await head_of(reader)
        waiting += 1
        await gate.wait()
        body = line.split(" ")[1].encode() * 1000
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async with h2served(serve) as served:
        client = await served.client()
        asked = {client.ask(b"/%d" % n): b"/%d" % n for n in range(STREAMS)}
        await eventually(lambda: waiting == STREAMS)
        refused = await client.reply(client.ask(b"/one-too-many"))
        assert refused.reset == ErrorCodes.REFUSED_STREAM
        gate.set()
        for stream_id, path in asked.items():
            reply = await client.reply(stream_id)
            assert (reply.status, reply.reset) == (200, None)
            assert bytes(reply.body) == path * 1000
        assert served.fronts[0].request is None


async def test_big_bodies_both_ways(h2served: Callable[..., object]) -> None:
    data = bytes(range(256)) * (16 << 10)  # 4 MiB
    async with h2served(echo) as served:
        client = await served.client()
        streams = [client.ask(b"/echo", method=b"POST", end=False) for _ in range(2)]
        await asyncio.gather(*(client.upload(stream_id, data) for stream_id in streams))
        for stream_id in streams:
            reply = await client.reply(stream_id)
            assert hashlib.sha256(reply.body).digest() == hashlib.sha256(data).digest()


async def test_interim_answers_and_bodiless_ones(h2served: Callable[..., object]) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
    async with h2served(answering(early)) as served:
        client = await served.client()
        reply = await client.reply(client.ask())
        assert (reply.interim, reply.status, reply.body) == ([103], 204, b"")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    async with h2served(answering(head)) as served:
        client = await served.client()
        reply = await client.reply(client.ask(method=b"HEAD"))
        assert dict(reply.fields)[b"content-length"] == b"1000"
        assert (reply.body, reply.ended) == (b"", True)


@pytest.mark.parametrize("body", [b"2\r\nhi\r\n", b""])
async def test_trailers_pass_both_ways(h2served: Callable[..., object], body: bytes) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + body
        + b"0\r\nGrpc-Status: 0\r\ngrpc-message: fine\r\n\r\n"
    )
    async with h2served(answering(answer)) as served:
        client = await served.client()
        reply = await client.reply(client.ask())
        assert reply.trailers == [(b"grpc-status", b"0"), (b"grpc-message", b"fine")]
    async with h2served(echo) as served:
        client = await served.client()
        stream_id = client.ask(b"/echo", method=b"POST", end=False)
        client.h2.send_data(stream_id, b"body")
        client.h2.send_headers(stream_id, [(b"x-sum", b"1")], end_stream=True)
        client.flush()
        assert (await client.reply(stream_id)).body == b"bodytrailer x-sum: 1"


async def test_a_body_that_ends_with_the_connection(h2served: Callable[..., object]) -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"z" * 50_000
    async with h2served(answering(answer, close=True)) as served:
        client = await served.client()
        reply = await client.reply(client.ask())
        assert (reply.ended, len(reply.body)) == (True, 50_000)
        assert b"connection" not in dict(reply.fields)


async def test_a_cut_answer_is_a_reset(h2served: Callable[..., object]) -> None:
    async with h2served(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", close=True)
    ) as served:
        client = await served.client()
        reply = await client.reply(client.ask())
        assert reply.ended is False
        assert reply.reset == ErrorCodes.INTERNAL_ERROR
        assert not client.closed


async def test_an_answer_before_the_body_is_whole(h2served: Callable[..., object]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read()

    async with h2served(serve) as served:
        client = await served.client()
        stream_id = client.ask(method=b"POST", end=False)
        reply = await client.reply(stream_id)
        assert (reply.status, reply.body) == (403, b"no")
        await client.until(lambda: reply.reset is not None)
        assert reply.reset == ErrorCodes.NO_ERROR


class Seen:
    """An observer and a router of one plan."""

    def __init__(self, port: int) -> None:
        self.records: list[Finished] = []
        service = policy.Service(name="s", backends=(f"127.0.0.1:{port}",))
        self.plan = Plan(name="r", upstreams=Upstreams(service))

    def decide(self, request: object) -> Plan:
        return self.plan

    def done(self, record: Finished) -> None:
        self.records.append(record)


async def test_logs_and_counters_see_every_stream(h2served: Callable[..., object]) -> None:
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + b"." * 500_000
    async with h2served(answering(big)) as served:
        seen = Seen(served.proxy.router.backend.port)
        served.proxy.router = served.proxy.observer = seen
        served.proxy.id_prefix = b"w1-"
        client = await served.client()
        for path in (b"/one", b"/two"):
            reply = await client.reply(client.ask(path, fields=[(b"x-request-id", b"mine")]))
            assert len(reply.body) == 500_000
        await eventually(lambda: len(seen.records) == 2)
        assert [r.target for r in seen.records] == [b"/one", b"/two"]
        for record in seen.records:
            assert (record.status, record.outcome, record.route) == (200, "ok", "r")
            assert record.upstream is seen.plan.upstreams.members[0]
            assert record.bytes_out >= 500_000
            assert record.request_id.startswith(b"w1-")  # theirs is not believed
        stream_id = client.ask(b"/wait")
        client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        client.flush()
        assert (await client.reply(client.ask(b"/three"))).status == 200
        await eventually(lambda: all(m.active == 0 for m in seen.plan.upstreams.members))


# --- backpressure -------------------------------------------------------------------------------


async def test_a_reader_that_stops_stops_the_backend(h2served: Callable[..., object]) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(high=0)
        await head_of(reader)
        size = 64 << 20
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"." * (64 << 10))
            sent += 64 << 10
            await writer.drain()

    async with h2served(serve) as served:
        client = await served.client(auto=False)
        stalled = client.ask()
        await client.until(lambda: len(client.replies[stalled].body) == 65535)
        front = served.fronts[0]
        before = -1
        async with asyncio.timeout(10):
            while sent != before:
                before = sent
                await asyncio.sleep(0.1)
        assert sent < 24 << 20  # what kernel buffers take
        waiting = sum(s.pending for s in front._streams.values())
        assert waiting <= WRITE_HIGH + ONE_READ
        # The connection's window is used up: it is given back, and another stream goes on.
        client.h2.increment_flow_control_window(1 << 20)
        client.h2.increment_flow_control_window(1 << 20, stalled)
        client.flush()
        await client.until(lambda: len(client.replies[stalled].body) >= 1 << 20)


async def test_a_backend_that_stops_stops_the_upload(h2served: Callable[..., object]) -> None:
    gate = asyncio.Event()
    digest = hashlib.sha256()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        _, fields = await head_of(reader)
        await gate.wait()
        async for data in body_of(reader, fields):
            digest.update(data)
        writer.write(OK)
        await writer.drain()

    data = bytes(range(256)) * (64 << 10)  # 16 MiB
    async with h2served(serve) as served:
        client = await served.client()
        fields = [(b"content-length", b"%d" % len(data))]
        stream_id = client.ask(method=b"POST", fields=fields, end=False)
        upload = asyncio.create_task(client.upload(stream_id, data))
        await eventually(lambda: served.fronts and stream_id in served.fronts[0]._streams)
        stream = served.fronts[0]._streams[stream_id]
        await eventually(lambda: not stream.is_reading())
        await client.until(lambda: client.h2.local_flow_control_window(stream_id) == 0)
        assert sum(cost for _, cost in stream._in) <= STREAM_WINDOW
        gate.set()
        await upload
        reply = await client.reply(stream_id)
        assert reply.status == 200
        assert digest.digest() == hashlib.sha256(data).digest()


async def test_a_client_that_takes_nothing_is_given_up(h2served: Callable[..., object]) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"." * 70000
    limits = replace(Limits(), stall_s=0.2)
    async with h2served(answering(answer), limits) as served:
        client = await served.client(auto=False)
        stream_id = client.ask()
        reply = await client.reply(stream_id)  # 65,535 bytes fit its window
        assert (reply.reset, len(reply.body)) == (ErrorCodes.CANCEL, 65535)


async def test_a_cancelled_request_is_cancelled_at_the_backend(
    h2served: Callable[..., object],
) -> None:
    began, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        began.set()
        await reader.read()
        gone.set()

    async with h2served(serve) as served:
        client = await served.client()
        stream_id = client.ask()
        await asyncio.wait_for(began.wait(), 10)
        client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        client.flush()
        await asyncio.wait_for(gone.wait(), 10)
        assert not client.closed
        assert served.fronts[0].request is None


async def test_a_client_that_leaves_takes_its_requests_along(
    h2served: Callable[..., object],
) -> None:
    began, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        began.set()
        await reader.read()
        gone.set()

    async with h2served(serve) as served:
        client = await served.client()
        client.ask()
        await asyncio.wait_for(began.wait(), 10)
        await client.close()
        await asyncio.wait_for(gone.wait(), 10)
        await eventually(lambda: not served.proxy.clients)


# --- what is refused ----------------------------------------------------------------------------

METHOD, SCHEME, HOST, PATH = (
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"localhost"),
    (b":path", b"/"),
)
GOOD = [METHOD, SCHEME, HOST, PATH]
BAD: dict[str, list[Pair]] = {
    "upper case": [*GOOD, (b"X-One", b"1")],
    "empty name": [*GOOD, (b"", b"1")],
    "space in a name": [*GOOD, (b"x one", b"1")],
    "line feed": [*GOOD, (b"x", b"1\nb: 2")],
    "carriage return": [*GOOD, (b"x", b"1\r\nb: 2")],
    "nul": [*GOOD, (b"x", b"1\x002")],
    "leading space": [*GOOD, (b"x", b" 1")],
    "trailing tab": [*GOOD, (b"x", b"1\t")],
    "connection": [*GOOD, (b"connection", b"close")],
    "keep-alive": [*GOOD, (b"keep-alive", b"1")],
    "proxy-connection": [*GOOD, (b"proxy-connection", b"close")],
    "transfer-encoding": [*GOOD, (b"transfer-encoding", b"chunked")],
    "upgrade": [*GOOD, (b"upgrade", b"websocket")],
    "te": [*GOOD, (b"te", b"gzip")],
    "late pseudo": [METHOD, SCHEME, HOST, (b"x", b"1"), PATH],
    "late pseudo after host": [METHOD, SCHEME, (b"host", b"localhost"), PATH],
    "double pseudo": [*GOOD, PATH],
    "unknown pseudo": [*GOOD, (b":odd", b"1")],
    "response pseudo": [*GOOD, (b":status", b"200")],
    "no method": [SCHEME, HOST, PATH],
    "no scheme": [METHOD, HOST, PATH],
    "no path": [METHOD, SCHEME, HOST],
    "empty path": [METHOD, SCHEME, HOST, (b":path", b"")],
    "path with a space": [METHOD, SCHEME, HOST, (b":path", b"/a b")],
    "path with a line end": [METHOD, SCHEME, HOST, (b":path", b"/ HTTP/1.1\r\nx: y")],
    "absolute path": [METHOD, SCHEME, HOST, (b":path", b"http://localhost/")],
    "star": [METHOD, SCHEME, HOST, (b":path", b"*")],
    "method with a space": [(b":method", b"GET /x"), SCHEME, HOST, PATH],
    "authority with a line end": [METHOD, SCHEME, (b":authority", b"a\r\nb: c"), PATH],
    "no authority": [METHOD, SCHEME, PATH],
    "two hosts": [*GOOD, (b"host", b"localhost"), (b"host", b"localhost")],
    "other host": [*GOOD, (b"host", b"elsewhere")],
    "connect": [(b":method", b"CONNECT"), HOST],
    "extended connect": [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GOOD[1:]],
}


@pytest.mark.parametrize("why", list(BAD))
async def test_malformed_requests_reset_their_stream_only(
    h2served: Callable[..., object], why: str
) -> None:
    seen = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        while True:
            await head_of(reader)
            seen += 1
            writer.write(OK)
            await writer.drain()

    async with h2served(serve) as served:
        client = await served.client()
        reply = await client.reply(client.ask(pseudo=BAD[why]))
        assert reply.reset == ErrorCodes.PROTOCOL_ERROR
        assert seen == 0
        assert (await client.reply(client.ask())).body == b"ok"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(b"expect", b"magic")], 417),
        ([(b"x", b"y" * 60_000), (b"z", b"y" * 10_000)], 431),
        ([(b"x-%d" % n, b"1") for n in range(150)], 431),
    ],
)
async def test_what_http11_refuses_is_refused(
    h2served: Callable[..., object], fields: list[Pair], status: int
) -> None:
    async with h2served(echo) as served:
        client = await served.client()
        assert (await client.reply(client.ask(fields=fields))).status == status
        assert (await client.reply(client.ask())).status == 200


@pytest.mark.parametrize("length", [b"3", b"5", b"x", b"-1", b"+4", b"4, 4"])
async def test_a_length_that_lies_is_refused(
    h2served: Callable[..., object], length: bytes
) -> None:
    """Never a whole request at the backend: the h2 library ends the connection, or the stream is reset."""
    whole = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal whole
        _, fields = await head_of(reader)
        async for _ in body_of(reader, fields):
            pass
        whole += length not in (b"3", b"5")
        writer.write(OK)
        await writer.drain()

    async with h2served(serve) as served:
        client = await served.client()
        stream_id = client.ask(method=b"POST", fields=[(b"content-length", length)], end=False)
        client.raw(DataFrame(stream_id, b"four", flags=["END_STREAM"]).serialize())
        reply = await client.reply(stream_id)
        assert not reply.ended
        assert whole == 0


async def test_streams_are_no_connections(h2served: Callable[..., object]) -> None:
    """A bound on connections counts the one they share."""
    gate = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        await gate.wait()
        writer.write(OK)
        await writer.drain()

    limits = replace(Limits(), connections_per_client=1)
    async with h2served(serve, limits) as served:
        client = await served.client()
        asked = [client.ask() for _ in range(5)]
        await eventually(lambda: served.proxy.busy == 6)
        second = await served.client()
        await second.until(lambda: second.closed)
        gate.set()
        for stream_id in asked:
            assert (await client.reply(stream_id)).status == 200
        await client.close()
        await eventually(lambda: not served.proxy.per_client)
        third = await served.client()
        assert (await third.reply(third.ask())).status == 200


# --- floods -------------------------------------------------------------------------------------


def flood_resets(client: H2Client, n: int) -> None:
    stream_id = client.ask()
    client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
    client.flush()


def flood_bad_requests(client: H2Client, n: int) -> None:
    client.ask(pseudo=BAD["upper case"])


def flood_pings(client: H2Client, n: int) -> None:
    client.raw(PingFrame(0, b"12345678").serialize())


def flood_settings(client: H2Client, n: int) -> None:
    client.raw(SettingsFrame(0, settings={4: 65535 + n % 2}).serialize())


def flood_empty_data(client: H2Client, n: int) -> None:
    stream_id = next(iter(client.replies)) if client.replies else client.ask(b"/wait", end=False)
    client.raw(DataFrame(stream_id, b"").serialize())


def flood_windows(client: H2Client, n: int) -> None:
    client.raw(WindowUpdateFrame(0, window_increment=1).serialize())


@pytest.mark.parametrize(
    "flood",
    [
        flood_resets,
        flood_bad_requests,
        flood_pings,
        flood_settings,
        flood_empty_data,
        flood_windows,
    ],
)
async def test_floods_end_the_connection(
    h2served: Callable[..., object], flood: Callable[[H2Client, int], None]
) -> None:
    begun = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        begun += 1
        await reader.read()

    async with h2served(serve) as served:
        client = await served.client()
        for n in range(3000):
            if client.closed:
                break
            flood(client, n)
            if n % 100 == 99:
                await asyncio.sleep(0)
        await client.until(lambda: client.closed)
        assert [code for code, _ in client.goaways] == [ErrorCodes.ENHANCE_YOUR_CALM]
        assert begun <= 220
        await eventually(lambda: not served.fronts)


async def test_a_flood_of_continuations_ends_the_connection(
    h2served: Callable[..., object],
) -> None:
    async with h2served(echo) as served:
        client = await served.client()
        client.raw(HeadersFrame(1, b"").serialize())
        for _ in range(200):
            client.raw(ContinuationFrame(1, b"\x00\x01a\x01b" * 1000).serialize())
        await client.until(lambda: client.closed)


async def test_a_header_bomb_ends_the_connection(h2served: Callable[..., object]) -> None:
    async with h2served(echo) as served:
        client = await served.client()
        # One table entry of 4,000 bytes, named 200 times.
        block = b"\x40\x01a" + b"\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 200
        client.raw(HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"]).serialize())
        await client.until(lambda: client.closed)
        assert client.goaways[0][0] == ErrorCodes.ENHANCE_YOUR_CALM


async def test_honest_clients_are_no_flood(h2served: Callable[..., object]) -> None:
    """Two hundred requests, a ping and two window updates each, through a small window."""
    async with h2served(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000)
    ) as served:
        client = await served.client(settings={SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        for _ in range(200):
            client.h2.ping(b"12345678")
            reply = await client.reply(client.ask())
            assert len(reply.body) == 3000
        assert not client.closed


async def test_not_http2_after_all(h2served: Callable[..., object]) -> None:
    async with h2served(echo) as served:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.port, ssl=served.tls(), server_hostname="localhost"
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        data = await asyncio.wait_for(reader.read(), 10)
        assert b"HTTP/1.1" not in data
        writer.transport.abort()


# --- time and draining --------------------------------------------------------------------------


async def test_idle_connections_are_told_goodbye(h2served: Callable[..., object]) -> None:
    limits = replace(Limits(), idle_s=0.1)
    async with h2served(answering(OK), limits) as served:
        client = await served.client()
        stream_id = client.ask()
        assert (await client.reply(stream_id)).status == 200
        await client.until(lambda: client.closed)
        assert client.goaways == [(ErrorCodes.NO_ERROR, stream_id)]


async def test_silence_from_the_start_is_ended(h2served: Callable[..., object]) -> None:
    async with h2served(echo, replace(Limits(), head_s=0.1)) as served:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.port, ssl=served.tls(), server_hostname="localhost"
        )
        await asyncio.wait_for(reader.read(), 10)
        writer.transport.abort()


async def test_draining_lets_requests_in_flight_end(h2served: Callable[..., object]) -> None:
    began, gate = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        began.set()
        await gate.wait()
        writer.write(OK)
        await writer.drain()

    async with h2served(serve) as served:
        client = await served.client()
        stream_id = client.ask()
        await asyncio.wait_for(began.wait(), 10)
        closing = asyncio.create_task(served.server.close(drain_s=10))
        await client.until(lambda: len(client.goaways) == 2)
        assert client.goaways == [(0, (1 << 31) - 1), (0, stream_id)]
        late = await client.reply(client.ask())
        assert late.reset == ErrorCodes.REFUSED_STREAM
        gate.set()
        reply = await client.reply(stream_id)
        assert (reply.status, reply.body) == (200, b"ok")
        await client.until(lambda: client.closed)
        await asyncio.wait_for(closing, 10)


async def test_a_clients_goodbye_does_not_cost_it_its_answers(
    h2served: Callable[..., object],
) -> None:
    began, gate = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        began.set()
        await gate.wait()
        writer.write(OK)
        await writer.drain()

    async with h2served(serve) as served:
        client = await served.client()
        stream_id = client.ask()
        await asyncio.wait_for(began.wait(), 10)
        client.raw(b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + bytes(8))
        gate.set()
        reply: Reply = await client.reply(stream_id)
        assert (reply.status, reply.body) == (200, b"ok")
