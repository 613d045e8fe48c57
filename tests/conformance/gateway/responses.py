"""Answers of the origin: fields, bodiless ones, 1xx, malformed ones, truncation, response smuggling."""

# ruff: noqa: E501 - tables of raw bytes and configurations, a line each

import asyncio
import hashlib

from tests.conformance.gateway.wire import (
    CASES,
    CLOSE,
    HALF,
    RESET,
    Case,
    Lane,
    Run,
    check,
    expect,
    say,
)

GET = b"GET /p HTTP/1.1\r\nHost: a\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


def _response_fields(lines: bytes, gone: tuple[str, ...], kept: tuple[tuple[str, str], ...]) -> Run:
    async def run(lane: Lane) -> None:
        lane.origin.script = [say(b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: 2\r\n\r\nok")]
        reply = await lane.ask(GET)
        expect(reply.status == 200 and reply.body == b"ok", f"answered {reply.status}")
        for name in gone:
            expect(not any("zz" in v for v in reply.all(name)), f"{name} was passed on")
        for name, value in kept:
            expect(value in reply.all(name), f"{name} is {reply.all(name)}")

    return run


for _id, _lines, _gone, _kept, _level in (
    ("hop-keep-alive", b"Keep-Alive: timeout=zz\r\n", ("keep-alive",), (), "should"),
    ("hop-proxy-connection", b"Proxy-Connection: zz\r\n", ("proxy-connection",), (), "should"),
    ("hop-nominated", b"Connection: X-A\r\nX-A: zz\r\n", ("x-a",), (), "must"),
    ("hop-nominated-list", b"Connection: keep-alive, X-A ,X-B\r\nX-A: zz\r\nX-B: zz\r\n", ("x-a", "x-b"), (), "must"),
    ("hop-nominated-two", b"Connection: X-A\r\nConnection: X-B\r\nX-A: zz\r\nX-B: zz\r\n", ("x-a", "x-b"), (), "must"),
    ("hop-upgrade", b"Upgrade: zz\r\n", ("upgrade",), (), "should"),
    ("hop-te", b"TE: zz\r\n", ("te",), (), "may"),
    ("keep-custom", b"X-Custom: a b\r\n", (), (("x-custom", "a b"),), "must"),
    ("keep-cookies", b"Set-Cookie: a=b\r\nSet-Cookie: c=d, e\r\n", (), (("set-cookie", "a=b"), ("set-cookie", "c=d, e")), "must"),
    ("keep-cache", b'ETag: "x"\r\nVary: Accept\r\nCache-Control: no-cache\r\n', (), (("etag", '"x"'), ("vary", "Accept"), ("cache-control", "no-cache")), "must"),
    ("keep-location", b"Location: http://b/x\r\n", (), (("location", "http://b/x"),), "should"),
    ("keep-server", b"Server: me\r\n", (), (("server", "me"),), "may"),
    ("keep-date", b"Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n", (), (("date", "Mon, 01 Jan 2024 00:00:00 GMT"),), "should"),
    ("keep-content-type", b"Content-Type: a/b; c=d\r\n", (), (("content-type", "a/b; c=d"),), "must"),
    ("keep-encoding", b"Content-Encoding: gzip\r\n", (), (("content-encoding", "gzip"),), "must"),
    ("keep-auth", b"WWW-Authenticate: Basic\r\n", (), (("www-authenticate", "Basic"),), "must"),
    ("keep-link", b"Link: </a>; rel=b\r\n", (), (("link", "</a>; rel=b"),), "must"),
):  # fmt: skip
    CASES.append(
        Case(f"resp-{_id}", "9110-7.6.1", (("", _level),), _response_fields(_lines, _gone, _kept))
    )


def _status(code: int) -> Run:
    async def run(lane: Lane) -> None:
        lane.origin.script = [say(b"HTTP/1.1 %d Because\r\nContent-Length: 2\r\n\r\nok" % code)]
        reply = await lane.ask(GET)
        expect(
            reply.status == code and reply.body == b"ok",
            f"answered {reply.status} {reply.body[:40]!r}",
        )

    return run


for _code in (200, 201, 206, 301, 400, 401, 403, 404, 418, 429, 500, 501, 599):
    CASES.append(Case(f"status-{_code}", "9110-15", (("", "must"),), _status(_code)))


def _bodiless(method: bytes, answer: bytes, length: str | None, level: str) -> Run:
    async def run(lane: Lane) -> None:
        lane.origin.script = [say(answer)]
        client = await lane.client()
        await client.send(method + b" /p HTTP/1.1\r\nHost: a\r\n\r\n")
        reply = await client.response(method.decode())
        expect(reply.status == int(answer[9:12]), f"answered {reply.status}")
        if length == "none":
            expect(not reply.all("content-length"), "Content-Length on 204/1xx")
            expect(not reply.all("transfer-encoding"), "Transfer-Encoding on 204/1xx")
        elif length is not None:
            expect(
                reply.get("content-length") == length,
                f"Content-Length {reply.get('content-length')}",
            )
        await client.send(NEXT)
        reply = await client.response()
        expect(
            reply.status == 200 and reply.body == b"ok", f"after it: {reply.status} {reply.broken}"
        )

    return run


for _id, _method, _answer, _length, _level in (
    ("head-length", b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", "1234", "should"),
    ("head-chunked", b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None, "must"),
    ("head-nothing", b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", None, "must"),
    ("head-404", b"HEAD", b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n", None, "must"),
    ("204", b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", "none", "must"),
    ("204-length", b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "none", "should"),
    ("204-post", b"POST", b"HTTP/1.1 204 No Content\r\n\r\n", "none", "must"),
    ("304", b"GET", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', None, "must"),
    ("304-length", b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\n\r\n", None, "must"),
    ("304-head", b"HEAD", b"HTTP/1.1 304 Not Modified\r\n\r\n", None, "must"),
    ("205", b"GET", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", None, "must"),
    ("200-zero", b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "0", "must"),
    ("200-chunked-zero", b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None, "must"),
    ("options-zero", b"OPTIONS", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "0", "must"),
):  # fmt: skip
    CASES.append(
        Case(
            f"bodiless-{_id}",
            "9112-6.3",
            (("", _level),),
            _bodiless(_method, _answer, _length, _level),
        )
    )


# --- malformed answers: 502, never something that looks whole ------------------------------------------


def _malformed(steps: tuple[object, ...], payload: bytes | None) -> Run:
    async def run(lane: Lane) -> dict[str, str]:
        lane.origin.script = [say(*steps)]
        client = await lane.client()
        await client.send(GET)
        reply = await client.response(within_s=1.0)
        found: dict[str, str] = {}
        unclean = b"\x00" in reply.raw or b"\n" in reply.raw.replace(b"\r\n", b"")
        lengths = reply.all("content-length")
        if len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
            found["safe"] = f"ambiguous framing reached the client: {lengths}"
        elif lengths and reply.all("transfer-encoding"):
            found["safe"] = "both framings reached the client"
        elif unclean:
            found["safe"] = f"a malformed head reached the client: {reply.raw[:100]!r}"
        elif (
            reply.status == 200 and reply.complete and payload is not None and reply.body != payload
        ):
            found["safe"] = f"it looked whole to the client: {reply.body[:60]!r}"
        if reply.status == 200 and reply.complete:
            found["refused"] = f"passed on as 200 {reply.body[:30]!r}"
        elif reply.status not in (0, 200, 502):
            found["refused"] = f"answered {reply.status}"
        elif reply.broken == "timeout":
            found["refused"] = "the client was left waiting"
        if 0.03 in steps:
            await asyncio.sleep(0.08)  # what came after the answer has arrived by now
        fresh = await lane.client()  # another client must get its own answer
        await fresh.send(NEXT)
        other = await fresh.response(within_s=2)
        if other.body != b"ok" or other.status != 200:
            found["safe"] = f"the next client got {other.status} {other.body[:60]!r}"
        return found

    return run


def malformed(
    id: str,
    *steps: object,
    level: str = "should",
    payload: bytes | None = None,
    rfc: str = "9112-6.3",
) -> None:
    parts = (("safe", "must"), ("refused", level)) if level else (("safe", "must"),)
    CASES.append(Case(f"bad-{id}", rfc, parts, _malformed(steps, payload)))


_H = b"HTTP/1.1 200 OK\r\n"
for _id, _raw in {
    "status-none": b"hello\r\n\r\n",
    "status-0.9": b"<html>hello</html>",
    "status-letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "status-two": b"HTTP/1.1 20 OK\r\n\r\n",
    "status-four": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status-version": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status-zero": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "status-sign": b"HTTP/1.1 +200 OK\r\nContent-Length: 0\r\n\r\n",
    "status-space": b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
    "status-lower": b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status-nul": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "status-cr": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
}.items():
    malformed(_id, _raw, CLOSE, rfc="9112-4")
for _id, _lines in {
    "cl-twice": b"Content-Length: 2\r\nContent-Length: 3\r\n",
    "cl-plus": b"Content-Length: +2\r\n",
    "cl-minus": b"Content-Length: -2\r\n",
    "cl-hex": b"Content-Length: 0x2\r\n",
    "cl-letters": b"Content-Length: two\r\n",
    "cl-list": b"Content-Length: 2, 3\r\n",
    "cl-space": b"Content-Length: 2 2\r\n",
    "cl-huge": b"Content-Length: 99999999999999999999999\r\n",
    "cl-space-name": b"Content-Length : 2\r\n",
    "cl-empty": b"Content-Length:\r\n",
    "te-unknown": b"Transfer-Encoding: cow\r\n",
    "te-xchunked": b"Transfer-Encoding: xchunked\r\n",
    "te-vtab": b"Transfer-Encoding: \x0bchunked\r\n",
    "line-nul": b"X-A: b\x00\r\nContent-Length: 2\r\n",
    "line-nul-name": b"X\x00A: b\r\nContent-Length: 2\r\n",
    "line-cr": b"X-A: b\rc\r\nContent-Length: 2\r\n",
    "line-lf": b"X-A: b\nX-B: c\r\nContent-Length: 2\r\n",
    "line-no-colon": b"X-A\r\nContent-Length: 2\r\n",
    "line-empty-name": b": b\r\nContent-Length: 2\r\n",
    "line-space-name": b"X A: b\r\nContent-Length: 2\r\n",
    "line-fold": b"X-A: b\r\n c\r\nContent-Length: 2\r\n",
    "line-lead-space": b" X-A: b\r\nContent-Length: 2\r\n",
}.items():
    malformed(_id, _H + _lines + b"\r\nok", CLOSE, rfc="9112-5" if _id[0] == "l" else "9112-6.3")
malformed(
    "clte",
    _H + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    CLOSE,
    payload=b"ok",
)
malformed(
    "tecl",
    _H + b"Transfer-Encoding: chunked\r\nContent-Length: 17\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    CLOSE,
    payload=b"ok",
)
malformed(
    "te-twice",
    _H + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    CLOSE,
)
malformed("204-te", b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", CLOSE, level="")
malformed(
    "head-huge",
    _H + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in range(600)) + b"\r\nok",
    CLOSE,
)
malformed("1xx-flood", b"HTTP/1.1 103 E\r\n\r\n" * 3 + b"HTTP/1.1 abc\r\n\r\n", CLOSE)
malformed(
    "101-unasked",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    b"zz",
    CLOSE,
)
# The whole must never be claimed when a part is missing.
_W = b"never whole"
malformed("cut-length", _H + b"Content-Length: 10\r\n\r\nhello", CLOSE, payload=_W, rfc="9112-8")
malformed(
    "cut-length-reset",
    _H + b"Content-Length: 10\r\n\r\nhello",
    0.05,
    RESET,
    payload=_W,
    rfc="9112-8",
)
malformed(
    "cut-length-large",
    _H + b"Content-Length: 300000\r\n\r\n" + b"a" * 200_000,
    CLOSE,
    payload=_W,
    rfc="9112-8",
)
malformed(
    "cut-chunk", _H + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", CLOSE, payload=_W, rfc="9112-8"
)
malformed(
    "cut-between-chunks",
    _H + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    CLOSE,
    payload=_W,
    rfc="9112-8",
)
malformed(
    "cut-last-chunk",
    _H + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    CLOSE,
    payload=_W,
    rfc="9112-8",
)
malformed(
    "cut-chunk-reset",
    _H + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    0.05,
    RESET,
    payload=_W,
    rfc="9112-8",
)
malformed("cut-until-close-reset", _H + b"\r\nhello", 0.05, RESET, payload=_W, rfc="9112-8")
malformed("cut-head", b"HTTP/1.1 200 OK\r\nContent-Le", CLOSE, rfc="9112-8")
malformed("cut-status", b"HTTP/1.1 2", CLOSE, rfc="9112-8")
malformed("cut-after-1xx", b"HTTP/1.1 103 E\r\n\r\n", 0.02, CLOSE, rfc="9112-8")
for _id, _body in {
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "not-hex": b"zz\r\nhello\r\n0\r\n\r\n",
    "empty": b"\r\nhello\r\n0\r\n\r\n",
    "overflow": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "lead-space": b" 5\r\nhello\r\n0\r\n\r\n",
    "no-end": b"5\r\nhello0\r\n\r\n",
    "long": b"5\r\nhelloXX\r\n0\r\n\r\n",
    "ext-lf": b"5;\nhello\r\n0\r\n\r\n",
}.items():
    malformed(
        f"chunk-{_id}",
        _H + b"Transfer-Encoding: chunked\r\n\r\n" + _body,
        CLOSE,
        rfc="9112-7.1",
        payload=_W,
    )
# What follows the answer must never be the next client's.
_EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
for _id, _answer in {
    "length": _H + b"Content-Length: 2\r\n\r\nok",
    "chunked": _H + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "204": b"HTTP/1.1 204 No\r\n\r\n",
    "304": b"HTTP/1.1 304 Not\r\n\r\n",
    "zero": _H + b"Content-Length: 0\r\n\r\n",
}.items():
    malformed(f"extra-{_id}", _answer + _EVIL, level="", rfc="9112-9.2")
    malformed(f"extra-late-{_id}", _answer, 0.03, _EVIL, level="", rfc="9112-9.2")


@check("bad-extra-head", "must", "9112-9.2")
async def _(lane: Lane) -> None:
    lane.origin.script = [say(_H + b"Content-Length: 66\r\n\r\n" + _EVIL)]
    await lane.ask(b"HEAD /p HTTP/1.1\r\nHost: a\r\n\r\n", method="HEAD")
    reply = await lane.ask(NEXT)
    expect(reply.body == b"ok", f"the next client got {reply.body!r}")


# --- bodies -------------------------------------------------------------------------------------------


def _body(answer: tuple[object, ...], want: bytes) -> Run:
    async def run(lane: Lane) -> None:
        lane.origin.script = [say(*answer)]
        reply = await lane.ask(GET)
        expect(reply.status == 200 and reply.complete, f"{reply.status} {reply.broken}")
        expect(reply.body == want, f"{len(reply.body)} bytes {reply.body[:40]!r}")

    return run


for _id, _steps in {
    "length": (_H + b"Content-Length: 5\r\n\r\nhello",),
    "length-split": (_H[:9], 0.01, _H[9:] + b"Content-Le", 0.01, b"ngth: 5\r\n\r", 0.01, b"\nhe", 0.01, b"llo"),
    "chunked": (_H + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",),
    "chunked-split": (_H + b"Transfer-Encoding: chunked\r\n\r\n5", 0.01, b"\r", 0.01, b"\nhe", 0.01, b"llo\r", 0.01, b"\n0\r\n", 0.01, b"\r\n"),
    "chunked-case": (_H + b"transfer-encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",),
    "chunked-ext": (_H + b'Transfer-Encoding: chunked\r\n\r\n5;a="b"\r\nhello\r\n0\r\n\r\n',),
    "until-close": (_H + b"\r\nhello", CLOSE),
    "until-close-10": (b"HTTP/1.0 200 OK\r\n\r\nhello", CLOSE),
    "until-close-half": (_H + b"\r\nhello", HALF),
    "http10-length": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", CLOSE),
    "close-length": (_H + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", CLOSE),
    "no-reason": (b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello",),
    "no-reason-space": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",),
    "after-103": (b"HTTP/1.1 103 E\r\nLink: </a>\r\n\r\n", 0.01, _H + b"Content-Length: 5\r\n\r\nhello"),
    "after-100": (b"HTTP/1.1 100 Continue\r\n\r\n" + _H + b"Content-Length: 5\r\n\r\nhello",),
    "after-many-1xx": (b"HTTP/1.1 102 P\r\n\r\n" * 5 + _H + b"Content-Length: 5\r\n\r\nhello",),
}.items():  # fmt: skip
    _lvl = "should" if _id in ("no-reason-space",) else "must"
    CASES.append(Case(f"body-down-{_id}", "9112-6.3", (("", _lvl),), _body(_steps, b"hello")))


@check("body-down-103-passed", "should", "8297")
async def _(lane: Lane) -> None:
    lane.origin.script = [
        say(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            0.03,
            _H + b"Content-Length: 2\r\n\r\nok",
        )
    ]
    reply = await lane.ask(GET)
    expect(
        [i.status for i in reply.interim] == [103], f"interim {[i.status for i in reply.interim]}"
    )


@check("body-down-trailers", "should", "9110-6.5")
async def _(lane: Lane) -> None:
    lane.origin.script = [
        say(
            _H
            + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n"
        )
    ]
    reply = await lane.ask(b"GET /p HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
    expect(reply.body == b"hello", f"{reply.body!r}")
    expect(b"7" in reply.trailers, f"trailers {reply.trailers!r}")


def _large(chunked: bool) -> Run:
    async def run(lane: Lane) -> None:
        block = bytes(range(256)) * 256
        total = 24
        head = (
            b"Transfer-Encoding: chunked"
            if chunked
            else b"Content-Length: %d" % (total * len(block))
        )
        piece = b"%x\r\n%s\r\n" % (len(block), block) if chunked else block
        steps = [_H + head + b"\r\n\r\n"] + [piece] * total + ([b"0\r\n\r\n"] if chunked else [])
        lane.origin.script = [say(*steps)]
        reply = await lane.ask(GET)
        expect(reply.complete, f"{len(reply.body)} bytes, {reply.broken}")
        want = hashlib.sha256(block * total).hexdigest()
        expect(hashlib.sha256(reply.body).hexdigest() == want, "not the bytes sent")

    return run


CASES.append(Case("body-down-large", "9112-6", (("", "must"),), _large(False)))
CASES.append(Case("body-down-large-chunked", "9112-6", (("", "must"),), _large(True)))


@check("sse-unbuffered", "must", "html-sse")
async def _(lane: Lane) -> None:
    go = asyncio.Event()
    lane.origin.script = [
        say(
            _H + b"Content-Type: text/event-stream\r\n\r\n",
            b"data: 1\n\n",
            go,
            b"data: 2\n\n",
            CLOSE,
        )
    ]
    client = await lane.client()
    await client.send(GET)
    async with asyncio.timeout(2):
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readuntil(b"data: 1\n\n")
    go.set()
    async with asyncio.timeout(2):
        await client.reader.readuntil(b"data: 2\n\n")


@check("chunks-unbuffered", "should", "9112-7.1")
async def _(lane: Lane) -> None:
    go = asyncio.Event()
    lane.origin.script = [
        say(_H + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", go, b"1\r\nb\r\n0\r\n\r\n")
    ]
    client = await lane.client()
    await client.send(GET)
    async with asyncio.timeout(2):
        await client.reader.readuntil(b"a\r\n")
    go.set()
    async with asyncio.timeout(2):
        await client.reader.readuntil(b"0\r\n\r\n")


@check("length-unbuffered", "should", "9112-6")
async def _(lane: Lane) -> None:
    go = asyncio.Event()
    lane.origin.script = [say(_H + b"Content-Length: 10\r\n\r\n", b"hello", go, b"world")]
    client = await lane.client()
    await client.send(GET)
    async with asyncio.timeout(2):
        await client.reader.readuntil(b"hello")
    go.set()
    async with asyncio.timeout(2):
        await client.reader.readuntil(b"world")


@check("sse-client-gone", "should", "9110-7")
async def _(lane: Lane) -> None:
    never = asyncio.Event()
    lane.origin.script = [say(_H + b"Content-Type: text/event-stream\r\n\r\ndata: 1\n\n", never)]
    client = await lane.client()
    await client.send(GET)
    await client.reader.readuntil(b"data: 1\n\n")
    client.reset()
    link = lane.origin.links[-1]
    async with asyncio.timeout(3):
        expect(not await link.reader.read(10), "bytes instead of an end")
