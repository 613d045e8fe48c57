"""The two ends of the wire: a client that sends exact bytes, an origin that records them. Judges nothing.

Sockets only, no HTTP library: what a library would refuse or repair is what is tested here.
"""

import asyncio
import contextlib
import re
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET

WAIT_S = 5.0
CLOSE = object()
RESET = object()
HALF = object()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Fields = list[tuple[str, str]]
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEAD = re.compile(
    _TOKEN + rb" [\x21-\x7e]+ HTTP/1\.[01]\r\n(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")


class Failed(Exception):
    """A check found a difference; the text says which."""


def expect(good: object, why: str) -> None:
    if not good:
        raise Failed(why)


def parse_fields(head: bytes) -> Fields:
    found = []
    for line in head.split(b"\r\n")[1:]:
        if line:
            name, _, value = line.partition(b":")
            found.append((name.decode("latin-1").lower(), value.strip(b" \t").decode("latin-1")))
    return found


class Message:
    """A head with its fields."""

    fields: Fields

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return ", ".join(values) if values else None


@dataclass
class Seen(Message):
    """A request as the origin got it."""

    method: str
    target: str
    version: str
    fields: Fields
    raw: bytes
    link: int
    body: bytes = b""
    trailers: bytes = b""
    complete: bool = False
    broken: str = ""

    @property
    def faults(self) -> str:
        """What a second parser could read differently in it; empty = nothing."""
        if self.broken:
            return self.broken
        if _HEAD.fullmatch(self.raw) is None:
            return f"a malformed head was passed on: {self.raw[:200]!r}"
        lengths, codings = self.all("content-length"), self.all("transfer-encoding")
        if len(lengths) + len(codings) > 1:
            return f"two framings were passed on: {lengths} {codings}"
        if lengths and not re.fullmatch("[0-9]+", lengths[0]):
            return f"Content-Length {lengths[0]!r} was passed on"
        if codings and codings[0].lower() != "chunked":
            return f"Transfer-Encoding {codings[0]!r} was passed on"
        if len(self.all("host")) > 1:
            return "several Host fields were passed on"
        twins = {"content-length", "transfer-encoding", "host"}
        for name, _ in self.fields:
            if "_" in name and name.replace("_", "-") in twins:
                return f"{name} was passed on: CGI-style servers read it as the real field"
        return ""


class Link:
    """One connection to the origin."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.raw = bytearray()
        self.ended = asyncio.Event()

    async def line(self) -> bytes:
        data = await self.reader.readuntil(b"\n")
        self.raw += data
        return data

    async def exactly(self, size: int) -> bytes:
        data = await self.reader.readexactly(size)
        self.raw += data
        return data

    async def body(self, seen: Seen) -> None:
        """Read the request's body, strictly."""
        if seen.complete:
            return
        if seen.all("transfer-encoding"):
            await self._chunked(seen)
        else:
            length = seen.get("content-length") or "0"
            if not length.isdigit():
                seen.broken = f"Content-Length {length!r}"
                raise ConnectionError
            left = int(length)
            keep = left <= 1 << 22
            while left:
                data = await self.reader.read(min(left, 1 << 18))
                if not data:
                    raise asyncio.IncompleteReadError(b"", left)
                if keep:
                    seen.body += data
                left -= len(data)
        seen.complete = True

    async def _chunked(self, seen: Seen) -> None:
        while True:
            line = await self.line()
            match = _CHUNK.fullmatch(line)
            if match is None:
                seen.broken = f"a malformed chunk size was passed on: {line[:80]!r}"
                raise ConnectionError
            size = int(match[1], 16)
            if not size:
                break
            seen.body += await self.exactly(size)
            if await self.exactly(2) != b"\r\n":
                seen.broken = "a chunk without its end was passed on"
                raise ConnectionError
        while (line := await self.line()) != b"\r\n":
            if not re.fullmatch(_TOKEN + rb":[^\r\n\x00]*\r\n", line):
                seen.broken = f"a malformed trailer was passed on: {line[:80]!r}"
                raise ConnectionError
            seen.trailers += line

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def play(self, steps: tuple[object, ...]) -> None:
        for step in steps:
            if isinstance(step, bytes):
                self.writer.write(step)
                await self.writer.drain()
            elif isinstance(step, int | float):
                await asyncio.sleep(step)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif step is HALF:
                self.writer.write_eof()
            elif step is RESET:
                self.reset()
                raise ConnectionError
            elif step is CLOSE:
                raise ConnectionError


Handler = Callable[[Link, Seen], Awaitable[None]]


def say(*steps: object) -> Handler:
    """Answer with bytes, pauses and ends, in order."""

    async def answer(link: Link, seen: Seen) -> None:
        await link.play(steps)

    return answer


class Origin:
    """A backend that answers from a script and keeps what it received."""

    def __init__(self) -> None:
        self.port = 0
        self.links: list[Link] = []
        self.requests: list[Seen] = []
        self.script: list[Handler] = []
        self.default: Handler = say(OK)
        self.early = False
        """Answer when the head is there, without reading the body."""
        self.tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(
            self._accepted, "127.0.0.1", port, limit=1 << 20, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        await self.clear()
        if self._server is not None:
            self._server.close()
            self._server = None

    async def clear(self) -> None:
        """Forget everything and end all connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.links, self.requests, self.script = [], [], []
        self.default, self.early = say(OK), False

    async def arrived(self, count: int = 1, *, within_s: float = WAIT_S) -> list[Seen]:
        """Wait until ``count`` request heads came."""
        async with asyncio.timeout(within_s):
            while len(self.requests) < count:  # noqa: ASYNC110 - polling is enough here
                await asyncio.sleep(0.005)
        return self.requests

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(len(self.links), reader, writer)
        self.links.append(link)
        try:
            while await self._one(link):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        finally:
            link.ended.set()
            writer.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, link: Link) -> bool:
        head = b""
        while not head.endswith((b"\r\n\r\n", b"\n\n")):
            head += await link.line()
        if head == b"\r\n":
            return True
        first = head.split(b"\r\n")[0].decode("latin-1").split(" ")
        if len(first) != 3:
            first = [*first, "", "", ""][:3]
        seen = Seen(first[0], first[1], first[2], parse_fields(head), head, link.number)
        self.requests.append(seen)
        answer = self.script.pop(0) if self.script else self.default
        if not self.early:
            await link.body(seen)
        await answer(link, seen)
        await link.body(seen)
        return True


@dataclass
class Reply(Message):
    """A response as the client got it."""

    status: int = 0
    reason: str = ""
    version: str = ""
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    trailers: bytes = b""
    interim: list["Reply"] = field(default_factory=list)
    complete: bool = False
    chunked: bool = False
    until_close: bool = False
    raw: bytes = b""
    broken: str = ""

    @property
    def refused(self) -> bool:
        return self.status == 0 or self.status >= 400


class Client:
    """A connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes | float) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                self.writer.write(piece)
                with contextlib.suppress(ConnectionError):
                    await self.writer.drain()
            else:
                await asyncio.sleep(piece)

    async def response(self, method: str = "GET", *, within_s: float = WAIT_S) -> Reply:
        """The next final response; status 0 = the connection ended or nothing came in time."""
        reply = Reply()
        interim: list[Reply] = []
        try:
            async with asyncio.timeout(within_s):
                while True:
                    reply = Reply(interim=interim)
                    head = await self.reader.readuntil(b"\r\n\r\n")
                    self._head(reply, head)
                    if reply.status >= 200 or reply.status in (0, 101):
                        break
                    interim.append(reply)
                if reply.broken:
                    return reply
                await self._body(reply, method)
        except TimeoutError:
            reply.broken = reply.broken or "timeout"
        except asyncio.IncompleteReadError as error:
            reply.raw += error.partial
            reply.broken = reply.broken or "ended"
        except (ConnectionError, asyncio.LimitOverrunError):
            reply.broken = reply.broken or "reset"
        return reply

    def _head(self, reply: Reply, head: bytes) -> None:
        reply.raw = head
        match = re.match(rb"(HTTP/1\.[01]) ([0-9]{3})(?: ([^\r\n]*))?\r\n", head)
        if match is None:
            reply.broken = f"no status line: {head[:100]!r}"
            return
        reply.version = match[1].decode()
        reply.status = int(match[2])
        reply.reason = (match[3] or b"").decode("latin-1")
        reply.fields = parse_fields(head)

    async def _body(self, reply: Reply, method: str) -> None:
        if method == "HEAD" or reply.status in (101, 204, 304):
            reply.complete = True
        elif reply.all("transfer-encoding"):
            reply.chunked = True
            await self._chunks(reply)
            reply.complete = True
        elif reply.all("content-length"):
            left = int(reply.all("content-length")[0])
            while left:
                data = await self.reader.read(min(left, 1 << 18))
                if not data:
                    reply.broken = "cut"
                    return
                reply.body += data
                left -= len(data)
            reply.complete = True
        else:
            reply.until_close = True
            while data := await self.reader.read(1 << 16):
                reply.body += data
            reply.complete = True

    async def _chunks(self, reply: Reply) -> None:
        while True:
            line = await self.reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0].strip(), 16)
            if not size:
                break
            reply.body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            reply.trailers += line

    async def rest(self, within_s: float = 1.0) -> tuple[bytes, bool]:
        """What else comes, and whether the connection ended."""
        data = b""
        try:
            async with asyncio.timeout(within_s):
                while piece := await self.reader.read(1 << 16):
                    data += piece
                return data, True
        except TimeoutError:
            return data, False
        except ConnectionError:
            return data, True

    async def closed(self, within_s: float = 2.0) -> bool:
        return (await self.rest(within_s))[1]

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Lane:
    """One listener of the proxy with the origins behind it; one check at a time uses it."""

    kind: str
    port: int
    origins: list[Origin]
    pids: Callable[[], list[int]] = list
    clients: list[Client] = field(default_factory=list)

    @property
    def origin(self) -> Origin:
        return self.origins[0]

    async def client(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def tls(self, **options: object) -> Client:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        alpn = options.get("alpn")
        if isinstance(alpn, list):
            context.set_alpn_protocols(alpn)
        if options.get("maximum"):
            context.maximum_version = options["maximum"]  # type: ignore[assignment]
        name = str(options.get("name", "a.test"))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=name, limit=1 << 20
        )
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def ask(self, *pieces: bytes | float, method: str = "GET") -> Reply:
        client = await self.client()
        await client.send(*pieces)
        return await client.response(method)

    async def clear(self) -> None:
        for client in self.clients:
            client.writer.transport.abort()
        self.clients = []
        for origin in self.origins:
            await origin.clear()


Run = Callable[[Lane], Awaitable[dict[str, str] | None]]


@dataclass
class Case:
    """Something done once; each part of what is found is scored on its own."""

    id: str
    rfc: str
    parts: tuple[tuple[str, str], ...]
    """Name and level: must, should, may."""
    run: Run
    lane: str = "plain"
    alone: bool = False
    """Nothing else may run beside it (memory is measured)."""


CASES: list[Case] = []


def check(
    id: str, level: str, rfc: str, *, lane: str = "plain", alone: bool = False
) -> Callable[[Run], Run]:
    """Register a check with one part: it fails by raising."""

    def register(run: Run) -> Run:
        CASES.append(Case(id, rfc, (("", level),), run, lane, alone))
        return run

    return register
