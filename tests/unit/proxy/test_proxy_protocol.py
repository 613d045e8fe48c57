"""PROXY headers: strict, incremental, bounded; then the client's own bytes, with and without TLS."""

import asyncio
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.proxy import policy
from roost.proxy.proxy_protocol import (
    SIGNATURE,
    V1_LIMIT,
    Address,
    Header,
    HeaderError,
    ProxiedConnection,
    address_of,
    parse,
    render,
)
from roost.proxy.tls import ServerTls, Tickets
from tests.support.certificates import Authority

ports = st.integers(0, 65535)
addresses = st.one_of(
    st.tuples(*[st.tuples(st.ip_addresses(v=4).map(str), ports)] * 2),
    st.tuples(*[st.tuples(st.ip_addresses(v=6).map(str), ports)] * 2),
)
V2 = struct.Struct("!12sBBH")


def v2(command: int = 0x21, family: int = 0x11, body: bytes = b"") -> bytes:
    return V2.pack(SIGNATURE, command, family, len(body)) + body


@given(addresses, st.sampled_from([1, 2]), st.binary(max_size=40), st.data())
def test_what_is_rendered_is_read_back_in_any_pieces(
    pair: tuple[Address, Address], version: int, rest: bytes, data: st.DataObject
) -> None:
    header = render(version, *pair)  # type: ignore[arg-type]
    cut = data.draw(st.integers(0, len(header) - 1))
    assert parse(header[:cut]) is None
    assert parse(header + rest) == Header(len(header), *pair)


@given(st.binary(max_size=300))
def test_anything_is_a_header_or_more_or_an_error(junk: bytes) -> None:
    for data in (junk, SIGNATURE + junk, b"PROXY " + junk, b"PROXY TCP4 " + junk):
        try:
            header = parse(data)
        except HeaderError:
            continue
        assert header is None or 0 < header.size <= len(data)
        if header is None:
            assert len(data) < V1_LIMIT or data.startswith(SIGNATURE)
        elif header.client is not None:
            ipaddress.ip_address(header.client[0])


@given(addresses, st.sampled_from([1, 2]), st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_is_never_read_beyond_the_data(
    pair: tuple[Address, Address], version: int, at: int, value: int
) -> None:
    header = bytearray(render(version, *pair))  # type: ignore[arg-type]
    header[at % len(header)] = value
    try:
        found = parse(bytes(header))
    except HeaderError:
        return
    assert found is None or found.size <= len(header)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "does not begin"),
        (b"\x16\x03\x01\x02\x00", "does not begin"),
        (b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n", "does not begin"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", "CR LF"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", "malformed"),
        (b"PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n", "malformed"),
        (b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n", "malformed"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", "malformed"),
        (b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n", "bad address"),
        (b"PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n", "bad address"),
        (b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", "another family"),
        (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "another family"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n", "bad port"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n", "bad port"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n", "bad port"),
        (b"PROXY TCP4 " + b"1" * 200, "too long"),
        (b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n", "too long"),
        (v2(command=0x31), "unknown"),
        (v2(command=0x22), "unknown"),
        (v2(family=0x41), "unknown"),
        (v2(family=0x13), "unknown"),
        (v2(body=b"short"), "too short"),
        (v2(family=0x21, body=b"x" * 35), "too short"),
        (v2(family=0x31, body=b"x" * 215), "too short"),
        (V2.pack(SIGNATURE, 0x21, 0x11, 5000), "too long"),
    ],
)
def test_what_is_no_header_is_refused(line: bytes, why: str) -> None:
    with pytest.raises(HeaderError, match=why):
        parse(line)


def test_unknown_and_local_say_nothing_of_the_client() -> None:
    for header in (
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        v2(command=0x20),
        v2(command=0x20, body=b"x" * 12),
        v2(family=0x00),
        v2(family=0x12, body=b"x" * 12),
        v2(family=0x31, body=b"x" * 216),
    ):
        assert parse(header + b"rest") == Header(len(header), None)
    for nobody in ((None, ("1.1.1.1", 1)), (("1.1.1.1", 1), ("::1", 1)), (("unix", 0), ("u", 0))):
        assert render(1, *nobody) == b"PROXY UNKNOWN\r\n"
        assert parse(render(2, *nobody)) == Header(16, None)


def test_what_follows_the_addresses_is_skipped() -> None:
    body = bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack("!HH", 5, 6) + b"\x04\x00\x01\x00" * 99
    header = v2(body=body)
    assert parse(header) == Header(len(header), ("10.0.0.1", 5), ("10.0.0.2", 6))


# --- connections -----------------------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    """Says who the client is, then echoes."""

    def __init__(self, client: Address | None) -> None:
        self.client = client
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        client = self.client or address_of(transport)
        assert client is not None
        self.transport.write(f"{client[0]} {client[1]}\n".encode())

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@asynccontextmanager
async def listening(
    tls: ssl.SSLContext | None = None, timeout_s: float = 5.0
) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(
        lambda: ProxiedConnection(Echo, tls=tls, timeout_s=timeout_s), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


HEADERS = [render(v, ("192.0.2.7", 4711), ("192.0.2.1", 443)) for v in (1, 2)]  # type: ignore[arg-type]


async def test_the_client_of_the_header_then_its_bytes() -> None:
    async with listening() as port:
        for header in HEADERS:
            for pieces in ([header + b"early"], [header[:5], header[5:], b"ear", b"ly"]):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0.002)
                assert await asyncio.wait_for(reader.readline(), 5) == b"192.0.2.7 4711\n"
                assert await asyncio.wait_for(reader.readexactly(5), 5) == b"early"
                writer.transport.abort()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        own = writer.get_extra_info("sockname")
        writer.write(b"PROXY UNKNOWN\r\n")
        assert await asyncio.wait_for(reader.readline(), 5) == f"{own[0]} {own[1]}\n".encode()
        writer.transport.abort()


async def test_no_header_no_connection() -> None:
    async with listening(timeout_s=0.1) as port:
        for first in (b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 ", b"", SIGNATURE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.transport.abort()


@pytest.mark.parametrize("split", [False, True])
async def test_the_handshake_comes_after_the_header(tmp_path: Path, split: bool) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("a.example")
    config = policy.Tls(
        certificates=(policy.Certificate(certificate=str(pair.certificate), key=str(pair.key)),)
    )
    server = ServerTls("web", config, Tickets(1))
    client = ssl.create_default_context(cafile=str(authority.file))

    def talk(port: int, header: bytes) -> bytes:
        """The header in one packet with the handshake's first bytes, as proxies may send it."""
        to_us, to_it = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client.wrap_bio(to_us, to_it, server_hostname="a.example")
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if split:
                sock.sendall(header)
                header = b""

            def step(do: Callable[[], object]) -> object:
                nonlocal header
                while True:
                    try:
                        result = do()
                    except ssl.SSLWantReadError:
                        result = None
                    out, header = header + to_it.read(), b""
                    if out:
                        sock.sendall(out)
                    if result is not None:
                        return result
                    data = sock.recv(65536)
                    assert data
                    to_us.write(data)

            step(lambda: tls.do_handshake() or True)
            step(lambda: tls.write(b"through"))
            got = b""
            while not got.endswith(b"through"):
                piece = step(lambda: tls.read(100))
                assert isinstance(piece, bytes)
                got += piece
            return got

    async with listening(server.context) as port:
        for header in HEADERS:
            got = await asyncio.to_thread(talk, port, header)
            assert got == b"192.0.2.7 4711\nthrough"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEADERS[0] + b"no handshake at all")
        with suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
        writer.transport.abort()
