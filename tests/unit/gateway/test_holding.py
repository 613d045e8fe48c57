"""Requests to routes without a target wait within bounds, and go on at once when there is one."""

import asyncio
import hashlib
from typing import Any

from roost.gateway.holding import Waiting
from roost.gateway.model import Hold, Host, Route, Tcp, Unix

HELD = Route(name="n/s-1", prefix="/n/s-1", target=Hold(), epoch=1)


async def backend(text: bytes = b"hello") -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = 5 if b"content-length: 5" in head.lower() else 0
        body = await reader.readexactly(size)
        answer = text + body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def live(port: int, epoch: int = 1) -> Route:
    return Route(
        name="n/s-1", prefix="/n/s-1", target=Tcp(host="127.0.0.1", port=port), epoch=epoch
    )


async def waiting_for(edge: Any, count: int) -> None:
    for _ in range(500):
        if edge.router.waiting.requests == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{edge.router.waiting.requests} wait, not {count}")


async def test_waiting_requests_go_on_at_once(edge: Any) -> None:
    server, port = await backend()
    async with edge() as setup:
        setup.routes(HELD)
        gets = [asyncio.create_task(setup.ask("/n/s-1/x")) for _ in range(20)]
        reader, writer = await setup.dial(setup.public)
        writer.write(b"POST /n/s-1/y HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n12345")
        await waiting_for(setup, 21)
        assert setup.waits == ["n/s-1"], "told once a second, not once a request"
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        setup.routes(live(port))
        for status, _, body in await asyncio.gather(*gets):
            assert (status, body) == (200, b"hello")
        assert loop.time() - began_s < 2.0
        assert (await reader.readuntil(b"12345")).endswith(b"hello12345")
        assert setup.router.waiting.requests == 0
        assert setup.router.waiting.bytes == 0
    server.close()


async def test_a_large_upload_waits_with_the_client_and_arrives_whole(edge: Any) -> None:
    size = 20_000_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        digest = hashlib.sha256(await reader.readexactly(size)).hexdigest().encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with edge() as setup:
        setup.routes(HELD)
        body = bytes(range(250)) * (size // 250)
        reader, writer = await setup.dial(setup.public)
        writer.write(b"POST /n/s-1 HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(body)
        await waiting_for(setup, 1)
        assert setup.router.waiting.bytes < 70_000
        await asyncio.sleep(0.1)
        assert writer.transport.get_write_buffer_size() > 0, "the rest stays with the client"
        setup.routes(live(server.sockets[0].getsockname()[1]))
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert answer.startswith(b"HTTP/1.1 200")
        assert (await reader.readexactly(64)).decode() == hashlib.sha256(body).hexdigest()
    server.close()


async def test_the_wait_is_bounded_in_number_bytes_and_time(edge: Any) -> None:
    async with edge(waiting=Waiting(requests_limit=2)) as setup:
        setup.routes(HELD)
        tasks = [asyncio.create_task(setup.ask("/n/s-1")) for _ in range(2)]
        await waiting_for(setup, 2)
        status, head, _ = await setup.ask("/n/s-1")
        assert status == 503
        assert b"Retry-After: 5" in head
        setup.routes()  # removed: who waits learns it
        assert {status for status, _, _ in await asyncio.gather(*tasks)} == {404}
    async with edge(waiting=Waiting(bytes_limit=100_000)) as setup:
        setup.routes(HELD)
        _, writer = await setup.dial(setup.public)
        writer.write(b"POST /n/s-1 HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n")
        await waiting_for(setup, 1)
        assert setup.router.waiting.bytes < 70_000
        assert (await setup.ask("/n/s-1", "Content-Length: 9999999"))[0] == 503
        writer.transport.abort()
        await waiting_for(setup, 0)
    async with edge() as setup:
        setup.routes(Route(name="n/s-1", prefix="/n/s-1", target=Hold(), hold_s=0.2))
        status, head, body = await setup.ask("/n/s-1")
        assert status == 504
        assert b"on hold" in body
        page = await setup.ask("/n/s-1", "Accept: text/html,*/*")
        assert b"http-equiv=refresh" in page[2]


async def test_a_client_that_leaves_no_longer_waits(edge: Any) -> None:
    async with edge() as setup:
        setup.routes(HELD)
        _, writer = await setup.dial(setup.public)
        writer.write(b"GET /n/s-1 HTTP/1.1\r\nHost: h\r\n\r\n")
        await waiting_for(setup, 1)
        writer.close()
        await waiting_for(setup, 0)


async def test_a_backend_that_starts_late_is_found(edge: Any, tmp_path: Any) -> None:
    path = tmp_path / "s"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup")
        await writer.drain()
        writer.close()

    async with edge() as setup:
        setup.routes(Route(name="n/s-1", prefix="/n/s-1", target=Unix(path=str(path)), epoch=1))
        posted = asyncio.create_task(setup.ask("/n/s-1", method="POST"))
        await waiting_for(setup, 1)
        server = await asyncio.start_unix_server(serve, str(path))
        status, _, body = await posted
        assert (status, body) == (200, b"up")
        server.close()
    async with edge() as setup:
        down = Route(
            name="n/s-1", prefix="/n/s-1", target=Tcp(host="127.0.0.1", port=1), hold_s=0.2
        )
        setup.routes(down)
        status, head, body = await setup.ask("/n/s-1")
        assert status == 503
        assert b"Retry-After" in head
        assert b"cannot be reached" in body


async def test_unknown_paths_and_odd_paths(edge: Any) -> None:
    server, port = await backend()
    async with edge() as setup:
        setup.routes(live(port))
        status, head, body = await setup.ask("/nowhere")
        assert status == 404
        assert b"application/problem+json" in head
        assert b"no route" in body
        for path in ("/n/s-1/../s-2", "/n/s-1/%2e%2E/s-2", "/n/./s-1", "/n/s-1/.."):
            assert (await setup.ask(path))[0] == 400
        assert (await setup.ask("/n/s-1/.hidden/a..b"))[0] == 200
        status, _, body = await setup.ask("/_roost/health")
        assert status == 200
        assert b'"status": "ok"' in body
    server.close()


async def test_a_plain_request_to_a_stream_route_is_told_to_upgrade(edge: Any) -> None:
    async with edge() as setup:
        target = Host(host_id="i-1", service="kernel/s-1")
        setup.routes(Route(name="kernel/s-1", prefix="/_roost/kernel/s-1", target=target))
        status, head, _ = await setup.ask("/_roost/kernel/s-1")
        assert status == 426
        assert b"Upgrade: roost-stream" in head
        setup.routes(Route(name="kernel/s-1", prefix="/_roost/kernel/s-1", target=Hold()))
        assert (await setup.ask("/_roost/kernel/s-1"))[0] == 426


async def test_every_route_with_tokens_checks_them(edge: Any) -> None:
    server, port = await backend()
    async with edge() as setup:
        digest = hashlib.sha256(b"right").hexdigest()
        target = Tcp(host="127.0.0.1", port=port)
        setup.routes(Route(name="api", prefix="/api", target=target, tokens=("0" * 64, digest)))
        assert (await setup.ask("/api/x"))[0] == 401
        assert (await setup.ask("/api/x", "Authorization: Bearer wrong"))[0] == 401
        assert (await setup.ask("/api/x", "Authorization: Basic right"))[0] == 401
        assert (await setup.ask("/api/x", f"Authorization: Bearer {digest}"))[0] == 401
        assert (await setup.ask("/api/x", "Authorization: bearer right"))[0] == 200
    server.close()
