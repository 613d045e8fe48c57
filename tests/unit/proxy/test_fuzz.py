"""What our parser accepts, httptools (llhttp) reads the same way; nothing makes it fail otherwise."""

from dataclasses import dataclass, field
from itertools import pairwise

import httptools
import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from roost.proxy import framing, policy
from roost.proxy.answers import Answer
from roost.proxy.framing import ChunkedBody, FramingError
from roost.proxy.heads import Origin, read_request
from roost.proxy.plan import Plan
from roost.proxy.protect import Guards
from roost.proxy.responses import ResponseReader
from roost.proxy.routing import RouteSet
from roost.proxy.upstream import Upstreams

ORIGIN = Origin("192.0.2.1")

ODD = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x00", b"\x0b", b"\x7f", b"\xff", b",", b";", b"=",
    b'"', b"chunked", b"Transfer-Encoding", b"Content-Length", b"Host", b"Connection", b"close",
    b"0", b"5", b"a", b"+", b"-", b"0x", b"_", b"HTTP/1.1", b"HTTP/1.0", b"/", b"?", b"*", b"http://b/",
]  # fmt: skip
NAMES = st.sampled_from(
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"X-A", b"Cookie"]
)
VALUES = st.sampled_from(
    [b"a", b"5", b"0", b"chunked", b"close", b"keep-alive", b"upgrade", b"websocket", b"x-a", b"", b"a b"]
)  # fmt: skip
METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE"])
TARGETS = st.sampled_from([b"/", b"/p?q=1", b"*", b"http://b/x", b"/%2e%2e", b"//a", b"/a;b"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A request's head, mostly right, with a few changes anywhere."""
    lines = [
        draw(METHODS) + b" " + draw(TARGETS) + draw(st.sampled_from([b" HTTP/1.1", b" HTTP/1.0"]))
    ]
    lines.append(b"Host: a")
    for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=4)):
        lines.append(name + draw(st.sampled_from([b": ", b":", b":\t"])) + value)
    return _changed(draw, b"\r\n".join(lines) + b"\r\n\r\n")


def _changed(draw: st.DrawFn, data: bytes) -> bytes:
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.sampled_from([0, 0, 1, 2]))
        data = data[:at] + draw(st.sampled_from(ODD)) + data[at + cut :]
    return data


@dataclass
class Heard:
    """What httptools says it read."""

    url: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    complete: int = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete += 1


def _read_by_us(head: bytes) -> framing.Fields | None:
    try:
        end = framing.head_end(head)
        if end != len(head):
            return None
        read_request(head, ORIGIN)
        return framing.split_fields(head[framing.request_line(head)[3] :])
    except FramingError:
        return None


@settings(max_examples=150)
@given(heads())
@example(b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
def test_a_request_head_we_accept_means_the_same_to_httptools(head: bytes) -> None:
    fields = _read_by_us(head)
    assume(fields is not None)
    request = read_request(head, ORIGIN)
    heard = Heard()
    parser = httptools.HttpRequestParser(heard)
    try:
        parser.feed_data(head)
    except httptools.HttpParserInvalidMethodError:
        return  # it knows some methods only
    except httptools.HttpParserUpgrade:
        pass
    assert parser.get_method() == request.method
    assert heard.url == head.split(b" ")[1]
    assert heard.fields == fields
    assert parser.get_http_version() == ("1.1" if request.http11 else "1.0")
    if not request.has_body and not request.upgrade:
        assert heard.complete == 1


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_a_head_an_error_or_too_few(data: bytes, start: int) -> None:
    try:
        end = framing.head_end(data, min(start, len(data)))
        if end >= 0:
            read_request(data[:end], ORIGIN)
    except FramingError:
        pass


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    data = b""
    for piece in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4)):
        extension = draw(st.sampled_from([b"", b"", b";a", b";a=b", b';a="b"']))
        data += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
    data += b"0\r\n" + draw(st.sampled_from([b"", b"", b"X-T: 1\r\n"])) + b"\r\n"
    return _changed(draw, data)


def _decoded(data: bytes, cuts: list[int]) -> tuple[bytes, bytes] | None:
    """The payload and what lies after the body, fed in pieces; None when it is refused or not whole."""
    body = ChunkedBody(decode=True)
    out = rest = b""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for begin, end in pairwise(edges):
            if body.done:
                rest += data[begin:end]
            elif end > begin:
                piece, rest = body.feed(data[begin:end])
                out += piece
    except FramingError:
        return None
    return (out, rest) if body.done else None


@settings(max_examples=200)
@given(chunked(), st.lists(st.integers(0, 400), max_size=4))
def test_a_chunked_body_we_accept_is_the_same_to_httptools(data: bytes, cuts: list[int]) -> None:
    ours = _decoded(data, cuts)
    assert ours == _decoded(data, []), "how the bytes are cut must not matter"
    assume(ours is not None)
    assert ours is not None
    payload, rest = ours
    heard = Heard()
    parser = httptools.HttpRequestParser(heard)
    try:
        parser.feed_data(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + (data[: len(data) - len(rest)] if rest else data)
        )
    except httptools.HttpParserError:
        # RFC 9112 section 7.1.1 lets whitespace stand around an extension; llhttp does not.
        assert b";" in data
        return
    assert heard.body == payload
    assert heard.complete == 1


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    starts = [b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.0 200 OK", b"HTTP/1.1 103 E"]
    lines = [draw(st.sampled_from(starts))]
    for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=3)):
        lines.append(name + b": " + value)
    body = draw(st.sampled_from([b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n"]))
    return _changed(draw, b"\r\n".join(lines) + b"\r\n\r\n" + body)


@settings(max_examples=300)
@given(answers(), st.lists(st.integers(0, 200), max_size=3))
def test_an_answer_we_read_is_the_same_to_httptools(data: bytes, cuts: list[int]) -> None:
    reader = ResponseReader(b"GET", decode=True)
    payload = b""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for begin, end in pairwise(edges):
            for event in reader.feed(data[begin:end]):
                payload += event if isinstance(event, bytes) else b""
    except FramingError:
        return
    if reader.head is None or not reader.done or reader.head.status == 101:
        return
    heard = Heard()
    parser = httptools.HttpResponseParser(heard)
    whole = data[: len(data) - len(reader.rest)] if reader.rest else data
    try:
        parser.feed_data(whole)
    except httptools.HttpParserError as error:
        pytest.fail(f"httptools refuses what we read as whole: {error!r} in {whole!r}")
    assert heard.body == payload


GATEWAY = msgspec.convert(
    {
        "listeners": [{"name": "web", "address": "127.0.0.1:0"}],
        "services": [{"name": "s", "backends": ["h:9"]}],
        "routes": [
            {"name": "exact", "match": {"path": "/a"}, "service": "s"},
            {"name": "prefix", "match": {"prefix": "/a/b"}, "service": "s"},
            {"name": "pattern", "match": {"pattern": "/(x|y)+/z"}, "service": "s"},
            {"name": "query", "match": {"query": {"q": "1"}}, "service": "s"},
            {
                "name": "host",
                "match": {"hosts": ["*.example.org"]},
                "redirect": {"path": "/{path}"},
            },
            {
                "name": "strip",
                "match": {"prefix": "/s"},
                "rewrite": {"strip_prefix": "/s"},
                "service": "s",
            },
        ],
    },
    policy.Gateway,
)
PATHS = st.lists(
    st.sampled_from(
        [
            "/",
            "a",
            "b",
            "s",
            "x",
            "%2f",
            "%2e",
            "..",
            ".",
            ";",
            "?",
            "q=1",
            "&",
            "%",
            "%00",
            "//",
            "%5c",
            "é",
        ]
    ),
    max_size=12,
).map(lambda parts: ("/" + "".join(parts)).encode())


@settings(max_examples=300)
@given(PATHS, st.sampled_from([b"a", b"x.example.org", b"X.EXAMPLE.org:80", b"[::1]:1"]))
def test_the_router_decides_every_request_that_is_read(target: bytes, host: bytes) -> None:
    guards = Guards(now=lambda: 0.0, unix_s=lambda: 0.0)
    routes = RouteSet(GATEWAY, "web", {"s": Upstreams(GATEWAY.services[0])}, guards)
    try:
        request = read_request(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host), ORIGIN)
    except FramingError:
        return
    first = routes.decide(request)
    assert isinstance(first, Plan | Answer)
    again = routes.decide(request)
    assert type(again) is type(first), "a memoised decision is the same one"
    if isinstance(first, Plan) and isinstance(again, Plan):
        assert again.name == first.name
