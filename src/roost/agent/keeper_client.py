"""The agent's end of a keeper's management connection.

One connection, no reconnecting: when it ends, every pending call raises ``Retry`` and ``closed`` is
set; the agent connects again and gets the keeper's last capture once more.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from roost.ports.errors import Gone, Retry, from_wire
from roost.ports.frames import BadFrame
from roost.ports.keeper import (
    Adopt,
    Adopted,
    Answer,
    AnswerBody,
    Ask,
    AskBody,
    CaptureKernel,
    Durable,
    FenceOff,
    GetStatus,
    KeeperCapture,
    KeeperEvent,
    KeeperStatus,
    StopKeeper,
    Warmed,
    WarmKernel,
    first_frame,
    from_keeper,
)

T = TypeVar("T")


class KeeperClient:
    """Calls to one keeper; ``on_event`` gets its events in order.

    All calls raise ``Retry`` when the connection ends and the keeper's own typed errors.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[KeeperEvent], None],
    ) -> None:
        self._writer = writer
        self._on_event = on_event
        self._frames = first_frame()
        self._pending: dict[int, asyncio.Future[AnswerBody]] = {}
        self._next_id = 1
        self.closed = asyncio.Event()
        """The connection is over."""
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def connect(
        cls, path: Path | str, on_event: Callable[[KeeperEvent], None]
    ) -> "KeeperClient":
        """Connect to ``k-<task>.sock``. Raises ``Gone`` when nobody listens there."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 20)
        except OSError as error:
            raise Gone(f"no keeper at {path}: {error}") from error
        client = cls(reader, writer, on_event)
        await client.status()
        return client

    async def status(self) -> KeeperStatus:
        """What the keeper and its kernel are doing."""
        return await self._ask(GetStatus(), KeeperStatus)

    async def warm(self, imports: tuple[str, ...]) -> Warmed:
        """Import modules in the standby kernel; waits until the kernel is up."""
        return await self._ask(WarmKernel(imports=imports), Warmed)

    async def adopt(self, order: Adopt) -> Adopted:
        """Make the kernel a session's at an epoch. ``StaleEpoch``, ``Conflict``, ``Never``."""
        return await self._ask(order, Adopted)

    async def fence(self, epoch: int) -> None:
        """Accept no more work for every epoch up to ``epoch``. ``StaleEpoch`` for an older one."""
        await self._ask(FenceOff(epoch=epoch), object)

    async def capture(self, budget_s: float) -> KeeperCapture:
        """Capture within ``budget_s`` seconds; ``Retry`` when a cell runs longer."""
        return await self._ask(CaptureKernel(budget_s=budget_s), KeeperCapture)

    async def durable(self, number: int) -> None:
        """The capture ``number`` of this keeper is durable off the host."""
        await self._ask(Durable(number=number), object)

    async def stop(self, grace_s: float = 2.0) -> None:
        """End kernel and keeper; also fine when the keeper is gone already."""
        with suppress(Retry):
            await self._ask(StopKeeper(grace_s=grace_s), object)

    async def close(self) -> None:
        """Disconnect; keeper and kernel go on."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _ask(self, body: AskBody, kind: type[T]) -> T:
        if self.closed.is_set():
            raise Retry("the keeper is not connected")
        number = self._next_id
        self._next_id += 1
        answer: asyncio.Future[AnswerBody] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            self._writer.write(self._frames.encode(Ask(id=number, body=body)))
            await self._writer.drain()
            result = await answer
        except OSError as error:
            raise Retry(f"the keeper's connection broke: {error}") from error
        finally:
            self._pending.pop(number, None)
        if not isinstance(result, kind):
            raise Retry(f"the keeper answered {type(result).__name__}")
        return result

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = from_keeper()
        try:
            while (message := await frames.read(reader)) is not None:
                if isinstance(message, Answer):
                    self._settle(message)
                else:
                    self._on_event(message)
        except (OSError, BadFrame):
            pass
        finally:
            self.closed.set()
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(Retry("the keeper's connection ended"))

    def _settle(self, message: Answer) -> None:
        answer = self._pending.get(message.id)
        if answer is None or answer.done():
            return
        if message.error is not None:
            answer.set_exception(from_wire(message.error))
        else:
            answer.set_result(message.body)
