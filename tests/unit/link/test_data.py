"""Data connections against the real edge side: parking, opening, blobs, and heartbeats beside a gigabyte."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from roost.adapters.blobs.local import LocalBlobs
from roost.adapters.link.blobs import LinkedBlobs
from roost.adapters.link.data import DataPool, Serve, Stream
from roost.agent.terminal import serve_shell
from roost.gateway.streams import DataHosts, data_credential
from roost.gateway.transfer import BlobTransfer
from roost.kit.ids import SystemIds
from roost.ports import wire
from roost.ports.errors import Gone, Invalid, Retry, StaleEpoch

from .harness import SECRET, Agent, Book, control, listener, until

GIB = 1 << 30
BLOCK = bytes(1 << 20)
CREDENTIAL = data_credential(SECRET, "h-1")


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        yield Path(folder)


class Edge:
    """The data side of one edge."""

    def __init__(self, blobs: LocalBlobs) -> None:
        self.hosts = DataHosts(
            SECRET, SystemIds(), BlobTransfer(blobs).answer, lambda: None, lambda host, up: None
        )
        self.address = ""

    async def start(self, port: int = 0) -> None:
        sock = listener(port=port)
        self.address = f"127.0.0.1:{sock.getsockname()[1]}"
        await self.hosts.listen(sock)

    async def open(self, service: str, epoch: int = 0) -> Stream:
        """Take a parked connection and open a service on it, as a router does."""
        connection = None
        async with asyncio.timeout(10):
            while (connection := self.hosts.take("h-1")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        first = await connection.open(service, epoch, "st-1")
        reader = asyncio.StreamReader(limit=1 << 18)
        reader.feed_data(first)
        protocol = asyncio.StreamReaderProtocol(reader)
        connection.transport.set_protocol(protocol)
        protocol.connection_made(connection.transport)
        loop = asyncio.get_running_loop()
        return reader, asyncio.StreamWriter(connection.transport, protocol, reader, loop)


@asynccontextmanager
async def edge(folder: Path, port: int = 0) -> AsyncIterator[Edge]:
    made = Edge(LocalBlobs(folder / "blobs", sync=False))
    await made.start(port)
    try:
        yield made
    finally:
        made.hosts.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()


async def open_test_service(request: wire.Open) -> Stream | Serve:
    if request.service == "echo":
        return echo
    if request.service.startswith("port/"):
        return await asyncio.open_connection("127.0.0.1", int(request.service[5:]), limit=1 << 18)
    if request.service == "old":
        raise StaleEpoch("epoch 1 is over")
    if request.service == "broken":
        raise ZeroDivisionError
    raise Gone("no such service")


@asynccontextmanager
async def pool(*addresses: str, credential: str = CREDENTIAL) -> AsyncIterator[DataPool]:
    made = DataPool("h-1", open_service=open_test_service, draw=random.random)
    made.welcome(addresses, credential)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def sink() -> AsyncIterator[tuple[str, list[int]]]:
    """A local TCP service that counts what it gets; answers the count at the end."""
    received: list[int] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        while data := await reader.read(1 << 18):
            count += len(data)
        received.append(count)
        writer.write(str(count).encode())
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 18)
    try:
        yield str(server.sockets[0].getsockname()[1]), received
    finally:
        server.close()


async def test_parked_connections_are_opened_and_replaced(short: Path) -> None:
    async with edge(short) as there, pool(there.address) as here:
        await until(lambda: len(there.hosts._parked.get("h-1", ())) == 2)
        streams = [await there.open("echo") for _ in range(6)]
        for number, (reader, writer) in enumerate(streams):
            writer.write(b"%d" % number * 1000)
            assert await reader.readexactly(1000) == b"%d" % number * 1000
        assert here.open_streams == 6
        for _, writer in streams:
            writer.close()
        await until(lambda: here.open_streams == 0)
        await until(lambda: len(there.hosts._parked.get("h-1", ())) == 2)


async def test_where_many_come_more_are_parked(short: Path) -> None:
    async with edge(short) as there, pool(there.address) as here:
        streams = [await there.open("echo") for _ in range(40)]
        assert here.open_streams == 40
        await until(lambda: len(there.hosts._parked.get("h-1", ())) == 7)
        for _, writer in streams:
            writer.close()
        await until(lambda: here.open_streams == 0)
        for _ in range(20):  # what is parked too many goes as it is used
            _, writer = await there.open("echo")
            writer.close()
            await until(lambda: here.open_streams == 0)
        await until(lambda: len(there.hosts._parked.get("h-1", ())) == 2)


async def test_a_service_that_cannot_be_opened_says_why(short: Path) -> None:
    async with edge(short) as there, pool(there.address):
        with pytest.raises(StaleEpoch, match="epoch 1 is over"):
            await there.open("old")
        with pytest.raises(Gone):
            await there.open("nothing")
        with pytest.raises(Retry):
            await there.open("broken")
        reader, writer = await there.open("echo")
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()


async def test_half_close_passes_through(short: Path) -> None:
    async with edge(short) as there, pool(there.address), sink() as (port, received):
        reader, writer = await there.open(f"port/{port}")
        writer.write(b"x" * 100_000)
        writer.write_eof()
        assert await reader.read() == b"100000"
        assert received == [100_000]
        writer.close()


async def test_an_edge_may_be_restarted(short: Path) -> None:
    async with edge(short) as first:
        port = int(first.address.rpartition(":")[2])
        async with pool(first.address):
            await until(lambda: first.hosts.take("h-1"))
            first.hosts.close()
            async with edge(short, port) as second:
                reader, writer = await second.open("echo")
                writer.write(b"again")
                assert await reader.readexactly(5) == b"again"
                writer.close()


async def test_a_wrong_credential_parks_nothing(short: Path) -> None:
    async with edge(short) as there, pool(there.address, credential="0" * 64):
        blobs = LinkedBlobs("h-1")
        blobs.welcome((there.address,), "0" * 64)
        with pytest.raises(Retry):
            await blobs.get("0" * 64)
        assert there.hosts.take("h-1") is None
        blobs.close()


async def test_blobs_over_data_connections(short: Path) -> None:
    async with edge(short) as there:
        blobs = LinkedBlobs("h-1")
        with pytest.raises(Retry, match="no edge"):
            await blobs.get("0" * 64)
        blobs.welcome((there.address,), CREDENTIAL)
        contents = [random.Random(n).randbytes(1 << 20) for n in range(12)]
        digests = [blake3(content).hexdigest() for content in contents]
        assert await blobs.missing(digests) == digests
        await asyncio.gather(*map(blobs.put, digests, contents))
        assert await blobs.missing(digests) == []
        assert await asyncio.gather(*map(blobs.get, digests)) == contents
        with pytest.raises(Gone):
            await blobs.get("0" * 64)
        with pytest.raises(Invalid):
            await blobs.put("0" * 64, b"something else")
        with pytest.raises(Invalid):
            await blobs.delete(digests)
        assert await blobs.get(digests[3]) == contents[3]  # after errors too
        # The edge is restarted: connections that were idle are dead, the question is not.
        there.hosts.close()
        port = int(there.address.rpartition(":")[2])
        async with edge(short, port):
            assert await blobs.missing(digests) == []
        with pytest.raises(Retry):
            await blobs.missing(digests)
        blobs.close()


async def _beats_during(work: asyncio.Task[None], agent: Agent) -> tuple[int, float]:
    """How many reports the agent made while ``work`` ran, and how long that was."""
    loop = asyncio.get_running_loop()
    before, began = agent.reports, loop.time()
    await work
    return agent.reports - before, loop.time() - began


async def test_a_gigabyte_never_delays_a_heartbeat(short: Path) -> None:
    """Sender, agent, sink and control share one event loop here: worse than on a host.

    Control drops a host after 1 s without a frame; ten beats a second are due.
    """
    async with (
        control(Book("join"), silence_s=1.0, heartbeat_s=0.1) as there,
        edge(short) as far,
        pool(far.address),
        sink() as (port, received),
    ):
        agent = Agent(there.address, short)
        async with agent.running():
            await until(lambda: there.server.connected("h-1"))
            _, writer = await far.open(f"port/{port}")

            async def send() -> None:
                for _ in range(GIB // len(BLOCK)):
                    writer.write(BLOCK)
                    await writer.drain()
                writer.write_eof()
                await until(lambda: received, seconds=60)

            beats, seconds = await _beats_during(asyncio.create_task(send()), agent)
            assert received == [GIB]
            assert len(agent.welcomes) == 1, "the link was cut"
            assert beats >= int(seconds / 0.1) * 0.5
            writer.close()


async def test_an_upload_never_delays_a_heartbeat(short: Path) -> None:
    async with (
        control(Book("join"), silence_s=1.0, heartbeat_s=0.1) as there,
        edge(short) as far,
    ):
        blobs = LinkedBlobs("h-1")
        blobs.welcome((far.address,), CREDENTIAL)
        agent = Agent(there.address, short)
        async with agent.running():
            await until(lambda: there.server.connected("h-1"))

            async def upload() -> None:
                for start in range(0, 256, 32):
                    contents = [n.to_bytes(4) * (1 << 20) for n in range(start, start + 16)]
                    digests = [blake3(content).hexdigest() for content in contents]
                    await asyncio.gather(*map(blobs.put, digests, contents))

            beats, seconds = await _beats_during(asyncio.create_task(upload()), agent)
            assert len(agent.welcomes) == 1, "the link was cut"
            assert beats >= int(seconds / 0.1) * 0.5
        blobs.close()


async def test_a_shell_on_the_host(short: Path) -> None:
    home = short / "home"
    home.mkdir()

    async def open_shell(request: wire.Open) -> Stream | Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve_shell(reader, writer, home=str(home))

        return serve

    async with edge(short) as there:
        shells = DataPool("h-1", open_service=open_shell, draw=random.random)
        shells.welcome((there.address,), CREDENTIAL)
        reader, writer = await there.open("shell")
        writer.write(b'{"rows": 50, "cols": 132, "term": "xterm"}\n')
        writer.write(b"stty size; echo $TERM; pwd; exit\n")
        async with asyncio.timeout(20):
            shown = (await reader.read()).decode()
        assert "50 132" in shown
        assert "xterm" in shown
        assert str(home) in shown
        writer.close()
        await until(lambda: shells.open_streams == 0)
        reader, writer = await there.open("shell")
        writer.write(b"not json\n")
        assert await reader.read() == b""
        writer.close()
        await shells.close()
