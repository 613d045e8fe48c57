"""TCP routes: each connection of a listener goes to one backend of a service, byte for byte.

Nothing of it is read. A backend that does not accept is replaced by another one, as nothing was sent
yet; once joined, a connection lives and dies with its backend. One task per connect, none afterwards.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import cast

from roost.ports.errors import RoostError
from roost.proxy import policy
from roost.proxy.plan import Finished, Observer
from roost.proxy.pool import Backend
from roost.proxy.proxy_protocol import Address, address_of, render
from roost.proxy.tunnel import WRITE_HIGH, Tunnel, tune
from roost.proxy.upstream import Outcome, Upstream, Upstreams

log = logging.getLogger(__name__)

GONE_S = 2.0
"""A client that ended its side is taken for gone when no backend was found in this time."""


class _Held(asyncio.Protocol):
    """One side before it is joined: keeps its first bytes, then stops reading."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.first = b""
        self.ended = False
        self.lost = False
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.first += data
        if len(self.first) > WRITE_HIGH and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def read_on(self) -> None:
        """Whoever takes over expects it to be reading."""
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()


class _Client(_Held):
    """A client whose backend is being looked for."""

    def __init__(self, route: "TcpRoute", client: Address | None) -> None:
        super().__init__()
        self._route = route
        self._task: asyncio.Task[None] | None = None
        self._gone: asyncio.TimerHandle | None = None
        self.client = client
        self.began_s = 0.0
        self.tries = 0
        self.admitted = False
        self.refused = ""
        """Why it gets no backend."""

    @property
    def host(self) -> str:
        return self.client[0] if self.client is not None else "unix"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self.began_s = loop.time()
        if self.client is None:
            self.client = address_of(transport)
        if not self._route.admit(self):
            self.transport.abort()
            return
        self._task = loop.create_task(self._route.serve(self))

    def eof_received(self) -> bool:
        loop = asyncio.get_running_loop()
        self._gone = loop.call_later(GONE_S, self.transport.abort)
        return super().eof_received()

    def stop_waiting(self) -> None:
        """It is joined, or lost."""
        if self._gone is not None:
            self._gone.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Before it was joined: afterwards its transport has another protocol."""
        super().connection_lost(exc)
        self.stop_waiting()
        if self._task is not None:
            self._task.cancel()
        self._route.left(self)


class TcpRoute:
    """Where the connections of one TCP listener go: its ``connection`` is the listener's front.

    ``upstreams`` may be replaced at any time; what is joined stays so.
    """

    def __init__(
        self,
        name: str,
        upstreams: Upstreams,
        *,
        tunnels: set[Tunnel],
        limits: policy.ClientLimits | None = None,
        idle_s: float = policy.Timeouts().stream_s,
        observer: Observer | None = None,
    ) -> None:
        self.name = name
        self.upstreams = upstreams
        self.limits = limits or policy.ClientLimits()
        self.observer = observer
        self._idle_s = idle_s
        self._tunnels = tunnels
        self._clients: Counter[str] = Counter()
        """Connections by client address, joined or not."""
        self._total = 0

    def connection(self, client: Address | None = None) -> asyncio.Protocol:
        """The protocol of one accepted connection; ``client`` where a PROXY header said it."""
        return _Client(self, client)

    def admit(self, client: _Client) -> bool:
        """Whether one more is within the limits; each admitted one is let go once."""
        limits = self.limits
        most = limits.connections_per_client
        if self._total >= limits.connections or (most and self._clients[client.host] >= most):
            client.refused = "too many connections"
            return False
        client.admitted = True
        self._total += 1
        self._clients[client.host] += 1
        return True

    def left(self, client: _Client) -> None:
        """A client that was not joined is gone."""
        if client.admitted:
            self._let_go(client)
        self._tell(client, None, (len(client.first), 0))

    async def serve(self, client: _Client) -> None:
        """Find a backend for a client and join them. Cancelled when the client leaves."""
        try:
            found = await self._find(client)
        except Exception:  # a defect must not leave a client waiting
            log.exception("a connection of %s failed", self.name)
            found = None
        if found is None:
            client.refused = "no backend could be reached"
            client.transport.abort()
        else:
            self._join(client, *found)

    async def _find(
        self, client: _Client
    ) -> "tuple[Upstream, _Held, Callable[[], None] | None] | None":
        loop = asyncio.get_running_loop()
        upstreams = self.upstreams
        key = client.host.encode()
        tried: list[Upstream] = []
        waited: asyncio.Future[None] | None = None
        while True:
            upstream = upstreams.pick(loop.time(), key=key, tried=tried, waited=waited)
            if upstream is None:
                if tried or not upstreams.anybody:
                    return None
                waited = await _slot(upstreams)
                if waited is None:
                    return None
                continue
            waited = None
            upstream.begin()
            began_s = loop.time()
            client.tries += 1
            try:
                back, gone = await self._dial(client, upstream.backend)
            except (OSError, TimeoutError, RoostError) as error:
                now_s = loop.time()
                upstream.end(Outcome.REFUSED, now_s - began_s, now_s)
                log.debug("%s: %s is not reached: %s", self.name, upstream.backend, error)
                tried.append(upstream)
                attempts = upstreams.policy.retries.attempts
                if len(tried) >= attempts or not upstreams.may_retry(now_s):
                    return None
            except BaseException:
                upstream.end(Outcome.CANCELLED, 0.0, loop.time())
                raise
            else:
                # It accepted, which is all the success there is to see; the slot is kept.
                upstream.begin()
                upstream.end(Outcome.OK, loop.time() - began_s, loop.time())
                return upstream, back, gone

    async def _dial(
        self, client: _Client, backend: Backend
    ) -> tuple[_Held, Callable[[], None] | None]:
        """A connection to a backend, with the PROXY header sent if it wants one."""
        version = self.upstreams.policy.proxy_protocol
        header = b""
        if version:
            header = render(version, client.client, address_of(client.transport, "sockname"))
        if backend.dial is not None:
            transport, gone = await backend.dial()
            back = _Held()
            back.connection_made(transport)
            transport.set_protocol(back)
            if header:
                transport.write(header)
            return back, gone
        async with asyncio.timeout(backend.connect_s):
            back = await _connect(backend, header)
        if back.lost:
            raise ConnectionResetError("closed at once")
        return back, None

    def _join(
        self,
        client: _Client,
        upstream: Upstream,
        back: _Held,
        gone: Callable[[], None] | None,
    ) -> None:
        def ended(tunnel: Tunnel) -> None:
            self._tunnels.discard(tunnel)
            self._let_go(client)
            # A backend that resets before its first byte is broken; later on it may be its way to end.
            broke = tunnel.cut_by == 2 and not tunnel.moved[1]
            outcome = Outcome.RESET if broke else Outcome.CANCELLED
            now_s = asyncio.get_running_loop().time()
            upstream.end(outcome, now_s - client.began_s, now_s)
            self._tell(client, upstream, tunnel.moved)
            if gone is not None:
                gone()

        client.stop_waiting()
        tunnel = Tunnel(ended, idle_s=self._idle_s)
        tunnel.owner = upstream
        self._tunnels.add(tunnel)
        for side in (client, back):
            tune(side.transport)
            side.read_on()
        tunnel.splice(
            client.transport,
            back.transport,
            from_one=client.first,
            from_two=back.first,
            one_ended=client.ended,
            two_ended=back.ended,
        )
        client.first = back.first = b""

    def _let_go(self, client: _Client) -> None:
        self._total -= 1
        self._clients[client.host] -= 1
        if not self._clients[client.host]:
            del self._clients[client.host]

    def _tell(self, client: _Client, upstream: Upstream | None, moved: tuple[int, int]) -> None:
        if self.observer is None:
            return
        refused = client.refused
        record = Finished()
        record.route = self.name
        record.upstream = upstream
        record.client = client.host
        record.method, record.target, record.host, record.request_id = b"TCP", b"", b"", b""
        record.status = 200 if upstream is not None else 503 if refused else 0
        record.bytes_in, record.bytes_out = moved
        record.began_s = client.began_s
        record.seconds = asyncio.get_running_loop().time() - client.began_s
        record.waited_s = 0.0
        record.outcome = "ok" if upstream is not None else "own" if refused else "gone"
        record.retries = max(0, client.tries - 1)
        record.hedged = False
        record.refused = refused
        self.observer.done(record)


async def _slot(upstreams: Upstreams) -> asyncio.Future[None] | None:
    """Wait for a free slot; None: the line is full, or it took too long."""
    future = upstreams.pending()
    if future is None:
        return None
    try:
        await asyncio.shield(future)
    except TimeoutError:
        return None
    except asyncio.CancelledError:
        upstreams.leave(future, asyncio.get_running_loop().time())
        raise
    return future


async def _connect(backend: Backend, header: bytes) -> _Held:
    """Connect; the header goes out in the clear, before TLS."""
    loop = asyncio.get_running_loop()
    name = None
    if backend.tls is not None:
        name = backend.server_name or backend.host
    if backend.path:
        _, back = await loop.create_unix_connection(_Held, backend.path)
    elif backend.tls is None or not header:
        _, back = await loop.create_connection(
            _Held, backend.host, backend.port, ssl=backend.tls, server_hostname=name
        )
    else:
        transport, plain = await loop.create_connection(_Held, backend.host, backend.port)
        transport.write(header)
        back = _Held()
        try:
            secured = await loop.start_tls(transport, back, backend.tls, server_hostname=name)
        except BaseException:
            plain.transport.abort()
            raise
        assert secured is not None
        back.transport = secured
        return back
    if header:
        back.transport.write(header)
    return back
