"""The strict parser: what is refused, any split gives the same, and httptools never accepts less."""

import contextlib
from itertools import pairwise

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.proxy import framing
from roost.proxy.framing import ChunkedBody, FramingError, LengthBody
from roost.proxy.heads import Origin, read_request
from roost.proxy.responses import ResponseReader, read_response


def head(*lines: str) -> bytes:
    return "\r\n".join((*lines, "", "")).encode("latin-1")


GET = "GET / HTTP/1.1"

REFUSED = [
    (head(GET, "Host: a", "Content-Length: 3", "Transfer-Encoding: chunked"), 400),
    (head(GET, "Host: a", "Content-Length: 3", "Content-Length: 3"), 400),
    (head(GET, "Host: a", "Content-Length: 3, 3"), 400),
    (head(GET, "Host: a", "Content-Length: +3"), 400),
    (head(GET, "Host: a", "Content-Length: 0x3"), 400),
    (head(GET, "Host: a", "Content-Length:"), 400),
    (head(GET, "Host: a", "Content-Length: " + "9" * 30), 400),
    (head(GET, "Host: a", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
    (head(GET, "Host: a", "Transfer-Encoding: gzip, chunked"), 400),
    (head(GET, "Host: a", "Transfer-Encoding: xchunked"), 400),
    (head(GET, "Host: a", "Transfer-Encoding: \x0bchunked"), 400),
    (head("GET / HTTP/1.0", "Transfer-Encoding: chunked"), 400),
    (head(GET, "Host: a", " folded"), 400),
    (head(GET, "Host: a", "X: 1", "\tfolded"), 400),
    (head(GET, "Host : a"), 400),
    (head(GET, "Host: a", "Bad Name: 1"), 400),
    (head(GET, "Host: a", "X: \x00"), 400),
    (head(GET, "Host: a", "X: a\rb"), 400),
    (head(GET, "Host: a", "X: a\nY: b"), 400),
    (head(GET, "Host: a", "novalue"), 400),
    (head(GET, "Host: a", ": empty"), 400),
    (head(GET, "Host: a", "Host: b"), 400),
    (head(GET, "Host: a/b"), 400),
    (head(GET, "Host: a b"), 400),
    (head(GET), 400),
    (head("GET  / HTTP/1.1", "Host: a"), 400),
    (head("GET / HTTP/1.1 ", "Host: a"), 400),
    (head(" GET / HTTP/1.1", "Host: a"), 400),
    (head("GET /\x00 HTTP/1.1", "Host: a"), 400),
    (head("GET /\xe9 HTTP/1.1", "Host: a"), 400),
    (head("GET x HTTP/1.1", "Host: a"), 400),
    (head("GET /", "Host: a"), 400),
    (head("GET / HTTP/2.0", "Host: a"), 505),
    (head("GET / HTTP/0.9", "Host: a"), 505),
    (head("CONNECT a:1 HTTP/1.1", "Host: a"), 501),
    (head("TRACE / HTTP/1.1", "Host: a"), 501),
    (head(GET, "Host: a", "Expect: magic"), 417),
    (head("GET /" + "a" * 20_000 + " HTTP/1.1", "Host: a"), 414),
    (head(GET, "Host: a", *["X: 1"] * 100), 431),
]


def read_whole(raw: bytes) -> None:
    framing.head_end(raw)
    read_request(raw, Origin("1.2.3.4"))


@pytest.mark.parametrize(("bad", "status"), REFUSED)
def test_what_two_parsers_could_read_differently_is_refused(bad: bytes, status: int) -> None:
    with pytest.raises(FramingError) as caught:
        read_whole(bad)
    assert caught.value.status == status
    assert len(caught.value.message) > 5


def test_a_bare_line_feed_is_refused_before_the_head_ends() -> None:
    with pytest.raises(FramingError, match="bare line feed"):
        framing.head_end(b"GET / HTTP/1.1\nHost: a\n\n")


def test_a_head_without_end_is_refused_at_64_kib() -> None:
    assert framing.head_end(b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000) == -1
    with pytest.raises(FramingError) as caught:
        framing.head_end(b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000)
    assert caught.value.status == 431
    with pytest.raises(FramingError):
        framing.head_end(b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7", "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("198.51.100.7:4711, 10.0.0.3:80", "198.51.100.7"),
        ("[2001:db8::1]:80, 10.0.0.3", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("6.6.6.6, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.4, 10.0.0.2", "10.0.0.4"),
        ("", "10.0.0.1"),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_no_proxy_of_ours(
    said: str, client: str
) -> None:
    origin = Origin("10.0.0.1", trusts=lambda address: address.startswith("10."))
    request = read_request(head(GET, "Host: a", f"X-Forwarded-For: {said}"), origin)
    assert request.client == client


def test_a_target_without_end_is_too_long() -> None:
    with pytest.raises(FramingError) as caught:
        framing.head_end(b"GET /" + b"a" * 70_000)
    assert caught.value.status == 414


@pytest.mark.parametrize("name", [b"Trailer", b"Content-Length", b"TE", b"Host"])
def test_what_must_not_come_late_is_refused_in_trailers(name: bytes) -> None:
    with pytest.raises(FramingError, match="in the trailers"):
        framing.ChunkedBody().feed(b"0\r\n" + name + b": x\r\n\r\n")


def test_hop_by_hop_fields_stay_here_and_forwarding_fields_are_ours() -> None:
    request = read_request(
        head(
            "POST /a?b=c HTTP/1.1",
            "Host: h:1",
            "Connection: keep-alive, X-Nominated, Content-Length, Authorization",
            "X-Nominated: gone",
            "Keep-Alive: timeout=5",
            "Proxy-Authorization: x",
            "TE: trailers",
            "Upgrade: websocket",
            "X-Forwarded-For: 6.6.6.6",
            "Forwarded: for=6.6.6.6",
            "content_length: 99",
            "Authorization: Bearer t",
            "Content-Length: 5",
            "Cookie: a=b",
        ),
        Origin("1.2.3.4"),
    )
    assert request.forward().decode().split("\r\n") == [
        "POST /a?b=c HTTP/1.1",
        "Host: h:1",
        "Authorization: Bearer t",
        "Content-Length: 5",
        "Cookie: a=b",
        "X-Forwarded-Host: h:1",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Proto: http",
        "Forwarded: for=1.2.3.4;proto=http",
        "",
        "",
    ]
    assert request.path == b"/a"
    assert not request.closes


def test_an_upgrade_is_passed_on_only_where_it_can_be() -> None:
    lines = ("Host: a", "Connection: Upgrade", "Upgrade: websocket")
    asked = read_request(head(GET, *lines), Origin("c"))
    assert asked.forward().endswith(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert read_request(head("GET / HTTP/1.0", *lines), Origin("c")).upgrade == b""
    assert read_request(head(GET, *lines[:2], "Upgrade: h2c"), Origin("c")).upgrade == b""
    assert read_request(head(GET, *lines, "Content-Length: 1"), Origin("c")).upgrade == b""


def test_absolute_targets_become_paths() -> None:
    assert read_request(head("GET http://x/a?b HTTP/1.1", "Host: a"), Origin("c")).target == b"/a?b"
    assert read_request(head("GET http://x HTTP/1.1", "Host: a"), Origin("c")).target == b"/"
    assert read_request(head("GET http://x?q HTTP/1.1", "Host: a"), Origin("c")).target == b"/?q"


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    ],
)
def test_a_broken_answer_is_a_502(bad: bytes) -> None:
    with pytest.raises(FramingError) as caught:
        read_response(bad)
    assert caught.value.status == 502


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


def encode_chunks(parts: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    out = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts if part)
    return out + b"0\r\n" + trailer + b"\r\n"


@given(
    parts=st.lists(st.binary(max_size=40), max_size=6),
    extension=st.sampled_from([b"", b";a=b", b" ;x"]),
    trailer=st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: 1\r\nB: 2\r\n"]),
    rest=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 500), max_size=12),
    decode=st.booleans(),
)
def test_chunks_end_at_the_same_place_in_any_pieces(
    parts: list[bytes], extension: bytes, trailer: bytes, rest: bytes, cuts: list[int], decode: bool
) -> None:
    wire = encode_chunks(parts, extension, trailer)
    body, out, after = ChunkedBody(decode=decode), b"", b""
    for piece in pieces(wire + rest, cuts):
        if body.done:
            after += piece
            continue
        passed, left = body.feed(piece)
        out += passed
        after += left
    assert body.done
    assert out == (b"".join(parts) if decode else wire)
    assert after == rest


def feed_all(body: ChunkedBody, raw: bytes, step: int) -> None:
    for at in range(0, len(raw), step):
        body.feed(raw[at : at + step])


@pytest.mark.parametrize(
    "bad",
    [
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n",
        b"1\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n",
        b"1;a\nb\r\na\r\n",
        b"1;\x00\r\na\r\n",
        b"1" + b"0" * 16 + b"\r\n",
        b"\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\n Folded: 1\r\n\r\n",
        b"0\r\nA: 1\n\n",
        b"1;" + b"a" * 5000,
    ],
)
def test_bad_chunks_are_refused_in_any_pieces(bad: bytes) -> None:
    for step in (1, 2, 3, len(bad)):
        with pytest.raises(FramingError):
            feed_all(ChunkedBody(), bad, step)


@given(size=st.integers(0, 50), rest=st.binary(max_size=9), cuts=st.lists(st.integers(0, 99)))
def test_a_length_body_ends_where_it_says(size: int, rest: bytes, cuts: list[int]) -> None:
    body, out, after = LengthBody(size), b"", b""
    for piece in pieces(b"x" * size + rest, cuts):
        if body.done:
            after += piece
            continue
        passed, left = body.feed(piece)
        out, after = out + passed, after + left
    assert (out, after) == (b"x" * size, rest)


class Collector:
    """What httptools sees of a request."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


TOKEN = st.text("abcXYZ-_09!", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)


@settings(max_examples=300)
@given(
    target=st.text("/abc?=&%20.", max_size=20).map(lambda t: "/" + t),
    fields=st.lists(st.tuples(TOKEN, VALUE), max_size=8),
    noise=st.one_of(
        st.none(),
        st.tuples(st.integers(0, 400), st.sampled_from([b"\n", b"\r", b" ", b"\x00", b":", b"\t"])),
    ),
)
def test_httptools_reads_every_accepted_head_the_same_way(
    target: str, fields: list[tuple[str, str]], noise: tuple[int, bytes] | None
) -> None:
    lines = [f"GET {target} HTTP/1.1", "Host: a", *(f"X{n}: {v}" for n, v in fields)]
    raw = head(*lines)
    if noise is not None:
        at = noise[0] % len(raw)
        raw = raw[:at] + noise[1] + raw[at:]
    try:
        end = framing.head_end(raw)
        request = read_request(raw[:end], Origin("c")) if end > 0 else None
    except FramingError:
        return
    if request is None:
        return
    seen = Collector()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(raw[:end])
    assert seen.complete
    assert parser.get_method() == request.method
    begin = framing.request_line(raw)[3]
    assert seen.fields == framing.split_fields(raw[begin:end])


@settings(max_examples=200)
@given(garbage=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_garbage_never_crashes_the_parsers(garbage: bytes, cuts: list[int]) -> None:
    for begin in (b"", b"GET / HTTP/1.1\r\nHost: a\r\n", b"HTTP/1.1 200 OK\r\n"):
        raw = begin + garbage
        try:
            end = framing.head_end(raw)
            if end > 0:
                read_request(raw[:end], Origin("c"))
        except FramingError:
            pass
        reader = ResponseReader(b"GET", decode=True)
        with contextlib.suppress(FramingError):
            for piece in pieces(raw, cuts):
                reader.feed(piece)
        with contextlib.suppress(FramingError):
            ChunkedBody().feed(garbage)


def test_a_response_reader_passes_interim_heads_and_finds_the_end() -> None:
    wire = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabcNEXT"
    )
    for step in (1, 7, len(wire)):
        reader = ResponseReader(b"GET", decode=False)
        events: list[object] = []
        for at in range(0, len(wire), step):
            events += reader.feed(wire[at : at + step])
        statuses = [e.status for e in events if not isinstance(e, bytes)]  # type: ignore[attr-defined]
        assert statuses == [100, 103, 200]
        assert b"".join(e for e in events if isinstance(e, bytes)) == b"abc"
        assert reader.done
        assert reader.rest == b"NEXT"


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_answers_without_a_body(method: bytes, status: int) -> None:
    reader = ResponseReader(method, decode=False)
    reader.feed(b"HTTP/1.1 %d X\r\nContent-Length: 10\r\n\r\n" % status)
    assert reader.done
