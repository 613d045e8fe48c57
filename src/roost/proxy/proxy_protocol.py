"""The PROXY protocol, versions 1 and 2: who the client of a forwarded connection really is.

Reading is strict and bounded: a listener that expects the header takes nothing else. Never guesses
whether there is one, and never trusts one from a listener that does not ask for it.
"""

import asyncio
import ipaddress
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from roost.proxy.secure import SecureConnection

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""Of version 2; no HTTP request and no TLS handshake begins so."""
V1_LIMIT = 107
"""Longest line of version 1, with its end."""
V2_LIMIT = 4096
"""Most bytes after the fixed part of version 2 (TLVs follow the addresses)."""
HEADER_S = 5.0
"""Longest wait for the whole header."""

Address = tuple[str, int]

_FIXED = struct.Struct("!12sBBH")
_V2_SIZES = {0x1: (4, 12), 0x2: (16, 36)}
"""By address family: bytes of an address, bytes of both with their ports."""
_UNIX, _UNIX_SIZE = 0x3, 216


class HeaderError(ValueError):
    """What came is no PROXY header."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header as read. ``client`` is None where the sender speaks for itself (LOCAL, UNKNOWN)."""

    size: int
    """Bytes it took; what follows is the client's."""
    client: Address | None
    target: Address | None = None


def parse(data: bytes) -> Header | None:
    """The header at the start of what has arrived; None: more is needed. Raises ``HeaderError``."""
    if data[:12] == SIGNATURE[: len(data)]:
        return _parse_v2(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _parse_v1(data)
    raise HeaderError("the connection does not begin with a PROXY header")


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, V1_LIMIT)
    if end < 0:
        if len(data) >= V1_LIMIT:
            raise HeaderError("the PROXY line is too long")
        return None
    if data[end - 1 : end] != b"\r":
        raise HeaderError("the PROXY line does not end in CR LF")
    words = data[: end - 1].split(b" ")
    if words[1] == b"UNKNOWN":
        return Header(end + 1, None)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise HeaderError("the PROXY line is malformed")
    version = 4 if words[1] == b"TCP4" else 6
    source, target = _address(words[2], version), _address(words[3], version)
    return Header(end + 1, (source, _port(words[4])), (target, _port(words[5])))


def _address(text: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        raise HeaderError("the PROXY line has a bad address") from None
    if address.version != version or b"%" in text:
        raise HeaderError("the PROXY line has an address of another family")
    return str(address)


def _port(text: bytes) -> int:
    if not text.isdigit() or len(text) > 5 or (text[:1] == b"0" and text != b"0"):
        raise HeaderError("the PROXY line has a bad port")
    port = int(text)
    if port > 65535:
        raise HeaderError("the PROXY line has a bad port")
    return port


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < _FIXED.size:
        return None
    _, command, family, length = _FIXED.unpack_from(data)
    if command not in (0x20, 0x21) or family >> 4 > _UNIX or family & 0x0F > 2:
        raise HeaderError("the PROXY header has an unknown version, command or family")
    if length > V2_LIMIT:
        raise HeaderError("the PROXY header is too long")
    end = _FIXED.size + length
    kind = family >> 4
    needed = _V2_SIZES[kind][1] if kind in _V2_SIZES else _UNIX_SIZE if kind == _UNIX else 0
    if command == 0x21 and length < needed:
        raise HeaderError("the PROXY header is too short for its addresses")
    if len(data) < end:
        return None
    # LOCAL: the sender's own connection (a health check); its addresses mean nothing.
    if command == 0x20 or kind not in _V2_SIZES or family & 0x0F != 1:
        return Header(end, None)
    size = _V2_SIZES[kind][0]
    first, second = data[16 : 16 + size], data[16 + size : 16 + 2 * size]
    source_port, target_port = struct.unpack_from("!HH", data, 16 + 2 * size)
    return Header(
        end,
        (str(ipaddress.ip_address(first)), source_port),
        (str(ipaddress.ip_address(second)), target_port),
    )


def render(version: Literal[1, 2], client: Address | None, target: Address | None) -> bytes:
    """The header that says so to a backend. Addresses of two families, or none: unknown."""
    pair = _pair(client, target)
    if pair is None:
        return b"PROXY UNKNOWN\r\n" if version == 1 else _FIXED.pack(SIGNATURE, 0x20, 0, 0)
    source, source_port, destination, target_port = pair
    if version == 1:
        words = (f"TCP{source.version}", source, destination, source_port, target_port)
        return f"PROXY {' '.join(map(str, words))}\r\n".encode()
    body = source.packed + destination.packed + struct.pack("!HH", source_port, target_port)
    family = 0x11 if source.version == 4 else 0x21
    return _FIXED.pack(SIGNATURE, 0x21, family, len(body)) + body


_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def _pair(client: Address | None, target: Address | None) -> tuple[_Ip, int, _Ip, int] | None:
    if client is None or target is None:
        return None
    try:
        source, destination = (
            ipaddress.ip_address(a[0].partition("%")[0]) for a in (client, target)
        )
    except ValueError:  # a unix socket
        return None
    if source.version != destination.version:
        return None
    return source, client[1], destination, target[1]


# --- connections ------------------------------------------------------------------------------------


def address_of(transport: asyncio.BaseTransport, what: str = "peername") -> Address | None:
    """``peername`` or ``sockname`` as (address, port); None for a unix socket."""
    name = transport.get_extra_info(what)
    if isinstance(name, tuple) and len(name) >= 2:
        return str(name[0]), int(name[1])
    return None


Next = Callable[[Address | None], asyncio.Protocol]
"""Makes the protocol of a connection whose client is known (None: take the socket's own peer)."""


class ProxiedConnection(asyncio.Protocol):
    """Reads the header of one connection, then hands it to the protocol that ``then`` makes.

    With ``tls`` the handshake comes after the header, as senders do it. A connection without a proper
    header in time is closed without a word.
    """

    def __init__(
        self, then: Next, *, tls: ssl.SSLContext | None = None, timeout_s: float = HEADER_S
    ) -> None:
        self._then = then
        self._tls = tls
        self._timeout_s = timeout_s
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._timeout_s, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            header = parse(self._buffer)
        except HeaderError:
            self._transport.abort()
            return
        if header is None:
            return
        self._stop_timer()
        rest, self._buffer = self._buffer[header.size :], b""
        protocol = self._then(header.client)
        if self._tls is None:
            _hand_over(self._transport, protocol, rest)
        else:
            _hand_over(self._transport, SecureConnection(self._tls, lambda: protocol), rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _hand_over(transport: asyncio.Transport, protocol: asyncio.Protocol, rest: bytes) -> None:
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if rest and not transport.is_closing():
        protocol.data_received(rest)
