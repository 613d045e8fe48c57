"""A host at an edge's data port, without an agent: parks connections, serves HTTP on those opened."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from roost.ports import wire
from roost.ports.errors import Retry, to_wire

PARKED = 2

Handler = Callable[[bytes, bytes], Awaitable[bytes]]
"""From a request's head and body to the whole answer."""


def answer(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""))
    return head.encode() + body


class FakeHost:
    """Answers with its own name and the path it was asked for, unless told otherwise."""

    def __init__(self, setup: Any, host_id: str) -> None:
        self.setup = setup
        self.host_id = host_id
        self.asked: list[str] = []
        """Request lines, as they came."""
        self.heads: list[bytes] = []
        self.opened: list[str] = []
        self.handler: Handler | None = None
        self.refuses = False
        self.gate = asyncio.Event()
        """Requests are answered while it is set."""
        self.gate.set()
        self.waiting = 0
        self.load = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.start()

    def start(self) -> None:
        for _ in range(PARKED):
            self._spawn(self._park())

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def kill(self) -> None:
        """The agent dies: every connection is reset at once."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.waiting = 0

    async def _park(self) -> None:
        reader, writer = await self.setup.data_connection(self.host_id)
        self._writers.add(writer)
        message = await wire.data_to_agent().read(reader)
        if not isinstance(message, wire.Open):
            return
        self._spawn(self._park())
        self.opened.append(message.service)
        if self.refuses:
            error = to_wire(Retry("not here yet", after_s=0.05))
            writer.write(wire.data_to_edge().encode(wire.OpenFailed(error=error)))
            return
        writer.write(wire.data_to_edge().encode(wire.Opened()))
        try:
            while await self._serve(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        size = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        body = await reader.readexactly(size)
        self.heads.append(head)
        self.asked.append(head.split(b" HTTP/", 1)[0].decode())
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        if b"upgrade: websocket" in head.lower():
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\n\r\n"
            )
            writer.write(await reader.read(100))
            return True
        if self.handler is not None:
            writer.write(await self.handler(head, body))
            return True
        path = head.split(b" ", 2)[1]
        lines = (f"Roost-Load: {self.load}",) if self.load else ()
        writer.write(answer(self.host_id.encode() + b" " + path + b" " + body, *lines))
        return True
