"""WebSockets that are told: frames are followed in any pieces; the close frame never splits one."""

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close

from roost.proxy import policy
from roost.proxy.leaving import NOTICE_S, Leaving
from roost.proxy.pool import Backend
from roost.proxy.tunnel import Tunnel
from roost.proxy.upstream import Upstreams
from roost.proxy.websocket import (
    GOING_AWAY,
    SERVICE_RESTART,
    WebSocketTunnel,
    close_frame,
    frame_size,
    tell_all,
)

# --- frames in any pieces ----------------------------------------------------------------


class Fake:
    """As much of a transport as a tunnel needs."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


def frame(payload: int, opcode: int = 2, *, masked: bool = False) -> bytes:
    flag = 0x80 if masked else 0
    first = bytes([opcode])
    if payload < 126:
        head = first + bytes([flag | payload])
    elif payload < 65536:
        head = first + bytes([flag | 126]) + payload.to_bytes(2, "big")
    else:
        head = first + bytes([flag | 127]) + payload.to_bytes(8, "big")
    return head + (b"mask" if masked else b"") + bytes(i % 251 for i in range(payload))


sizes = st.one_of(st.integers(0, 130), st.sampled_from([125, 126, 127, 1000, 65535, 65536, 70000]))
frames = st.lists(
    st.builds(
        frame,
        sizes,
        st.sampled_from([0x81, 0x82, 0x02, 0x00, 0x80, 0x89]),
        masked=st.booleans(),
    ),
    max_size=12,
)


def spliced(first: bytes = b"") -> tuple[WebSocketTunnel, Fake, Fake]:
    tunnel = WebSocketTunnel(lambda _: None)
    client, server = Fake(), Fake()
    tunnel.splice(
        cast("asyncio.Transport", client), cast("asyncio.Transport", server), from_two=first
    )
    return tunnel, client, server


@settings(max_examples=60)
@given(frames, st.data())
def test_the_close_frame_comes_at_the_next_boundary(
    stream: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(stream)
    boundaries = [0]
    for piece in stream:
        boundaries.append(boundaries[-1] + len(piece))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    if data.draw(st.booleans()):  # often pieces are just the frames
        cuts = sorted({*cuts, *boundaries})
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    pieces = [piece for piece in pieces if piece]
    told_before = data.draw(st.integers(0, len(pieces)))

    asyncio.run(check(pieces, told_before, whole, boundaries))


async def check(pieces: list[bytes], told_before: int, whole: bytes, boundaries: list[int]) -> None:
    tunnel, client, server = spliced()
    sent = 0
    expected = None
    for index, piece in enumerate([*pieces, b""]):
        if index == told_before:
            tunnel.tell(GOING_AWAY, "bye", grace_s=60)
            expected = min((b for b in boundaries if b >= sent), default=None)
        if piece:
            cast("Any", server).protocol.data_received(piece)
            sent += len(piece)
    got = b"".join(client.written)
    assert expected is not None
    assert got == whole[:expected] + close_frame(GOING_AWAY, "bye")


@given(frames)
def test_what_is_not_told_goes_through_unchanged(stream: list[bytes]) -> None:
    _, client, server = spliced(stream[0] if stream else b"")
    for piece in stream[1:]:
        cast("Any", server).protocol.data_received(piece)
    assert b"".join(client.written) == b"".join(stream)
    assert len(client.written) == len(stream)  # nothing is held back, cut or joined


@given(sizes, st.booleans())
def test_the_size_of_a_frame(size: int, masked: bool) -> None:
    whole = frame(size, masked=masked)
    known = [frame_size(whole[:n]) for n in range(min(len(whole), 15))]
    assert set(known) <= {0, len(whole)}
    assert frame_size(whole) == len(whole)


def test_a_close_frame_is_as_the_rfc_wants_it() -> None:
    assert close_frame(1001) == b"\x88\x02\x03\xe9"
    assert close_frame(1012, "x") == b"\x88\x03\x03\xf4x"
    longest = close_frame(1001, "é" * 200)
    assert len(longest) <= 127 and Close.parse(longest[2:]).reason == "é" * 61


# --- real sockets ------------------------------------------------------------------------


async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def dial(setup: Any) -> Any:
    return connect(f"ws://127.0.0.1:{setup.port}/ws", max_size=None, proxy=None)


async def test_both_sides_close_in_order_when_the_gateway_goes(proxied: Any) -> None:
    codes: list[int] = []

    async def echo(socket: ServerConnection) -> None:
        try:
            async for message in socket:
                await socket.send(message)
        finally:
            await socket.wait_closed()
            codes.append(socket.close_code or 0)

    async with serve(echo, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with proxied(nothing, backend=Backend(host="127.0.0.1", port=port)) as setup:
            clients: list[ClientConnection] = [await dial(setup) for _ in range(3)]
            for client in clients:
                await client.send("hello")
                assert await asyncio.wait_for(client.recv(), 5) == "hello"
            assert tell_all(setup.proxy.tunnels, GOING_AWAY, "the gateway ends", over_s=0.1) == 3
            assert tell_all([Tunnel(lambda _: None)]) == 0
            for client in clients:
                with pytest.raises(ConnectionClosed) as caught:
                    await asyncio.wait_for(client.recv(), 5)
                assert caught.value.rcvd == Close(GOING_AWAY, "the gateway ends")
                assert caught.value.rcvd_then_sent
            await until(lambda: not setup.proxy.tunnels)
            await until(lambda: len(codes) == 3)
            assert codes == [GOING_AWAY] * 3


async def test_a_message_under_way_arrives_whole_before_the_close(proxied: Any) -> None:
    more = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        key = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # of the sample nonce in RFC 6455
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + key + b"\r\n\r\n" + frame(100_000)[:1000]
        )
        await more.wait()
        writer.write(frame(100_000)[1000:] + frame(10) * 5)
        await reader.read()

    async with proxied(slow) as setup:
        reader, writer = await setup.client()
        writer.write(
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        await asyncio.wait_for(reader.readexactly(1000), 5)
        (tunnel,) = setup.proxy.tunnels
        tunnel.tell(SERVICE_RESTART)
        tunnel.tell(GOING_AWAY)  # once is enough
        more.set()
        rest = await asyncio.wait_for(reader.readexactly(len(frame(100_000)) - 1000 + 4), 5)
        assert rest == frame(100_000)[1000:] + close_frame(SERVICE_RESTART)
        writer.write(frame(2, 0x88, masked=True))
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await until(lambda: not setup.proxy.tunnels)


async def test_who_does_not_close_is_closed(proxied: Any) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        writer.write(frame(100)[:50])  # and never the rest
        await reader.read()

    async with proxied(deaf) as setup:
        reader, writer = await setup.client()
        writer.write(
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        (tunnel,) = setup.proxy.tunnels
        tunnel.tell(grace_s=0.1)
        assert await asyncio.wait_for(reader.read(), 5) == frame(100)[:50]
        await until(lambda: not setup.proxy.tunnels)
        tunnel.tell()  # it is over


async def test_other_upgrades_are_left_alone(proxied: Any) -> None:
    async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n"
        )
        writer.write(await reader.read(10))
        await reader.read()

    async with proxied(raw) as setup:
        reader, writer = await setup.client()
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert tell_all(setup.proxy.tunnels) == 0
        writer.write(b"still here")
        assert await asyncio.wait_for(reader.readexactly(10), 5) == b"still here"


# --- backends that leave --------------------------------------------------------------------


async def talking(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.send(message)


async def test_websockets_of_leaving_backends_are_told(
    proxied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.proxy.leaving.SPREAD_S", 0.05)
    async with serve(talking, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        stays, goes, leaves = (policy.BackendSpec(address=f"127.0.0.1:{p}") for p in (1, 2, 3))
        upstreams = Upstreams(policy.Service(name="s", backends=(stays, goes, leaves)))
        kept, left, noticed = upstreams.members
        async with proxied(nothing, backend=Backend(host="127.0.0.1", port=port)) as setup:
            clients = []
            for owner in (kept, left, left, noticed):
                clients.append(await dial(setup))
                next(t for t in setup.proxy.tunnels if t.owner is None).owner = owner
            offset_s = 1_000_000.0 - asyncio.get_running_loop().time()
            leaving = Leaving(setup.proxy.tunnels, unix_offset_s=offset_s)
            leaving.look(upstreams.members)
            goes = policy.BackendSpec(address=goes.address, state="draining")
            leaves_at_s = 1_000_000.0 + NOTICE_S + 0.5
            leaves = policy.BackendSpec(address=leaves.address, leaves_at_s=leaves_at_s)
            upstreams.updated(policy.Service(name="s", backends=(stays, goes, leaves)))
            leaving.look(upstreams.members)
            for client in clients[1:]:
                with pytest.raises(ConnectionClosed) as caught:
                    await asyncio.wait_for(client.recv(), 5)
                assert caught.value.rcvd == Close(SERVICE_RESTART, "the server is leaving")
            await clients[0].send("still here")
            assert await asyncio.wait_for(clients[0].recv(), 5) == "still here"
            # Out of the configuration is not the same as leaving.
            upstreams.updated(policy.Service(name="s", backends=(goes, leaves)))
            leaving.look(upstreams.members)
            await clients[0].send("even now")
            assert await asyncio.wait_for(clients[0].recv(), 5) == "even now"
            leaving.close()
            await clients[0].close()
