"""The edge's end of the agents' data connections: greeted, checked, parked per host, taken for a stream.

Never trusts a byte before the credential is checked, and never keeps more than one small frame of a
stranger. A connection that breaks the protocol is refused and closed; nothing else is harmed.
"""

import asyncio
import hashlib
import hmac
import logging
import socket
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import cast

from roost.kit.ids import Ids
from roost.ports import wire
from roost.ports.errors import Retry, from_wire
from roost.ports.frames import HEADER, STREAM_LIMIT, BadFrame
from roost.proxy.tunnel import tune

log = logging.getLogger(__name__)

HELLO_S = 5.0
"""A caller must introduce itself within this."""
HELLO_LIMIT = 64 << 10
"""Largest frame of a caller that is not known yet, and of a parked one."""
OPEN_S = 10.0
"""An agent must answer Open within this."""
PARKED_PER_HOST = 16
STRANGERS = 1000
"""Most connections that have not introduced themselves."""
COMPLAINT_S = 60.0
"""One line in the log per address and this many seconds."""

Answer = Callable[[wire.DataToEdge], Awaitable[wire.DataToAgent]]
"""Serves one request on a ``blobs`` connection."""


def data_credential(secret: bytes, host_id: str) -> str:
    """What an agent presents: HMAC-SHA256 (hex) of the host id under the cell's data secret."""
    return hmac.new(secret, host_id.encode(), hashlib.sha256).hexdigest()


class DataConnection(asyncio.Protocol):
    """One data connection, from its greeting until it is spliced, ends, or serves blobs."""

    transport: asyncio.Transport

    def __init__(self, hosts: "DataHosts") -> None:
        self._hosts = hosts
        self._in, self._out = wire.data_to_edge(), wire.data_to_agent()
        self._buffer = bytearray()
        self._limit = HELLO_LIMIT
        self._timer: asyncio.TimerHandle | None = None
        self._opened: asyncio.Future[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._writable: asyncio.Future[None] | None = None
        self.host_id = ""
        self.peer = ""
        self.lost = False
        self.counted = False
        """Part of its host's count (``DataHosts`` keeps it)."""

    # --- transport -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        transport = cast("asyncio.Transport", transport)
        self.transport = transport
        tune(transport)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else "unix"
        if not self._hosts.admit(self):
            self.lost = True
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HELLO_S, self._refuse, "no DataHello in time")
        self.send(wire.Challenge(nonce=self._hosts.ids.secret().encode()))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._serving is None:
            self._read_frames()
        else:
            self._more.set()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.resume_writing()
        if self._timer is not None:
            self._timer.cancel()
        if self._serving is not None:
            self._serving.cancel()
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(Retry("the host's data connection ended", after_s=0.05))
        self._hosts.gone(self)

    # --- frames ----------------------------------------------------------------------------------

    def send(self, message: wire.DataToAgent) -> None:
        """Write a frame."""
        if not (self.lost or self.transport.is_closing()):
            self.transport.write(self._out.encode(message))

    def _frame(self) -> wire.DataToEdge | None:
        """The next whole frame of the buffer. Raises ``BadFrame``."""
        if len(self._buffer) < HEADER:
            return None
        size = int.from_bytes(self._buffer[:HEADER], "big")
        if size > self._limit:
            raise BadFrame(f"frame of {size} bytes is over the limit of {self._limit}")
        end = HEADER + size
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            body = bytes(view[HEADER:end])
        del self._buffer[:end]
        return self._in.decode(body)

    def _read_frames(self) -> None:
        """Handle frames until the connection changes its nature."""
        try:
            while self._serving is None and not self.lost:
                if self._opened is not None and self._opened.done():
                    return
                message = self._frame()
                if message is None:
                    return
                self._handle(message)
        except BadFrame as error:
            self._refuse(str(error))

    def _handle(self, message: wire.DataToEdge) -> None:
        if not self.host_id:
            self._hello(message)
        elif self._opened is None:
            raise BadFrame(f"{type(message).__name__} on a parked connection")
        elif isinstance(message, wire.Opened):
            self._opened.set_result(None)
        elif isinstance(message, wire.OpenFailed):
            self._opened.set_exception(from_wire(message.error))
        else:
            raise BadFrame(f"{type(message).__name__} in answer to Open")

    def _hello(self, message: wire.DataToEdge) -> None:
        if not isinstance(message, wire.DataHello):
            raise BadFrame(f"{type(message).__name__} before DataHello")
        if message.protocol != wire.PROTOCOL:
            self._refuse(
                f"protocol {message.protocol} is not spoken here (this is {wire.PROTOCOL})"
            )
            return
        expected = data_credential(self._hosts.secret, message.host_id)
        if not hmac.compare_digest(expected, message.credential):
            self._refuse("the credential is not one of this cell's", final=True)
            return
        if message.purpose not in ("park", "blobs"):
            raise BadFrame(f"unknown purpose {message.purpose!r}")
        if self._timer is not None:
            self._timer.cancel()
        self.host_id = message.host_id
        if message.purpose == "park":
            self._hosts.park(self)
        else:
            self._limit = STREAM_LIMIT
            self._serving = asyncio.get_running_loop().create_task(self._serve_blobs())
            self._hosts.serve(self)

    def _refuse(self, reason: str, *, final: bool = False) -> None:
        """Say why, close. One line in the log, whatever the stranger sent."""
        if self.lost or self.transport.is_closing():
            return
        self._hosts.complain(self.peer, reason)
        hint = "" if not final else "join again: the agent's credential is of another installation"
        self.send(wire.Refused(reason=reason, hint=hint, final=final))
        self._buffer.clear()
        self.transport.close()

    # --- blobs -----------------------------------------------------------------------------------

    async def _serve_blobs(self) -> None:
        """Requests one by one; reading stops while one is served, so at most one frame is kept."""
        try:
            while True:
                message = self._frame()
                if message is None:
                    self._more.clear()
                    await self._more.wait()
                    continue
                self.transport.pause_reading()
                self.send(await self._hosts.answer(message))
                if self._writable is not None:
                    await self._writable
                self.transport.resume_reading()
        except BadFrame as error:
            self._refuse(str(error))

    # --- streams ---------------------------------------------------------------------------------

    async def open(self, service: str, epoch: int, stream_id: str) -> bytes:
        """Have the agent connect this connection to ``service``; the stream's first bytes.

        Raises what the agent answered, ``Retry`` when it did not.
        """
        self._opened = asyncio.get_running_loop().create_future()
        self.send(wire.Open(service=service, epoch=epoch, stream_id=stream_id))
        try:
            async with asyncio.timeout(OPEN_S):
                await self._opened
        except TimeoutError as error:
            self.transport.abort()
            raise Retry("the host does not answer", after_s=0.1) from error
        except BaseException:
            self.transport.close()
            raise
        if self.lost or self.transport.is_closing():
            raise Retry("the host's data connection ended", after_s=0.05)
        first = bytes(self._buffer)
        self._buffer.clear()
        return first


class DataHosts:
    """The parked data connections of all hosts.

    ``on_parked()`` tells of each connection that can be taken; ``on_change(host_id, up)`` when a host
    parks its first connection and when its last one (parked or spliced) is gone.
    """

    def __init__(
        self,
        secret: bytes,
        ids: Ids,
        answer: Answer,
        on_parked: Callable[[], None],
        on_change: Callable[[str, bool], None],
    ) -> None:
        self.secret = secret
        self.ids = ids
        self.answer = answer
        self._on_parked = on_parked
        self._on_change = on_change
        self._parked: dict[str, deque[DataConnection]] = {}
        self._strangers: set[DataConnection] = set()
        self._serving: set[DataConnection] = set()
        self._live: Counter[str] = Counter()
        self.peers: dict[str, str] = {}
        """Address from which each of the hosts dialled last."""
        self._complaints: dict[str, float] = {}
        self._servers: list[asyncio.Server] = []

    async def listen(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accept agents on a bound socket."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: DataConnection(self), sock=sock, ssl=tls)
        self._servers.append(server)

    def close(self) -> None:
        """Stop accepting and close all connections that carry no stream."""
        for server in self._servers:
            server.close()
        parked = [c for connections in self._parked.values() for c in connections]
        for connection in (*parked, *self._strangers, *self._serving):
            connection.transport.abort()

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts with a connection, parked or in use."""
        return tuple(sorted(self._live))

    def reaches(self, host_id: str) -> bool:
        """Whether a host has a connection, parked or in use."""
        return host_id in self._live

    def take(self, host_id: str) -> DataConnection | None:
        """The oldest parked connection of a host, no longer parked."""
        parked = self._parked.get(host_id)
        while parked:
            connection = parked.popleft()
            if not parked:
                del self._parked[host_id]
            if not (connection.lost or connection.transport.is_closing()):
                return connection
        return None

    # --- what connections report -----------------------------------------------------------------

    def admit(self, connection: DataConnection) -> bool:
        """Whether one more stranger may speak."""
        if len(self._strangers) >= STRANGERS:
            return False
        self._strangers.add(connection)
        return True

    def park(self, connection: DataConnection) -> None:
        """A checked connection waits to be taken."""
        self._strangers.discard(connection)
        parked = self._parked.setdefault(connection.host_id, deque())
        parked.append(connection)
        if len(parked) > PARKED_PER_HOST:
            parked[0].transport.close()
        connection.counted = True
        self.peers[connection.host_id] = connection.peer
        self._live[connection.host_id] += 1
        if self._live[connection.host_id] == 1:
            self._on_change(connection.host_id, True)
        self._on_parked()

    def serve(self, connection: DataConnection) -> None:
        """A checked connection carries blobs."""
        self._strangers.discard(connection)
        self._serving.add(connection)

    def gone(self, connection: DataConnection) -> None:
        """A connection has ended (one that was spliced: its tunnel has)."""
        self._strangers.discard(connection)
        self._serving.discard(connection)
        host_id = connection.host_id
        parked = self._parked.get(host_id)
        if parked is not None and connection in parked:
            parked.remove(connection)
            if not parked:
                del self._parked[host_id]
        if connection.counted:
            connection.counted = False
            self._live[host_id] -= 1
            if not self._live[host_id]:
                del self._live[host_id]
                self.peers.pop(host_id, None)
                self._on_change(host_id, False)

    def complain(self, peer: str, reason: str) -> None:
        """Log a refused connection: once a minute and address."""
        now_s = asyncio.get_running_loop().time()
        last_s = self._complaints.get(peer)
        if last_s is not None and now_s - last_s < COMPLAINT_S:
            return
        if len(self._complaints) >= STRANGERS:
            self._complaints.clear()
        self._complaints[peer] = now_s
        log.warning("data connection from %s refused: %s", peer, reason)
