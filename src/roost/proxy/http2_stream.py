"""One HTTP/2 stream as an in-memory transport: a ``ClientConnection`` takes it for its client.

What is written here is HTTP/1.1; it is parsed back into a head, pieces of a body and trailers, which wait
for the client's windows. Never touches the network: the ``Carrier`` (the connection) does.
"""

import asyncio
from collections import deque
from typing import Any, Protocol

from roost.proxy.framing import FramingError
from roost.proxy.http2_reply import ReplyHead, ReplyReader

WRITE_HIGH = 64 << 10
"""Bytes of a response waiting for the client before its backend is no longer read."""
WRITE_LOW = 16 << 10


class Carrier(Protocol):
    """The connection a stream belongs to. All of these only note what to do: none calls back at once."""

    def head(self, stream: "StreamTransport", head: ReplyHead, *, last: bool) -> None:
        """Send a head; ``last``: nothing follows it."""

    def wrote(self, stream: "StreamTransport") -> None:
        """There is something to send, or the response has ended."""

    def retire(self, stream: "StreamTransport") -> None:
        """Its protocol is to be told that the connection is lost."""

    def broke(self, stream: "StreamTransport") -> None:
        """The response will never be whole: reset the stream."""

    def resumed(self, stream: "StreamTransport") -> None:
        """The protocol takes bytes of the request again."""

    def extra(self, name: str, default: Any) -> Any:
        """What the real transport knows."""


class StreamTransport(asyncio.Transport):
    """The transport of one stream."""

    def __init__(self, carrier: Carrier, stream_id: int, method: bytes, *, chunked: bool) -> None:
        super().__init__()
        self.stream_id = stream_id
        self.chunked = chunked
        """The request's body goes to the protocol in chunks."""
        self.protocol: asyncio.BaseProtocol
        self.pending = 0
        """Bytes of the body not sent yet."""
        self.ended = False
        """The whole response is here."""
        self.request_ended = False
        self.retired = False
        self.progress_s = 0.0
        """When bytes were last sent."""
        self._carrier = carrier
        self._reader = ReplyReader(method)
        self._out: deque[bytes | memoryview] = deque()
        self._in: deque[tuple[bytes, int]] = deque()
        self._paused = False
        self._reading = True
        self._closing = False

    # --- the request -----------------------------------------------------------------------------

    def body(self, data: bytes, cost: int) -> None:
        """A piece of the request's body; ``cost`` is what it took of the window."""
        if self.chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._in.append((data, cost))

    def body_end(self, trailers: bytes = b"") -> None:
        """The request is whole."""
        self.request_ended = True
        if self.chunked:
            self._in.append((b"0\r\n" + trailers + b"\r\n", 0))

    def deliver(self) -> int:
        """Hand on what the protocol takes now; what that took of the window."""
        taken = 0
        while self._in and self._reading and not self.retired:
            data, cost = self._in.popleft()
            taken += cost
            if data:
                assert isinstance(self.protocol, asyncio.Protocol)
                self.protocol.data_received(data)
        return taken

    def discard(self) -> int:
        """Forget the bytes nobody will take; what they took of the window."""
        taken = sum(cost for _, cost in self._in)
        self._in.clear()
        return taken

    # --- the response ----------------------------------------------------------------------------

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """Fields after the body."""
        return self._reader.trailers

    def take(self, size: int) -> bytes | memoryview:
        """The next up to ``size`` bytes of the body."""
        first = self._out[0]
        if len(first) > size:
            view = memoryview(first)
            self._out[0] = view[size:]
            self.pending -= size
            return view[:size]
        pieces = []
        room = size
        while self._out and len(self._out[0]) <= room:
            piece = self._out.popleft()
            pieces.append(piece)
            room -= len(piece)
        self.pending -= size - room
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def relieve(self) -> None:
        """Bytes were sent: let the backend be read again."""
        if self._paused and self.pending <= WRITE_LOW:
            self._paused = False
            if not self.retired:
                self.protocol.resume_writing()

    # --- asyncio.Transport -----------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._closing or self._reader.done:
            return
        reader = self._reader
        try:
            events = reader.feed(data if isinstance(data, bytes) else bytes(data))
        except FramingError:
            self.abort()
            return
        for event in events:
            if isinstance(event, bytes):
                self._out.append(event)
                self.pending += len(event)
            elif event.status == 101:  # never asked for
                self.abort()
                return
            else:
                last = reader.done and event is events[-1] and not reader.trailers
                self._carrier.head(self, event, last=last and event is reader.head)
        if reader.done:
            self._end()
        elif self.pending:
            self._carrier.wrote(self)
            if self.pending > WRITE_HIGH and not self._paused:
                self._paused = True
                self.protocol.pause_writing()

    def _end(self) -> None:
        self.ended = True
        self._carrier.wrote(self)
        self._carrier.retire(self)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if not self.ended:
            self._carrier.broke(self)
        self._carrier.retire(self)

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            self._carrier.broke(self)
            self._carrier.retire(self)

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._in:
            self._carrier.resumed(self)

    def is_reading(self) -> bool:
        return self._reading

    def get_write_buffer_size(self) -> int:
        return self.pending

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return WRITE_LOW, WRITE_HIGH

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The bounds of a stream are its own."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if name == "socket" else self._carrier.extra(name, default)
