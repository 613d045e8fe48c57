"""What both ends of a link share: addresses, dialling, and the splice. Knows no message.

It never buffers without a bound: a direction that cannot be written stops being read.
"""

import asyncio
import ipaddress
import socket
import ssl

from roost.ports.errors import Invalid, Retry

CHUNK = 256 << 10
"""Bytes moved per turn of a splice: small enough that a heartbeat on the same loop is not late."""
USER_TIMEOUT_MS = 10_000
"""Unacknowledged TCP data for this long means that the peer's machine is gone."""


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` (``[v6]:port`` too). ``Invalid`` otherwise."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise Invalid(f"not an address: {address!r}", hint="write it as host:port")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host`` (a name counts as reachable, except localhost)."""
    try:
        return ipaddress.ip_address(host.split("%", 1)[0]).is_loopback
    except ValueError:
        return host == "localhost"


def watch_peer(sock: socket.socket) -> None:
    """Have the system notice a peer that vanished without a word; small frames leave at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def dial(
    address: str, *, tls: ssl.SSLContext | None, timeout_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to ``address``. ``Retry`` when nobody is there."""
    host, port = split_address(address)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                host,
                port,
                ssl=tls,
                server_hostname=host if tls else None,
                limit=CHUNK,
            )
    except (OSError, TimeoutError) as error:
        raise Retry(f"{address} does not answer: {error or type(error).__name__}") from error
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        watch_peer(sock)
    return reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close and wait until it is closed, whatever state the connection is in."""
    writer.close()
    try:
        async with asyncio.timeout(2.0):
            await writer.wait_closed()
    except (OSError, TimeoutError, ssl.SSLError):
        writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()


async def splice(
    one: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    other: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Copy both ways until both directions have ended (or one broke), then close both."""
    pumps = [
        asyncio.create_task(_pump(one[0], other[1])),
        asyncio.create_task(_pump(other[0], one[1])),
    ]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await asyncio.gather(hang_up(one[1]), hang_up(other[1]))
