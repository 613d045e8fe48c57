"""Raw streams through parked data connections, blobs, and what strangers get."""

import asyncio
import hashlib
from typing import Any

import pytest

from roost.gateway.model import Hold, Host, Route
from roost.ports import wire
from roost.ports.errors import Denied, Gone, Invalid, Retry, to_wire
from roost.testing.blobs import digest_of

TOKEN = "session token"


def kernel(host_id: str = "i-1", epoch: int = 1, *, held: bool = False) -> Route:
    return Route(
        name="kernel/s-1",
        prefix="/_roost/kernel/s-1",
        target=Hold() if held else Host(host_id=host_id, service="kernel/s-1"),
        epoch=epoch,
        tokens=(hashlib.sha256(TOKEN.encode()).hexdigest(),),
    )


PATH = "/_roost/kernel/s-1"


async def until(condition: Any, seconds: float = 10.0) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "not in time"
        await asyncio.sleep(0.01)


async def test_a_stream_through_a_parked_connection(edge: Any) -> None:
    async with edge() as setup:
        setup.routes(kernel(epoch=7))
        host = asyncio.create_task(setup.serve_next("i-1"))
        await until(lambda: setup.ups == [("i-1", True)])
        status, (reader, writer) = await setup.stream(PATH, TOKEN)
        assert status == 101
        opened, (far_reader, far_writer) = await host
        assert (opened.service, opened.epoch) == ("kernel/s-1", 7)
        assert opened.stream_id
        writer.write(b"to the keeper")
        assert await far_reader.readexactly(13) == b"to the keeper"
        far_writer.write(b"to the bridge")
        assert await reader.readexactly(13) == b"to the bridge"
        writer.write_eof()  # half-close one way, bytes still flow the other
        assert await far_reader.read() == b""
        far_writer.write(b"last words")
        far_writer.close()
        assert await asyncio.wait_for(reader.read(), 5) == b"last words"
        await until(lambda: ("i-1", False) in setup.ups)
        assert not setup.proxy.tunnels


async def test_only_the_right_token_opens(edge: Any) -> None:
    async with edge() as setup:
        setup.routes(kernel())
        assert (await setup.stream(PATH))[0] == 401
        assert (await setup.stream(PATH, "wrong"))[0] == 401
        assert (await setup.stream("/_roost/kernel/s-2", TOKEN))[0] == 404


async def test_a_stream_waits_for_the_route_and_for_the_host(edge: Any) -> None:
    async with edge() as setup:
        setup.routes(kernel(held=True))
        opening = asyncio.create_task(setup.stream(PATH, TOKEN))
        await until(lambda: setup.router.waiting.requests == 1)
        setup.routes(kernel(epoch=2))
        await until(lambda: setup.waits.count("kernel/s-1") >= 1)
        assert not opening.done()
        opened, _ = await setup.serve_next("i-1")
        assert opened.epoch == 2
        assert (await opening)[0] == 101


async def test_the_wait_for_a_stream_ends(edge: Any) -> None:
    async with edge(stream_hold_s=0.3) as setup:
        setup.routes(kernel())
        status, (reader, _) = await setup.stream(PATH, TOKEN)
        assert status == 504
        assert b"has no data connection" in await reader.readuntil(b"\n")


@pytest.mark.parametrize(
    ("error", "status"), [(Denied("no"), 403), (Invalid("no such service"), 502)]
)
async def test_a_final_refusal_of_the_agent_is_passed_on(
    edge: Any, error: Any, status: int
) -> None:
    async with edge() as setup:
        setup.routes(kernel())
        refused = wire.OpenFailed(error=to_wire(error))
        host = asyncio.create_task(setup.serve_next("i-1", error=refused))
        assert (await setup.stream(PATH, TOKEN))[0] == status
        await host


async def test_a_passing_refusal_is_tried_again(edge: Any) -> None:
    async with edge() as setup:
        setup.routes(kernel())

        async def agent() -> None:
            for error in (Retry("starting", after_s=0.05), Gone("not here yet")):
                await setup.serve_next("i-1", error=wire.OpenFailed(error=to_wire(error)))
            reader, writer = await setup.data_connection("i-1")
            await wire.data_to_agent().read(reader)
            writer.transport.abort()  # taken, and dead
            await setup.serve_next("i-1")

        task = asyncio.create_task(agent())
        assert (await setup.stream(PATH, TOKEN))[0] == 101
        await task


async def test_200_mb_and_a_second_stream_that_stays_quick(edge: Any) -> None:
    size, block = 200_000_000, b"\x5a" * 250_000
    async with edge() as setup:
        setup.routes(kernel())
        one = asyncio.create_task(setup.serve_next("i-1"))
        _, (reader, _writer) = await setup.stream(PATH, TOKEN)
        _, (_far_reader, far_writer) = await one
        two = asyncio.create_task(setup.serve_next("i-1"))
        _, (quick_reader, quick_writer) = await setup.stream(PATH, TOKEN)
        _, (echo_reader, echo_writer) = await two

        async def send() -> None:
            for _ in range(size // len(block)):
                far_writer.write(block)
                await far_writer.drain()
            far_writer.close()

        async def receive() -> int:
            total = 0
            while data := await reader.read(1 << 20):
                total += len(data)
            return total

        async def echo() -> None:
            while data := await echo_reader.read(100):
                echo_writer.write(data)

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(send()), loop.create_task(echo())]
        received = loop.create_task(receive())
        slowest_s = 0.0
        turns = 0
        while not received.done():
            began_s = loop.time()
            quick_writer.write(b"ping")
            assert await asyncio.wait_for(quick_reader.readexactly(4), 5) == b"ping"
            slowest_s = max(slowest_s, loop.time() - began_s)
            turns += 1
        assert await received == size
        assert turns > 10
        assert slowest_s < 1.0  # everything shares one loop and two busy cores in this test
        quick_writer.close()
        await asyncio.gather(*tasks)


async def test_a_host_that_dies_ends_its_streams_and_is_reported(edge: Any) -> None:
    async with edge() as setup:
        setup.routes(kernel())
        host = asyncio.create_task(setup.serve_next("i-1"))
        _, (reader, _writer) = await setup.stream(PATH, TOKEN)
        await host
        await setup.data_connection("i-1")
        await until(lambda: setup.hosts.hosts == ("i-1",))
        for writer in setup.open:
            if writer is not _writer:
                writer.transport.abort()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 5)
        _writer.close()  # what a bridge does then: it dials again
        await until(lambda: setup.ups == [("i-1", True), ("i-1", False)])
        assert setup.hosts.take("i-1") is None


async def test_a_route_that_moves_ends_its_old_streams_only(edge: Any) -> None:
    async with edge() as setup:
        setup.routes(kernel(epoch=1))
        host = asyncio.create_task(setup.serve_next("i-1"))
        _, (reader, _) = await setup.stream(PATH, TOKEN)
        _, (_, far_writer) = await host
        setup.routes(kernel(epoch=1))  # the same again
        setup.routes(kernel(epoch=1, held=True))  # fencing: the stream still drains
        far_writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        setup.routes(kernel("i-2", epoch=2))
        assert await asyncio.wait_for(reader.read(), 5) == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        b"\x00\x00\x00\x04junk",
        b"\x00\x00\x00\x00",
        wire.data_to_edge().encode(wire.Opened()),
        wire.data_to_edge().encode(
            wire.DataHello(host_id="i-1", credential="", purpose="park", protocol=99)
        ),
    ],
)
async def test_garbage_is_refused_and_harms_nobody(
    edge: Any, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with edge() as setup:
        setup.routes(kernel())
        host = asyncio.create_task(setup.serve_next("i-1"))
        await until(lambda: setup.hosts.hosts)
        for _ in range(3):
            reader, writer = await setup.dial(setup.data)
            frames = wire.data_to_agent()
            assert isinstance(await frames.read(reader), wire.Challenge)
            writer.write(garbage)
            answer = await asyncio.wait_for(frames.read(reader), 5)
            assert isinstance(answer, wire.Refused)
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert caplog.text.count("refused") == 1
        assert (await setup.stream(PATH, TOKEN))[0] == 101
        await host


async def test_a_wrong_credential_is_final(edge: Any) -> None:
    async with edge() as setup:
        reader, _ = await setup.data_connection("i-1", credential="0" * 64)
        answer = await wire.data_to_agent().read(reader)
        assert isinstance(answer, wire.Refused)
        assert answer.final
        assert "join again" in answer.hint
        assert setup.hosts.hosts == ()


async def test_blobs_over_a_data_connection(edge: Any) -> None:
    async with edge() as setup:
        reader, writer = await setup.data_connection("i-1", "blobs")
        to_agent, to_edge = wire.data_to_agent(), wire.data_to_edge()

        async def ask(message: wire.DataToEdge) -> wire.DataToAgent | None:
            writer.write(to_edge.encode(message))
            return await asyncio.wait_for(to_agent.read(reader), 15)

        large = b"large" * 4_000_000
        name = digest_of(large)
        assert await ask(wire.BlobsMissing(digests=(name,))) == wire.BlobsAnswer(digests=(name,))
        assert await ask(wire.BlobPut(digest=name, content=large)) == wire.BlobsAnswer()
        assert await ask(wire.BlobsMissing(digests=(name,))) == wire.BlobsAnswer()
        assert await ask(wire.BlobGet(digest=name)) == wire.BlobBytes(content=large)
        wrong = await ask(wire.BlobPut(digest=digest_of(b"x"), content=b"y"))
        assert isinstance(wrong, wire.Failed)
        assert wrong.error.code == "invalid"
        gone = await ask(wire.BlobGet(digest=digest_of(b"x")))
        assert isinstance(gone, wire.Failed)
        assert gone.error.code == "gone"
        # Pipelined requests are answered in order.
        for _ in range(50):
            writer.write(to_edge.encode(wire.BlobsMissing(digests=(name,))))
            writer.write(to_edge.encode(wire.BlobsMissing(digests=(digest_of(b"x"),))))
        for _ in range(50):
            assert await to_agent.read(reader) == wire.BlobsAnswer()
            assert await to_agent.read(reader) == wire.BlobsAnswer(digests=(digest_of(b"x"),))
        # What does not belong on this connection is refused, the blob stays.
        answer = await ask(wire.Opened())
        assert isinstance(answer, wire.Failed)
        writer.write(b"\x00\x00\x00\x04junk")
        assert isinstance(await asyncio.wait_for(to_agent.read(reader), 5), wire.Refused)
    assert await setup.blobs.get(name) == large


async def test_http_to_a_host_that_cannot_be_dialled(edge: Any) -> None:
    """Requests go through the host's parked connection, which is kept for the next one."""
    async with edge() as setup:
        target = Host(host_id="h-1", service="web")
        setup.routes(Route(name="n/s-1", prefix="/n/s-1", target=target, epoch=3))
        serving = asyncio.create_task(setup.serve_next("h-1"))
        first = asyncio.create_task(setup.ask("/n/s-1/a"))
        opened, (reader, writer) = await serving
        assert (opened.service, opened.epoch) == ("web", 3)
        for path in (b"/n/s-1/a", b"/n/s-1/b"):
            if path.endswith(b"b"):
                second = asyncio.create_task(setup.ask("/n/s-1/b"))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert head.startswith(b"GET " + path)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        assert (await first)[::2] == (200, b"hello")
        assert (await second)[::2] == (200, b"hello")
        setup.routes()  # the route is gone: so is the connection
        assert await asyncio.wait_for(reader.read(), 10) == b""
        for _ in range(200):
            if setup.ups[-1] == ("h-1", False):
                break
            await asyncio.sleep(0.01)
        assert setup.ups == [("h-1", True), ("h-1", False)]
