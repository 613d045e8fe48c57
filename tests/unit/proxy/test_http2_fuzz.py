"""HTTP/2 in front, fed with anything: it never raises, never leaks, and no value becomes a line."""

import asyncio
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roost.proxy.answers import Answer
from roost.proxy.framing import split_fields
from roost.proxy.front import Proxy
from roost.proxy.heads import Request
from roost.proxy.http2 import Http2Front
from roost.proxy.http2_heads import Malformed, request_head, trailer_lines
from roost.proxy.http2_reply import ReplyReader

NAMES = st.one_of(
    st.sampled_from(
        b":method :path :scheme :authority host cookie content-length te connection x-one".split()
    ),
    st.sampled_from([b"transfer-encoding", b"X-Upper", b"", b"a b", b"a\r\nb"]),
    st.binary(max_size=6),
)
VALUES = st.one_of(
    st.sampled_from(
        [b"GET", b"/", b"https", b"localhost", b"4", b"a\r\nb: c", b" x", b"", b"\x00"]
    ),
    st.binary(max_size=8),
    st.text(alphabet="abc:/ \t\r\n,;=", max_size=8).map(str.encode),
)
GOOD = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"localhost"),
    (b":path", b"/"),
]
FIELDS = st.one_of(
    st.lists(st.tuples(NAMES, VALUES), max_size=8),
    st.lists(st.tuples(NAMES, VALUES), max_size=4).map(lambda more: GOOD + more),
)


@given(FIELDS, st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_head_has_the_lines_it_was_given(fields: list[tuple[bytes, bytes]], ended: bool) -> None:
    """What is accepted reads back, strictly, as the same fields: nothing was smuggled in."""
    try:
        method, head, chunked = request_head(fields, ended=ended)
    except Malformed:
        return
    line, _, block = head.partition(b"\r\n")
    given_ = dict(fields)
    assert line == method + b" " + given_[b":path"] + b" HTTP/1.1"
    lines = split_fields(block)
    expected = [f for f in fields if f[0][:1] != b":" and f[0] not in (b"host", b"cookie")]
    cookies = [value for name, value in fields if name == b"cookie" and value]
    rest = [f for f in lines if f[0] not in (b"host", b"cookie")]
    added = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"0")
    assert rest in (expected, [*expected, added])
    assert [v for n, v in lines if n == b"cookie"] == ([b"; ".join(cookies)] if cookies else [])
    assert [v for n, v in lines if n == b"host"] == [given_.get(b":authority", given_.get(b"host"))]


@given(st.lists(st.tuples(NAMES, VALUES), max_size=4))
@settings(max_examples=200, deadline=None)
def test_trailers_have_the_lines_they_were_given(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        lines = trailer_lines(fields)
    except Malformed:
        return
    assert split_fields(lines + b"\r\n") == fields


@given(st.binary(max_size=200), st.sampled_from([b"", b"5\r\nhello\r\n0\r\nx: y\r\n\r\n"]))
@settings(max_examples=200, deadline=None)
def test_replies_do_not_depend_on_how_they_are_cut(noise: bytes, chunked: bytes) -> None:
    body = chunked or b"%x\r\n%b\r\n0\r\n\r\n" % (len(noise) or 1, noise or b".")
    reply = b"HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    whole = ReplyReader(b"GET")
    at_once = whole.feed(reply)
    piecewise = ReplyReader(b"GET")
    pieces = [event for at in range(len(reply)) for event in piecewise.feed(reply[at : at + 1])]
    assert whole.done
    assert piecewise.done
    assert at_once[0] == pieces[0]
    assert b"".join(at_once[1:]) == b"".join(pieces[1:])  # type: ignore[arg-type]
    assert whole.trailers == piecewise.trailers


class Wire(asyncio.Transport):
    """A transport that counts, and blocks when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.sent += len(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Whoever feeds it decides."""

    def resume_reading(self) -> None:
        """As above."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Never full by itself."""

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else default


class Answers:
    def decide(self, request: Request) -> Answer:
        return Answer(200, body=b"." * 5000 if request.path == b"/" else b"")

    async def find(self, request: Request, pool: object) -> Answer:
        raise AssertionError


def preface() -> bytes:
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    return client.data_to_send()


# Literal fields without indexing, names and values short: enough to make requests and nonsense.
def block(fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"\x00%c%b%c%b" % (len(n), n, len(v), v) for n, v in fields)


STREAM_IDS = st.sampled_from([0, 1, 2, 3, 5, 7, 9, 11])
FLAGS = st.lists(st.sampled_from(["END_STREAM", "END_HEADERS"]), max_size=2, unique=True)
BLOCKS = st.one_of(FIELDS.map(block), st.just(block(GOOD)), st.binary(max_size=20))
FRAMES = st.one_of(
    st.builds(lambda i, d, f: HeadersFrame(i or 1, d, flags=f), STREAM_IDS, BLOCKS, FLAGS),
    st.builds(
        lambda i: HeadersFrame(i or 1, block(GOOD), flags=["END_HEADERS", "END_STREAM"]), STREAM_IDS
    ),
    st.builds(
        lambda i, d, f: DataFrame(i or 1, d, flags=[x for x in f if x != "END_HEADERS"]),
        STREAM_IDS,
        st.binary(max_size=30),
        FLAGS,
    ),
    st.builds(lambda i, d: ContinuationFrame(i or 1, d, flags=["END_HEADERS"]), STREAM_IDS, BLOCKS),
    st.builds(lambda i: RstStreamFrame(i or 1, error_code=8), STREAM_IDS),
    st.builds(
        lambda i, n: WindowUpdateFrame(i, window_increment=n),
        STREAM_IDS,
        st.sampled_from([1, 100, 65535, (1 << 31) - 1]),
    ),
    st.builds(
        lambda k, v: SettingsFrame(0, settings={k: v}),
        st.sampled_from([1, 2, 3, 4, 5, 6, 8, 99]),
        st.sampled_from([0, 1, 100, 16384, 65535, (1 << 31) - 1]),
    ),
    st.builds(lambda: PingFrame(0, b"roostend")),
    st.builds(lambda: PingFrame(0, b"roostend", flags=["ACK"])),
    st.builds(lambda: GoAwayFrame(0, last_stream_id=0, error_code=0)),
    st.builds(lambda i, d: PriorityFrame(i or 1, depends_on=d), STREAM_IDS, STREAM_IDS),
)


def opening(ends: list[bool]) -> list[bytes]:
    """Good requests on the first streams: what follows happens to them."""
    return [
        HeadersFrame(
            2 * n + 1, block(GOOD), flags=["END_HEADERS", *["END_STREAM"] * end]
        ).serialize()
        for n, end in enumerate(ends)
    ]


def serialised(frame: Frame) -> bytes:
    try:
        return frame.serialize()
    except Exception:
        return b"\x00\x00\x00\x00\x00\x00\x00\x00\x00"


def run_frames(pieces: list[bytes], drain_after: int, blocked: list[bool]) -> None:
    async def main() -> None:
        proxy = Proxy(Answers())
        front, wire = Http2Front(proxy), Wire()
        front.connection_made(wire)
        front.data_received(preface())
        for at, piece in enumerate(pieces):
            if wire.closed:
                break
            if at == drain_after:
                front.drain()
            if blocked[at % len(blocked)]:
                front.pause_writing()
            front.data_received(piece)
            if blocked[at % len(blocked)] and not wire.closed:
                front.resume_writing()
            await asyncio.sleep(0)
        front.connection_lost(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not proxy.clients
        assert not front._streams
        assert not front._ready
        assert wire.sent < 5_000_000

    loop = asyncio.new_event_loop()
    raised: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: raised.append(context))
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert not raised


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@given(
    st.lists(st.booleans(), max_size=6),
    st.lists(FRAMES.map(serialised), max_size=25),
    st.integers(0, 40),
    st.lists(st.booleans(), min_size=1, max_size=4),
)
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_frames_in_any_order(
    ends: list[bool], pieces: list[bytes], drain_after: int, blocked: list[bool]
) -> None:
    run_frames([*opening(ends), *pieces], drain_after, blocked)


@given(st.lists(st.binary(max_size=60), max_size=10))
@settings(max_examples=100, deadline=None)
def test_any_bytes(pieces: list[bytes]) -> None:
    run_frames(pieces, 100, [False])
