"""A host's replicas for tests: a small web server, the parts of one agent, and clients as an edge is one."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.process import ProcessDriver
from roost.agent.balancer import Balancer
from roost.agent.replicas.host import ReplicaHost
from roost.agent.replicas.replica import ReplicaTools
from roost.main.agent import free_port
from roost.ports.driver import Driver
from roost.ports.replicas import Health, HostReplicas, ReplicaOrder, ReplicaReport, ReplicaSpec

from .fakes import MemoryBlobs, until

SERVER = """
import base64, hashlib, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
began = time.monotonic()
sick = threading.Event()
print("hello from", os.environ["ROOST_REPLICA"], flush=True)
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *words): pass
    def say(self, text, status=200, **fields):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Replica", os.environ["ROOST_REPLICA"])
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        what, _, value = self.path[1:].partition("=")
        if what == "health":
            late = time.monotonic() - began < float(os.environ.get("READY_AFTER", "0"))
            self.say("", 503 if late or sick.is_set() else 200)
        elif what == "sleep":
            time.sleep(float(value)); self.say("slept")
        elif what == "exit":
            print("asked to end", flush=True); os._exit(int(value))
        elif what == "sick":
            sick.set(); self.say("")
        elif what == "fail":
            self.say("", int(value))
        elif what == "lie":
            self.say("", Roost_Load="active=0; slots=900")
        elif what == "pid":
            self.say(str(os.getpid()))
        elif what == "eat":
            eaten.append(bytearray(int(value) << 20)); self.say("ate")
        elif what == "burn":
            until = time.thread_time() + float(value)
            while time.thread_time() < until: pass
            self.say("burnt")
        elif what == "socket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", accept)
            self.end_headers()
            self.close_connection = True
            while data := self.rfile.read1(100):
                self.wfile.write(data)
        else:
            self.say(os.environ["ROOST_REPLICA"])
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.say(body.decode())
eaten = []
class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 200
Server((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""

OPENED = b"opened"
"""An edge sends nothing before it hears so."""

HEALTH = Health(path="/health", interval_s=0.1, timeout_s=2.0)


def spec(code: str = SERVER, **more: Any) -> ReplicaSpec:
    given: dict[str, Any] = {"health": HEALTH, "stop_grace_s": 3.0, "memory_mib": 400.0, **more}
    return ReplicaSpec(command=(sys.executable, "-c", code), **given)


def orders(*names: str, service: str = "s-1", **more: Any) -> tuple[ReplicaOrder, ...]:
    draining = more.pop("draining", ())
    found = spec(**more)
    return tuple(
        ReplicaOrder(
            replica_id=name,
            service_id=service,
            revision=1,
            spec=found,
            draining=name in draining,
        )
        for name in names
    )


class Answer:
    """What came back: status, fields in lower case, body."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        pairs = (line.split(": ", 1) for line in lines if line)
        self.fields = {name.lower(): value for name, value in pairs}
        self.text = body.decode()

    @property
    def load(self) -> dict[str, int]:
        pairs = (pair.split("=") for pair in self.fields["roost-load"].split("; "))
        return {name: int(value) for name, value in pairs}


class Client:
    """One connection to a service, as an edge has it: a data connection that was opened."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(
        self, path: str, *, method: str = "GET", body: str = "", fields: str = ""
    ) -> Answer:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\n{length}{fields}\r\n{body}".encode()
        )
        head = await self.reader.readuntil(b"\r\n\r\n")
        answer = Answer(head[:-4], b"")
        if answer.status != 101:
            size = int(answer.fields["content-length"])
            answer.text = (await self.reader.readexactly(size)).decode()
        return answer

    def close(self) -> None:
        self.writer.transport.abort()


class Bench:
    """One host; agents come and go on it."""

    def __init__(self, folder: Path, *, processes: Driver | None = None) -> None:
        self.folder = folder
        self.blobs = MemoryBlobs()
        self.beats = 0
        self.unready = ""
        self.processes = processes or ProcessDriver(folder / "tasks", clock=SystemClock())
        self.containers: Driver | None = None
        self.host: ReplicaHost
        self.balancer: Balancer
        self._server: asyncio.Server

    @asynccontextmanager
    async def agent(self, *, end: bool = True) -> AsyncIterator[ReplicaHost]:
        """An agent's part in replicas, until its end (``end``: its replicas' too)."""
        clock = SystemClock()
        self.balancer = Balancer(clock.now_s)
        tools = ReplicaTools(
            processes=self.processes,
            containers=self.containers,
            blobs=self.blobs,
            clock=clock,
            address="127.0.0.1",
            free_port=free_port,
            beat=self._beat,
            unready=lambda: self.unready,
        )
        self.host = ReplicaHost(self.folder / "replicas", tools, self.balancer)
        self._server = await asyncio.start_server(self._open, "127.0.0.1", 0)
        await self.host.recover()
        running = asyncio.create_task(self.host.run())
        try:
            yield self.host
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if end:
                await self.host.end()
            await self.host.close()
            self._server.close()

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OPENED)
        await self.balancer.serve("s-1", reader, writer)

    def _beat(self) -> None:
        self.beats += 1

    async def client(self) -> Client:
        host, port = self._server.sockets[0].getsockname()[:2]
        client = Client(*await asyncio.open_connection(host, port))
        assert await client.reader.readexactly(len(OPENED)) == OPENED
        return client

    async def ask(self, path: str, **more: str) -> Answer:
        client = await self.client()
        try:
            return await client.ask(path, **more)
        finally:
            client.close()

    async def set(self, generation: int, *found: ReplicaOrder) -> None:
        await self.host.set(HostReplicas(generation=generation, replicas=found))

    def states(self) -> dict[str, str]:
        return {report.replica_id: report.state for report in self.host.reports()}

    def report(self, name: str) -> ReplicaReport:
        return next(r for r in self.host.reports() if r.replica_id == name)

    async def ready(self, *names: str) -> None:
        await until(lambda: all(self.states().get(name) == "ready" for name in names), seconds=30)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        yield Bench(Path(folder))


async def end_replicas(folder: Path, *names: str) -> None:
    """End what the replicas of an agent left in its instance's folder, with their cgroups."""
    driver = ProcessDriver(folder / "agent" / "replicas", clock=SystemClock())
    for name in names:
        await driver.stop(name, grace_s=0.0)
