"""The server's side of TLS on one connection: a protocol towards the socket, a transport for the front.

What ``create_server(ssl=...)`` does, for less: no exception to learn that nothing is left to read, one
write for what one read causes, no timer after the handshake. And it may begin with bytes that were read
already (after a PROXY header). Certificates and versions are the context's business.
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
RECORD = 16 << 10
"""Most bytes of one TLS record."""
TOGETHER = 64 << 10
"""Most encrypted bytes kept back to be sent in one go."""


Data = Union[bytes, bytearray, "memoryview[Any]"]


class SecureConnection(asyncio.Transport, asyncio.Protocol):
    """Shakes hands, then is the transport of the protocol that ``then`` makes."""

    __slots__ = (
        "_closing",
        "_context",
        "_ended",
        "_in",
        "_inside",
        "_out",
        "_protocol",
        "_raw",
        "_ssl",
        "_then",
        "_timer",
    )

    def __init__(self, context: ssl.SSLContext, then: Callable[[], asyncio.Protocol]) -> None:
        self._context = context
        self._then = then
        self._raw: asyncio.Transport
        self._ssl: ssl.SSLObject
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._protocol: asyncio.Protocol | None = None
        """None until the handshake is over."""
        self._timer: asyncio.TimerHandle | None = None
        self._inside = False
        """Bytes are being worked on: what is written meanwhile goes out together."""
        self._closing = False
        self._ended = False
        """The client has sent its last byte."""

    # --- towards the socket ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        self._raw = cast("asyncio.Transport", transport)
        self._ssl = self._context.wrap_bio(self._in, self._out, server_side=True)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HANDSHAKE_S, self._raw.abort)

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
            self._flush()  # the alert that says why
            self._give_up()
            return
        self._inside = False
        if self._out.pending:
            self._flush()

    def eof_received(self) -> bool:
        if self._closing or self._protocol is None:
            return False  # closes the transport
        return self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._stop_timer()
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
        self._stop_timer()
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

    def _flush(self) -> None:
        data = self._out.read()
        if data and not self._raw.is_closing():
            self._raw.write(data)

    def _give_up(self) -> None:
        """The other side broke the protocol."""
        self._closing = True
        self._raw.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
            self._flush()

    def writelines(self, list_of_data: "Iterable[Data]") -> None:
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        """Send what is buffered and a last record, and wait a moment for the client to close: unread
        bytes of its would reset the connection before it has read the answer."""
        if self._closing:
            return
        self._closing = True
        with suppress(ssl.SSLError):  # the client's own last record has not come
            self._ssl.unwrap()
        self._flush()
        if self._raw.is_closing():
            return
        if self._ended:
            self._raw.close()
            return
        self._raw.resume_reading()
        try:
            self._raw.write_eof()
        except OSError:  # asyncio's, where the client has reset the connection meanwhile
            self._raw.abort()
            return
        self._linger(self._raw.get_write_buffer_size(), STALLS)

    def _linger(self, before: int, patience: int) -> None:
        """Wait for the client's end, for as long as it takes bytes."""

        def look() -> None:
            left = self._raw.get_write_buffer_size()
            if not left or patience == 1:
                self._raw.abort()
            else:
                self._linger(left, STALLS if left < before else patience - 1)

        self._timer = asyncio.get_running_loop().call_later(LINGER_S, look)

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
