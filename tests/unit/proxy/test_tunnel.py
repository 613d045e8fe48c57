"""Upgrades: a real WebSocket through the proxy, half-close, backpressure in raw tunnels."""

import asyncio
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from roost.proxy.pool import Backend

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
UPGRADE = b"GET /t HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"


async def nothing(reader: Reader, writer: Writer) -> None:
    await reader.read()


async def test_websocket_both_ways(proxied: Any) -> None:
    async def echo(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with (
            proxied(nothing, backend=Backend(host="127.0.0.1", port=port)) as setup,
            connect(f"ws://127.0.0.1:{setup.port}/ws?x=1", max_size=None, proxy=None) as client,
        ):
            for message in ("héllo", b"\x00\xff" * 10, "x" * 3_000_000):
                await client.send(message)
                assert await asyncio.wait_for(client.recv(), 10) == message
            assert len(setup.proxy.tunnels) == 1
            assert client.latency >= 0
        for _ in range(100):
            if not setup.proxy.tunnels:
                break
            await asyncio.sleep(0.02)
        assert not setup.proxy.tunnels


async def test_a_refused_upgrade_is_an_ordinary_answer(proxied: Any) -> None:
    async def serve_(reader: Reader, writer: Writer) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")

    async with proxied(serve_) as setup:
        reader, writer = await setup.client()
        for _ in range(2):
            writer.write(UPGRADE)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 403")
            assert await reader.readexactly(2) == b"no"


async def test_first_bytes_and_half_close_go_through(proxied: Any) -> None:
    async def serve_(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED + b"first")
        got = await reader.read()  # until the client's half-close
        writer.write(b"got " + got)
        writer.write_eof()
        await writer.drain()

    async with proxied(serve_) as setup:
        answer = await setup.ask(UPGRADE + b"early bytes", eof=True)
        assert answer.endswith(b"\r\n\r\nfirstgot early bytes")


async def test_a_switch_nobody_asked_for_is_a_502(proxied: Any) -> None:
    async def serve_(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        await reader.read()

    async with proxied(serve_) as setup:
        answer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502")


async def test_a_tunnel_stops_reading_what_cannot_be_written(proxied: Any) -> None:
    sent = 0

    async def serve_(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        for _ in range(2048):
            writer.write(b"b" * 65536)
            await writer.drain()
            sent += 65536

    async with proxied(serve_) as setup:
        reader, writer = await setup.client()
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        last = -1
        while last != sent:
            last = sent
            await asyncio.sleep(0.3)
        assert sent < 32 << 20
        writer.transport.resume_reading()
        total = 0
        while data := await asyncio.wait_for(reader.read(1 << 20), 10):
            total += len(data)
        assert total == 2048 * 65536


async def test_a_reset_of_one_side_ends_the_other(proxied: Any) -> None:
    ended = asyncio.Event()

    async def serve_(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        try:
            await reader.read()
        finally:
            ended.set()

    async with proxied(serve_) as setup:
        reader, writer = await setup.client()
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 5)
