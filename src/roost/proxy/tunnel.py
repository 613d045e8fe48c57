"""Raw bytes both ways between two transports, with backpressure and half-close. Never looks at the bytes."""

import asyncio
import socket
from collections.abc import Callable

WRITE_HIGH = 128 << 10
"""Bytes waiting on one side before reading from the other pauses."""
FLUSH_S = 30.0
"""How long the last bytes may take to reach a slow side once the other is gone."""


def tune(transport: asyncio.Transport) -> None:
    """Bound the write buffer and have the kernel notice a peer that vanished without a word."""
    if transport.is_closing():
        return
    transport.set_write_buffer_limits(high=WRITE_HIGH)
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


class _End(asyncio.Protocol):
    """One side of a tunnel."""

    def __init__(self, tunnel: "Tunnel", transport: asyncio.Transport) -> None:
        self._tunnel = tunnel
        self.transport = transport
        self.peer: _End
        self.reading = True
        self.ended = False
        """This side sent its last byte."""
        self.lost = False

    def start(self, peer: "_End", first: bytes) -> None:
        self.peer = peer
        self.transport.set_protocol(self)
        if first and not peer.transport.is_closing():
            peer.transport.write(first)

    def set_reading(self, wanted: bool) -> None:
        if wanted == self.reading or self.ended or self.lost or self.transport.is_closing():
            return
        self.reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if not self.peer.transport.is_closing():
            self.peer.transport.write(data)

    def pause_writing(self) -> None:
        self.peer.set_reading(False)

    def resume_writing(self) -> None:
        self.peer.set_reading(True)

    def eof_received(self) -> bool:
        self.ended = True
        if self.peer.ended or not self.peer.transport.can_write_eof():
            self._tunnel.close()
            return True
        if not self.peer.transport.is_closing():
            self.peer.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._tunnel.end_lost(self, exc)


class Tunnel:
    """Two spliced transports. ``on_end`` is called once, when both sides are gone."""

    def __init__(self, on_end: Callable[["Tunnel"], None]) -> None:
        self._on_end = on_end
        self._ends: tuple[_End, _End]
        self._flush: asyncio.TimerHandle | None = None

    def splice(
        self,
        one: asyncio.Transport,
        two: asyncio.Transport,
        *,
        from_one: bytes = b"",
        from_two: bytes = b"",
        one_ended: bool = False,
    ) -> None:
        """Join them; the bytes given were read earlier and go first. Both must be reading, unless
        ``one`` has ended its side already."""
        first, second = _End(self, one), _End(self, two)
        self._ends = (first, second)
        first.start(second, from_one)
        second.start(first, from_two)
        for end in self._ends:
            if end.transport.get_write_buffer_size() > WRITE_HIGH:
                end.peer.set_reading(False)
        if one_ended:
            first.eof_received()

    def close(self) -> None:
        """Send what is buffered, then close both sides."""
        for end in self._ends:
            if not end.lost:
                end.transport.close()
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_S, self.abort)

    def abort(self) -> None:
        """Close both sides at once."""
        for end in self._ends:
            if not end.lost:
                end.transport.abort()

    def end_lost(self, end: _End, error: Exception | None) -> None:
        """One side is gone: the other one learns it (a reset stays a reset)."""
        if end.peer.lost:
            if self._flush is not None:
                self._flush.cancel()
            self._on_end(self)
        elif error is not None:
            end.peer.transport.abort()
        else:
            self.close()
