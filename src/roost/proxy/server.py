"""Listens for clients and keeps the clock of a proxy's time limits. Never decides where requests go."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from functools import partial

from roost.proxy.front import ClientConnection, Limits, Proxy
from roost.proxy.http2 import AlpnFront
from roost.proxy.plan import Router
from roost.proxy.policy import Listener
from roost.proxy.secure import Clock, SecureConnection

Front = Callable[[], asyncio.Protocol]

BACKLOG = 1024
SWEEP_S = 0.25
"""How often the time limits are applied: their precision, in seconds."""
DRAIN_STEP_S = 0.02
DRAIN_S = 5.0
"""How long requests in flight may take to end when the proxy stops."""


class ProxyServer:
    """The listeners of one ``Proxy``."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None

    def set_router(self, router: Router) -> None:
        """Requests from now on are decided by ``router``; those in flight end as they began."""
        self.proxy.router = router
        self.proxy.look_again()

    async def listen(
        self,
        sock: socket.socket,
        listener: Listener | None = None,
        tls: ssl.SSLContext | None = None,
        front: Front | None = None,
    ) -> asyncio.Server:
        """Accept clients on a bound socket. Under TLS, ALPN chooses between HTTP/1.1 and HTTP/2.

        ``front`` makes the protocol of an accepted connection where it is not simply a
        ``ClientConnection`` (a PROXY header before it, HTTP/2 instead of it). Closing the answer stops
        accepting; connections go on.
        """
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # Accepted sockets inherit it; asyncio itself sets it on some kinds of socket only.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        name = listener.name if listener is not None else ""
        secure = tls is not None
        if listener is not None:
            self.proxy.listeners[name] = Limits.of(listener.limits)

        def plain() -> asyncio.Protocol:
            return ClientConnection(self.proxy, secure=secure, listener=name)

        if front is None and secure:
            front = partial(AlpnFront, self.proxy, listener=name)
        accept = front or plain
        if tls is not None:
            accept = partial(SecureConnection, tls, accept, Clock())
        server = await loop.create_server(accept, sock=sock, backlog=BACKLOG)
        self._servers.append(server)
        if self._sweeper is None:
            self._sweeper = loop.create_task(self._sweep())
        return server

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Stop accepting, let requests in flight end for up to ``drain_s``, then end everything."""
        for server in self._servers:
            server.close()
        self.proxy.drain()
        for _ in range(round(drain_s / DRAIN_STEP_S)):
            if not self.proxy.busy:
                break
            await asyncio.sleep(DRAIN_STEP_S)
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        self.proxy.close()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            self.proxy.sweep(loop.time())
