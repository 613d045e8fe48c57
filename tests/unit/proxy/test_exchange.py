"""Exchanges over real sockets: keep-alive, streaming, limits, retries, errors a person understands."""

import asyncio
import hashlib
import resource
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from roost.proxy.framing import ChunkedBody
from roost.proxy.front import Limits
from roost.proxy.pool import Backend

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
MIB = 1 << 20


async def read_head(reader: Reader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)


async def echo(reader: Reader, writer: Writer) -> None:
    """Answers each request with its own head and length body; keeps alive."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        size = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        body = await reader.readexactly(size)
        answer = head + body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()


def get(path: str = "/", *lines: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: h", *lines, "", "")).encode()


async def test_requests_of_one_connection_share_one_backend_connection(proxied: Any) -> None:
    connections = 0

    async def serve(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        await echo(reader, writer)

    async with proxied(serve) as setup:
        reader, writer = await setup.client()
        for number in range(20):
            writer.write(get(f"/{number}"))
            head = await read_head(reader)
            assert head.startswith(b"HTTP/1.1 200 OK")
            seen = await read_head(reader)
            assert seen.startswith(f"GET /{number} HTTP/1.1".encode())
            assert b"X-Forwarded-For: 127.0.0.1" in seen
        assert connections == 1


async def test_pipelined_requests_are_answered_in_order(proxied: Any) -> None:
    async with proxied(echo) as setup:
        requests = b"".join(get("/answer" if n % 3 == 0 else f"/{n}") for n in range(30))
        answer = await setup.ask(requests + get("/last", "Connection: close"))
        order = [
            line.split(b" ")[1] if line.startswith(b"GET") else b"own"
            for line in answer.replace(b"own", b"\r\nown\r\n").split(b"\r\n")
            if line.startswith(b"GET") or line == b"own"
        ]
        expected = [b"own" if n % 3 == 0 else b"/%d" % n for n in range(30)]
        assert order == [*expected, b"/last"]
        assert len(setup.proxy.clients) == 0


async def test_bodies_and_next_requests_in_one_packet(proxied: Any) -> None:
    async with proxied(echo) as setup:
        post = b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
        own = b"POST /answer HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
        sent = b"".join(post % n + own for n in range(10))
        answer = await setup.ask(sent + get("/last", "Connection: close"))
        assert answer.count(b"HTTP/1.1 200 OK") == 21
        assert answer.count(b"\r\n\r\nbody") == 10
        assert answer.count(b"own") == 10
        assert b"GET /last" in answer


async def test_bytes_one_at_a_time(proxied: Any) -> None:
    async with proxied(echo) as setup:
        _reader, writer = await setup.client()
        request = (
            b"POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
        )
        for at in range(len(request)):
            writer.write(request[at : at + 1])
            await asyncio.sleep(0)
        answer = await asyncio.wait_for(_reader.read(), 20)
        assert answer.endswith(b"\r\n\r\nabc")


async def sink(reader: Reader, writer: Writer) -> None:
    """Counts a chunked body and answers its size and digest, chunked."""
    await reader.readuntil(b"\r\n\r\n")
    digest, size = hashlib.sha256(), 0
    while length := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        digest.update(await reader.readexactly(length))
        size += length
        await reader.readexactly(2)
    await reader.readexactly(2)
    text = f"{size} {digest.hexdigest()}".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for byte in text:
        writer.write(b"1\r\n%c\r\n" % byte)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def test_a_chunked_body_arrives_whole(proxied: Any) -> None:
    async with proxied(sink) as setup:
        _reader, writer = await setup.client()
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        digest, size = hashlib.sha256(), 0
        for number in range(200):
            part = bytes([number]) * (number * 331 + 1)
            digest.update(part)
            size += len(part)
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        head = await read_head(_reader)
        assert b"Transfer-Encoding: chunked" in head
        body = await asyncio.wait_for(_reader.readuntil(b"0\r\n\r\n"), 20)
        text = b"".join(body.split(b"\r\n")[1::2])
        assert text == f"{size} {digest.hexdigest()}".encode()


async def test_an_http_10_client_gets_plain_bytes(proxied: Any) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        await reader.read()

    async with proxied(serve) as setup:
        answer = await setup.ask(b"GET / HTTP/1.0\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert body == b"abc"
        assert b"chunked" not in head
        assert b"Connection: close" in head


@pytest.mark.parametrize(
    ("request_", "answer", "body"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
async def test_answers_without_a_body_keep_the_connection(
    proxied: Any, request_: bytes, answer: bytes, body: bytes
) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)

    async with proxied(serve) as setup:
        reader, writer = await setup.client()
        for _ in range(3):
            writer.write(request_ + b" / HTTP/1.1\r\nHost: h\r\n\r\n")
            head = await read_head(reader)
            assert head.split(b"\r\n")[0] == answer.split(b"\r\n")[0]
        assert setup.router.found == 1


async def test_continue_is_passed_on(proxied: Any) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"expect: 100-continue" in head.lower()
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(4)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\n" + body)
        await reader.read()

    async with proxied(serve) as setup:
        reader, writer = await setup.client()
        writer.write(
            b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await read_head(reader)).startswith(b"HTTP/1.1 100 Continue")
        writer.write(b"data")
        assert (await read_head(reader)).startswith(b"HTTP/1.1 201")
        assert await reader.readexactly(4) == b"data"


async def test_a_half_closed_client_gets_its_answer(proxied: Any) -> None:
    async with proxied(echo) as setup:
        answer = await setup.ask(get("/half"), eof=True)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"GET /half" in answer


async def test_an_answer_that_ends_with_the_connection(proxied: Any) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 100_000)

    async with proxied(serve) as setup:
        # As chunks, whose end cannot be mistaken for a cut; so the client's connection goes on.
        answer = await setup.ask(get() + get("/", "Connection: close"))
        for _ in range(2):
            head, _, rest = answer.partition(b"\r\n\r\n")
            assert b"Transfer-Encoding: chunked" in head
            body = ChunkedBody(decode=True)
            payload, answer = body.feed(rest)
            assert body.done
            assert payload == b"x" * 100_000
        assert answer == b""
        old = await setup.ask(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        head, _, payload = old.partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert b"Connection: close" in head
        assert payload == b"x" * 100_000


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_without_length_that_was_reset_never_looks_whole(
    proxied: Any, version: bytes
) -> None:
    taken = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello")
        await taken.wait()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with proxied(serve) as setup:
        reader, writer = await setup.client()
        writer.write(b"GET / HTTP/%b\r\nHost: a\r\n\r\n" % version)
        await reader.readuntil(b"hello")
        taken.set()
        if version == b"1.1":
            assert not (await reader.read()).endswith(b"0\r\n\r\n")
        else:
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()


async def test_a_cut_answer_is_seen_as_cut(proxied: Any) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        await writer.drain()

    async with proxied(serve) as setup:
        answer = await setup.ask(get())
        assert answer.endswith(b"\r\n\r\nabc")
        assert b"Content-Length: 1000" in answer or b"content-length: 1000" in answer


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def test_256_mib_up_and_down_in_bounded_memory(proxied: Any) -> None:
    size = 256 * MIB
    block = bytes(range(256)) * 1024  # 256 KiB

    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        left, digest = size, hashlib.blake2b()
        while left:
            data = await reader.read(MIB)
            digest.update(data)
            left -= len(data)
        assert digest.digest() == expected.digest()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            writer.write(block)
            await writer.drain()
        await reader.read()

    expected = hashlib.blake2b()
    for _ in range(size // len(block)):
        expected.update(block)
    async with proxied(serve) as setup:
        reader, writer = await setup.client()
        before = peak_rss()
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            writer.write(block)
            await writer.drain()
        await read_head(reader)
        got, left = hashlib.blake2b(), size
        while left:
            data = await reader.read(MIB)
            assert data
            got.update(data)
            left -= len(data)
        assert got.digest() == expected.digest()
        assert peak_rss() - before < 48 * MIB


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "not in time"
        await asyncio.sleep(0.02)


async def settled(value: Callable[[], int]) -> int:
    """The value once it has not changed for half a second."""
    last = -1
    while last != value():
        last = value()
        await asyncio.sleep(0.5)
    return last


async def test_a_client_that_does_not_read_stops_the_backend(proxied: Any) -> None:
    sent = 0

    async def serve(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        block = b"%x\r\n%s\r\n" % (65536, b"z" * 65536)
        while sent < 4096:
            writer.write(block)
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with proxied(serve) as setup:
        reader, writer = await setup.client()
        writer.transport.pause_reading()
        writer.write(get())
        await until(lambda: sent > 0)
        assert await settled(lambda: sent) * 65536 < 32 * MIB  # socket buffers and little more
        writer.write(get("/answer"))  # a waiting request does not disturb the one before
        writer.transport.resume_reading()
        await read_head(reader)
        body = 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
            body += size
        assert body == 4096 * 65536
        await reader.readexactly(2)
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200")


async def test_a_backend_that_does_not_read_stops_the_client(proxied: Any) -> None:
    release = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        await release.wait()
        writer.transport.resume_reading()
        left = 256 * MIB
        while left:
            left -= len(await reader.read(MIB))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()

    async with proxied(serve) as setup:
        reader, writer = await setup.client()
        sent = 0

        async def upload() -> None:
            nonlocal sent
            writer.write(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (256 * MIB))
            for _ in range(4096):
                writer.write(b"y" * 65536)
                await writer.drain()
                sent += 65536

        task = asyncio.create_task(upload())
        await until(lambda: sent > 0)
        assert await settled(lambda: sent) < 32 * MIB
        release.set()
        await task
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200 OK")


async def test_a_gibibyte_of_header_gets_an_answer_and_no_memory(proxied: Any) -> None:
    async with proxied(echo) as setup:
        reader, writer = await setup.client()
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nX-Big: ")
        # Read meanwhile: a client slower than the linger is reset, with what it has not read.
        reading = asyncio.create_task(reader.readuntil(b" bytes\n"))
        before = peak_rss()
        block = b"a" * (4 * MIB)
        try:
            for _ in range(256):
                writer.write(block)
                await writer.drain()
        except OSError:
            pass
        answer = await asyncio.wait_for(reading, 20)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"larger than 65536 bytes" in answer
        assert peak_rss() - before < 32 * MIB


async def test_a_listener_may_take_smaller_heads_only(proxied: Any) -> None:
    async with proxied(echo, Limits(head_bytes=200, fields=4)) as setup:
        assert b" 200 OK" in await setup.ask(get("/", "A: 1", "B: 2", "Connection: close"))
        for bad, status in (
            (get("/", "A: 1", "B: 2", "C: 3", "D: 4"), b"431"),
            (get("/", "A: " + "a" * 200), b"431"),
            (b"GET / HTTP/1.1\r\nA: " + b"a" * 200, b"431"),
            (b"GET /" + b"a" * 200, b"414"),
        ):
            assert (await setup.ask(bad)).startswith(b"HTTP/1.1 " + status)


async def test_a_framing_error_is_explained_and_the_connection_ends(proxied: Any) -> None:
    async with proxied(echo) as setup:
        answer = await setup.ask(b"GET / HTTP/1.1\r\nHost : h\r\n\r\n" + get("/smuggled"))
        assert answer.startswith(b"HTTP/1.1 400 Bad Request")
        assert b"a space before the colon" in answer
        assert b"Connection: close" in answer
        assert answer.count(b"HTTP/1.1") == 1
        bad = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        assert (await setup.ask(bad)).startswith(b"HTTP/1.1 400")


async def test_slow_heads_and_slow_bodies_time_out(proxied: Any) -> None:
    limits = Limits(head_s=0.3, upload_s=0.3, idle_s=0.3, linger_s=0.2)
    async with proxied(echo, limits) as setup:
        assert (await setup.ask(b"GET / HT")).startswith(b"HTTP/1.1 408 ")
        slow = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc"
        assert (await setup.ask(slow)).startswith(b"HTTP/1.1 408 ")
        idle = await setup.ask(get("/answer"))  # kept alive, then closed without a word
        assert idle.startswith(b"HTTP/1.1 200 ")
        assert idle.endswith(b"own")
        assert await setup.ask(b"") == b""
        reader, writer = await setup.client()  # a byte now and then does not extend the head's time
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        for byte in get("/" + "a" * 2000):
            if answer.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
        assert (await asyncio.wait_for(answer, 5)).startswith(b"HTTP/1.1 408 ")


async def test_a_silent_backend_is_a_504_and_a_dead_one_a_503(proxied: Any) -> None:
    async def silent(reader: Reader, writer: Writer) -> None:
        await reader.read()

    async with proxied(silent, Limits(response_s=0.3)) as setup:
        assert (await setup.ask(get())).startswith(b"HTTP/1.1 504 ")
    async with proxied(silent, backend=Backend(path="/nonexistent.sock")) as setup:
        text = await setup.ask(get("/", "Connection: close"))
        assert text.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in text
        assert b"text/plain" in text
        page = await setup.ask(get("/", "Accept: text/html", "Connection: close"))
        assert b"http-equiv=refresh" in page
        problem = await setup.ask(get("/", "Accept: application/json", "Connection: close"))
        assert b"application/problem+json" in problem


async def test_a_repeatable_request_survives_a_connection_that_dies(proxied: Any) -> None:
    connections = 0

    async def serve(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        mine = connections
        head = await reader.readuntil(b"\r\n\r\n")
        if mine == 1:
            return  # closes without an answer
        size = 4 if b"content-length" in head.lower() else 0
        body = await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)
        await reader.read()

    put = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndata"
    async with proxied(serve) as setup:
        assert (await setup.ask(put)).endswith(b"\r\n\r\ndata")
        assert connections == 2
    connections = 0
    async with proxied(serve) as setup:
        answer = await setup.ask(put.replace(b"PUT", b"POST"))
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert connections == 1, "a request that may have had its effect is never sent twice"


async def test_a_client_that_leaves_frees_the_backend(proxied: Any) -> None:
    gone = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        try:
            await reader.read()
        finally:
            gone.set()

    async with proxied(serve, Limits(half_closed_s=0.3)) as setup:
        reader, writer = await setup.client()
        writer.write(get())
        await read_head(reader)
        writer.transport.abort()
        await asyncio.wait_for(gone.wait(), 5)
        await until(lambda: not setup.proxy.clients and not setup.proxy.pool.opened)


async def test_an_early_answer_ends_the_upload(proxied: Any) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        await reader.read(100)

    async with proxied(serve) as setup:
        request = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nabc"
        answer = await setup.ask(request)
        assert answer.startswith(b"HTTP/1.1 413")
        assert answer.endswith(b"big")


async def test_bytes_nobody_asked_for_never_reach_the_next_request(proxied: Any) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + evil)
        await reader.read()

    async with proxied(serve) as setup:
        reader, writer = await setup.client()
        for _ in range(3):
            writer.write(get())
            await read_head(reader)
            assert await reader.readexactly(2) == b"ok"
        assert setup.router.found == 3


async def test_too_many_connections_are_told(proxied: Any) -> None:
    async with proxied(echo, Limits(connections=2)) as setup:
        await setup.client()
        await setup.client()
        await until(lambda: len(setup.proxy.clients) == 2)
        assert (await setup.ask(b"")).startswith(b"HTTP/1.1 503 ")
