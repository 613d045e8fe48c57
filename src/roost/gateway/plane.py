"""The data plane of one worker: routes, services, listeners and their certificates by one snapshot.

A change compiles everything first and then swaps it between two requests; listeners come and go, what did
not change keeps its connections. Never talks to the supervisor.
"""

import asyncio
import math
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network

import msgspec

from roost.gateway.acme import Challenges
from roost.gateway.channel import Snapshot
from roost.gateway.sockets import emptied, silence
from roost.proxy import health, policy
from roost.proxy.answers import Answer
from roost.proxy.counters import BackendState
from roost.proxy.front import ClientConnection, Proxy
from roost.proxy.heads import Request
from roost.proxy.http2 import AlpnFront
from roost.proxy.leaving import Leaving
from roost.proxy.plan import Observer, Plan, Stream, Tally
from roost.proxy.pool import BackendConnection, Pool
from roost.proxy.protect import Guards
from roost.proxy.proxy_protocol import Address, ProxiedConnection
from roost.proxy.routing import RouteSet, route_sets
from roost.proxy.server import Front, ProxyServer
from roost.proxy.slots import SlotRow
from roost.proxy.tcp import TcpRoute
from roost.proxy.tls import ServerTls, Tickets, alpn_of, origin_context
from roost.proxy.upstream import Upstream, Upstreams, upstreams_of
from roost.proxy.websocket import GOING_AWAY, SERVICE_RESTART, tell_all

DRAIN_STEP_S = 0.02
TELL_SHARE = 0.5
"""WebSockets are told spread over this share of a drain that is in no hurry."""
HURRY_S = 0.5
"""... or over this when the whole gateway ends."""
IDLE_S = 5.0
"""A connection that stays silent this long in a drain without hurry is closed."""
LISTENER_EMPTY_S = 1.0


class _Routes:
    """Implements ``plan.Router``: the routes of the listener a request came to."""

    __slots__ = ("_challenges", "_sets")

    def __init__(self, sets: Mapping[str, RouteSet], challenges: Challenges) -> None:
        self._sets = sets
        self._challenges = challenges

    def decide(self, request: Request) -> Plan | Answer:
        if self._challenges.tokens:
            answer = self._challenges.answer(request.path)
            if answer is not None:
                return answer
        return self._sets[request.origin.listener].decide(request)

    async def find(
        self, request: Request, pool: Pool
    ) -> BackendConnection | Stream | Answer:  # pragma: no cover
        raise NotImplementedError("every decision is made at once")


def shared_out(gateway: policy.Gateway, workers: int) -> policy.Gateway:
    """The bounds that hold for all workers together, as one of them keeps them."""

    def share(bound: int) -> int:
        return math.ceil(bound / workers)

    routes = []
    for route in gateway.routes:
        if route.hold is not None:
            hold = msgspec.structs.replace(
                route.hold,
                max_requests=share(route.hold.max_requests),
                max_bytes=share(route.hold.max_bytes),
            )
            route = msgspec.structs.replace(route, hold=hold)
        routes.append(route)
    return msgspec.structs.replace(gateway, routes=tuple(routes), services=_services(gateway))


def _services(gateway: policy.Gateway) -> tuple[policy.Service, ...]:
    """Those that only TCP listeners use speak who knows what: they are offered no protocol."""
    used = {route.service for route in gateway.routes}
    used |= {share.service for route in gateway.routes for share in route.split}
    found = []
    for service in gateway.services:
        if service.tls is not None and service.name not in used:
            service = msgspec.structs.replace(
                service, tls=msgspec.structs.replace(service.tls, alpn=())
            )
        found.append(service)
    return tuple(found)


_Make = Callable[[Address | None], asyncio.Protocol]
"""Makes the protocol of a connection whose client is known (None: the socket's own peer)."""


class _Site:
    """One listener of this worker."""

    def __init__(self, listener: policy.Listener, sock: socket.socket) -> None:
        self.listener = listener
        self.socket = sock
        self.tls: ServerTls | None = None
        self.server: asyncio.Server | None = None

    @property
    def context(self) -> ssl.SSLContext | None:
        return self.tls.context if self.tls is not None else None


class _SecureFront(AlpnFront):
    """An accepted TLS connection; tells that its handshake is over."""

    def __init__(
        self, shaken: Callable[[bool], None], proxy: Proxy, client: Address | None, listener: str
    ) -> None:
        super().__init__(proxy, client=client, listener=listener)
        self._shaken = shaken

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._shaken(bool(transport.get_extra_info("ssl_object").session_reused))
        super().connection_made(transport)


class Plane:
    """What a worker serves."""

    def __init__(
        self, tickets: Tickets, unix_s: Callable[[], float], slots: SlotRow | None = None
    ) -> None:
        self._tickets = tickets
        self._slots = slots
        self._unix_s = unix_s
        self._time = asyncio.get_running_loop().time
        self.unix_offset_s = unix_s() - self._time()
        """Unix time minus the loop's clock."""
        self._workers = 0
        self._upstreams: dict[str, Upstreams] = {}
        self._guards: Guards | None = None
        self._sites: dict[str, _Site] = {}
        self._health: dict[str, bool] = {}
        self._challenges = Challenges()
        self._accepted = self._handshakes = self._resumed = 0
        self._sets: dict[str, RouteSet] = {}
        self._proxy = Proxy(_Routes({}, self._challenges))
        self._server = ProxyServer(self._proxy)
        self._tcp: dict[str, TcpRoute] = {}
        self._leaving = Leaving(self._proxy.tunnels, unix_offset_s=self.unix_offset_s)

    # --- changes ---------------------------------------------------------------------------------

    async def apply(self, snapshot: Snapshot, sockets: Mapping[str, socket.socket]) -> None:
        """Serve by ``snapshot``. What cannot be taken over raises, and nothing has changed."""
        gateway = shared_out(snapshot.gateway, snapshot.workers)
        secured = self._secured(snapshot)
        if self._guards is None:
            clock = asyncio.get_running_loop().time
            self._guards = Guards(
                now=clock,
                unix_s=lambda: clock() + self.unix_offset_s,
                workers=snapshot.workers,
            )
        self._guards.workers = snapshot.workers
        upstreams = upstreams_of(
            gateway.services,
            self._upstreams,
            unix_offset_s=self.unix_offset_s,
            contexts=origin_context,
            slots=self._slots,
        )
        sets = route_sets(gateway, upstreams, self._guards)
        self._upstreams, self._sets = upstreams, sets
        self._proxy.trusted = tuple(ip_network(each) for each in gateway.trusted_proxies)
        self._swap()
        self.set_health(self._health)
        self._leaving.look(self.members())
        await self._listen(gateway, sockets, secured)

    def _secured(self, snapshot: Snapshot) -> dict[str, ServerTls]:
        """The TLS of every listener that has it, with its certificates read again."""
        found = {}
        for listener in snapshot.gateway.listeners:
            tls = listener.tls
            if tls is None:
                continue
            site = self._sites.get(listener.name)
            known = site.tls if site is not None else None
            obtained = snapshot.obtained if tls.acme else ()
            alpn = alpn_of(listener)
            found[listener.name] = (
                known.updated(tls, alpn=alpn, obtained=obtained)
                if known is not None
                else ServerTls(listener.name, tls, self._tickets, alpn=alpn, obtained=obtained)
            )
        return found

    def _swap(self) -> None:
        self._server.set_router(_Routes(self._sets, self._challenges))

    def set_challenges(self, tokens: dict[str, str]) -> None:
        """What an ACME server is to be answered."""
        self._challenges.tokens = tokens

    def set_health(self, table: dict[str, bool]) -> None:
        """What the active probes found."""
        self._health = table
        health.apply(table, self._upstreams.values(), asyncio.get_running_loop().time())

    def observe(self, observer: Observer | None, *, tally: Tally | None, id_prefix: bytes) -> None:
        """Who is told of finished requests; with a prefix they get ids."""
        self._proxy.observer = observer
        self._proxy.tally = tally
        self._proxy.id_prefix = id_prefix
        for route in self._tcp.values():
            route.observer = observer

    # --- listeners -------------------------------------------------------------------------------

    async def _listen(
        self,
        gateway: policy.Gateway,
        sockets: Mapping[str, socket.socket],
        secured: Mapping[str, ServerTls],
    ) -> None:
        """Open what is new, close what is gone or got another socket; the rest goes on."""
        wanted = {each.name: each for each in gateway.listeners}
        gone = [s for name, s in self._sites.items() if name not in wanted or name in sockets]
        for site in gone:
            del self._sites[site.listener.name]
        for name, listener in wanted.items():
            if name not in self._sites:
                made = self._sites[name] = _Site(listener, sockets[name])
                made.tls = secured.get(name)
                await self._open(made)
                continue
            site = self._sites[name]
            again = self._reads_otherwise(site.listener, listener)
            again = again or site.tls is not secured.get(name)
            site.listener, site.tls = listener, secured.get(name)
            if again:
                await self._reopen(site)
            elif listener.service is not None:
                self._tcp[name].upstreams = self._upstreams[listener.service]
        for site in gone:
            silence(site.socket)
            await emptied([site.socket], LISTENER_EMPTY_S)
            _stop(site)

    @staticmethod
    def _reads_otherwise(before: policy.Listener, now: policy.Listener) -> bool:
        """Whether new connections must be received in another way than the open server does."""
        keys = ("protocol", "service", "proxy_protocol", "limits", "http2")
        return any(getattr(before, key) != getattr(now, key) for key in keys)

    async def _reopen(self, site: _Site) -> None:
        """Another server on the same socket; connections that were accepted go on."""
        kept = site.socket.dup()
        _stop(site)
        site.socket = kept
        await self._open(site)

    async def _open(self, site: _Site) -> None:
        listener, tls = site.listener, site.context
        later = tls if not listener.proxy_protocol else None
        site.server = await self._server.listen(
            site.socket, listener, later, front=self._front(listener, tls)
        )

    def _front(self, listener: policy.Listener, tls: ssl.SSLContext | None) -> Front:
        """Makes the protocol of an accepted connection."""
        make = self._inner(listener, secure=tls is not None)

        def front() -> asyncio.Protocol:
            self._accepted += 1
            return make(None)

        def proxied() -> asyncio.Protocol:
            self._accepted += 1
            return ProxiedConnection(make, tls=tls)

        return proxied if listener.proxy_protocol else front

    def _inner(self, listener: policy.Listener, *, secure: bool) -> _Make:
        name = listener.name
        if listener.protocol == "tcp":
            route = self._tcp[name] = TcpRoute(
                name,
                self._upstreams[listener.service or ""],
                tunnels=self._proxy.tunnels,
                limits=listener.limits,
                observer=self._proxy.observer,
            )
            return route.connection
        if secure:
            return lambda client: _SecureFront(self._shaken, self._proxy, client, name)
        return lambda client: ClientConnection(self._proxy, client=client, listener=name)

    def _shaken(self, resumed: bool) -> None:
        """A TLS handshake has succeeded."""
        self._handshakes += 1
        self._resumed += resumed

    # --- the end ---------------------------------------------------------------------------------

    def sockets(self) -> list[socket.socket]:
        """The listening ones."""
        return [site.socket for site in self._sites.values()]

    async def drain(self, seconds: float, *, at_once: bool) -> None:
        """Accept nothing more; what is in flight ends within ``seconds``, WebSockets are told.

        Not ``at_once``: another process has taken over and there is time, so they are told little by
        little instead of all coming back in the same moment.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        for site in self._sites.values():
            _stop(site)
        self._leaving.close()
        proxy = self._proxy
        proxy.draining = True
        for client in list(proxy.clients):
            if not isinstance(client, ClientConnection):  # HTTP/2 can say which requests count
                client.drain()
        spread_s = min(HURRY_S, seconds / 4) if at_once else seconds * TELL_SHARE
        code = GOING_AWAY if at_once else SERVICE_RESTART
        tell_all(proxy.tunnels, code, over_s=spread_s, grace_s=seconds / 4)
        # A kept connection closed in the moment of its next request looks like a failure to many
        # clients: those in use are closed with their next answer, only what stays silent without.
        idle_s = min(HURRY_S, seconds / 4) if at_once else min(IDLE_S, seconds / 4)
        silent_s = loop.time() + idle_s
        while proxy.clients and loop.time() < silent_s:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_STEP_S)
        proxy.drain()
        while loop.time() < end_s and (proxy.busy or proxy.tunnels):  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_STEP_S)
        await self._server.close(0.0)

    # --- what is to be seen ----------------------------------------------------------------------

    def members(self) -> Iterator[Upstream]:
        """All backends."""
        for upstreams in self._upstreams.values():
            yield from upstreams.members

    def backends(self) -> list[BackendState]:
        """How they are."""
        return [
            BackendState(
                each.service,
                each.address,
                each.state,
                each.active,
                each.ewma_s,
                each.failures,
                each.ejections,
                each.refused,
                each.resets,
                each.timeouts,
            )
            for each in self.members()
        ]

    @property
    def refused(self) -> dict[str, int]:
        """Heads that broke the protocol, by reason."""
        return dict(self._proxy.refused)

    def numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        """Totals and gauges."""
        proxy = self._proxy
        totals = {
            "connections": self._accepted,
            "requests": proxy.requests,
            "protocol_errors": sum(proxy.refused.values()),
            "tls_handshakes": self._handshakes,
            "tls_resumed": self._resumed,
        }
        gauges = {
            "connections": len(proxy.clients),
            "tunnels": len(proxy.tunnels),
            "in_flight": proxy.busy,
            "held": proxy.held,
            "backend_connections": len(proxy.pool.opened),
        }
        return totals, gauges


def _stop(site: _Site) -> None:
    if site.server is not None:
        site.server.close()
        site.server = None
