"""The engine's door: a unix socket, JSON lines, any number of clients.

Requests ``{"id": n, "op": ...}`` are answered ``{"id": n, "ok": true, ...}`` or ``{"id": n, "ok": false,
"error": code, "message": ...}``; events ``{"event": ...}`` go to every client. Knows no operation itself.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from json import dumps, loads
from pathlib import Path
from typing import Any

from roost.runtime.kernel.jobs import Fields
from roost.runtime.kernel.restore import CannotRestore

LINE_LIMIT = 64 << 20
"""Longest request or answer, in bytes."""
BACKLOG_BYTES = 8 << 20
"""A client that leaves so much unread is cut off."""

Op = Callable[[Fields], Awaitable[Fields]]


class Door:
    """Answers by the operation's name. On one event loop."""

    def __init__(self, ops: Mapping[str, Op]) -> None:
        self._ops = ops
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, path: Path) -> asyncio.Server:
        """Clients can connect when it returns; only this user's."""
        path.unlink(missing_ok=True)
        former = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._serve, str(path), limit=LINE_LIMIT)
        finally:
            os.umask(former)

    @property
    def clients(self) -> int:
        """How many are connected. From any thread."""
        return len(self._clients)

    def push(self, fields: Fields) -> None:
        """Send an event to every client."""
        line = _line(fields)
        for writer in list(self._clients):
            self._send(writer, line)

    def _send(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        if writer.transport.get_write_buffer_size() > BACKLOG_BYTES:
            writer.transport.abort()
            self._clients.discard(writer)
        elif not writer.is_closing():
            writer.write(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while line := await reader.readline():
                task = asyncio.create_task(self._answer(writer, line))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (OSError, ValueError):
            pass  # gone, or a line beyond the limit
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        number: Any = None
        try:
            request = loads(line)
            number = request.get("id")
            op = self._ops.get(request.get("op"))
            if op is None:
                raise CannotRestore("unknown_op", f"no such operation: {request.get('op')!r}")
            answer = {"id": number, "ok": True, **await op(request)}
        except CannotRestore as error:
            answer = {"id": number, "ok": False, "error": error.code, "message": str(error)}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            message = f"{type(error).__name__}: {error}"
            answer = {"id": number, "ok": False, "error": "bad_request", "message": message}
        except Exception as error:  # every request gets an answer
            message = f"{type(error).__name__}: {error}"
            answer = {"id": number, "ok": False, "error": "failed", "message": message}
        self._send(writer, _line(answer))


def _line(fields: Fields) -> bytes:
    return dumps(fields, separators=(",", ":")).encode() + b"\n"
