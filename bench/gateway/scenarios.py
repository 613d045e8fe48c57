"""What clients see while backends crash, freeze or fail and routes change; each proxy in the same run."""

import asyncio
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gateway import stage
from bench.gateway.load import FRAME
from tests.conformance.gateway import peers

CLIENTS = 24
THINK_S = 0.03
"""Between two requests of a client: an offered load, not a race."""


@dataclass
class Seen:
    """What the clients met."""

    latency_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    """Those of the requests that did not fail: an error at once is no quick answer."""
    failed: Counter[str] = field(default_factory=Counter)
    when: list[tuple[int, str]] = field(default_factory=list)
    """Number of the request and what failed, in order."""
    count: int = 0
    posted: int = 0


class Client:
    """One keep-alive client."""

    def __init__(self, port: int, seen: Seen) -> None:
        self._port = port
        self._seen = seen
        self._end: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str) -> None:
        self._seen.count += 1
        number = self._seen.count
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(20):
                status = await self._ask(method, path)
        except (OSError, EOFError, TimeoutError) as error:
            self._drop()
            status, what = 0, type(error).__name__
        else:
            what = str(status)
        self._seen.latency_s.append(time.monotonic() - began_s)
        if status == 200:
            self._seen.answered_s.append(self._seen.latency_s[-1])
        else:
            self._seen.failed[f"{method} {what}"] += 1
            self._seen.when.append((number, what))

    async def _ask(self, method: str, path: str) -> int:
        """Any client sends a GET again that met a connection closed while it was idle."""
        fresh = self._end is None
        try:
            return await self._once(method, path)
        except (OSError, asyncio.IncompleteReadError) as error:
            nothing = not isinstance(error, asyncio.IncompleteReadError) or not error.partial
            if fresh or method != "GET" or not nothing:
                raise
            self._drop()
            return await self._once(method, path)

    async def _once(self, method: str, path: str) -> int:
        if self._end is None:
            self._end = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._end
        body = b"hello" if method == "POST" else b""
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: a\r\n".encode()
            + (b"Content-Length: 5\r\n" if body else b"")
            + b"\r\n"
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length:" in head:
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            if b"connection: close" in head:
                self._drop()
        else:
            self._drop()
        return int(head[9:12])

    def _drop(self) -> None:
        if self._end is not None:
            self._end[1].close()
            self._end = None


async def offer(port: int, seconds: float, *, posts: bool = False) -> Seen:
    seen = Seen()
    end_s = time.monotonic() + seconds

    async def one(number: int) -> None:
        client = Client(port, seen)
        await asyncio.sleep(THINK_S * number / CLIENTS)
        turn = 0
        while time.monotonic() < end_s:
            turn += 1
            if posts and turn % 10 == 0:
                seen.posted += 1
                await client.ask("POST", f"/post/{number}/{turn}")
            else:
                await client.ask("GET", "/")
            await asyncio.sleep(THINK_S)

    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return seen


class Backends:
    """Processes that can be killed, frozen and started again."""

    def __init__(self, ports: list[int], folder: Path) -> None:
        self.ports = ports
        self.log = folder / "posts"
        self._stacks: dict[int, contextlib.ExitStack] = {}
        self.pids: dict[int, int] = {}

    def start(self, port: int, *options: str) -> None:
        stack = contextlib.ExitStack()
        child = stack.enter_context(
            stage.process(
                [
                    sys.executable,
                    "-m",
                    "bench.gateway.backend",
                    str(port),
                    "--log",
                    str(self.log),
                    *options,
                ]
            )
        )
        self._stacks[port] = stack
        self.pids[port] = child.pid

    def kill(self, port: int) -> None:
        self._stacks.pop(port).close()

    def close(self) -> None:
        for port in list(self._stacks):
            self.kill(port)

    def doubles(self) -> int:
        """POSTs that were taken more than once."""
        if not self.log.exists():
            return 0
        return sum(count - 1 for count in Counter(self.log.read_text().split()).values())


def summary(seen: Seen) -> dict[str, object]:
    cuts = statistics.quantiles(seen.latency_s, n=1000)
    answered = statistics.quantiles(seen.answered_s, n=1000)
    return {
        "requests": seen.count,
        "failed": dict(seen.failed),
        "p50_ms": round(cuts[499] * 1e3, 1),
        "p99_ms": round(cuts[989] * 1e3, 1),
        "p99.9_ms": round(cuts[998] * 1e3, 1),
        "p99 answered": round(answered[989] * 1e3, 1),
    }


Found = dict[str, object]
Scenario = Callable[["Backends", int, peers.Running, Path], Coroutine[Any, Any, Found]]


async def crash(backends: Backends, port: int, running: peers.Running, folder: Path) -> Found:
    """A backend is killed every 5 s and is back 2 s later (20 s)."""

    async def kills() -> None:
        for turn in range(3):
            await asyncio.sleep(3)
            victim = backends.ports[turn % len(backends.ports)]
            backends.kill(victim)
            await asyncio.sleep(2)
            backends.start(victim)

    killing = asyncio.create_task(kills())
    seen = await offer(port, 18, posts=True)
    await killing
    return {**summary(seen), "posts": seen.posted, "posts taken twice": backends.doubles()}


async def freeze(backends: Backends, port: int, running: peers.Running, folder: Path) -> Found:
    """A backend is stopped (SIGSTOP) for 4 s of 12."""

    async def stop() -> None:
        await asyncio.sleep(3)
        os.kill(backends.pids[backends.ports[0]], signal.SIGSTOP)
        await asyncio.sleep(4)
        os.kill(backends.pids[backends.ports[0]], signal.SIGCONT)

    stopping = asyncio.create_task(stop())
    seen = await offer(port, 12)
    await stopping
    return summary(seen)


async def failing(backends: Backends, port: int, running: peers.Running, folder: Path) -> Found:
    """One of three backends answers 500 at once (8 s)."""
    backends.kill(backends.ports[0])
    backends.start(backends.ports[0], "--fail")
    await asyncio.sleep(0.5)
    seen = await offer(port, 8)
    late = seen.when[10:]
    return {
        **summary(seen),
        "errors after the first 10": len(late),
        "of requests": f"{len(late) / max(seen.count, 1):.3%}",
    }


async def change(backends: Backends, port: int, running: peers.Running, folder: Path) -> Found:
    """The routes change three times under load, with 20 WebSockets open (8 s)."""
    sockets = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
    for reader, writer in sockets:
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")

    async def reloads() -> None:
        for turn in range(3):
            await asyncio.sleep(1.5)
            changed(folder, turn)
            number = signal.SIGUSR2 if (folder / "haproxy.cfg").exists() else signal.SIGHUP
            os.kill(running.pids()[0], number)

    reloading = asyncio.create_task(reloads())
    seen = await offer(port, 8)
    await reloading
    alive = 0
    for reader, writer in sockets:
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(2):
                writer.write(FRAME)
                alive += await reader.readexactly(len(FRAME)) == FRAME
        writer.close()
    return {**summary(seen), "WebSockets cut": 20 - alive}


def changed(folder: Path, turn: int) -> None:
    """Add a route; what is there stays."""
    if (folder / "routes.toml").exists():
        with (folder / "routes.toml").open("a") as file:
            file.write(
                f'[[routes]]\nname = "new{turn}"\nmatch = {{ prefix = "/new{turn}" }}\nservice = "s0"\n'
            )
    elif (folder / "nginx.conf").exists():
        path = folder / "nginx.conf"
        added = f"location /new{turn} {{ return 200 ok; }} location / {{"
        path.write_text(path.read_text().replace("location / {", added))
    elif (folder / "haproxy.cfg").exists():
        path = folder / "haproxy.cfg"
        added = f"  acl new{turn} path_beg /new{turn}\n  default_backend b0"
        path.write_text(path.read_text().replace("  default_backend b0", added))


SCENARIOS: dict[str, tuple[Scenario, tuple[str, ...]]] = {
    "crash": (crash, ()),
    "freeze": (freeze, ()),
    "failing": (failing, ()),
    "route change": (change, ("envoy",)),
}
"""And the proxies that a scenario does not apply to (Envoy's static file is not read again)."""


def run(names: list[str], only: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for title, (scenario, without) in SCENARIOS.items():
        if only not in title:
            continue
        rows: dict[str, Found] = {}
        for name in names:
            if name in without:
                continue
            with tempfile.TemporaryDirectory(prefix="gws-") as text:
                folder = Path(text)
                ports = peers.free_ports(4)
                backends = Backends(ports[:3], folder)
                try:
                    for port in backends.ports:
                        backends.start(port)
                    lanes = [stage.lane("plain", ports[3], backends.ports)]
                    time.sleep(0.7)
                    with stage.proxy(name, lanes, folder / "p") as running:
                        rows[name] = asyncio.run(
                            scenario(backends, ports[3], running, folder / "p")
                        )
                finally:
                    backends.close()
        found[title] = rows
    return found


def table(result: dict[str, object]) -> str:
    lines = []
    for title, rows in result.items():
        lines.append(title)
        assert isinstance(rows, dict)
        for name, row in rows.items():
            cells = ", ".join(f"{key} {value}" for key, value in row.items())
            lines.append(f"  {name:8} {cells}")
    return "\n".join(lines)
