"""Connections: order, keep-alive, Expect, tunnels, failures, retries, time limits, sizes, memory, TLS."""

# ruff: noqa: E501 - tables of raw bytes and configurations, a line each

import asyncio
import os
import ssl
from pathlib import Path

from tests.conformance.gateway.wire import (
    CASES,
    CLOSE,
    OK,
    RESET,
    Case,
    Client,
    Lane,
    Link,
    Run,
    Seen,
    check,
    expect,
    say,
)

GET = b"GET /p HTTP/1.1\r\nHost: a\r\n\r\n"
MIB = 1 << 20


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def path_back(link: Link, seen: Seen) -> None:
    await link.play((answer(seen.target.encode() + b":" + seen.body),))


# --- keep-alive, pipelining, close ---------------------------------------------------------------------


@check("keep-alive", "must", "9112-9.3")
async def _(lane: Lane) -> None:
    client = await lane.client()
    for number in range(10):
        await client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        expect((await client.response()).status == 200, f"request {number}")
    expect(len(lane.origin.requests) == 10, "lost requests")


@check("keep-alive-backend", "should", "9112-9.3")
async def _(lane: Lane) -> None:
    for _ in range(5):
        await lane.ask(GET)
    expect(len(lane.origin.links) <= 2, f"{len(lane.origin.links)} connections for 5 requests")


def _pipeline(raw: bytes, want: list[bytes], split: int = 0) -> Run:
    async def run(lane: Lane) -> None:
        lane.origin.default = path_back
        client = await lane.client()
        if split:
            for at in range(0, len(raw), split):
                await client.send(raw[at : at + split], 0.002)
        else:
            await client.send(raw)
        for body in want:
            reply = await client.response()
            expect(
                reply.status == 200 and reply.body == body,
                f"{reply.status} {reply.body!r} for {body!r}",
            )

    return run


_GETS = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(10))
_MIXED = (
    b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
    b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    b"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    b"GET /4 HTTP/1.1\r\nHost: a\r\n\r\n"
    b"PUT /5 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    b"GET /6 HTTP/1.1\r\nHost: a\r\n\r\n"
)
_WANT = [b"/1:", b"/2:hello", b"/3:abc", b"/4:", b"/5:", b"/6:"]
for _id, _raw, _want, _split in (
    ("gets", _GETS, [b"/%d:" % n for n in range(10)], 0),
    ("gets-split", _GETS, [b"/%d:" % n for n in range(10)], 7),
    ("mixed", _MIXED, _WANT, 0),
    ("mixed-split", _MIXED, _WANT, 11),
    ("mixed-crlf", _MIXED.replace(b"helloPOST", b"hello\r\nPOST"), _WANT, 0),
):
    _lvl = "should" if _id == "mixed-crlf" else "must"
    CASES.append(
        Case(f"pipeline-{_id}", "9112-9.3.2", (("", _lvl),), _pipeline(_raw, _want, _split))
    )


@check("pipeline-order-slow", "must", "9112-9.3.2")
async def _(lane: Lane) -> None:
    async def slow(link: Link, seen: Seen) -> None:
        await link.play((0.1 if seen.target == "/0" else 0, answer(seen.target.encode())))

    lane.origin.default = slow
    client = await lane.client()
    await client.send(_GETS)
    for number in range(10):
        reply = await client.response()
        expect(reply.body == b"/%d" % number, f"{reply.body!r} for {number}")


@check("pipeline-close-stops", "must", "9112-9.6")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(
        b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    expect((await client.response()).status == 200, "no answer")
    expect(await client.closed(), "stayed open")
    expect(
        [s.target for s in lane.origin.requests] == ["/1"],
        f"{[s.target for s in lane.origin.requests]}",
    )


@check("pipeline-bad-second", "must", "9112-9.3.2")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(GET + b"GET /2 HTTP/1.1\r\nHost: a\r\nX A: b\r\n\r\n")
    expect((await client.response()).status == 200, "the first is answered")
    expect((await client.response()).status == 400, "the second is refused")
    expect(await client.closed(), "stayed open")


@check("pipeline-after-bad", "must", "9112-9.6")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(
        b"GET /1 HTTP/1.1\r\nHost: a\r\nX A: b\r\n\r\n" + b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    expect((await client.response()).status == 400, "not refused")
    expect(await client.closed(), "stayed open")
    expect(not lane.origin.requests, "a request after a framing error was served")


@check("close-asked", "must", "9112-9.6")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(b"GET /p HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    reply = await client.response()
    expect((reply.get("connection") or "").lower() == "close", "no Connection: close in the answer")
    expect(await client.closed(), "stayed open")


for _name, _line in {
    "case": b"Connection: CLOSE\r\n",
    "list": b"Connection: x-a, close\r\n",
    "two": b"Connection: x-a\r\nConnection: close\r\n",
}.items():

    async def _closes(lane: Lane, line: bytes = _line) -> None:
        client = await lane.client()
        await client.send(b"GET /p HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n")
        await client.response()
        expect(await client.closed(), "stayed open")

    CASES.append(Case(f"close-asked-{_name}", "9112-9.6", (("", "must"),), _closes))


@check("close-by-backend-hidden", "should", "9112-9.6")
async def _(lane: Lane) -> None:
    lane.origin.script = [
        say(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", CLOSE)
    ]
    client = await lane.client()
    for _ in range(2):
        await client.send(GET)
        expect((await client.response()).status == 200, "the client's connection must live on")


@check("half-close-client", "should", "9112-9.6")
async def _(lane: Lane) -> None:
    lane.origin.script = [say(0.1, OK)]
    client = await lane.client()
    await client.send(GET)
    client.writer.write_eof()
    reply = await client.response()
    expect(reply.status == 200 and reply.body == b"ok", f"{reply.status} {reply.broken}")
    expect(await client.closed(), "stayed open")


@check("half-close-body", "should", "9112-9.6")
async def _(lane: Lane) -> None:
    lane.origin.script = [say(0.05, OK)]
    client = await lane.client()
    await client.send(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    client.writer.write_eof()
    expect((await client.response()).status == 200, "no answer after the half-close")


@check("client-gone-cancels", "should", "9110-7")
async def _(lane: Lane) -> None:
    lane.origin.script = [say(asyncio.Event())]
    client = await lane.client()
    await client.send(GET)
    await lane.origin.arrived()
    client.reset()
    async with asyncio.timeout(3):
        expect(not await lane.origin.links[-1].reader.read(10), "bytes instead of an end")


# --- Expect, early answers --------------------------------------------------------------------------


@check("expect-forwarded-or-answered", "must", "9110-10.1.1")
async def _(lane: Lane) -> None:
    async def go(link: Link, seen: Seen) -> None:
        if "100" in (seen.get("expect") or ""):
            await link.play((b"HTTP/1.1 100 Continue\r\n\r\n",))
        await link.body(seen)
        await link.play((OK,))

    lane.origin.early, lane.origin.default = True, go
    client = await lane.client()
    await client.send(
        b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )
    async with asyncio.timeout(2):
        head = await client.reader.readuntil(b"\r\n\r\n")
    expect(head.startswith(b"HTTP/1.1 100"), f"{head!r}")
    await client.send(b"hello")
    reply = await client.response()
    expect(reply.status == 200 and lane.origin.requests[0].body == b"hello", f"{reply.status}")


@check("expect-body-at-once", "must", "9110-10.1.1")
async def _(lane: Lane) -> None:
    reply = await lane.ask(
        b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
    )
    expect(reply.status == 200 and lane.origin.requests[0].body == b"hello", f"{reply.status}")


@check("expect-refused-early", "should", "9110-10.1.1")
async def _(lane: Lane) -> None:
    lane.origin.early = True
    lane.origin.default = say(
        b"HTTP/1.1 413 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", CLOSE
    )
    client = await lane.client()
    await client.send(
        b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )
    reply = await client.response(within_s=2)
    if reply.status == 100 or reply.interim:
        return  # the proxy asked for the body itself: allowed
    expect(reply.status == 413, f"answered {reply.status}")


@check("expect-100-once", "should", "9110-10.1.1")
async def _(lane: Lane) -> None:
    async def go(link: Link, seen: Seen) -> None:
        await link.play((b"HTTP/1.1 100 Continue\r\n\r\n",))
        await link.body(seen)
        await link.play((OK,))

    lane.origin.early, lane.origin.default = True, go
    client = await lane.client()
    await client.send(
        b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        0.1,
        b"hello",
    )
    reply = await client.response()
    expect(len(reply.interim) <= 1, f"{len(reply.interim)} interim answers")


@check("expect-unknown", "may", "9110-10.1.1")
async def _(lane: Lane) -> None:
    reply = await lane.ask(b"GET /p HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n")
    expect(reply.status in (417, 200), f"answered {reply.status}")


@check("expect-next-request", "must", "9110-10.1.1")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(
        b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
        + GET
    )
    for _ in range(2):
        expect((await client.response()).status == 200, "out of step")


@check("early-answer", "must", "9110-7.5")
async def _(lane: Lane) -> None:
    lane.origin.early = True
    lane.origin.script = [say(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno", 0.2, CLOSE)]
    client = await lane.client()
    await client.send(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nhello")
    reply = await client.response(within_s=2)
    expect(reply.status == 401 and reply.body == b"no", f"{reply.status} {reply.broken}")


@check("early-answer-not-next", "must", "9112-9.3")
async def _(lane: Lane) -> None:
    """The rest of a body after an early answer is never taken for a request."""
    lane.origin.early = True
    lane.origin.script = [say(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno", 0.1, CLOSE)]
    body = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    client = await lane.client()
    await client.send(
        b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (len(body) + 5) + b"hello"
    )
    await client.response(within_s=2)
    await client.send(body, 0.1)
    expect(
        not any("smuggled" in s.target for s in lane.origin.requests), "the body became a request"
    )


@check("early-answer-large-upload", "should", "9112-9.3")
async def _(lane: Lane) -> None:
    lane.origin.early = True
    lane.origin.script = [
        say(b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno", CLOSE)
    ]
    client = await lane.client()
    await client.send(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n")
    writing = asyncio.create_task(client.send(*([b"x" * 65536] * 122)))
    reply = await client.response(within_s=3)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    expect(reply.status in (413, 502), f"{reply.status} {reply.broken}")


# --- tunnels ------------------------------------------------------------------------------------------

_WS = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
_101 = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def echo(link: Link, seen: Seen) -> None:
    await link.play((_101,))
    while data := await link.reader.read(65536):
        await link.play((data,))
    await link.play((b"bye", CLOSE))


async def _upgrade(lane: Lane, extra: bytes = b"", first: bytes = b"") -> Client:
    client = await lane.client()
    await client.send(_WS + extra + b"\r\n" + first)
    async with asyncio.timeout(3):
        head = await client.reader.readuntil(b"\r\n\r\n")
    expect(head.startswith(b"HTTP/1.1 101"), f"{head[:80]!r}")
    expect(b"upgrade: websocket" in head.lower(), f"{head!r}")
    expect(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head, "Sec-WebSocket-Accept was lost")
    return client


@check("ws-echo", "must", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.default = echo
    client = await _upgrade(lane)
    for size in (1, 100, 70000):
        data = os.urandom(size)
        await client.send(data)
        async with asyncio.timeout(3):
            expect(await client.reader.readexactly(size) == data, "other bytes")
    seen = lane.origin.requests[0]
    expect((seen.get("upgrade") or "").lower() == "websocket", "no Upgrade at the origin")
    expect(
        "upgrade" in (seen.get("connection") or "").lower(), "no Connection: Upgrade at the origin"
    )


@check("ws-first-bytes", "should", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.default = echo
    client = await _upgrade(lane, first=b"early")
    async with asyncio.timeout(3):
        expect(await client.reader.readexactly(5) == b"early", "lost bytes sent with the request")


@check("ws-server-first", "must", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.default = say(_101 + b"hello", asyncio.Event())
    client = await _upgrade(lane)
    async with asyncio.timeout(3):
        expect(await client.reader.readexactly(5) == b"hello", "bytes behind the 101 were lost")


@check("ws-large", "must", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.default = echo
    client = await _upgrade(lane)
    data = os.urandom(4 * MIB)
    writing = asyncio.create_task(client.send(data))
    async with asyncio.timeout(10):
        expect(await client.reader.readexactly(len(data)) == data, "other bytes")
    await writing


@check("ws-close-by-client", "must", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.default = echo
    client = await _upgrade(lane)
    client.reset()
    await asyncio.wait_for(lane.origin.links[-1].ended.wait(), 3)


@check("ws-close-by-server", "must", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.default = say(_101 + b"last", CLOSE)
    client = await _upgrade(lane)
    data, ended = await client.rest(3)
    expect(data == b"last" and ended, f"{data!r} {ended}")


@check("ws-half-close", "should", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.default = echo
    client = await _upgrade(lane)
    await client.send(b"hi")
    async with asyncio.timeout(3):
        await client.reader.readexactly(2)
    client.writer.write_eof()
    data, ended = await client.rest(3)
    expect(data == b"bye" and ended, f"after the half-close: {data!r} {ended}")


@check("ws-refused", "must", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.default = say(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
    client = await lane.client()
    await client.send(_WS + b"\r\n")
    reply = await client.response()
    expect(reply.status == 403 and reply.body == b"no", f"{reply.status}")


@check("ws-426", "must", "9110-15.5.22")
async def _(lane: Lane) -> None:
    lane.origin.default = say(
        b"HTTP/1.1 426 Up\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n"
    )
    client = await lane.client()
    await client.send(GET)
    expect((await client.response()).status == 426, "426 is passed on")


@check("ws-refused-no-tunnel", "must", "9110-7.8")
async def _(lane: Lane) -> None:
    """After a refused upgrade the bytes that follow are requests, judged as such."""
    lane.origin.default = say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    client = await lane.client()
    await client.send(_WS + b"\r\n")
    await client.response()
    await client.send(b"GET /bad HTTP/1.1\r\nHost: a\r\nX A: b\r\n\r\n")
    reply = await client.response(within_s=2)
    expect(reply.refused, f"answered {reply.status}")
    expect(all(s.target == "/ws" for s in lane.origin.requests), "raw bytes reached the origin")


@check("ws-connection-list", "should", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.default = echo
    client = await lane.client()
    await client.send(
        _WS.replace(b"Connection: Upgrade", b"Connection: keep-alive, upgrade") + b"\r\n"
    )
    async with asyncio.timeout(3):
        head = await client.reader.readuntil(b"\r\n\r\n")
    expect(head.startswith(b"HTTP/1.1 101"), f"{head[:60]!r}")


@check("ws-http10", "must", "9110-7.8")
async def _(lane: Lane) -> None:
    await lane.ask(_WS.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n")
    expect(
        all(s.get("upgrade") is None for s in lane.origin.requests),
        "an HTTP/1.0 upgrade was passed on",
    )


@check("ws-tunnel-not-reused", "must", "9110-7.8")
async def _(lane: Lane) -> None:
    lane.origin.script = [echo]
    client = await _upgrade(lane)
    client.reset()
    reply = await lane.ask(GET)
    expect(reply.status == 200, f"{reply.status}")
    expect(
        lane.origin.requests[-1].link != lane.origin.requests[0].link,
        "the tunnel's connection was used again",
    )


# --- failures and retries -----------------------------------------------------------------------------


@check("fail-refused", "must", "9110-15.6", lane="dead")
async def _(lane: Lane) -> None:
    reply = await lane.ask(GET)
    expect(reply.status in (502, 503), f"answered {reply.status}")
    expect(reply.complete, "the answer is cut")


@check("fail-refused-post", "must", "9110-15.6", lane="dead")
async def _(lane: Lane) -> None:
    reply = await lane.ask(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    expect(reply.status in (502, 503), f"answered {reply.status}")


@check("fail-refused-head", "must", "9110-9.3.2", lane="dead")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(b"HEAD /p HTTP/1.1\r\nHost: a\r\n\r\n")
    reply = await client.response("HEAD")
    expect(reply.status in (502, 503), f"answered {reply.status}")
    rest, _ = await client.rest(0.2)
    expect(not rest, f"an answer to HEAD with a body: {rest[:40]!r}")


for _name, _steps in {"close": (CLOSE,), "reset": (RESET,)}.items():

    async def _fails(lane: Lane, steps: tuple[object, ...] = _steps) -> None:
        lane.origin.default = say(*steps)
        reply = await lane.ask(GET)
        expect(reply.status in (502, 503), f"answered {reply.status} {reply.broken}")

    CASES.append(Case(f"fail-{_name}-before-answer", "9110-15.6.3", (("", "must"),), _fails))

    async def _posts(lane: Lane, steps: tuple[object, ...] = _steps) -> None:
        lane.origin.default = say(*steps)
        reply = await lane.ask(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        expect(reply.status in (502, 503), f"answered {reply.status} {reply.broken}")
        await asyncio.sleep(0.1)
        expect(
            len(lane.origin.requests) == 1, f"the POST was sent {len(lane.origin.requests)} times"
        )

    CASES.append(Case(f"fail-post-once-{_name}", "9110-9.2.2", (("", "must"),), _posts))

    async def _stale_post(lane: Lane, steps: tuple[object, ...] = _steps) -> None:
        await lane.ask(GET)
        lane.origin.script = [say(*steps)]
        await lane.ask(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        await asyncio.sleep(0.1)
        posts = [s for s in lane.origin.requests if s.method == "POST"]
        expect(len(posts) == 1, f"the POST was sent {len(posts)} times")

    CASES.append(Case(f"fail-post-once-reused-{_name}", "9110-9.2.2", (("", "must"),), _stale_post))

    async def _stale_get(lane: Lane, steps: tuple[object, ...] = _steps) -> None:
        await lane.ask(GET)
        lane.origin.script = [say(*steps)]
        reply = await lane.ask(GET)
        expect(
            reply.status == 200, f"a stale keep-alive connection reached the client: {reply.status}"
        )

    CASES.append(Case(f"retry-stale-{_name}", "9112-9.3.1", (("", "should"),), _stale_get))


@check("retry-stale-idle-post", "should", "9112-9.3.1")
async def _(lane: Lane) -> None:
    """The backend ended the idle connection: a POST must not meet it."""
    await lane.ask(GET)
    for link in lane.origin.links:
        link.writer.close()
    await asyncio.sleep(0.1)
    reply = await lane.ask(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    expect(reply.status == 200, f"answered {reply.status}")


@check("retry-other-backend", "should", "9110-9.2.2", lane="two")
async def _(lane: Lane) -> None:
    lane.origins[0].default = say(CLOSE)
    bad = [r.status for r in [await lane.ask(GET) for _ in range(8)] if r.status != 200]
    expect(not bad, f"GETs failed although one backend is well: {bad}")


@check("retry-other-post", "must", "9110-9.2.2", lane="two")
async def _(lane: Lane) -> None:
    lane.origins[0].default = say(CLOSE)
    post = b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    for number in range(8):
        await lane.ask(post % number)
    targets = [s.target for origin in lane.origins for s in origin.requests]
    expect(len(targets) == len(set(targets)), "a POST reached two backends")


@check("retry-refused-post", "should", "9110-9.2.2", lane="two")
async def _(lane: Lane) -> None:
    """Nothing was sent: any method may be tried elsewhere."""
    port = lane.origins[0].port
    await lane.origins[0].stop()
    try:
        for number in range(6):
            reply = await lane.ask(
                b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" % number
            )
            expect(reply.status == 200, f"answered {reply.status}")
    finally:
        await lane.origins[0].start(port)


@check("retry-not-after-bytes", "must", "9110-9.2.2", lane="two")
async def _(lane: Lane) -> None:
    for origin in lane.origins:
        origin.default = say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", CLOSE)
    reply = await lane.ask(GET)
    expect(not reply.complete, "a cut answer looked whole")
    expect(sum(len(o.requests) for o in lane.origins) == 1, "sent again after bytes of the answer")


@check("error-answers-close-or-continue", "must", "9112-9.3", lane="dead")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(GET)
    reply = await client.response()
    if (reply.get("connection") or "").lower() == "close":
        expect(await client.closed(), "said close, stayed open")
    else:
        await client.send(GET)
        expect((await client.response()).status in (502, 503), "out of step after an error")


# --- time limits: 1 s on this lane ----------------------------------------------------------------------


@check("time-response", "must", "9110-15.6.5", lane="short")
async def _(lane: Lane) -> None:
    lane.origin.default = say(asyncio.Event())
    reply = await lane.ask(GET)
    expect(reply.status == 504, f"answered {reply.status} {reply.broken}")


@check("time-head-silent", "must", "9112-9.5", lane="short")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(b"GET /p HTTP/1.1\r\nHo")
    reply = await client.response(within_s=4)
    expect(
        reply.status in (0, 400, 408) and reply.broken != "timeout",
        f"{reply.status} {reply.broken}",
    )


@check("time-head-drip", "must", "9112-9.5", lane="short")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(b"GET /p HTTP/1.1\r\n")
    dripping = asyncio.create_task(client.send(*([b"X-A: b\r\n", 0.2] * 25)))
    reply = await client.response(within_s=4)
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)
    expect(reply.broken != "timeout", "a slow head is not bounded")


@check("time-head-408", "should", "9110-15.5.9", lane="short")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(b"GET /p HTTP/1.1\r\nHost: a\r\n")
    reply = await client.response(within_s=4)
    expect(reply.status == 408, f"answered {reply.status}")


@check("time-body-silent", "must", "9110-15.5.9", lane="short")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
    reply = await client.response(within_s=4)
    expect(reply.broken != "timeout", "a stalled body is not bounded")


@check("time-idle", "should", "9112-9.5", lane="short")
async def _(lane: Lane) -> None:
    client = await lane.client()
    await client.send(GET)
    await client.response()
    expect(await client.closed(4), "an idle connection stays open")


@check("time-idle-fresh", "should", "9112-9.5", lane="short")
async def _(lane: Lane) -> None:
    client = await lane.client()
    expect(await client.closed(4), "a silent connection stays open")


# --- sizes --------------------------------------------------------------------------------------------


def _limit(raw: bytes, statuses: tuple[int, ...]) -> Run:
    async def run(lane: Lane) -> None:
        client = await lane.client()
        writing = asyncio.create_task(client.send(raw))
        reply = await client.response(within_s=3)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        expect(
            reply.status in statuses, f"answered {reply.status} {reply.broken}, expected {statuses}"
        )
        expect(not lane.origin.requests, "it was passed on")

    return run


_HEAD = b"GET /p HTTP/1.1\r\nHost: a\r\n"
for _id, _raw, _statuses, _lvl, _rfc in (
    ("target", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", (414,), "should", "9110-15.5.15"),
    ("target-huge", b"GET /" + b"a" * MIB, (400, 414, 431), "must", "9112-3"),
    ("method-huge", b"G" * MIB, (400, 414, 431, 501), "must", "9112-3"),
    ("field", _HEAD + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n", (400, 431), "must", "6585-5"),
    ("field-431", _HEAD + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n", (431,), "should", "6585-5"),
    ("fields", _HEAD + b"".join(b"X-%d: b\r\n" % n for n in range(2000)) + b"\r\n", (400, 431), "should", "6585-5"),
    ("fields-size", _HEAD + b"".join(b"X-%d: %s\r\n" % (n, b"b" * 3000) for n in range(90)) + b"\r\n", (400, 431), "must", "6585-5"),
    ("field-endless", _HEAD + b"X-A: " + b"a" * MIB, (400, 431), "must", "6585-5"),
    ("name-huge", _HEAD + b"X" * 200_000 + b": a\r\n\r\n", (400, 431), "must", "6585-5"),
):  # fmt: skip
    CASES.append(Case(f"limit-{_id}", _rfc, (("", _lvl),), _limit(_raw, _statuses)))


def _body_limit(raw: bytes) -> Run:
    async def run(lane: Lane) -> None:
        client = await lane.client()
        writing = asyncio.create_task(client.send(raw))
        reply = await client.response(within_s=3)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        expect(reply.status == 413, f"answered {reply.status} {reply.broken}")
        expect(not any(s.complete for s in lane.origin.requests), "it was passed on whole")

    return run


_POST = b"POST /p HTTP/1.1\r\nHost: a\r\n"
_MUCH = b"10000\r\n" + b"a" * 65536 + b"\r\n"
CASES.append(
    Case(
        "limit-body-length",
        "9110-15.5.14",
        (("", "should"),),
        _body_limit(_POST + b"Content-Length: 3000000\r\n\r\n"),
        "short",
    )
)
CASES.append(
    Case(
        "limit-body-length-sent",
        "9110-15.5.14",
        (("", "should"),),
        _body_limit(_POST + b"Content-Length: 3000000\r\n\r\n" + b"a" * 3_000_000),
        "short",
    )
)
CASES.append(
    Case(
        "limit-body-chunked",
        "9110-15.5.14",
        (("", "should"),),
        _body_limit(_POST + b"Transfer-Encoding: chunked\r\n\r\n" + _MUCH * 40),
        "short",
    )
)


# --- memory -------------------------------------------------------------------------------------------


def rss(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        except OSError:
            continue
    return total


async def _growth(lane: Lane, start: asyncio.Task[None]) -> None:
    before = rss(lane.pids())
    peak = before
    try:
        for _ in range(12):
            await asyncio.sleep(0.1)
            peak = max(peak, rss(lane.pids()))
    finally:
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
    expect(peak - before < MIB, f"resident memory grew by {(peak - before) / MIB:.1f} MiB")


async def _warm(lane: Lane) -> None:
    """One transfer first: buffers a proxy allocates once are not growth."""
    block = b"a" * 65536
    lane.origin.script = [say(answer(block * 64)), say(answer(b"ok"))]
    await lane.ask(GET)
    await lane.ask(
        b"PUT /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (64 * len(block)),
        *([block] * 64),
    )


@check("memory-slow-client", "must", "9110-17", lane="plain", alone=True)
async def _(lane: Lane) -> None:
    await _warm(lane)
    block = b"a" * 65536

    async def flood(link: Link, seen: Seen) -> None:
        await link.play(
            (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (256 * MIB), *([block] * 4096))
        )

    lane.origin.script = [flood]
    client = await lane.client()

    async def stall() -> None:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)

    await _growth(lane, asyncio.create_task(stall()))


@check("memory-slow-backend", "must", "9110-17", lane="plain", alone=True)
async def _(lane: Lane) -> None:
    await _warm(lane)
    lane.origin.early = True
    lane.origin.script = [say(asyncio.Event())]
    client = await lane.client()
    await _growth(
        lane,
        asyncio.create_task(
            client.send(
                _POST + b"Content-Length: %d\r\n\r\n" % (256 * MIB), *([b"a" * 65536] * 4096)
            )
        ),
    )


@check("memory-slow-tunnel", "must", "9110-17", lane="plain", alone=True)
async def _(lane: Lane) -> None:
    await _warm(lane)
    lane.origin.script = [say(_101, asyncio.Event())]
    client = await _upgrade(lane)
    await _growth(lane, asyncio.create_task(client.send(*([b"a" * 65536] * 4096))))


@check("memory-pipelined", "must", "9110-17", lane="plain", alone=True)
async def _(lane: Lane) -> None:
    await _warm(lane)
    lane.origin.default = say(asyncio.Event())
    client = await lane.client()
    await _growth(lane, asyncio.create_task(client.send(*([GET * 2000] * 500))))


# --- TLS ----------------------------------------------------------------------------------------------


@check("tls-get", "must", "9110-4.2.2", lane="tls")
async def _(lane: Lane) -> None:
    client = await lane.tls()
    for _ in range(3):
        await client.send(GET)
        expect((await client.response()).status == 200, "no answer")
    expect(
        lane.origin.requests[0].get("x-forwarded-proto") == "https",
        "X-Forwarded-Proto is not https",
    )


@check("tls-large", "must", "9110-4.2.2", lane="tls")
async def _(lane: Lane) -> None:
    data = os.urandom(3 * MIB)
    lane.origin.script = [say(answer(data))]
    client = await lane.tls()
    await client.send(GET)
    expect((await client.response()).body == data, "other bytes")


@check("tls-version-1.2", "should", "9325-3.1", lane="tls")
async def _(lane: Lane) -> None:
    client = await lane.tls(maximum=ssl.TLSVersion.TLSv1_2)
    await client.send(GET)
    expect((await client.response()).status == 200, "no answer")


@check("tls-plain-refused", "must", "9110-4.2.2", lane="tls")
async def _(lane: Lane) -> None:
    reply = await lane.ask(GET)
    expect(reply.status in (0, 400) and not lane.origin.requests, f"answered {reply.status}")


@check("tls-alpn-http11", "should", "7301", lane="tls")
async def _(lane: Lane) -> None:
    client = await lane.tls(alpn=["http/1.1"])
    expect(
        client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1", "no ALPN"
    )


@check("tls-truncation", "should", "9112-9.8", lane="tls")
async def _(lane: Lane) -> None:
    lane.origin.script = [say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", CLOSE)]
    client = await lane.tls()
    await client.send(GET)
    expect(not (await client.response()).complete, "a cut answer looked whole")


@check("tls-bad-request", "must", "9112-2.2", lane="tls")
async def _(lane: Lane) -> None:
    client = await lane.tls()
    await client.send(b"GET /p HTTP/1.1\r\nHost: a\r\nX A: b\r\n\r\n")
    reply = await client.response(within_s=2)
    expect(reply.status == 400 and not lane.origin.requests, f"answered {reply.status}")
