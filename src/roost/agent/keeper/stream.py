"""One attached bridge: sends it every output behind what it has, in order, at the speed it reads.

Owns no state that matters: when the stream breaks, the spool still has everything.
"""

import asyncio
from contextlib import suppress

from roost.agent.keeper.spool import Position, Spool
from roost.ports.frames import BadFrame, Frames
from roost.ports.wire import ToBridge, to_bridge


class BridgeStream:
    """The sending half of a session stream."""

    def __init__(self, writer: asyncio.StreamWriter, spool: Spool, seen: Position) -> None:
        self._writer = writer
        self._spool = spool
        self._cursor = seen
        self._frames: Frames[ToBridge] = to_bridge()
        self._more = asyncio.Event()
        self._more.set()
        self._sending: asyncio.Task[None] | None = None

    def tell(self, message: ToBridge) -> None:
        """Send a small message now, between outputs."""
        if not self._writer.is_closing():
            self._writer.write(self._frames.encode(message))

    def start(self) -> None:
        """Begin to send outputs."""
        self._sending = asyncio.create_task(self._send())

    def wake(self) -> None:
        """There are new outputs."""
        self._more.set()

    async def close(self) -> None:
        """Stop sending and close the connection."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _send(self) -> None:
        with suppress(OSError, BadFrame):
            while True:
                output = self._spool.after(self._cursor)
                if output is None:
                    self._more.clear()
                    await self._more.wait()
                    continue
                self._writer.write(self._frames.encode(output))
                self._cursor = (output.epoch, output.seq)
                await self._writer.drain()
        self._writer.close()
