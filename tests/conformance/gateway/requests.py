"""Requests that must pass, and what the origin is told: targets, hop-by-hop and forwarding fields, bodies."""

import hashlib

from tests.conformance.gateway.wire import CASES, Case, Lane, Run, check, expect

GET = b"GET /p HTTP/1.1\r\nHost: a\r\n"


def _passes(raw: bytes, method: str, target: str | None, body: bytes) -> Run:
    async def run(lane: Lane) -> None:
        reply = await lane.ask(raw, method=method)
        expect(reply.status == 200 and reply.complete, f"answered {reply.status} {reply.broken}")
        seen = lane.origin.requests[0]
        expect(not seen.faults, seen.faults)
        expect(seen.method == method, f"method {seen.method}")
        expect(target is None or seen.target == target, f"target {seen.target!r}")
        expect(seen.body == body, f"body {seen.body[:50]!r}")

    return run


def passes(
    id: str, raw: bytes, rfc: str = "9112-3", *, target: str | None = "/p", body: bytes = b"",
    level: str = "must",
) -> None:  # fmt: skip
    method = raw.lstrip(b"\r\n").split(b" ")[0].decode()
    CASES.append(Case(f"pass-{id}", rfc, (("", level),), _passes(raw, method, target, body)))


for _method in (
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"PATCH",
    b"OPTIONS",
    b"PROPFIND",
    b"QUERY",
):
    passes(
        f"method-{_method.decode().lower()}",
        _method + b" /p HTTP/1.1\r\nHost: a\r\n\r\n",
        level="may" if _method == b"QUERY" else "must",
    )
passes("method-odd", b"x!#$%&'*+-.^_`|~9 /p HTTP/1.1\r\nHost: a\r\n\r\n", level="may")
for _name, _target in {
    "query": b"/p?a=b&c=d/e?f",
    "encoded": b"/a%2Fb%20c",
    "dots": b"/a/../b/./c",
    "slashes": b"//a///b",
    "brackets": b"/p?a[]=1",
    "bar": b"/p?a|b",
    "quote": b"/p?a='b'",
    "semicolon": b"/p;a=b",
    "tilde": b"/~u",
    "colon": b"/a:b@c",
    "double-encoded": b"/%252e%252e/",
    "encoded-dots": b"/%2e%2e/x",
    "encoded-nul": b"/a%00b",
    "long": b"/" + b"a" * 4000,
}.items():
    passes(
        f"target-{_name}",
        b"GET " + _target + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        target=_target.decode(),
        level="may" if _name in ("encoded-nul", "encoded-dots", "dots", "slashes") else "should",
    )
passes("target-absolute", b"GET http://a/p HTTP/1.1\r\nHost: a\r\n\r\n", "9112-3.2.2")
passes(
    "target-absolute-query",
    b"GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n",
    "9112-3.2.2",
    target="/?x",
    level="should",
)
passes(
    "target-absolute-empty", b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", "9112-3.2.2", target="/"
)
passes(
    "target-absolute-case",
    b"GET HTTP://a/p HTTP/1.1\r\nHost: a\r\n\r\n",
    "9112-3.2.2",
    level="should",
)
passes(
    "target-asterisk",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "9112-3.2.4",
    target="*",
    level="should",
)
passes("crlf-before", b"\r\n" + GET + b"\r\n", "9112-2.2", level="should")
passes("crlf-before-two", b"\r\n\r\n" + GET + b"\r\n", "9112-2.2", level="may")
passes("host-port", b"GET /p HTTP/1.1\r\nHost: a:8080\r\n\r\n", "9112-3.2")
passes("host-ipv6", b"GET /p HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "9112-3.2")
passes("host-case", b"GET /p HTTP/1.1\r\nhOsT: A\r\n\r\n", "9112-3.2")
passes("host-underscore", b"GET /p HTTP/1.1\r\nHost: a_b.c\r\n\r\n", "9112-3.2", level="should")
passes("value-empty", GET + b"X-A:\r\n\r\n", "9110-5.5")
passes("value-tabs", GET + b"X-A:\t b\tc \t\r\n\r\n", "9110-5.5")
passes("value-latin1", GET + b"X-A: caf\xe9\r\n\r\n", "9110-5.5", level="should")
passes("value-long", GET + b"Cookie: " + b"a" * 7000 + b"\r\n\r\n", "9110-5.4", level="should")
passes("name-symbols", GET + b"X!#$%&'*+-.^`|~9: b\r\n\r\n", "9110-5.1", level="should")
passes(
    "fields-80",
    GET + b"".join(b"X-%d: b\r\n" % n for n in range(80)) + b"\r\n",
    "9110-5.4",
    level="should",
)
passes(
    "cl-zeros",
    b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\n\r\nhello",
    "9110-8.6",
    body=b"hello",
    level="may",
)
passes("cl-zero", b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "9110-8.6")
passes(
    "cl-tabs",
    b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length:\t5 \r\n\r\nhello",
    "9112-6.2",
    body=b"hello",
)
passes(
    "get-body", GET + b"Content-Length: 5\r\n\r\nhello", "9110-9.3.1", body=b"hello", level="should"
)
passes(
    "delete-body",
    b"DELETE /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "9110-9.3.5",
    body=b"hello",
)
_TE = b"POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
for _name, _body in {
    "plain": b"5\r\nhello\r\n0\r\n\r\n",
    "two": b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    "zeros": b"00005\r\nhello\r\n000\r\n\r\n",
    "ext": b"5;a=b\r\nhello\r\n0;c\r\n\r\n",
    "ext-quoted": b'5;a="b;c"\r\nhello\r\n0\r\n\r\n',
    "trailer": b"5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
}.items():
    passes(f"chunked-{_name}", _TE + _body, "9112-7.1", body=b"hello")
passes(
    "chunked-hex-case",
    _TE + b"A\r\n0123456789\r\nb\r\n0123456789a\r\n0\r\n\r\n",
    "9112-7.1",
    body=b"01234567890123456789a",
)
passes(
    "chunked-te-case",
    _TE.replace(b"chunked", b"CHUNKED") + b"5\r\nhello\r\n0\r\n\r\n",
    "9112-7",
    body=b"hello",
)


# --- fields: what goes, what stays -------------------------------------------------------------------


def _request_fields(lines: bytes, gone: tuple[str, ...], kept: tuple[tuple[str, str], ...]) -> Run:
    async def run(lane: Lane) -> None:
        reply = await lane.ask(GET + lines + b"\r\n")
        expect(reply.status == 200, f"answered {reply.status}")
        seen = lane.origin.requests[0]
        for name in gone:
            expect(seen.get(name) is None, f"{name}: {seen.get(name)} was passed on")
        for name, value in kept:
            expect(value in seen.all(name), f"{name} is {seen.all(name)}, expected {value!r}")

    return run


def request_fields(
    id: str, lines: bytes, gone: tuple[str, ...] = (), kept: tuple[tuple[str, str], ...] = (),
    *, level: str = "must", rfc: str = "9110-7.6.1",
) -> None:  # fmt: skip
    CASES.append(Case(f"req-{id}", rfc, (("", level),), _request_fields(lines, gone, kept)))


request_fields("hop-keep-alive", b"Keep-Alive: timeout=5\r\n", ("keep-alive",), level="should")
request_fields(
    "hop-proxy-connection",
    b"Proxy-Connection: keep-alive\r\n",
    ("proxy-connection",),
    level="should",
)
request_fields("hop-te", b"TE: gzip\r\nConnection: TE\r\n", ("te",))
request_fields("hop-te-alone", b"TE: gzip\r\n", ("te",), level="should")
request_fields("hop-te-trailers", b"TE: trailers\r\nConnection: TE\r\n", level="may")
request_fields("hop-upgrade-unasked", b"Upgrade: websocket\r\n", ("upgrade",))
request_fields("hop-nominated", b"Connection: X-Private\r\nX-Private: 1\r\n", ("x-private",))
request_fields("hop-nominated-case", b"cOnNeCtIoN: x-PRIVATE\r\nX-Private: 1\r\n", ("x-private",))
request_fields(
    "hop-nominated-list",
    b"Connection: keep-alive, X-A,X-B\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\n",
    ("x-a", "x-b"),
    (("x-c", "3"),),
)
request_fields(
    "hop-nominated-twice",
    b"Connection: X-A\r\nConnection: X-B\r\nX-A: 1\r\nX-B: 2\r\n",
    ("x-a", "x-b"),
)
request_fields("hop-nominated-tabs", b"Connection:\t,X-A\t, ,\r\nX-A: 1\r\n", ("x-a",))
request_fields("hop-nominated-before", b"X-A: 1\r\nConnection: X-A\r\n", ("x-a",))
request_fields("hop-nominated-repeated", b"X-A: 1\r\nX-A: 2\r\nConnection: X-A\r\n", ("x-a",))
request_fields(
    "hop-proxy-authorization",
    b"Proxy-Authorization: Basic x\r\n",
    ("proxy-authorization",),
    level="may",
)
request_fields(
    "hop-http2-settings",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
    ("http2-settings", "upgrade"),
)
request_fields(
    "keep-authorization", b"Authorization: Bearer x\r\n", (), (("authorization", "Bearer x"),)
)
request_fields(
    "keep-cookie", b"Cookie: a=b\r\nCookie: c=d\r\n", (), (("cookie", "a=b"),), rfc="9110-5.3"
)
request_fields("keep-custom", b"X-Custom: some value\r\n", (), (("x-custom", "some value"),))
request_fields(
    "keep-order", b"X-A: 1\r\nX-A: 2\r\n", (), (("x-a", "1"), ("x-a", "2")), rfc="9110-5.3"
)
request_fields(
    "keep-traceparent",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\n",
    (),
    (
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=b"),
    ),
    level="should",
    rfc="w3c",
)
request_fields(
    "keep-accept-encoding", b"Accept-Encoding: gzip\r\n", (), (("accept-encoding", "gzip"),)
)
request_fields(
    "keep-range",
    b'Range: bytes=0-1\r\nIf-None-Match: "x"\r\n',
    (),
    (("range", "bytes=0-1"), ("if-none-match", '"x"')),
)
request_fields("keep-host", b"", (), (("host", "a"),), level="should", rfc="9110-7.2")
for _field in ("Host", "Authorization", "Cookie", "Content-Type", "X-Forwarded-For"):
    # Nominating an end-to-end field to make it vanish is an attack on what stands behind.
    _value = "a" if _field == "Host" else "127.0.0.1" if "-For" in _field else "v"
    request_fields(
        f"nominated-{_field.lower()}",
        f"Connection: {_field}\r\n".encode()
        + (b"" if _field in ("Host", "X-Forwarded-For") else f"{_field}: v\r\n".encode()),
        (),
        ((_field.lower(), _value),) if _field == "Host" else (),
        level="should",
    )


@check("req-nominated-content-length", "must", "9110-7.6.1")
async def _(lane: Lane) -> None:
    await lane.ask(
        b"POST /p HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello"
    )
    for seen in lane.origin.requests:
        expect(seen.body == b"hello", f"the body became {seen.body!r}")


def _forwarding(lines: bytes, name: str, bad: str) -> Run:
    async def run(lane: Lane) -> None:
        await lane.ask(GET + lines + b"\r\n")
        seen = lane.origin.requests[0]
        expect(bad not in (seen.get(name) or ""), f"an untrusted client's {name}: {seen.get(name)}")

    return run


for _name, _line in {
    "x-forwarded-proto": b"X-Forwarded-Proto: https\r\n",
    "x-forwarded-host": b"X-Forwarded-Host: https.example\r\n",
    "x-real-ip": b"X-Real-IP: https\r\n",
    "forwarded": b"Forwarded: for=1.2.3.4;proto=https\r\n",
    "x-forwarded-port": b"X-Forwarded-Port: https\r\n",
}.items():
    CASES.append(
        Case(f"fwd-untrusted-{_name}", "7239-8", (("", "may"),), _forwarding(_line, _name, "https"))
    )


@check("fwd-for-added", "should", "7239-1")
async def _(lane: Lane) -> None:
    await lane.ask(GET + b"\r\n")
    expect(lane.origin.requests[0].get("x-forwarded-for"), "no X-Forwarded-For")


@check("fwd-for-last", "should", "7239-1")
async def _(lane: Lane) -> None:
    await lane.ask(GET + b"X-Forwarded-For: 1.2.3.4\r\n\r\n")
    value = lane.origin.requests[0].get("x-forwarded-for") or ""
    expect(value and not value.endswith("1.2.3.4"), f"the peer must be last: {value}")


@check("fwd-proto-added", "should", "7239-1")
async def _(lane: Lane) -> None:
    await lane.ask(GET + b"\r\n")
    value = lane.origin.requests[0].get("x-forwarded-proto")
    expect(value == "http", f"X-Forwarded-Proto: {value}")


@check("fwd-once", "must", "7239-1")
async def _(lane: Lane) -> None:
    await lane.ask(GET + b"X-Forwarded-Proto: https\r\nX-Forwarded-Proto: https\r\n\r\n")
    seen = lane.origin.requests[0]
    expect(len(seen.all("x-forwarded-proto")) <= 1, f"{seen.all('x-forwarded-proto')}")


@check("fwd-absolute-host", "must", "9112-3.2.2")
async def _(lane: Lane) -> None:
    reply = await lane.ask(b"GET http://b/p HTTP/1.1\r\nHost: a\r\n\r\n")
    for seen in lane.origin.requests:
        expect(seen.all("host") == ["b"], f"Host {seen.all('host')}: the target's host replaces it")
    expect(lane.origin.requests or reply.status in (400, 404, 421), f"answered {reply.status}")


@check("fwd-version", "must", "9110-2.5")
async def _(lane: Lane) -> None:
    await lane.ask(b"GET /p HTTP/1.0\r\nHost: a\r\n\r\n")
    expect(lane.origin.requests[0].version == "HTTP/1.1", lane.origin.requests[0].version)


# --- HTTP/1.0 ----------------------------------------------------------------------------------------


@check("http10-close", "must", "9112-9.3")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(b"GET /p HTTP/1.0\r\nHost: a\r\n\r\n")
    reply = await client.response()
    expect(reply.status == 200 and reply.body == b"ok", f"answered {reply.status}")
    expect(await client.closed(), "the connection stayed open")


@check("http10-no-host", "should", "9112-3.2")
async def _(lane: Lane) -> None:
    reply = await lane.ask(b"GET /p HTTP/1.0\r\n\r\n")
    expect(reply.status == 200, f"answered {reply.status}")
    expect(len(lane.origin.requests[0].all("host")) == 1, "an HTTP/1.1 request needs a Host")


@check("http10-keep-alive", "may", "9112-C.2.2")
async def _(lane: Lane) -> None:
    client = await lane.client()
    for _ in range(2):
        await client.send(b"GET /p HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
        reply = await client.response()
        expect(reply.status == 200 and reply.complete, f"answered {reply.status}")
        expect((reply.get("connection") or "").lower() == "keep-alive", "no Connection: keep-alive")


@check("http10-no-chunks", "must", "9112-7")
async def _(lane: Lane) -> None:
    async def chunked(link, seen):  # type: ignore[no-untyped-def]
        await link.play(
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",)
        )

    lane.origin.script = [chunked]
    client = await lane.client()
    await client.send(b"GET /p HTTP/1.0\r\nHost: a\r\n\r\n")
    reply = await client.response()
    expect(not reply.all("transfer-encoding"), "chunked to an HTTP/1.0 client")
    expect(reply.body == b"hello", f"{reply.body!r}")


@check("http10-no-1xx", "must", "9110-15.2")
async def _(lane: Lane) -> None:
    async def early(link, seen):  # type: ignore[no-untyped-def]
        await link.play(
            (
                b"HTTP/1.1 103 Early Hints\r\n\r\n",
                0.02,
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            )
        )

    lane.origin.script = [early]
    reply = await lane.ask(b"GET /p HTTP/1.0\r\nHost: a\r\n\r\n")
    expect(not reply.interim, "1xx to an HTTP/1.0 client")
    expect(reply.status == 200, f"answered {reply.status}")


# --- bodies ------------------------------------------------------------------------------------------


@check("body-upload-8m", "must", "9112-6")
async def _(lane: Lane) -> None:
    data = bytes(range(256)) * (8 << 12)
    got = hashlib.sha256()
    sizes = [0]

    async def count(link, seen):  # type: ignore[no-untyped-def]
        left = int(seen.get("content-length") or 0)
        while left:
            piece = await link.reader.read(min(left, 1 << 18))
            expect(piece, "cut")
            got.update(piece)
            left -= len(piece)
            sizes[0] += len(piece)
        seen.complete = True
        await link.play((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",))

    lane.origin.early, lane.origin.script = True, [count]
    reply = await lane.ask(
        b"PUT /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data), data
    )
    expect(reply.status == 200, f"answered {reply.status}")
    expect(got.digest() == hashlib.sha256(data).digest(), f"{sizes[0]} bytes, not the same")


@check("body-upload-chunked-2m", "must", "9112-7.1")
async def _(lane: Lane) -> None:
    data = bytes(range(256)) * (2 << 12)
    pieces = b"".join(
        b"%x\r\n%s\r\n" % (1000, data[at : at + 1000]) for at in range(0, 2_000_000, 1000)
    )
    reply = await lane.ask(_TE, pieces + b"0\r\n\r\n")
    expect(reply.status == 200, f"answered {reply.status}")
    expect(lane.origin.requests[0].body == data[:2_000_000], "the body changed")


@check("body-byte-by-byte", "must", "9112-2.2")
async def _(lane: Lane) -> None:
    raw = _TE + b"5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"
    pieces: list[bytes | float] = []
    for at in range(len(raw)):
        pieces += [raw[at : at + 1], 0.001]
    reply = await lane.ask(*pieces)
    expect(reply.status == 200, f"answered {reply.status}")
    expect(lane.origin.requests[0].body == b"hello", f"{lane.origin.requests[0].body!r}")


@check("body-streams-up", "should", "9112-6")
async def _(lane: Lane) -> None:
    client = await lane.client()
    got: list[bytes] = []

    async def first(link, seen):  # type: ignore[no-untyped-def]
        got.append(await link.exactly(5))
        got.append(await link.exactly(5))
        seen.complete = True
        await link.play((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",))

    lane.origin.early, lane.origin.script = True, [first]
    await client.send(b"PUT /p HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
    await lane.origin.arrived()
    await client.send(0.05)
    expect(got == [b"hello"], f"before the rest was sent the origin had {got}")
    await client.send(b"world")
    reply = await client.response()
    expect(reply.status == 200 and got == [b"hello", b"world"], f"{reply.status} {got}")


@check("body-trailers-up", "should", "9110-6.5")
async def _(lane: Lane) -> None:
    await lane.ask(_TE + b"5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n")
    expect(
        b"7" in lane.origin.requests[0].trailers, f"trailers {lane.origin.requests[0].trailers!r}"
    )


@check("body-cut-upload", "must", "9112-8")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(b"PUT /p HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello", 0.05)
    client.reset()
    await client.send(0.15)
    expect(not any(s.complete for s in lane.origin.requests), "a cut body looked complete")


@check("body-cut-chunked-upload", "must", "9112-8")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(_TE + b"5\r\nhello\r\n", 0.05)
    client.writer.write_eof()
    await client.send(0.15)
    expect(not any(s.complete for s in lane.origin.requests), "a cut body looked complete")
