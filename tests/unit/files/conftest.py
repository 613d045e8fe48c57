"""Hosts on unix sockets and a workspace over them."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roost.agent.files import serve
from roost.client.stream import Stream
from roost.notebooks.workspace import Workspace


class WallClock:
    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()


class Hosts:
    """Several 'hosts' on unix sockets; ``route`` says which one a client reaches (None: hold)."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.route: str | None = None
        self.changed = asyncio.Event()
        self._servers: dict[str, asyncio.Server] = {}
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}

    def root(self, name: str) -> Path:
        return self.base / name / "s-1"

    async def add(self, name: str) -> Path:
        tasks = self._tasks.setdefault(name, set())
        root = self.root(name)
        root.mkdir(parents=True, exist_ok=True)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await serve(reader, writer, root)
            except asyncio.CancelledError:
                pass
            finally:
                tasks.discard(task)

        self._servers[name] = await asyncio.start_unix_server(handle, self.base / f"{name}.sock")
        return root

    def point(self, name: str | None) -> None:
        self.route = name
        self.changed.set()

    async def fence(self, name: str) -> None:
        """End the streams of a host."""
        self._servers[name].close()
        for task in list(self._tasks[name]):
            task.cancel()
        while self._tasks[name]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def connect(self) -> Stream:
        while self.route is None:
            self.changed.clear()
            await self.changed.wait()
        return await asyncio.open_unix_connection(self.base / f"{self.route}.sock")

    async def close(self) -> None:
        for name in list(self._servers):
            await self.fence(name)


@pytest.fixture
def short() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def hosts(short: Path) -> AsyncIterator[Hosts]:
    made = Hosts(short)
    yield made
    await made.close()


@pytest.fixture
async def workspace(short: Path, hosts: Hosts) -> AsyncIterator[Workspace]:
    made = Workspace(short / "journal", hosts.connect, WallClock(), wait_s=5)
    await made.start()
    yield made
    await made.stop()
