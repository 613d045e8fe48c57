"""WebSockets that are told when their backend or the gateway goes away (RFC 6455 close frames).

A tunnel whose server-to-client bytes are followed just closely enough to know where a frame ends: only
there may a frame of ours be put in. Never reads a payload, never holds back or joins a byte.
"""

import asyncio
from collections.abc import Iterable
from functools import partial

from roost.proxy.tunnel import End, Tunnel

GOING_AWAY = 1001
SERVICE_RESTART = 1012
"""Come back at once: another server takes over (IANA registry of close codes)."""
GRACE_S = 5.0
"""From being told to being closed: for the end of a frame, and for the client's own close frame."""
REASON_LIMIT = 123
"""Most bytes of a reason: a control frame's payload is at most 125."""

_SMALL = tuple(size + 2 if size < 126 else -1 for size in range(256))
"""By a frame's second byte: its whole size, where that byte alone tells it (unmasked, short)."""
_HEADER_LIMIT = 14
_IN_HEADER = -1
_CLOSED = -2


def close_frame(code: int, reason: str = "") -> bytes:
    """From server to client, so not masked."""
    text = reason.encode()[:REASON_LIMIT].decode(errors="ignore").encode()
    return bytes((0x88, 2 + len(text))) + code.to_bytes(2, "big") + text


def frame_size(header: bytes) -> int:
    """Of the whole frame that begins so; 0 = more bytes are needed to know."""
    if len(header) < 2:
        return 0
    size, fixed = header[1] & 0x7F, 2
    if size == 126:
        fixed = 4
    elif size == 127:
        fixed = 10
    if len(header) < fixed:
        return 0
    if fixed > 2:
        size = int.from_bytes(header[2:fixed], "big")
    return fixed + (4 if header[1] & 0x80 else 0) + size


class _ServerEnd(End):
    """The server's side. ``_left`` is 0 between two frames, which is nearly always."""

    def __init__(self, tunnel: Tunnel, transport: asyncio.Transport) -> None:
        super().__init__(tunnel, transport)
        self._left = 0
        """Bytes of the present frame still to come, or ``_IN_HEADER``, or ``_CLOSED``."""
        self._header = b""
        self._farewell = b""

    def data_received(self, data: bytes) -> None:
        # By far the most frequent: exactly one short frame, nothing before, nothing after.
        if self._left or len(data) < 2 or len(data) != _SMALL[data[1]]:
            if self._left == _CLOSED:
                return  # nothing may follow a close frame
            end = self._follow(data)
            if self._farewell and not self._left:
                data = data[:end] + self._farewell
                self._left = _CLOSED
        self.taken += len(data)
        transport = self.peer.transport
        if not transport.is_closing():
            transport.write(data)

    def say(self, frame: bytes) -> None:
        """Put in a last frame as soon as the present one has ended."""
        self._farewell = frame
        if self._left == 0:
            self._left = _CLOSED
            if not self.peer.transport.is_closing():
                self.peer.transport.write(frame)

    def _follow(self, data: bytes) -> int:
        """Walk over the frames to the end of the data, or to the first boundary when leaving. The
        answer is where it stopped."""
        at, size = 0, len(data)
        longer = not self._left and not self._farewell and size > 4 and data[1] == 126
        if longer and size == 4 + (data[2] << 8) + data[3]:  # exactly one, again
            return size
        while True:
            if self._left > 0:
                step = min(self._left, size - at)
                self._left -= step
                at += step
            if at == size or (self._farewell and not self._left):
                return at
            if not self._left:
                at = self._skip_small(data, at)
                if at == size:
                    return at
            known = len(self._header)
            header = self._header + data[at : at + _HEADER_LIMIT - known]
            whole = frame_size(header)
            if not whole:
                self._header, self._left = header, _IN_HEADER
                return size
            self._header, self._left = b"", whole - known

    def _skip_small(self, data: bytes, at: int) -> int:
        """Over the short frames that are there in full."""
        last = len(data) - 1
        while at < last:
            step = _SMALL[data[at + 1]]
            if step < 0 or at + step > last + 1:
                break
            at += step
        return at


class WebSocketTunnel(Tunnel):
    """A tunnel between a client (first) and a server (second) that speak WebSocket from now on."""

    second = _ServerEnd

    _told = False

    def tell(
        self, code: int = SERVICE_RESTART, reason: str = "", *, grace_s: float = GRACE_S
    ) -> None:
        """Have the client close: a close frame after the present frame, then its answer goes on to the
        server, which closes. Who does not is closed after ``grace_s``."""
        if self._told or self.over:
            return
        self._told = True
        server = self._ends[1]
        assert isinstance(server, _ServerEnd)
        server.say(close_frame(code, reason))
        asyncio.get_running_loop().call_later(grace_s, self.close)


def tell_all(
    tunnels: Iterable[Tunnel],
    code: int = SERVICE_RESTART,
    reason: str = "",
    *,
    over_s: float = 0.0,
    grace_s: float = GRACE_S,
) -> int:
    """Tell every WebSocket among them, spread evenly over ``over_s`` so that not all come back at once.
    Returns how many; other tunnels cannot be told anything."""
    told = [tunnel for tunnel in tunnels if isinstance(tunnel, WebSocketTunnel)]
    loop = asyncio.get_running_loop()
    for index, tunnel in enumerate(told):
        if over_s:
            tell = partial(tunnel.tell, code, reason, grace_s=grace_s)
            loop.call_later(over_s * index / len(told), tell)
        else:
            tunnel.tell(code, reason, grace_s=grace_s)
    return len(told)
