"""The server's side of TLS on one connection: a protocol towards the socket, a transport for the front.

What ``create_server(ssl=...)`` does, for less: no exception to learn that nothing is left to read, one
write for what one read causes (session tickets go with the first answer, the last record with the last one),
one timer for all connections, no cycles of objects. And it may begin with bytes that were read already
(after a PROXY header). Certificates and versions are the context's business.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Union, cast

HANDSHAKE_S = 30.0
"""Longest handshake."""
LINGER_S = 5.0
"""How long a client may take to close too once it has everything; also how often that is looked at."""
STALLS = 6
"""It may take none of what is left for this many looks."""
PRECISION_S = 0.5
"""Limits are applied up to this much early, many connections together."""
TICKET_S = 0.02
"""Session tickets wait this long for an answer that takes them along."""
RECORD = 16 << 10
"""Most bytes of one TLS record."""
TOGETHER = 64 << 10
"""Most encrypted bytes kept back to be sent in one go."""


Data = Union[bytes, bytearray, "memoryview[Any]"]


class Gone(asyncio.Transport):
    """In the place of a transport that has ended, so that the ended one is freed at once."""

    def is_closing(self) -> bool:
        return True

    def write(self, data: "Data") -> None:
        return

    def close(self) -> None:
        return

    def abort(self) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False


GONE = Gone()


class Clock:
    """The time limits of a listener's connections."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._until: dict[SecureConnection, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at_s = 0.0
        """When it is due."""
        self._unsent: list[SecureConnection] = []

    def expect(self, connection: "SecureConnection", seconds: float) -> None:
        """Tell the connection when it has taken this long, unless it is forgotten."""
        at_s = self._until[connection] = self._loop.time() + seconds
        if self._timer is None or at_s < self._at_s:
            self._arm(at_s)

    def forget(self, connection: "SecureConnection") -> None:
        """It did not take that long."""
        self._until.pop(connection, None)

    def _arm(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at_s = at_s
        self._timer = self._loop.call_at(at_s, self._look)

    def _look(self) -> None:
        self._timer = None
        soon_s = self._loop.time() + PRECISION_S
        for connection in [each for each, at_s in self._until.items() if at_s < soon_s]:
            if self._until.pop(connection, None) is not None:
                connection.expired()
        if self._until:
            self._arm(min(self._until.values()))

    def send_soon(self, connection: "SecureConnection") -> None:
        """Have it send what it keeps back."""
        if not self._unsent:
            self._loop.call_later(TICKET_S, self._send)
        self._unsent.append(connection)

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.flush()


class SecureConnection(asyncio.Transport, asyncio.Protocol):
    """Shakes hands, then is the transport of the protocol that ``then`` makes."""

    __slots__ = (
        "_clock",
        "_closing",
        "_context",
        "_ended",
        "_in",
        "_inside",
        "_kept",
        "_left",
        "_out",
        "_patience",
        "_protocol",
        "_raw",
        "_ssl",
        "_then",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        then: Callable[[], asyncio.Protocol],
        clock: Clock | None = None,
    ) -> None:
        """``clock``: shared by the connections of a listener."""
        self._context = context
        self._then = then
        self._clock = clock if clock is not None else Clock()
        self._raw: asyncio.Transport
        self._ssl: ssl.SSLObject
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._protocol: asyncio.Protocol | None = None
        """None until the handshake is over."""
        self._inside = False
        """Bytes are being worked on: what is written meanwhile goes out together."""
        self._kept = 0
        """Of the bytes to send: so many (session tickets) can wait for others to go with."""
        self._closing = False
        self._ended = False
        """The client has sent its last byte."""
        self._left = 0
        """Bytes it had still to take when that was looked at ..."""
        self._patience = STALLS
        """... and how many more times it may have taken none."""

    # --- towards the socket ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        self._raw = cast("asyncio.Transport", transport)
        self._ssl = self._context.wrap_bio(self._in, self._out, server_side=True)
        self._clock.expect(self, HANDSHAKE_S)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # only the end is waited for
        self._in.write(data)
        self._inside = True
        try:
            if self._protocol is not None or self._shaken():
                self._read()
        except ssl.SSLError:
            self._inside = False
            self.flush()  # the alert that says why
            self._give_up()
            return
        self._inside = False
        if self._out.pending > self._kept:
            self.flush()

    def eof_received(self) -> bool:
        if self._closing or self._protocol is None:
            return False  # closes the transport
        return self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._clock.forget(self)
        self._raw = GONE
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.resume_writing()

    def _shaken(self) -> bool:
        """Go on with the handshake; whether it is over."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._clock.forget(self)
        left = self._out.pending
        if left and self._ssl.version() == "TLSv1.3":  # else the client waits for it
            self._kept = left
            self._clock.send_soon(self)
        self._protocol = self._then()
        self._protocol.connection_made(self)
        return True

    def _read(self) -> None:
        while self._in.pending and not self._closing:
            try:
                data = self._ssl.read(RECORD)
            except ssl.SSLWantReadError:  # the rest of a record is still to come
                return
            if not data:
                if not self._end():
                    self.close()
                return
            assert self._protocol is not None
            self._protocol.data_received(data)

    def _end(self) -> bool:
        """The client has ended its side; whether it may still be answered."""
        if self._ended or self._protocol is None:
            return not self._closing
        self._ended = True
        return bool(self._protocol.eof_received())

    def flush(self) -> None:
        """Send what was kept back."""
        self._kept = 0
        data = self._out.read()
        if data and not self._raw.is_closing():
            self._raw.write(data)

    def _give_up(self) -> None:
        """The other side broke the protocol."""
        self._closing = True
        self._raw.close()

    # --- the front's transport ---------------------------------------------------------------------

    def write(self, data: "Data") -> None:
        if self._closing or not data:
            return
        try:
            self._ssl.write(data)
        except ssl.SSLError:
            self._give_up()
            return
        if not self._inside or self._out.pending > TOGETHER:
            self.flush()

    def writelines(self, list_of_data: "Iterable[Data]") -> None:
        for data in list_of_data:
            self.write(data)

    def hold(self) -> None:
        """What is written from now on goes out when the connection is closed: that comes next."""
        self._inside = True

    def close(self) -> None:
        """Send what is buffered and a last record, and wait a moment for the client to close: unread
        bytes of its would reset the connection before it has read the answer."""
        if not self._said_goodbye():
            return
        self._raw.resume_reading()
        try:
            self._raw.write_eof()
        except OSError:  # asyncio's, where the client has reset the connection meanwhile
            self._raw.abort()
            return
        self._left = self._raw.get_write_buffer_size()
        self._clock.expect(self, LINGER_S)

    def finish(self) -> None:
        """``close`` where the client has said that it sends nothing more: no need to wait for it."""
        if self._said_goodbye():
            self._raw.close()

    def _said_goodbye(self) -> bool:
        """Send what is left and a last record. False where that has ended the connection."""
        if self._closing:
            return False
        self._closing = True
        with suppress(ssl.SSLError):  # the client's own last record has not come
            self._ssl.unwrap()
        self.flush()
        if self._ended:
            self._raw.close()
        return not self._raw.is_closing()

    def expired(self) -> None:
        """The handshake takes too long, or the client to end its side too: wait as long as it takes bytes."""
        left = self._raw.get_write_buffer_size()
        self._patience = STALLS if left < self._left else self._patience - 1
        if self._protocol is None or not left or not self._patience:
            self._raw.abort()
            return
        self._left = left
        self._clock.expect(self, LINGER_S)

    def abort(self) -> None:
        self._closing = True
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._closing or self._raw.is_closing()

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("TLS ends both sides at once")

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def is_reading(self) -> bool:
        return self._raw.is_reading()

    def pause_reading(self) -> None:
        if not self.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        if not self.is_closing():
            self._raw.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._raw.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size() + self._out.pending

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._ssl
        if name == "sslcontext":
            return self._ssl.context
        if name == "peercert":
            return self._ssl.getpeercert()
        return self._raw.get_extra_info(name, default)
