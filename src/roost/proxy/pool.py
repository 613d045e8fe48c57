"""Connections to backends, kept alive between requests. Never retries: who asks decides that."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol, cast

from roost.proxy.tunnel import WRITE_HIGH

CONNECT_S = 5.0
"""Longest wait for a backend to accept, in seconds."""
IDLE_S = 4.0
"""A connection idle for longer is not used again: common servers close theirs after 5 s."""
FRESH_S = 1.0
"""A request that must not be sent twice only takes a connection idle for less than this."""
IDLE_PER_BACKEND = 64
"""Most idle connections kept per backend."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Where requests go: a unix socket (``path``) or a TCP address."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class BackendUser(Protocol):
    """The exchange a backend connection works for."""

    def answered(self, data: bytes) -> None:
        """Bytes came from the backend."""

    def backend_lost(self, error: Exception | None) -> None:
        """The connection ended (None: cleanly)."""

    def backend_flow(self) -> None:
        """The backend's willingness to take bytes changed: see ``blocked``."""


class BackendConnection(asyncio.Protocol):
    """One connection to a backend: idle in its pool, or working for one exchange."""

    transport: asyncio.Transport

    def __init__(self, pool: "Pool", backend: Backend) -> None:
        self._pool = pool
        self.backend = backend
        self.user: BackendUser | None = None
        self.blocked = False
        """Too many bytes wait to be sent."""
        self.reused = False
        self.idle_since_s = 0.0
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        transport = cast("asyncio.Transport", transport)
        self.transport = transport
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
        if self.user is not None:
            self.user.answered(data)
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
            user.backend_lost(exc)

    def detach(self) -> None:
        """Hand the transport to somebody else (a tunnel)."""
        self.user = None
        self._pool.forget(self)


class Pool:
    """All connections to all backends of one process."""

    def __init__(self) -> None:
        self._idle: dict[Backend, deque[BackendConnection]] = {}
        self.opened: set[BackendConnection] = set()

    def take(self, backend: Backend, *, repeatable: bool) -> BackendConnection | None:
        """The most recently used idle connection, if there is one fit for this request."""
        idle = self._idle.get(backend)
        if not idle:
            return None
        limit_s = IDLE_S if repeatable else FRESH_S
        now_s = asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if connection.transport.is_closing():
                continue
            if now_s - connection.idle_since_s > limit_s:
                # The rest has been idle for even longer, but may do for a repeatable request.
                idle.append(connection)
                return None
            return connection
        return None

    async def connect(self, backend: Backend) -> BackendConnection:
        """A new connection. Raises ``OSError`` or ``TimeoutError``."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            if backend.path:
                _, connection = await loop.create_unix_connection(
                    lambda: BackendConnection(self, backend), backend.path
                )
            else:
                _, connection = await loop.create_connection(
                    lambda: BackendConnection(self, backend), backend.host, backend.port
                )
        return connection

    def give(self, connection: BackendConnection) -> None:
        """Keep a connection for the next request."""
        connection.user = None
        idle = self._idle.setdefault(connection.backend, deque())
        if connection.transport.is_closing() or connection.blocked or len(idle) >= IDLE_PER_BACKEND:
            connection.transport.close()
            return
        connection.set_reading(True)
        connection.reused = True
        connection.idle_since_s = asyncio.get_running_loop().time()
        idle.append(connection)

    def forget(self, connection: BackendConnection) -> None:
        """The connection is gone or somebody else's."""
        self.opened.discard(connection)
        idle = self._idle.get(connection.backend)
        if idle is None:
            return
        if connection in idle:
            idle.remove(connection)
        if not idle:
            del self._idle[connection.backend]

    def sweep(self, now_s: float) -> None:
        """Close what has been idle for too long."""
        for idle in list(self._idle.values()):
            for connection in [c for c in idle if now_s - c.idle_since_s > IDLE_S]:
                connection.transport.close()

    def close(self) -> None:
        """Close everything."""
        for connection in list(self.opened):
            connection.transport.close()
