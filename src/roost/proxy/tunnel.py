"""Raw bytes both ways between two transports, with backpressure and half-close. Never looks at the bytes."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

WRITE_HIGH = 128 << 10
"""Bytes waiting on one side before reading from the other pauses."""
FLUSH_S = 30.0
"""How long the last bytes may take to reach a slow side once the other is gone."""
IDLE_CHECKS = 4
"""Silence is looked for this many times in its longest allowed length: its precision."""


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


class End(asyncio.Protocol):
    """One side of a tunnel."""

    def __init__(self, tunnel: "Tunnel", transport: asyncio.Transport) -> None:
        self._tunnel = tunnel
        self.transport = transport
        self.peer: End
        self.reading = True
        self.ended = False
        """This side sent its last byte."""
        self.lost = False
        self.taken = 0
        """Bytes read from this side."""

    def start(self, peer: "End", first: bytes) -> None:
        self.peer = peer
        self.transport.set_protocol(self)
        if first:
            self.data_received(first)

    def set_reading(self, wanted: bool) -> None:
        if wanted == self.reading or self.ended or self.lost or self.transport.is_closing():
            return
        self.reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.taken += len(data)
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
            with suppress(OSError):  # asyncio's, where the peer has just been reset
                self.peer.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._tunnel.end_lost(self, exc)


class Tunnel:
    """Two spliced transports. ``on_end`` is called once, when both sides are gone. After ``idle_s``
    without a byte in either direction both are closed (0 = never)."""

    second: type[End] = End
    """What reads the second side (a subclass may look at its bytes)."""

    def __init__(self, on_end: Callable[["Tunnel"], None], *, idle_s: float = 0.0) -> None:
        self._on_end = on_end
        self._idle_s = idle_s
        self._silent = 0
        self._heard = 0
        self._idle: asyncio.TimerHandle | None = None
        self._ends: tuple[End, End]
        self._flush: asyncio.TimerHandle | None = None
        self.over = False
        self.owner: object = None
        """Who the second side is, for whoever has to find its tunnels."""
        self.cut_by = 0
        """The side (1 or 2) that was lost by an error first; 0 = none."""

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes read from the first and from the second side."""
        return self._ends[0].taken, self._ends[1].taken

    def splice(
        self,
        one: asyncio.Transport,
        two: asyncio.Transport,
        *,
        from_one: bytes = b"",
        from_two: bytes = b"",
        one_ended: bool = False,
        two_ended: bool = False,
    ) -> None:
        """Join them; the bytes given were read earlier and go first. Both must be reading, unless
        they have ended their side already."""
        first, second = End(self, one), self.second(self, two)
        self._ends = (first, second)
        first.start(second, from_one)
        second.start(first, from_two)
        for end in self._ends:
            if end.transport.get_write_buffer_size() > WRITE_HIGH:
                end.peer.set_reading(False)
        if one_ended:
            first.eof_received()
        if two_ended:
            second.eof_received()
        if self._idle_s:
            self._watch()

    def _watch(self) -> None:
        """Close after silence. A look now and then instead of a timer reset by each piece."""
        moved = sum(self.moved)
        self._silent = self._silent + 1 if moved == self._heard else 0
        self._heard = moved
        if self._silent >= IDLE_CHECKS:
            self.close()
            return
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(self._idle_s / IDLE_CHECKS, self._watch)

    def close(self) -> None:
        """Send what is buffered, then close both sides."""
        if self.over:
            return
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

    def end_lost(self, end: End, error: Exception | None) -> None:
        """One side is gone: the other one learns it (a reset stays a reset)."""
        if error is not None and not self.cut_by and not end.peer.lost:
            self.cut_by = 1 if end is self._ends[0] else 2
        if end.peer.lost:
            self.over = True
            for timer in (self._flush, self._idle):
                if timer is not None:
                    timer.cancel()
            self._on_end(self)
        elif error is not None:
            end.peer.transport.abort()
        else:
            self.close()
