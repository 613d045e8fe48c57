"""Connections to backends, kept alive between requests. Never retries: who asks decides that."""

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Protocol, cast

from roost.proxy.tunnel import WRITE_HIGH

if TYPE_CHECKING:
    from roost.proxy.responses import ResponseReader
    from roost.proxy.upstream import Upstream

CONNECT_S = 5.0
"""Longest wait for a backend to accept, in seconds."""
IDLE_S = 4.0
"""A connection idle for longer is not used again: common servers close theirs after 5 s."""
FRESH_S = 1.0
"""A request that must not be sent twice only takes a connection idle for less than this."""
IDLE_PER_BACKEND = 64
"""Most idle connections kept per backend."""

Dial = Callable[[], Awaitable[tuple[asyncio.Transport, Callable[[], None]]]]
"""Another way to a backend: a connected transport, and what is called when it is gone."""


class Backend:
    """Where requests go, and the connections there that wait for one: a unix socket (``path``), a TCP
    address (with ``tls``: under TLS), or ``dial``. It is its own identity: keep it, do not rebuild it."""

    __slots__ = (
        "connect_s",
        "dial",
        "host",
        "idle",
        "idle_s",
        "path",
        "port",
        "server_name",
        "tls",
    )

    def __init__(
        self,
        *,
        path: str = "",
        host: str = "",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        dial: Dial | None = None,
        connect_s: float = CONNECT_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self.path = path
        self.host = host
        self.port = port
        self.tls = tls
        self.server_name = server_name
        self.dial = dial
        self.connect_s = connect_s
        self.idle_s = idle_s
        self.idle: list[BackendConnection] = []
        """The most recently used last."""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def take(self, now_s: float, *, repeatable: bool) -> "BackendConnection | None":
        """The most recently used idle connection, if there is one fit for this request."""
        idle = self.idle
        while idle:
            connection = idle[-1]
            idle_s = now_s - connection.idle_since_s
            if idle_s > self.idle_s or (idle_s > FRESH_S and not repeatable):
                # The others have been idle for even longer, but may do for a repeatable request.
                return None
            idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def retire(self) -> None:
        """Close the idle connections (the backend drains or is gone)."""
        for connection in list(self.idle):
            connection.transport.close()


class BackendUser(Protocol):
    """The exchange a backend connection works for."""

    def answered(self, back: "BackendConnection", data: bytes) -> None:
        """Bytes came from the backend."""

    def backend_lost(self, back: "BackendConnection", error: Exception | None) -> None:
        """The connection ended (None: cleanly)."""

    def backend_flow(self) -> None:
        """The backend's willingness to take bytes changed: see ``blocked``."""

    @property
    def movable(self) -> bool:
        """Another backend may be asked in its place: nothing of an answer has been passed on."""


class BackendConnection(asyncio.Protocol):
    """One connection to a backend: idle there, or working for one exchange."""

    __slots__ = (
        "_gone",
        "_pool",
        "_reading",
        "backend",
        "began_s",
        "blocked",
        "early",
        "first_s",
        "idle_since_s",
        "reader",
        "reused",
        "transport",
        "upstream",
        "user",
    )

    transport: asyncio.Transport

    def __init__(self, pool: "Pool", backend: Backend) -> None:
        self._pool = pool
        self._reading = True
        self._gone: Callable[[], None] | None = None
        self.backend = backend
        self.user: BackendUser | None = None
        self.blocked = False
        """Too many bytes wait to be sent."""
        self.reused = False
        self.idle_since_s = math.inf
        """Infinite until it was used."""
        # Of the exchange it works for:
        self.upstream: Upstream | None = None
        self.early = b""
        """Of an answer that is kept back until it is whole."""
        self.began_s = self.first_s = 0.0
        """When it was sent, and how long the answer's first byte took."""
        self.reader: ResponseReader | None = None
        """None until a part of an answer has arrived."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        self.adopt(cast("asyncio.Transport", transport), None)

    def adopt(self, transport: asyncio.Transport, gone: Callable[[], None] | None) -> None:
        """Work on a connected transport; ``gone`` is called when it has ended."""
        self.transport = transport
        self._gone = gone
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        self._pool.opened.add(self)

    def set_reading(self, wanted: bool) -> None:
        """Pause or go on reading from the backend."""
        if wanted == self._reading or self.transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def send(self, data: bytes) -> None:
        """Write, unless the connection is ending (its user is told so)."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        user = self.user
        if user is not None:
            if self.early:
                data, self.early = self.early + data, b""
            user.answered(self, data)
        else:
            self.transport.abort()  # an answer nobody asked for

    def pause_writing(self) -> None:
        self.blocked = True
        if self.user is not None:
            self.user.backend_flow()

    def resume_writing(self) -> None:
        self.blocked = False
        if self.user is not None:
            self.user.backend_flow()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        user, self.user = self.user, None
        if user is not None:
            user.backend_lost(self, exc)
        if self._gone is not None:
            self._gone()

    def detach(self) -> Callable[[], None] | None:
        """Hand the transport to somebody else (a tunnel), who calls the result when it has ended."""
        self.user = None
        self._pool.forget(self)
        return self._gone


class Pool:
    """All connections to all backends of one process."""

    def __init__(self) -> None:
        self.opened: set[BackendConnection] = set()

    async def connect(self, backend: Backend) -> BackendConnection:
        """A new connection. Raises ``OSError`` or ``TimeoutError``, or what ``dial`` raises."""
        loop = asyncio.get_running_loop()

        def made() -> BackendConnection:
            return BackendConnection(self, backend)

        if backend.dial is not None:
            transport, gone = await backend.dial()
            connection = made()
            connection.adopt(transport, gone)
            transport.set_protocol(connection)
            return connection
        async with asyncio.timeout(backend.connect_s):
            if backend.path:
                _, connection = await loop.create_unix_connection(made, backend.path)
            else:
                name = (backend.server_name or backend.host) if backend.tls is not None else None
                _, connection = await loop.create_connection(
                    made, backend.host, backend.port, ssl=backend.tls, server_hostname=name
                )
        return connection

    def give(self, connection: BackendConnection, now_s: float) -> None:
        """Keep a connection for the next request."""
        connection.user = None
        connection.reader = None
        idle = connection.backend.idle
        if connection.blocked or len(idle) >= IDLE_PER_BACKEND:
            connection.transport.close()
            return
        if not connection._reading:
            connection.set_reading(True)
        connection.reused = True
        connection.idle_since_s = now_s
        idle.append(connection)

    def forget(self, connection: BackendConnection) -> None:
        """The connection is gone or somebody else's."""
        self.opened.discard(connection)
        idle = connection.backend.idle
        if connection in idle:
            idle.remove(connection)

    def abandon(self, upstreams: Collection["Upstream"]) -> None:
        """These will not answer any more: who waits for them and may be sent elsewhere, is."""
        for connection in list(self.opened):
            user = connection.user
            if connection.upstream in upstreams and user is not None and user.movable:
                connection.transport.abort()

    def sweep(self, now_s: float) -> None:
        """Close what has been idle for too long."""
        for connection in list(self.opened):
            if connection.user is None and now_s - connection.idle_since_s > max(
                connection.backend.idle_s, FRESH_S
            ):
                connection.transport.close()

    def close(self) -> None:
        """Close everything."""
        for connection in list(self.opened):
            connection.transport.close()
