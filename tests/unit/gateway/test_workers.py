"""The channel between supervisor and workers, listening sockets, and how bounds are shared out."""

import asyncio
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from roost.gateway import channel, sockets
from roost.gateway.plane import shared_out
from roost.ports.errors import Invalid
from roost.proxy import policy

GATEWAY = policy.Gateway(
    listeners=(policy.Listener(name="main", address="127.0.0.1:0"),),
    routes=tuple(policy.Route(name=f"r{n}", service="web") for n in range(3000)),
    services=(policy.Service(name="web", backends=("127.0.0.1:1",)),),
)


class End:
    """One end of a channel, and what came over it."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[tuple[channel.Message, list[int]]] = []
        self.ended = asyncio.Event()
        self.came = asyncio.Event()
        self.channel = channel.Channel(sock, self._heard, self.ended.set)
        self.channel.start(asyncio.get_running_loop())

    def _heard(self, message: channel.Message, descriptors: list[int]) -> None:
        self.heard.append((message, descriptors))
        self.came.set()

    async def count(self, number: int) -> None:
        async with asyncio.timeout(10):
            while len(self.heard) < number:
                self.came.clear()
                await self.came.wait()


async def test_a_large_snapshot_and_sockets_go_over_the_channel() -> None:
    ours, theirs = (End(sock) for sock in channel.pair())
    snapshot = channel.Snapshot(version=7, gateway=GATEWAY, workers=2)
    memory = channel.stored(snapshot)
    assert os.fstat(memory).st_size > channel.MESSAGE_BYTES
    listening = sockets.bind("127.0.0.1:0", 1, "test")[0]
    ours.channel.tell(
        channel.Configure(version=7, listeners=("main",)), [memory, listening.fileno()]
    )
    os.close(memory)
    await theirs.count(1)
    message, (first, second) = theirs.heard[0]
    assert message == channel.Configure(version=7, listeners=("main",))
    assert channel.restored(first) == snapshot
    with socket.socket(fileno=second) as copy:
        assert copy.getsockname() == listening.getsockname()
    os.close(first)
    listening.close()
    theirs.channel.tell(channel.Applied(version=7))
    await ours.count(1)
    ours.channel.close()
    async with asyncio.timeout(10):
        await theirs.ended.wait()


async def test_messages_wait_in_order_for_a_slow_reader() -> None:
    left, right = channel.pair()
    ours = End(left)
    for version in range(2000):
        ours.channel.tell(channel.Applied(version=version, error="x" * 1000))
    theirs = End(right)
    await theirs.count(2000)
    assert [m.version for m, _ in theirs.heard if isinstance(m, channel.Applied)] == [*range(2000)]
    ours.channel.close()
    theirs.channel.close()


async def test_what_is_not_understood_is_ignored() -> None:
    left, right = channel.pair()
    theirs = End(right)
    left.send(b"\x81\xa1k\xa6future")
    left.send(b"nonsense")
    other = channel.Channel(left, lambda m, f: None, lambda: None)
    other.start(asyncio.get_running_loop())
    other.tell(channel.Applied(version=1))
    await theirs.count(1)
    assert theirs.heard[0][0] == channel.Applied(version=1)
    other.close()
    theirs.channel.close()


@pytest.fixture
def pair() -> Iterator[list[socket.socket]]:
    made = sockets.bind("127.0.0.1:0", 2, "test")
    yield made
    for sock in made:
        sock.close()


def test_sockets_share_a_port_among_themselves_only(pair: list[socket.socket]) -> None:
    address = sockets.shown(pair[0])
    assert address == sockets.shown(pair[1])
    with pytest.raises(Invalid, match="cannot listen on"):
        sockets.bind(address, 1, "another")
    (third,) = sockets.more(pair[0], 1)
    assert sockets.shown(third) == address
    third.close()


@pytest.mark.parametrize("text", ["", "localhost", "127.0.0.1:", "127.0.0.1:http", "h:70000"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(Invalid, match="not an address"):
        sockets.parse(text)


def test_addresses() -> None:
    assert sockets.parse("[::1]:80") == ("::1", 80)
    assert sockets.parse(":80") == ("", 80)


async def test_a_silenced_socket_takes_nothing_new_and_resets_nobody() -> None:
    (sock,) = sockets.bind("127.0.0.1:0", 1, "test")
    address = sock.getsockname()
    queued = [socket.create_connection(address) for _ in range(5)]
    sockets.silence(sock)
    late = socket.socket()
    late.setblocking(False)
    assert late.connect_ex(address) != 0  # its opening was dropped: it will be repeated
    waiting = asyncio.ensure_future(sockets.emptied([sock], 10.0))
    await asyncio.sleep(0)
    accepted = [sock.accept()[0] for _ in range(5)]
    await waiting
    with pytest.raises(BlockingIOError):
        sock.accept()
    sock.close()
    for client, server in zip(queued, accepted, strict=True):
        server.close()
        assert client.recv(1) == b""
        client.close()
    error = late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert error == 0
    late.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    late.close()


def test_bounds_for_all_workers_are_shared_out() -> None:
    held = policy.Route(name="a", service="web", hold=policy.HoldPolicy(max_requests=5))
    gateway = policy.Gateway(routes=(held, policy.Route(name="b", service="web")))
    first, second = shared_out(gateway, 4).routes
    assert first.hold == policy.HoldPolicy(max_requests=2, max_bytes=16 << 20)
    assert second is gateway.routes[1]


def test_only_services_of_tcp_listeners_are_offered_no_protocol() -> None:
    tls = policy.TlsOrigin(verify=False)
    names = ("web", "canary", "raw")
    gateway = policy.Gateway(
        listeners=(policy.Listener(name="l", address=":1", protocol="tcp", service="raw"),),
        routes=(
            policy.Route(name="a", service="web"),
            policy.Route(name="b", split=(policy.Split(service="canary"),)),
        ),
        services=tuple(policy.Service(name=name, tls=tls) for name in names),
    )
    offered = [each.tls.alpn for each in shared_out(gateway, 1).services if each.tls is not None]
    assert offered == [("http/1.1",), ("http/1.1",), ()]
