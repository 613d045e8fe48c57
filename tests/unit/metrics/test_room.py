"""The wired room: sampled, forgotten, sent to a server that speaks remote write."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import pytest

from roost.main import usage
from roost.main.usage import UsageRoom
from roost.ports.errors import Retry
from roost.ports.values import HostReport
from tests.unit.metrics.test_metrics_pure import T0, counted, report, seen
from tests.unit.metrics.test_remote_write import unsnappy


class Clock:
    def __init__(self) -> None:
        self.at_s = T0

    def now_s(self) -> float:
        self.at_s += 0.01
        return self.at_s


class Room:
    """Everything the room asks, empty but for one host's reports; the store fails once."""

    def __init__(self) -> None:
        self.fails = 1

    def reports(self) -> Mapping[str, HostReport]:
        return {"i-1": report(T0, 1)}

    async def list_all(self) -> list[Any]:
        if self.fails:
            self.fails -= 1
            raise Retry("the disk is full")
        return []

    async def load(self) -> None:
        pass


def made(url: str = "") -> tuple[UsageRoom, Room]:
    room: Any = Room()
    clock: Any = Clock()
    return (
        UsageRoom(
            clock=clock, links=room, groups=room, services=room, ledger=room, remote_write=url
        ),
        room,
    )


async def until(condition: Any, seconds: float = 10.0) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "not in time"
        await asyncio.sleep(0.01)


async def test_it_samples_on_and_sends_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "SAMPLE_S", 0.01)
    monkeypatch.setattr(usage, "SEND_S", 0.02)
    bodies: list[bytes] = []
    answers = [b"503 Service Unavailable", b"204 No Content"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # the room ends in mid-request
            await take(reader, writer)
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b"x-prometheus-remote-write-version: 0.1.0" in head
        size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        bodies.append(await reader.readexactly(size))
        status = answers[min(len(bodies), 2) - 1]
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    room, store = made(f"http://127.0.0.1:{port}/api/v1/write")
    room.seen(seen(T0, counted(3)))
    running = asyncio.create_task(room.run())
    try:
        await until(lambda: len(bodies) >= 3)
        assert b"roost_edges" in unsnappy(bodies[-1])
        assert store.fails == 0
        await until(lambda: "i-1" in room.history.hosts)
        assert (await room.top()).edges == 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()
