"""Listening sockets of the gateway: one for each worker on the same port, and their quiet end.

The supervisor makes and keeps them, so that a worker's death or replacement loses no connection the
kernel has accepted. Never accepts.
"""

import asyncio
import contextlib
import ctypes
import select
import socket
import struct

from roost.ports.errors import Invalid

BACKLOG = 1024
SO_ATTACH_FILTER = 26
"""Not named by Python's socket module."""
QUIET_S = 0.05
"""An accept queue that stays empty for this long after ``silence`` stays empty."""
QUIET_STEP_S = 0.01

Address = tuple[str, int]


def parse(text: str) -> Address:
    """``host:port`` or ``[v6]:port``; an empty host is all of this machine. Raises ``Invalid``."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise Invalid(f"{text!r} is not an address", hint="write host:port or [v6]:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def shown(sock: socket.socket) -> str:
    """The address a socket is bound to."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(text: str, count: int, what: str) -> list[socket.socket]:
    """``count`` listening sockets on one address. ``Invalid`` when another program has it."""
    host, port = parse(text)
    made: list[socket.socket] = []
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if port:
            # SO_REUSEPORT would let us share the port with any other program of this user.
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        made.append(_listening(family, address))
        made += more(made[0], count - 1)
    except OSError as error:
        for sock in made:
            sock.close()
        raise Invalid(
            f"{what} cannot listen on {text}: {error.strerror}",
            hint="stop what uses it, or choose another port (0 = any free one)",
        ) from error
    return made


def more(first: socket.socket, count: int) -> list[socket.socket]:
    """``count`` more sockets on the port of ``first``."""
    return [_listening(first.family, first.getsockname()) for _ in range(count)]


def _listening(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # A head or a TLS greeting comes first in everything served here, so nagling never helps.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def silence(sock: socket.socket) -> None:
    """From now on the kernel drops what would open a connection here.

    Closing a listening socket resets the connections in its queue. Dropped openings are repeated by the
    client's kernel a second later: by then the queue is served, the socket closed, and the repetition
    reaches another listener of the port or is refused cleanly.
    """
    drop_all = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: return 0 bytes of every packet
    code = ctypes.create_string_buffer(drop_all)
    program = struct.pack("HL", 1, ctypes.addressof(code))
    with contextlib.suppress(OSError):  # a kernel without socket filters: close as others do
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


async def emptied(sockets: list[socket.socket], limit_s: float) -> None:
    """Wait until the queues of silenced sockets are empty (somebody else accepts from them)."""
    loop = asyncio.get_running_loop()
    watch = select.poll()
    for sock in sockets:
        watch.register(sock, select.POLLIN)
    end_s = loop.time() + limit_s
    quiet_since_s = loop.time()
    while (now_s := loop.time()) < end_s and now_s - quiet_since_s < QUIET_S:
        await asyncio.sleep(QUIET_STEP_S)
        if watch.poll(0):
            quiet_since_s = loop.time()
