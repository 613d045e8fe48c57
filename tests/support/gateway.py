"""A real ``roost gateway`` process, backends for it, and clients that count what fails."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START = "from roost.main.cli import run; run()"
LIMIT_S = 20.0


class Backend:
    """Answers every request with its name; ``/slow`` after a while; ``Upgrade`` becomes an echo."""

    def __init__(self, name: str, slow_s: float = 0.6) -> None:
        self.name = name
        self.slow_s = slow_s
        self.address = ""
        self.requests = 0
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> "Backend":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                if b"\r\nUpgrade: " in head:
                    writer.write(
                        b"HTTP/1.1 101 Switching Protocols\r\n"
                        b"Upgrade: echo\r\nConnection: Upgrade\r\n\r\n"
                    )
                    while data := await reader.read(65536):
                        writer.write(data)
                    break
                if head.startswith(b"GET /slow"):
                    await asyncio.sleep(self.slow_s)
                body = self.name.encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()


class Gateway:
    """One gateway process over a configuration file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.file = folder / "routes.toml"
        self.arguments = arguments or ("--config", str(self.file))
        self.process: asyncio.subprocess.Process
        self.addresses: dict[str, str] = {}
        self.errors: list[str] = []
        self._reading: list[asyncio.Task[None]] = []

    def write(self, text: str) -> None:
        self.file.write_text(text)

    async def start(self) -> "Gateway":
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            START,
            "gateway",
            *self.arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = [asyncio.create_task(self._read()), asyncio.create_task(self._errors())]
        admin = self.file.exists() and "admin = " in self.file.read_text()
        await until(
            lambda: (
                (bool(self.addresses) and (not admin or "admin" in self.addresses))
                or self.process.returncode is not None
            )
        )
        assert self.process.returncode is None, "".join(self.errors)
        return self

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            found = re.match(r"serving (\S+) on (\S+)", line.decode())
            if found is not None:
                self.addresses[found[1]] = found[2]

    async def _errors(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.errors.append(line.decode())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def state(self) -> dict[str, Any]:
        status, body = await get(self.addresses["admin"], "/state")
        assert status == 200
        found: dict[str, Any] = json.loads(body)
        return found

    async def reload(self) -> dict[str, Any]:
        """SIGHUP, and wait until it has been dealt with."""
        before = await self.state()
        self.signal(signal.SIGHUP)

        async def done() -> bool:
            now = await self.state()
            return bool(
                now["reloads"] + now["reload_failures"]
                > before["reloads"] + before["reload_failures"]
            )

        await until_async(done)
        return await self.state()

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
            await asyncio.gather(*self._reading)
        return code


@contextlib.asynccontextmanager
async def running(text: str, *arguments: str) -> AsyncIterator[Gateway]:
    """A gateway with a configuration, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        gateway = Gateway(Path(folder), *arguments)
        gateway.write(text)
        try:
            yield await gateway.start()
        finally:
            await gateway.stop()


async def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_async(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Client:
    """One keep-alive connection after the other."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter
        self.raced = 0
        """Kept connections found closed when the next request was sent: sent again, as browsers do."""

    async def get(self, path: str = "/", *, close: bool = False) -> tuple[int, bytes]:
        while True:
            reused = self._reader is not None
            try:
                return await self._once(path, close)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.close()
                untouched = not isinstance(error, asyncio.IncompleteReadError) or not error.partial
                if not (reused and untouched):
                    raise
                self.raced += 1

    async def _once(self, path: str, close: bool) -> tuple[int, bytes]:
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        more = "Connection: close\r\n" if close else ""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: test.local\r\n{more}\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        assert length is not None, head
        body = await self._reader.readexactly(int(length[1]))
        if re.search(rb"(?i)\r\nconnection: close", head):
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        if self._reader is not None:
            self._writer.close()
            self._reader = None


async def get(address: str, path: str = "/") -> tuple[int, bytes]:
    client = Client(address)
    try:
        return await client.get(path, close=True)
    finally:
        client.close()


@dataclass
class Load:
    """Clients that ask again and again; what failed is kept."""

    address: str
    clients: int = 8
    close: bool = False
    path: str = "/"
    good: int = 0
    raced: int = 0
    failed: list[str] = field(default_factory=list)
    _on: bool = True

    async def _run(self) -> None:
        client = Client(self.address)
        while self._on:
            try:
                status, body = await client.get(self.path, close=self.close)
                if status == 200:
                    self.good += 1
                else:
                    self.failed.append(f"{status} {body[:80]!r}")
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failed.append(repr(error))
            await asyncio.sleep(0.002)
        self.raced += client.raced
        client.close()

    async def more(self, count: int = 100) -> None:
        """Wait until so many more have been answered."""
        wanted = self.good + count
        await until(lambda: self.good >= wanted)

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self.clients)]
        await self.more(20)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._on = False
        await asyncio.gather(*self._tasks)


class Echo:
    """A tunnel (``Upgrade: echo``) through the gateway."""

    async def open(self, address: str) -> "Echo":
        host, _, port = address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._writer.write(
            b"GET /echo HTTP/1.1\r\nHost: test.local\r\n"
            b"Connection: Upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    async def says(self, text: bytes) -> bool:
        self._writer.write(text)
        async with asyncio.timeout(LIMIT_S):
            return await self._reader.readexactly(len(text)) == text

    async def ended(self) -> bool:
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(OSError):
                return await self._reader.read(1) == b""
            return True

    def close(self) -> None:
        self._writer.close()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
