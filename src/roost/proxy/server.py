"""Listens for clients and keeps the clock of a proxy's time limits. Never decides where requests go."""

import asyncio
import contextlib
import socket
import ssl

from roost.proxy.exchange import ClientConnection, Proxy

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

    async def listen(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accept clients on a bound socket."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: ClientConnection(self.proxy), sock=sock, backlog=BACKLOG, ssl=tls
        )
        self._servers.append(server)
        if self._sweeper is None:
            self._sweeper = loop.create_task(self._sweep())

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Stop accepting, let requests in flight end for up to ``drain_s``, then end everything."""
        self.proxy.draining = True
        for server in self._servers:
            server.close()
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
