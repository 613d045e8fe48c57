"""One connection of the workspace protocol, seen from the client: typed requests, pipelined, in order.

It never reconnects and keeps nothing: ``notebooks/workspace.py`` adds the journal and the waiting.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from roost.client.stream import Stream
from roost.ports.errors import Conflict, Never, from_wire
from roost.ports.files import (
    CHUNK,
    Applied,
    AppliedIs,
    Content,
    Entries,
    Entry,
    Failed,
    ListDir,
    Read,
    Stat,
    ToClient,
    ToHost,
    Tree,
    TreeIs,
    to_client,
    to_host,
)
from roost.ports.frames import BadFrame

REQUEST_TIMEOUT_S = 30.0
SLOW_TIMEOUT_S = 600.0
"""For requests that read whole files or folders on the host."""

A = TypeVar("A")


class StreamLost(ConnectionError):
    """The connection ended before the answer came: the request may or may not have had its effect."""


class FilesClient:
    """Requests over one stream. Typed errors of the host are raised as such; ``StreamLost`` else."""

    def __init__(self, stream: Stream, on_end: Callable[[], None] | None = None) -> None:
        self._reader, self._writer = stream
        self._requests = to_host()
        self._answers = to_client()
        self._waiting: deque[asyncio.Future[ToClient]] = deque()
        self._ended = False
        self._on_end = on_end
        self._task = asyncio.create_task(self._receive(), name="files-client")

    @property
    def idle(self) -> bool:
        """Whether no request waits for its answer."""
        return not self._waiting

    @property
    def ended(self) -> bool:
        """Whether the stream is gone."""
        return self._ended

    async def request(self, message: ToHost, timeout_s: float = REQUEST_TIMEOUT_S) -> ToClient:
        """Send one request and return its answer."""
        if self._ended:
            raise StreamLost("the files stream has ended")
        future: asyncio.Future[ToClient] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            self._writer.write(self._requests.encode(message))
            async with asyncio.timeout(timeout_s):
                await self._writer.drain()
                answer = await future
        except TimeoutError as error:
            await self.close()
            raise StreamLost(f"the host did not answer within {timeout_s:.0f} s") from error
        except ConnectionError as error:
            raise StreamLost("the files stream broke") from error
        if isinstance(answer, Failed):
            raise from_wire(answer.error)
        return answer

    async def list(self, path: str) -> tuple[Entry, ...]:
        """What is in the folder ``path``; ``Gone`` when it is not there."""
        return _expect(await self.request(ListDir(path=path)), Entries).entries

    async def stat(self, path: str, *, hash: bool = False) -> Entry | None:
        """The entry at ``path``, or None."""
        limit = SLOW_TIMEOUT_S if hash else REQUEST_TIMEOUT_S
        entries = _expect(await self.request(Stat(path=path, hash=hash), limit), Entries).entries
        return entries[0] if entries else None

    async def tree(self) -> TreeIs:
        """Every captured path with its digests."""
        return _expect(await self.request(Tree(), SLOW_TIMEOUT_S), TreeIs)

    async def applied(self) -> AppliedIs:
        """How far the host has applied changes."""
        return _expect(await self.request(Applied()), AppliedIs)

    async def read(self, path: str) -> tuple[bytes, Entry]:
        """A file's content, read in parts; read again (three times) when it changes meanwhile."""
        for _ in range(3):
            parts: list[bytes] = []
            first: Entry | None = None
            offset = 0
            while True:
                got = _expect(await self.request(Read(path=path, offset=offset)), Content)
                first = first or got.entry
                parts.append(got.content)
                offset += len(got.content)
                changed = (got.entry.size, got.entry.mtime_ns) != (first.size, first.mtime_ns)
                if changed or len(got.content) < CHUNK:
                    break
            if not changed:
                return b"".join(parts), first
        raise Conflict(f"{path!r} changes while it is read", hint="try again when it is complete")

    async def close(self) -> None:
        """End the stream; waiting requests raise ``StreamLost``."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _receive(self) -> None:
        try:
            while (answer := await self._answers.read(self._reader)) is not None:
                if not self._waiting:
                    break  # an answer nobody asked for: not our protocol
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(answer)
        except (BadFrame, OSError):
            pass  # told to the waiting requests below
        finally:
            self._ended = True
            self._writer.close()
            while self._waiting:
                future = self._waiting.popleft()
                if not future.done():
                    future.set_exception(StreamLost("the files stream has ended"))
            if self._on_end is not None:
                self._on_end()


def _expect(answer: ToClient, kind: type[A]) -> A:
    if not isinstance(answer, kind):
        raise Never(f"the host answered {type(answer).__name__}, not {kind.__name__}")
    return answer
