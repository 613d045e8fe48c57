"""Length-prefixed msgpack frames: four bytes big-endian length, then one msgspec-typed message.

Used on every private connection of Roost. A frame over the limit, a short read in mid-frame or bytes
that do not decode raise ``BadFrame``; the reader closes the connection, nothing else is harmed.
"""

import asyncio
from typing import Any, Generic, TypeVar

import msgspec

CONTROL_LIMIT = 1 << 20
"""Largest frame on a control connection: small, so that a heartbeat never waits."""
STREAM_LIMIT = 256 << 20
"""Largest frame on a data connection (a Jupyter message with its buffers)."""
HEADER = 4


class BadFrame(Exception):
    """The peer sent something that is not a frame of this protocol."""


T = TypeVar("T")


class Frames(Generic[T]):
    """Encode and decode messages of the union type ``T``."""

    def __init__(self, type_: Any, *, limit: int = CONTROL_LIMIT) -> None:
        self._decoder = msgspec.msgpack.Decoder(type_)
        self._encoder = msgspec.msgpack.Encoder()
        self.limit = limit

    def encode(self, message: Any) -> bytes:
        """The whole frame of ``message``."""
        body = self._encoder.encode(message)
        if len(body) > self.limit:
            raise BadFrame(f"frame of {len(body)} bytes is over the limit of {self.limit}")
        return len(body).to_bytes(HEADER, "big") + body

    def decode(self, body: bytes) -> T:
        """The message of a frame's body."""
        try:
            message: T = self._decoder.decode(body)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise BadFrame(f"not a message of this protocol: {error}") from error
        return message

    async def read(self, reader: asyncio.StreamReader) -> T | None:
        """The next message, or None at a clean end of the stream."""
        try:
            header = await reader.readexactly(HEADER)
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return None
            raise BadFrame("the stream ended inside a frame header") from error
        size = int.from_bytes(header, "big")
        if size > self.limit:
            raise BadFrame(f"frame of {size} bytes is over the limit of {self.limit}")
        try:
            return self.decode(await reader.readexactly(size))
        except asyncio.IncompleteReadError as error:
            raise BadFrame("the stream ended inside a frame") from error
