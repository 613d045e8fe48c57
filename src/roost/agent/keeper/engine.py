"""The capture engine inside the kernel, over its unix socket: JSON lines, answers by id, events unasked.

Never outlives its kernel: when the socket ends, everything waiting fails with ``Retry``.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from roost.ports.errors import Retry

LINE_LIMIT = 64 << 20
"""Longest line, in bytes: a report on very many variables."""
CONNECT_PAUSE_S = 0.05
Fields = dict[str, Any]


class Engine:
    """One connection to one kernel's engine."""

    def __init__(self, on_event: Callable[[Fields], None]) -> None:
        self._on_event = on_event
        self._waiting: dict[int, asyncio.Future[Fields]] = {}
        self._next_id = 1
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, path: Path) -> None:
        """Connect as soon as the kernel listens; the caller limits the wait."""
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(
                    str(path), limit=LINE_LIMIT
                )
                break
            except OSError:
                await asyncio.sleep(CONNECT_PAUSE_S)
        self._reading = asyncio.create_task(self._read(reader))

    async def ask(self, op: str, **fields: Any) -> Fields:
        """Send one request and wait for its answer (``ok`` may be false)."""
        if self._writer is None or self._reading is None or self._reading.done():
            raise Retry("the kernel has no engine connected")
        number = self._next_id
        self._next_id += 1
        answer: asyncio.Future[Fields] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(json.dumps({"id": number, "op": op, **fields}).encode() + b"\n")
            await self._writer.drain()
            return await answer
        except OSError as error:
            raise Retry(f"the kernel's engine went away: {error}") from error
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Disconnect."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except (OSError, ValueError):
            pass
        finally:
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Retry("the kernel's engine went away"))

    def _take(self, fields: Fields) -> None:
        if "event" in fields:
            self._on_event(fields)
            return
        answer = self._waiting.get(fields.get("id", 0))
        if answer is not None and not answer.done():
            answer.set_result(fields)
