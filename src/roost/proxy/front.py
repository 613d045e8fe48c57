"""The client's side: reading requests from one connection, deadlines, answers of our own, tunnels.

What becomes of a request is its ``Exchange``'s work, where it goes the ``Router``'s decision. Requests that
two parsers could read differently are refused with 400 and the connection is closed.
"""

import asyncio
import math
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import cast

from roost.proxy import policy
from roost.proxy.answers import Answer, render
from roost.proxy.attempts import Attempts
from roost.proxy.exchange import Exchange
from roost.proxy.framing import FIELD_LIMIT, HEAD_LIMIT, FramingError, head_end, too_large
from roost.proxy.heads import MEMO_KEY, Origin, Request, read_request
from roost.proxy.plan import Observer, Plan, Router, Tally, TunnelOver
from roost.proxy.pool import Pool
from roost.proxy.secure import GONE, SecureConnection
from roost.proxy.tunnel import WRITE_HIGH, Tunnel, tune
from roost.proxy.websocket import WebSocketTunnel

GONE_S = 2.0
"""A client that ended its side while its request waits for a backend is taken for gone after this."""
HEDGE_TICK_S = 0.025
"""How often requests under way are looked at for a second copy."""
INFINITE = math.inf
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing sends a reset, nothing that is still buffered."""
ORIGINS = 10_000
"""Most clients whose forwarding lines are remembered."""

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Limits:
    """Times are seconds. The first three of a request count where no plan has its own."""

    response_s: float = 600.0
    """From the request to the first byte of the answer."""
    stream_s: float = 3600.0
    """Between two pieces of an answer (event streams are silent for long)."""
    upload_s: float = 60.0
    """Between two pieces of a request's body."""
    head_s: float = 15.0
    """From a request's first byte to the end of its head (not extended by more bytes)."""
    idle_s: float = 75.0
    """Between requests."""
    stall_s: float = 120.0
    """A client that takes none of the bytes waiting for it."""
    half_closed_s: float = 30.0
    """For an answer to a client that has ended its side: it may be half-closed, it may be gone."""
    linger_s: float = 5.0
    """Reading on after an error, so that the client gets to see the answer."""
    connections: int = 10_000
    """Most client connections of one process."""
    connections_per_client: int = 0
    head_bytes: int = HEAD_LIMIT
    fields: int = FIELD_LIMIT

    @classmethod
    def of(cls, limits: policy.ClientLimits) -> "Limits":
        """Those of a listener."""
        return cls(
            head_s=limits.head_s,
            idle_s=limits.idle_s,
            stall_s=limits.stall_s,
            connections=limits.connections,
            connections_per_client=limits.connections_per_client,
            head_bytes=min(limits.head_bytes, HEAD_LIMIT),
            fields=min(limits.fields, FIELD_LIMIT),
        )


@dataclass
class Proxy:
    """What all client connections of a process share."""

    router: Router
    limits: Limits = field(default_factory=Limits)
    pool: Pool = field(default_factory=Pool)
    observer: Observer | None = None
    tally: Tally | None = None
    """Where the observer only counts: told of the ordinary exchanges in its place, for less."""
    trusted: tuple[Network, ...] = ()
    """Clients whose forwarding fields are believed."""
    id_prefix: bytes = b""
    """Begins the ids given to requests; empty: they get none. Unique to the process."""
    on_waiting: Callable[[str], None] | None = None
    """Told the name of a plan for which requests are held."""
    on_tunnel: TunnelOver | None = None
    listeners: dict[str, Limits] = field(default_factory=dict)
    """Limits of listeners that have their own."""
    clients: set["ClientConnection"] = field(default_factory=set)
    per_client: Counter[str] = field(default_factory=Counter)
    tunnels: set[Tunnel] = field(default_factory=set)
    requests: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Heads that broke the protocol, by reason."""
    draining: bool = False
    _origins: dict[tuple[str, str, bool], Origin] = field(default_factory=dict)
    _origins_by: tuple[object, ...] = ()
    _watched: list[Attempts] = field(default_factory=list)
    _held: dict[Attempts, int] = field(default_factory=dict)

    def origin(self, client: str, listener: str, secure: bool) -> Origin:
        """The one object for a client at a listener."""
        if self._origins_by != (self.trusted, self.id_prefix):
            self._origins_by = (self.trusted, self.id_prefix)
            self._origins.clear()
        key = (client, listener, secure)
        known = self._origins.get(key)
        if known is None:
            if len(self._origins) >= ORIGINS:
                self._origins.clear()
            known = self._origins[key] = Origin(
                client,
                listener=listener,
                secure=secure,
                trusts=self._trusts,
                ids=bool(self.id_prefix),
            )
        return known

    def _trusts(self, client: str) -> bool:
        if not self.trusted:
            return False
        try:
            address = ip_address(client)
        except ValueError:
            return False
        return any(address in network for network in self.trusted)

    def new_id(self) -> bytes:
        """An id for the request that has just begun."""
        return b"%b%08x" % (self.id_prefix, self.requests)

    # --- what waits ------------------------------------------------------------------------------

    def watch(self, exchange: Attempts) -> None:
        """Look at a request now and then: it may need a second copy."""
        if not self._watched:
            asyncio.get_running_loop().call_later(HEDGE_TICK_S, self._tick)
        exchange.watched = True
        self._watched.append(exchange)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        watched, self._watched = self._watched, []
        for exchange in watched:
            if exchange.due(now_s):
                self._watched.append(exchange)
            else:
                exchange.watched = False
        if self._watched:
            loop.call_later(HEDGE_TICK_S, self._tick)

    def hold(self, exchange: Attempts, plan: Plan) -> bool:
        """Whether one more request may wait until its service has a backend."""
        bounds, request = plan.hold, exchange.request
        assert bounds is not None
        assert request is not None
        size = request.size + min(request.fields.length, 64 << 10)
        if len(self._held) >= bounds.max_requests:
            return False
        if sum(self._held.values()) + size > bounds.max_bytes:
            return False
        self._held[exchange] = size
        if self.on_waiting is not None:
            self.on_waiting(plan.name)
        return True

    def unhold(self, exchange: Attempts) -> None:
        """A request waits no longer."""
        self._held.pop(exchange, None)

    def look_again(self) -> None:
        """Held requests ask their router again (after a change of routes, and a few times a second)."""
        for exchange in list(self._held):
            if exchange in self._held:
                exchange.look_again()

    def sweep(self, now_s: float) -> None:
        """Apply the time limits; to be called a few times a second."""
        for client in [c for c in self.clients if now_s > c.deadline_s]:
            client.expired()
        self.pool.sweep(now_s)
        if self._held:
            self.look_again()

    @property
    def held(self) -> int:
        """Requests waiting for a backend."""
        return len(self._held)

    def held_by_plan(self) -> Counter[str]:
        """The same, by the names of their plans."""
        return Counter([e.plan.name for e in self._held if e.plan is not None])

    @property
    def busy(self) -> int:
        """Requests being answered."""
        return sum(1 for client in self.clients if client.request is not None)

    def drain(self) -> None:
        """No more requests on these connections: idle ones end now, the others after their answer."""
        self.draining = True
        for client in list(self.clients):
            client.drain()

    def close(self) -> None:
        """End everything."""
        for client in list(self.clients):
            client.transport.abort()
        for tunnel in list(self.tunnels):
            tunnel.close()
        self.pool.close()


class ClientConnection(asyncio.Protocol):
    """One client's connection and the requests on it, one after the other."""

    __slots__ = (
        "_blocked",
        "_buffer",
        "_ended",
        "_given",
        "_last",
        "_last_head",
        "_lingering",
        "_reading",
        "_scanned",
        "_secure",
        "_stalled_size",
        "_turning",
        "deadline_s",
        "exchange",
        "limits",
        "listener",
        "origin",
        "proxy",
        "time",
        "transport",
    )

    transport: asyncio.Transport
    origin: Origin

    def __init__(
        self,
        proxy: Proxy,
        *,
        client: tuple[str, int] | None = None,
        secure: bool = False,
        listener: str = "",
    ) -> None:
        """``client``: its address, where the transport's peer is somebody else."""
        self.proxy = proxy
        self.listener = listener
        self.limits = proxy.listeners.get(listener, proxy.limits)
        self.deadline_s = INFINITE
        self._secure = secure
        self._given = client
        self.time = asyncio.get_running_loop().time
        self._buffer = b""
        self._scanned = 0
        self._last_head = b""
        self._last: Request
        """The request of ``_last_head``: clients repeat themselves."""
        self._blocked = False
        self._stalled_size = 0
        self._reading = True
        self._ended = False
        self._lingering = False
        self._turning = False
        self.exchange = Exchange(self)

    @property
    def request(self) -> Request | None:
        """The one being answered."""
        return self.exchange.request

    # --- the client's bytes ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        transport = cast("asyncio.Transport", transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        proxy = self.proxy
        peer = self._given or transport.get_extra_info("peername")
        client = str(peer[0]) if isinstance(peer, tuple) else "unix"
        self.origin = proxy.origin(client, self.listener, self._secure)
        self.deadline_s = self.time() + self.limits.head_s
        most = self.limits.connections_per_client
        if len(proxy.clients) >= self.limits.connections or 0 < most <= proxy.per_client[client]:
            full = Answer(503, "too many connections", problem=False, retry_after_s=1)
            transport.write(render(full, close=True))
            transport.close()
            self._lingering = True
            return
        proxy.clients.add(self)
        if most:
            proxy.per_client[client] += 1

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange.request is None and not self._buffer:
            if data == self._last_head:
                exchange.begin(self._last)
                return
            if self._lingering:
                return
            self._buffer = data
            self.proceed()
            if self._buffer and exchange.request is None:
                self.deadline_s = self.time() + self.limits.head_s
        elif self._lingering:
            return
        elif exchange.body is not None:
            self._buffer = data
            self.take_body()
        elif exchange.request is not None:
            self._buffer += data
            self.adjust_reading()
        else:
            self._buffer += data
            self.proceed()

    def eof_received(self) -> bool:
        self._ended = True
        exchange = self.exchange
        if self._lingering or exchange.request is None or exchange.body is not None:
            return False  # closes the transport: nobody waits for an answer
        # A half-closed client may still read; a gone one shows when its answer cannot be sent.
        grace_s = GONE_S if exchange.waits else self.limits.half_closed_s
        self.deadline_s = min(self.deadline_s, self.time() + grace_s)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._lingering = True
        self._buffer = self._last_head = b""
        self.exchange.gone()
        self.transport = GONE

    def _forget(self) -> None:
        proxy = self.proxy
        if self not in proxy.clients:
            return
        proxy.clients.discard(self)
        if self.limits.connections_per_client:
            client = self.origin.client
            proxy.per_client[client] -= 1
            if not proxy.per_client[client]:
                del proxy.per_client[client]

    def pause_writing(self) -> None:
        self._blocked = self.exchange.blocked = True
        self._stalled_size = self.transport.get_write_buffer_size()
        self.deadline_s = self.time() + self.limits.stall_s
        if self.exchange.back is not None:
            self.exchange.back.set_reading(False)

    def resume_writing(self) -> None:
        self._blocked = self.exchange.blocked = False
        exchange = self.exchange
        wait_s = self.limits.idle_s if exchange.request is None else exchange.silence_s
        self.deadline_s = self.time() + wait_s
        if exchange.back is not None:
            exchange.back.set_reading(True)

    def expired(self) -> None:
        """The deadline of the present state has passed."""
        waiting = self.transport.get_write_buffer_size()
        if self._blocked and waiting < self._stalled_size:  # slow, but not stalled
            self._stalled_size = waiting
            self.deadline_s = self.time() + self.limits.stall_s
            return
        self.deadline_s = INFINITE
        exchange = self.exchange
        idle = exchange.request is None and not self._buffer
        if self._ended and exchange.waits:
            self.transport.close()
        elif self._lingering or idle:
            self.transport.abort()
        elif exchange.request is None:
            self._refuse(FramingError(408, "the request's head did not arrive in time"))
        elif exchange.holding:
            exchange.fail(Answer(503, "no backend came in time", problem=False, retry_after_s=2))
        elif exchange.body is not None:
            exchange.fail(Answer(408, "the request's body did not arrive in time", problem=False))
        else:
            exchange.fail(Answer(504, "the backend did not answer in time", problem=False))

    # --- requests --------------------------------------------------------------------------------

    def proceed(self) -> None:
        """Begin as many requests as have arrived, each after the one before is answered."""
        if self._turning:  # a loop here, not a recursion
            return
        self._turning = True
        exchange = self.exchange
        while self._buffer and exchange.request is None and not self._lingering:
            if self._buffer.startswith(b"\r\n"):  # RFC 9112 section 2.2: a stray empty line
                self._buffer = self._buffer[2:]
                continue
            try:
                request = self._read()
            except FramingError as error:
                self._refuse(error)
                break
            if request is None:
                break
            exchange.begin(request)
        self._turning = False
        if exchange.request is None and self._ended and not self._lingering:
            self.transport.close()
        if self._buffer or not self._reading:
            self.adjust_reading()

    def _read(self) -> Request | None:
        """The next request, None while its head is not whole. Raises ``FramingError``."""
        buffer = self._buffer
        end = head_end(buffer, self._scanned)
        limits = self.limits
        if (len(buffer) if end < 0 else end) > limits.head_bytes:
            raise too_large(buffer, limits.head_bytes)
        if end < 0:
            self._scanned = len(buffer)
            return None
        whole = end == len(buffer)
        head = buffer if whole else buffer[:end]
        request = read_request(head, self.origin)
        if limits.fields < FIELD_LIMIT and head.count(b"\r\n") - 2 > limits.fields:
            raise FramingError(431, f"more than {limits.fields} fields")
        self._buffer = b"" if whole else buffer[end:]
        self._scanned = 0
        if not request.has_body and end <= MEMO_KEY:
            self._last_head = head
            self._last = request
        return request

    def take_body(self) -> bool:
        """Hand what has arrived to the exchange. False when that ended it."""
        data, self._buffer = self._buffer, b""
        exchange = self.exchange
        if data:
            try:
                rest = exchange.upload(data)
            except FramingError as error:
                self._refuse(error)
                return False
            if self._lingering:
                return False
            self._buffer = rest
        if self._buffer or not self._reading or exchange.body is not None:
            self.adjust_reading()
        return True

    def adjust_reading(self) -> None:
        """Read from the client only while there is somewhere to put it."""
        exchange = self.exchange
        if exchange.body is None:
            wanted = len(self._buffer) <= HEAD_LIMIT or exchange.request is None or self._lingering
        else:
            wanted = exchange.takes_body
        if wanted == self._reading or self._ended or self.transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    # --- what the exchange asks for --------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Write, unless the connection is ending."""
        if not self.transport.is_closing():  # uvloop raises where asyncio ignores
            self.transport.write(data)

    def write_answer(self, answer: Answer, request: Request | None, *, close: bool) -> None:
        """Send an answer of our own."""
        accept = b""
        head_only = False
        if request is not None:
            accept = request.fields.get(b"accept") or b""
            head_only = request.method == b"HEAD"
        self.send(render(answer, accept=accept, head_only=head_only, close=close))

    def again(self, now_s: float) -> None:
        """A request was answered in the ordinary way: on to the next."""
        self.deadline_s = now_s + self.limits.idle_s
        if self._buffer or self._ended:
            self.proceed()

    def idle(self) -> None:
        """Nothing is asked for now."""
        self.deadline_s = self.time() + self.limits.idle_s

    def hold(self) -> None:
        """What is sent now is the last before the connection is closed."""
        if self._secure and isinstance(self.transport, SecureConnection):
            self.transport.hold()

    def ended(self, *, close: bool, pending: bool, asked: bool = False) -> None:
        """An answer is complete. ``pending``: its request is not. ``asked``: the client wants it closed."""
        if close or (self._ended and not self._buffer):
            if pending or self._buffer:
                self.linger()
                return
            self._lingering = True
            if asked and isinstance(self.transport, SecureConnection):
                self.transport.finish()
            else:
                self.transport.close()
            return
        self.idle()
        self.proceed()

    def linger(self) -> None:
        """Close after the client had time to read: unread bytes would reset the connection."""
        self._lingering = True
        self._buffer = self._last_head = b""
        self.adjust_reading()
        self.deadline_s = self.time() + self.limits.linger_s
        if self.transport.can_write_eof() and not self.transport.is_closing():
            try:
                self.transport.write_eof()
            except OSError:  # the client has reset it already
                self.transport.abort()
        else:
            self.transport.close()

    def reset(self) -> None:
        """End it so that the client cannot take what it has for a whole answer."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            with suppress(OSError):  # the client was faster
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    def drain(self) -> None:
        """No further request."""
        if self.exchange.request is None and not self._buffer and not self._lingering:
            self._lingering = True
            self.transport.close()

    def _refuse(self, error: FramingError) -> None:
        """The client broke the protocol: say so, close."""
        answer = Answer(error.status, error.message, problem=False)
        if self.exchange.request is not None:
            self.exchange.fail(answer)
            return
        self.write_answer(answer, None, close=True)
        self.proxy.refused[error.reason] += 1
        self.linger()

    def tunnel(
        self,
        other: asyncio.Transport,
        first: bytes,
        ended: Callable[[Tunnel], None],
        *,
        protocol: bytes,
        idle_s: float = 0.0,
        owner: object = None,
    ) -> Tunnel:
        """Give the connection to a tunnel to ``other``, whose ``first`` bytes were read already."""
        proxy = self.proxy
        self._forget()
        self._lingering = True
        self._last_head = b""
        if not self._reading and not self._ended:
            self._reading = True
            self.transport.resume_reading()

        def over(tunnel: Tunnel) -> None:
            proxy.tunnels.discard(tunnel)
            ended(tunnel)

        kind = WebSocketTunnel if protocol == b"websocket" else Tunnel
        tunnel = kind(over, idle_s=idle_s)
        tunnel.owner = owner
        proxy.tunnels.add(tunnel)
        tune(self.transport)
        tune(other)
        buffer, self._buffer = self._buffer, b""
        tunnel.splice(self.transport, other, from_one=buffer, from_two=first, one_ended=self._ended)
        return tunnel
