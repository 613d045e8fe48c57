"""One client connection: its requests, one after the other, and the answers streamed back.

Where a request goes is the ``Router``'s decision; Roost is not known here. On the hit path (a decision
at once, an idle backend connection) there is no task and no await. Bytes in flight are bounded in both
directions: a side that does not take bytes stops the other from being read.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from roost.proxy.answers import Answer, render
from roost.proxy.framing import HEAD_LIMIT, Body, FramingError, head_end
from roost.proxy.heads import Request, ResponseHead, ResponseReader, read_request
from roost.proxy.plan import Plan, Router, Stream
from roost.proxy.pool import BackendConnection, Pool
from roost.proxy.tunnel import WRITE_HIGH, Tunnel, tune

log = logging.getLogger(__name__)

JOIN_LIMIT = 16 << 10
"""Pieces are written as one up to this many bytes."""
REPLAY_LIMIT = 64 << 10
"""Most bytes of a request's body kept to send it again."""
ATTEMPTS = 3
"""Most backends tried for one request once bytes were sent."""
GONE_S = 2.0
"""A client that ended its side while its request waits for a backend is taken for gone after this."""
INFINITE = math.inf


@dataclass(frozen=True)
class Limits:
    """Times are seconds."""

    head_s: float = 15.0
    """From a request's first byte to the end of its head (not extended by more bytes)."""
    idle_s: float = 75.0
    """Between requests."""
    upload_s: float = 60.0
    """Between two pieces of a request's body."""
    response_s: float = 600.0
    """From the request to the first byte of the answer."""
    stream_s: float = 3600.0
    """Between two pieces of an answer (event streams are silent for long)."""
    stall_s: float = 120.0
    """A client that takes none of the bytes waiting for it."""
    half_closed_s: float = 30.0
    """For an answer to a client that has ended its side: it may be half-closed, it may be gone."""
    linger_s: float = 5.0
    """Reading on after an error, so that the client gets to see the answer."""
    connections: int = 10_000
    """Most client connections of one process."""


def packed(pieces: list[bytes]) -> list[bytes]:
    """Few small pieces become one write, so one packet; a large body is never copied onto a head."""
    if len(pieces) < 2 or sum(map(len, pieces)) > JOIN_LIMIT:
        return pieces
    return [b"".join(pieces)]


@dataclass
class Proxy:
    """What all client connections of a process share."""

    router: Router
    limits: Limits = field(default_factory=Limits)
    pool: Pool = field(default_factory=Pool)
    clients: set["ClientConnection"] = field(default_factory=set)
    tunnels: set[Tunnel] = field(default_factory=set)
    requests: int = 0
    draining: bool = False

    def sweep(self, now_s: float) -> None:
        """Apply the time limits; to be called a few times a second."""
        for client in [c for c in self.clients if now_s > c.deadline_s]:
            client.expired()
        self.pool.sweep(now_s)

    @property
    def busy(self) -> int:
        """Requests being answered."""
        return sum(1 for client in self.clients if client.request is not None)

    def close(self) -> None:
        """End everything."""
        for client in list(self.clients):
            client.transport.abort()
        for tunnel in list(self.tunnels):
            tunnel.close()
        self.pool.close()


class ClientConnection(asyncio.Protocol):
    """The client's side of the exchanges on one connection."""

    transport: asyncio.Transport

    def __init__(
        self,
        proxy: Proxy,
        *,
        client: tuple[str, int] | None = None,
        secure: bool = False,
        listener: str = "",
    ) -> None:
        self.proxy = proxy
        self.listener = listener
        self.secure = secure
        self._given = client
        self.deadline_s = INFINITE
        self.request: Request | None = None
        self._loop = asyncio.get_running_loop()
        self._client = ""
        self._buffer = b""
        self._scanned = 0
        self._body: Body | None = None
        self._held: list[bytes] = []
        self._held_size = 0
        self._replayable = True
        self._attempts = 0
        self._back: BackendConnection | None = None
        self._finding: asyncio.Task[None] | None = None
        self._response: ResponseReader | None = None
        self._begun = False
        self._blocked = False
        self._stalled_size = 0
        self._reading = True
        self._ended = False
        self._lingering = False

    # --- the client's bytes ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        transport = cast("asyncio.Transport", transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        peer = transport.get_extra_info("peername")
        peer = self._given or peer
        self._client = str(peer[0]) if isinstance(peer, tuple) else "unix"
        self.deadline_s = self._loop.time() + self.proxy.limits.head_s
        if len(self.proxy.clients) >= self.proxy.limits.connections:
            full = Answer(503, "too many connections", problem=False, retry_after_s=1)
            transport.write(render(full, close=True))
            transport.close()
            self._lingering = True
            return
        self.proxy.clients.add(self)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._body is not None:
            self._upload(data)
        elif self.request is not None:
            self._buffer += data
            self._adjust_reading()
        else:
            if not self._buffer:
                self.deadline_s = self._loop.time() + self.proxy.limits.head_s
            self._buffer = self._buffer + data if self._buffer else data
            self._next()

    def eof_received(self) -> bool:
        self._ended = True
        if self._lingering or self.request is None or self._body is not None:
            return False  # closes the transport: nobody waits for an answer
        # A half-closed client may still read; a gone one shows when its answer cannot be sent.
        grace_s = GONE_S if self._finding else self.proxy.limits.half_closed_s
        self.deadline_s = min(self.deadline_s, self._loop.time() + grace_s)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.proxy.clients.discard(self)
        self._lingering = True
        if self._finding is not None:
            self._finding.cancel()
        self._drop_backend()
        self.request = None

    def pause_writing(self) -> None:
        self._blocked = True
        self._stalled_size = self.transport.get_write_buffer_size()
        self.deadline_s = self._loop.time() + self.proxy.limits.stall_s
        if self._back is not None:
            self._back.set_reading(False)

    def resume_writing(self) -> None:
        self._blocked = False
        limits = self.proxy.limits
        wait_s = limits.idle_s if self.request is None else limits.stream_s
        self.deadline_s = self._loop.time() + wait_s
        if self._back is not None:
            self._back.set_reading(True)

    def expired(self) -> None:
        """The deadline of the present state has passed."""
        waiting = self.transport.get_write_buffer_size()
        if self._blocked and waiting < self._stalled_size:  # slow, but not stalled
            self._stalled_size = waiting
            self.deadline_s = self._loop.time() + self.proxy.limits.stall_s
            return
        self.deadline_s = INFINITE
        if self._ended and self._finding:
            self.transport.close()
        elif self._lingering or (self.request is None and not self._buffer) or self._begun:
            self.transport.abort()
        elif self.request is None:
            self._refuse(FramingError(408, "the request's head did not arrive in time"))
        elif self._body is not None:
            self._fail(Answer(408, "the request's body did not arrive in time", problem=False))
        else:
            self._fail(Answer(504, "the backend did not answer in time", problem=False))

    # --- requests --------------------------------------------------------------------------------

    def _next(self) -> None:
        """Begin as many requests as have arrived, each after the one before is answered."""
        while self._buffer and self.request is None and not self._lingering:
            if self._buffer.startswith(b"\r\n"):  # RFC 9112 section 2.2: a stray empty line
                self._buffer = self._buffer[2:]
                continue
            try:
                end = head_end(self._buffer, self._scanned)
                if end < 0:
                    self._scanned = len(self._buffer)
                    break
                request = read_request(self._buffer[:end], self._client)
            except FramingError as error:
                self._refuse(error)
                return
            self._buffer = self._buffer[end:]
            self._scanned = 0
            self._begin(request)
        if self.request is None and self._ended and not self._lingering:
            self.transport.close()
        self._adjust_reading()

    def _begin(self, request: Request) -> None:
        self.request = request
        self.proxy.requests += 1
        self.deadline_s = INFINITE
        self._body = request.body()
        self._held = []
        self._held_size = 0
        self._replayable = True
        self._attempts = 0
        self._begun = False
        if self._body is not None and self._buffer:
            data, self._buffer = self._buffer, b""
            self._upload(data)
            if self._lingering:
                return
        decision = self.proxy.router.decide(request)
        if isinstance(decision, Answer):
            self._answer(decision)
            return
        back = None
        if decision is not None and not isinstance(decision, Plan):
            back = self.proxy.pool.take(decision, repeatable=request.idempotent)
        if back is not None:
            self._attach(back)
        else:
            self._finding = self._loop.create_task(self._find(request))

    def _upload(self, data: bytes) -> None:
        """Pass on a piece of the request's body; what follows the body is the next request's."""
        assert self._body is not None
        try:
            out, rest = self._body.feed(data)
        except FramingError as error:
            self._refuse(error)
            return
        if self._body.done:
            self._body = None
            self._buffer = rest
        if self._back is None or self._replayable:
            self._hold(out)
        if self._back is not None:
            self.deadline_s = self._loop.time() + (
                self.proxy.limits.response_s if self._body is None else self.proxy.limits.upload_s
            )
            self._back.send(out)
        self._adjust_reading()

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > REPLAY_LIMIT:
            self._replayable = False
            if self._back is not None:
                self._held = []

    def _adjust_reading(self) -> None:
        """Read from the client only while there is somewhere to put it."""
        if self._body is None:
            wanted = len(self._buffer) <= HEAD_LIMIT or self.request is None or self._lingering
        elif self._back is None:
            wanted = self._held_size <= REPLAY_LIMIT
        else:
            wanted = not self._back.blocked
        if wanted == self._reading or self._ended or self.transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    async def _find(self, request: Request) -> None:
        """Ask the router until there is a backend, a stream or an answer."""
        try:
            found = await self.proxy.router.find(request, self.proxy.pool)
        except Exception:  # a defect must not leave a client waiting
            log.exception("routing %r failed", request.path)
            found = Answer(500, "the proxy failed; its log says why", problem=False)
        self._finding = None
        if self._lingering:  # refused meanwhile (a broken body)
            if not isinstance(found, Answer):
                found.transport.abort()
            return
        if isinstance(found, Answer):
            self._answer(found)
            self._next()
        elif isinstance(found, Stream):
            self._join(found)
        else:
            self._attach(found)

    def _attach(self, back: BackendConnection) -> None:
        """Send the request (again, if it was sent before)."""
        assert self.request is not None
        self._back = back
        back.user = self
        self._attempts += 1
        self._response = ResponseReader(self.request.method, decode=not self.request.http11)
        limits = self.proxy.limits
        timeout_s = limits.response_s if self._body is None else limits.upload_s
        self.deadline_s = self._loop.time() + timeout_s
        for piece in packed(
            [self.request.forward(b"https" if self.secure else b"http"), *self._held]
        ):
            back.send(piece)
        if not self._replayable:
            self._held = []
        if self._blocked:
            back.set_reading(False)
        if back.transport.is_closing():  # lost between its connect and now
            back.user = None
            self._loop.call_soon(self._lost_early, back)
        self._adjust_reading()

    def _lost_early(self, back: BackendConnection) -> None:
        if self._back is back:
            self.backend_lost(ConnectionResetError())

    # --- the backend's bytes ---------------------------------------------------------------------

    def answered(self, data: bytes) -> None:
        """See ``BackendUser``."""
        response, request = self._response, self.request
        assert response is not None and request is not None
        if not self._blocked:
            self.deadline_s = self._loop.time() + self.proxy.limits.stream_s
        try:
            events = response.feed(data)
        except FramingError as error:
            self._backend_broke(error.message)
            return
        pieces = []
        for event in events:
            if isinstance(event, bytes):
                pieces.append(event)
            elif event.status == 101:
                self._switch(event, response)
                return
            elif event.status >= 200 or request.http11:
                pieces.append(self._head(event, request))
        for piece in packed(pieces):
            self._send(piece)
        if response.done:
            self._complete()
        elif not response.untouched and response.head is None:
            self.deadline_s = self._loop.time() + self.proxy.limits.response_s

    def backend_flow(self) -> None:
        """See ``BackendUser``."""
        self._adjust_reading()

    def backend_lost(self, error: Exception | None) -> None:
        """See ``BackendUser``."""
        response, request = self._response, self.request
        self._back = self._response = None
        if response is None or request is None:
            return
        ended = response.ended()
        if self._begun:
            if ended == "clean" and error is None:
                self._finish(close=True)
            elif response.head is not None and response.head.length is None and error is not None:
                self.transport.abort()  # only a reset tells the client that the body was cut
            else:
                self.transport.close()
            return
        repeatable = request.idempotent and self._replayable and self._attempts < ATTEMPTS
        if repeatable and response.untouched:
            self.deadline_s = INFINITE
            self._finding = self._loop.create_task(self._find(request))
        else:
            self._fail(Answer(502, "the backend closed before it answered", problem=False))

    def _head(self, head: ResponseHead, request: Request) -> bytes:
        self._begun = True
        if head.status < 200:
            return head.kept + b"\r\n"
        tail = b"\r\n"
        if head.chunked and request.http11:
            tail = b"Transfer-Encoding: chunked\r\n\r\n"
        if self._will_close(head, request):
            tail = b"Connection: close\r\n" + tail
        elif not request.http11:
            tail = b"Connection: keep-alive\r\n" + tail
        return head.kept + tail

    def _will_close(self, head: ResponseHead, request: Request) -> bool:
        if request.closes or self.proxy.draining:
            return True
        bodiless = request.method == b"HEAD" or head.status in (204, 304)
        return not bodiless and head.length is None and not (head.chunked and request.http11)

    def _complete(self) -> None:
        """The response has ended."""
        back, response, request = self._back, self._response, self.request
        assert back is not None and response is not None and request is not None
        assert response.head is not None
        self._back = self._response = None
        whole = self._body is None
        if response.head.keep and not response.rest and whole:
            self.proxy.pool.give(back)
        else:
            back.user = None
            back.transport.close()
        self._finish(close=self._will_close(response.head, request) or not whole)

    def _finish(self, *, close: bool) -> None:
        """This exchange is over: close, or go on with the next request."""
        pending = self._body is not None
        self.request = None
        self._body = None
        self._held = []
        if close or self._ended:
            if pending or self._buffer:
                self._linger()
            else:
                self.transport.close()
            return
        self.deadline_s = self._loop.time() + self.proxy.limits.idle_s
        self._next()

    def _backend_broke(self, why: str) -> None:
        self._drop_backend()
        if self._begun:
            self.transport.abort()
        else:
            self._fail(Answer(502, why, problem=False))

    def _drop_backend(self) -> None:
        back, self._back, self._response = self._back, None, None
        if back is not None:
            back.user = None
            back.transport.abort()

    # --- tunnels ---------------------------------------------------------------------------------

    def _switch(self, head: ResponseHead, response: ResponseReader) -> None:
        """The backend agreed to another protocol."""
        back, request = self._back, self.request
        assert back is not None and request is not None
        if not request.upgrade:
            self._backend_broke("the backend switched protocols without being asked")
            return
        self._send(head.kept + b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n\r\n")
        back.set_reading(True)
        back.detach()
        self._back = self._response = None
        self._tunnel(back.transport, response.rest, self.proxy.tunnels.discard)

    def _join(self, stream: Stream) -> None:
        def ended(tunnel: Tunnel) -> None:
            self.proxy.tunnels.discard(tunnel)
            stream.ended(tunnel)

        self._send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "
            + stream.protocol
            + b"\r\n\r\n"
        )
        stream.joined(self._tunnel(stream.transport, stream.first, ended))

    def _tunnel(
        self, other: asyncio.Transport, first: bytes, ended: Callable[[Tunnel], None]
    ) -> Tunnel:
        self.proxy.clients.discard(self)
        self.request = None
        self._lingering = True
        if not self._reading and not self._ended:
            self._reading = True
            self.transport.resume_reading()
        tunnel = Tunnel(ended)
        self.proxy.tunnels.add(tunnel)
        tune(self.transport)
        tune(other)
        tunnel.splice(
            self.transport, other, from_one=self._buffer, from_two=first, one_ended=self._ended
        )
        self._buffer = b""
        return tunnel

    def _send(self, data: bytes) -> None:
        if not self.transport.is_closing():  # uvloop raises where asyncio ignores
            self.transport.write(data)

    # --- answers of our own ----------------------------------------------------------------------

    def _answer(self, answer: Answer) -> None:
        """Answer the present request without a backend."""
        request = self.request
        assert request is not None
        close = self._body is not None or request.closes or self.proxy.draining
        self._write_answer(answer, close=close)
        if close or self._ended:
            self._finish(close=True)
            return
        # The caller goes on with ``_next`` (a loop there, not a recursion here).
        self.request = None
        self.deadline_s = self._loop.time() + self.proxy.limits.idle_s

    def _fail(self, answer: Answer) -> None:
        """Answer and close: the connection's state cannot be trusted."""
        if self._finding is not None:
            self._finding.cancel()
            self._finding = None
        self._drop_backend()
        if self._begun:
            self.transport.abort()
            return
        self._write_answer(answer, close=True)
        self._body = None
        self.request = None
        self._linger()

    def _refuse(self, error: FramingError) -> None:
        """The client broke the protocol: say so, close."""
        self._fail(Answer(error.status, error.message, problem=False))

    def _write_answer(self, answer: Answer, *, close: bool) -> None:
        request = self.request
        accept = request.fields.accept if request else b""
        head_only = request is not None and request.method == b"HEAD"
        self._send(render(answer, accept=accept, head_only=head_only, close=close))

    def _linger(self) -> None:
        """Close after the client had time to read: unread bytes would reset the connection."""
        self._lingering = True
        self._buffer = b""
        self._adjust_reading()
        self.deadline_s = self._loop.time() + self.proxy.limits.linger_s
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        else:
            self.transport.close()
