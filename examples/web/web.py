"""A sample web service: each connected client burns half of its container's CPU.

    PORT=8000 python web.py

    GET /            a page that connects and shows what it costs
    GET /connect     stays connected and says once a second how many are; ``?s=10`` ends after 10 s
    GET /work        burns CPU for ``?ms=50`` of processor time and answers: a request with a known cost
    GET /wait        answers after ``?ms=50`` without burning anything
    GET /health      200 as soon as it can serve
    GET /who         which replica answered (its ``ROOST_REPLICA``, else its process)
    GET /fail        500: what a broken handler looks like
    GET /crash       the process ends with status 1

Variables: ``PORT``, ``HOST``; ``START_S`` seconds until it listens (a slow start); ``BROKEN=1`` answers 500
to ``/health`` (a bad release); ``CPUS``, where the container's share of the processor cannot be read.
Only the standard library, so it runs in any image with Python.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

SHARE = 0.5
"""Of the container's CPU, for each connected client."""
PERIOD_S = 0.05
CHUNK_S = 0.005
"""A long computation gives way this often, as a server with more than one thread would."""
BEAT_S = 1.0
LEAVE_S = 8.0
PAGE = b"""<!doctype html><title>web</title><h1>web</h1>
<p>Each client connected to this service burns half of its container's CPU. You are one.</p><pre id=o></pre>
<script>
  fetch("connect").then(async r => {
    const lines = r.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let x; !(x = await lines.read()).done;) document.getElementById("o").textContent = x.value;
  });
</script>
"""


def cpus() -> float:
    """How much of a processor this container may use: its cgroup's quota, else ``CPUS``, else one."""
    for quota, period in (
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
        ("/sys/fs/cgroup/cpu.max", ""),
    ):
        try:
            words = Path(quota).read_text().split()
            words += Path(period).read_text().split() if period else []
            if float(words[0]) > 0:
                return float(words[0]) / float(words[1])
        except (OSError, ValueError, IndexError):
            continue
    return float(os.environ.get("CPUS", "1"))


class Burner:
    """A thread that burns ``SHARE`` of the container's CPU for each connected client, all of it at most."""

    def __init__(self, share: float) -> None:
        self.clients = 0
        self.most = 0
        self._share = min(1.0, share)
        self._wake = threading.Event()
        threading.Thread(target=self._burn, daemon=True).start()

    def join(self) -> None:
        """One more client."""
        self.clients += 1
        self.most = max(self.most, self.clients)
        self._wake.set()

    def leave(self) -> None:
        """One client less."""
        self.clients -= 1

    def _burn(self) -> None:
        while True:
            if self.clients <= 0:
                self._wake.clear()
                self._wake.wait(1.0)
                continue
            began = time.monotonic()
            want_s = PERIOD_S * min(1.0, SHARE * self.clients) * self._share
            until = time.thread_time() + want_s
            while time.thread_time() < until and time.monotonic() < began + 4 * PERIOD_S:
                sum(range(200))
            time.sleep(max(0.0, began + PERIOD_S - time.monotonic()))


class Web:
    """The service: HTTP/1.1 as far as it is needed here."""

    def __init__(self) -> None:
        self.burner = Burner(cpus())
        self.name = os.environ.get("ROOST_REPLICA", f"process {os.getpid()}")
        self.broken = os.environ.get("BROKEN", "") not in ("", "0")
        self.served = 0
        self.open = 0
        self.ending = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one; whether another may follow."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        await reader.readexactly(int(headers.get("content-length", "0")))
        self.open += 1
        self.idle.clear()
        try:
            parts = urlsplit(target)
            await self._answer(writer, method, parts.path, dict(parse_qsl(parts.query)))
        finally:
            self.open -= 1
            if not self.open:
                self.idle.set()
        self.served += 1
        return headers.get("connection", "").lower() != "close" and not self.ending.is_set()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, asked: dict[str, str]
    ) -> None:
        ms = min(60_000.0, float(asked.get("ms", "50")))
        if path == "/connect":
            await self._connect(writer, float(asked.get("s", "inf")))
        elif path == "/work":
            spent_s = await work(ms / 1000.0)
            await send(writer, 200, self._who(spent_ms=round(spent_s * 1000.0, 1)))
        elif path == "/wait":
            await asyncio.sleep(ms / 1000.0)
            await send(writer, 200, self._who())
        elif path == "/health":
            await send(writer, 500 if self.broken else 200, self._who())
        elif path == "/who":
            await send(writer, 200, self._who(method=method))
        elif path == "/fail":
            await send(writer, 500, b"it failed, as asked\n")
        elif path == "/crash":
            os._exit(1)
        elif path == "/":
            await send(writer, 200, PAGE, kind="text/html; charset=utf-8")
        else:
            await send(writer, 404, b"not here\n")

    def _who(self, **more: object) -> bytes:
        said = {"replica": self.name, "clients": self.burner.clients, "served": self.served}
        return json.dumps({**said, **more}).encode() + b"\n"

    async def _connect(self, writer: asyncio.StreamWriter, for_s: float) -> None:
        """A client that stays: a line a second until it goes or its time is over."""
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"Cache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self.burner.join()
        try:
            until = time.monotonic() + for_s
            while not self.ending.is_set():
                line = f"{self.burner.clients} connected to {self.name}\n".encode()
                writer.write(b"%x\r\n%s\r\n" % (len(line), line))
                await writer.drain()
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                await asyncio.sleep(min(BEAT_S, left_s))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            self.burner.leave()


async def work(for_s: float) -> float:
    """Burn so much processor time, giving way between pieces. Returns what was burnt."""
    spent = 0.0
    while spent < for_s:
        began = time.thread_time()
        while time.thread_time() - began < min(CHUNK_S, for_s - spent):
            sum(range(100))
        spent += time.thread_time() - began
        await asyncio.sleep(0)
    return spent


async def send(
    writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json"
) -> None:
    """A whole answer."""
    words = {200: "OK", 404: "Not Found", 500: "Internal Server Error"}
    head = f"HTTP/1.1 {status} {words[status]}\r\nContent-Type: {kind}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


async def main() -> None:
    """Listen until SIGTERM; then let what is in flight end."""
    await asyncio.sleep(float(os.environ.get("START_S", "0")))
    web = Web()
    host, port = os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT", "8000"))
    server = await asyncio.start_server(web.serve, host, port, backlog=1024)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, web.ending.set)
    print(f"{web.name} serves at {host}:{port} with {cpus():g} CPUs", flush=True)
    await web.ending.wait()
    server.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(web.idle.wait(), LEAVE_S)
    print(f"{web.name} ends after {web.served} requests", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
    sys.stdout.flush()
    os._exit(0)  # idle connections of clients that keep them open need no goodbye
