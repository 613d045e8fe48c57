"""The edge's decisions: which route, may the client, is the target there, and how long to wait for it.

It sees a snapshot of the routes and the parked data connections, nothing else: control may be down.
Never buffers a body and never keeps a token, only their hashes.
"""

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

from roost.gateway.balanced import CONNECT_S, BalancedRoute
from roost.gateway.counting import Counting
from roost.gateway.holding import Pulse, Waiting
from roost.gateway.model import STREAM_HOLD_S, Hold, Host, Route, RouteTable, Target, Tcp, Unix
from roost.gateway.streams import DataConnection, DataHosts
from roost.kit.ids import Ids
from roost.ports.errors import Conflict, Denied, Gone, Retry, RoostError, StaleEpoch
from roost.proxy.answers import Answer
from roost.proxy.heads import Request
from roost.proxy.plan import Plan, Stream
from roost.proxy.pool import Backend, BackendConnection, Dial, Pool
from roost.proxy.tunnel import Tunnel
from roost.proxy.upstream import Upstream

HEALTH = "/_roost/health"
STREAM_PROTOCOL = b"roost-stream"
BODY_SHARE = 64 << 10
"""Most bytes of a waiting request's body that are kept (the proxy stops reading there)."""
FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 0.5
"""Delays between attempts to reach a target that does not answer."""
REPEAT_WAITING_S = 1.0
# Two servers may read such a path differently.
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)


class _NotYet(Exception):
    """The target cannot be reached now: ``after_s`` until another look, None = until something changes."""

    def __init__(self, why: str, after_s: float | None, *, status: int = 503) -> None:
        super().__init__(why)
        self.why = why
        self.after_s = after_s
        self.status = status


class EdgeRouter:
    """Implements ``roost.proxy.plan.Router`` over the present table of routes."""

    def __init__(
        self,
        ids: Ids,
        *,
        waiting: Waiting | None = None,
        stream_hold_s: float = STREAM_HOLD_S,
        on_waiting: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.table = RouteTable()
        self.waiting = waiting or Waiting()
        self.changed = Pulse()
        self.hosts: DataHosts
        self.counting = Counting()
        self.look_again: Callable[[], None] = lambda: None
        """Has the requests held by the proxy ask again."""
        self.abandon: Callable[[Collection[Upstream]], None] = lambda members: None
        """Has requests at these backends sent elsewhere, where that is safe."""
        self.emptied: Callable[[Iterable[Upstream]], None] = lambda members: None
        """Told of the backends of services whenever they change."""
        self._ids = ids
        self._stream_hold_s = stream_hold_s
        self._on_waiting = on_waiting
        self._told: dict[str, float] = {}
        self._streams: dict[Tunnel, Route] = {}
        self._backends: dict[tuple[Target, int], Backend] = {}
        self._balanced: dict[str, BalancedRoute] = {}

    def replace(self, table: RouteTable) -> None:
        """Use ``table`` from now on: who waits looks again, streams to a place that is no longer the
        route's end (their clients dial again and reach the new one)."""
        self.table = table
        places = {self._place(route) for route in table.by_name.values()}
        for place in [place for place in self._backends if place not in places]:
            self._backends.pop(place).retire()
        for tunnel, opened in list(self._streams.items()):
            route = table.by_name.get(opened.name)
            moved = route is not None and not isinstance(route.target, Hold)
            if route is None or (moved and self._place(route) != self._place(opened)):
                tunnel.close()
        self._rebalance()
        self.changed.fire()
        self.look_again()

    def _rebalance(self) -> None:
        """Services' routes have changed: those known here take over what is new."""
        for name, known in list(self._balanced.items()):
            route = self.table.by_name.get(name)
            if route is None:
                del self._balanced[name]
                known.close()
                self.counting.forget(name)
            elif route != known.route:
                gone = known.update(route)
                if gone:
                    self.abandon(gone)
        self._tell_emptied()

    def host_changed(self) -> None:
        """A host has its first data connection, or has lost its last one."""
        for known in self._balanced.values():
            known.look()
        self._tell_emptied()
        self.look_again()

    def _tell_emptied(self) -> None:
        self.emptied([m for known in self._balanced.values() for m in known.upstreams.members])

    def services(self, held: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
        """Of each service asked for since this edge began: route, requests in flight, and held."""
        for name, known in self._balanced.items():
            yield name, known.upstreams.active, held.get(name, 0)

    @staticmethod
    def _place(route: Route) -> tuple[Target, int]:
        return route.target, route.epoch

    # --- at once ---------------------------------------------------------------------------------

    def decide(self, request: Request) -> Plan | Backend | Answer | None:
        """See ``Router``."""
        path = request.path.decode("latin-1")
        if path == HEALTH:
            return self._health()
        if _DOT_SEGMENT.search(path):
            return Answer(400, "dot segments in a path are not served")
        route, by_host = self.table.find(request.host, path)
        if route is None:
            return Answer(404, f"there is no route for {path[:200]}")
        if route.tokens and not _may(route, request.fields.get(b"authorization") or b""):
            challenge = (("WWW-Authenticate", "Bearer"),)
            return Answer(401, f"{route.name} needs a valid bearer token", fields=challenge)
        if route.balanced:
            return self._plan(route, by_host=by_host)
        if route.streams:
            return self._check_stream(route, request)
        return self._backend(route)

    def _plan(self, route: Route, *, by_host: bool) -> Plan:
        """What is done with the requests of a service."""
        known = self._balanced.get(route.name)
        if known is None:
            counts = self.counting.of(route.name)
            known = BalancedRoute(route, counts, self.hosts.reaches, self._way(route.name))
            self._balanced[route.name] = known
        if known.held:
            self._tell(route.name)
        return known.plan(by_host=by_host)

    def _way(self, service: str) -> Callable[[str], Dial]:
        return lambda host_id: partial(self._reach, service, host_id)

    async def _reach(
        self, service: str, host_id: str
    ) -> tuple[asyncio.Transport, Callable[[], None]]:
        """An HTTP connection to the balancer of a host. Raises ``TimeoutError`` or ``Retry``."""
        async with asyncio.timeout(CONNECT_S):
            while True:
                ticket = self.changed.ticket()
                connection = self.hosts.take(host_id)
                if connection is not None:
                    break
                if not self.hosts.reaches(host_id):
                    raise Retry(f"host {host_id} has no data connection")
                await asyncio.wait((ticket,))
            first = await connection.open(service, 0, self._ids.new("st"))
        if first:
            connection.transport.abort()
            raise Retry(f"{service} on {host_id} spoke before it was asked")
        return connection.transport, partial(self.hosts.gone, connection)

    def _backend(self, route: Route) -> Backend | None:
        """The HTTP server a route points to; None while it is on hold."""
        target = route.target
        if isinstance(target, Hold):
            return None
        place = self._place(route)
        known = self._backends.get(place)
        if known is None:
            if isinstance(target, Unix):
                known = Backend(path=target.path)
            elif isinstance(target, Tcp):
                known = Backend(host=target.host, port=target.port)
            elif isinstance(target, Host):
                known = Backend(host=target.host_id, dial=partial(self._dial, route, target))
            else:
                return None  # several hosts belong to services only
            self._backends[place] = known
        return known

    async def _dial(
        self, route: Route, target: Host
    ) -> tuple[asyncio.Transport, Callable[[], None]]:
        """An HTTP connection to a service of a host that cannot be dialled: through a parked one."""
        connection = self.hosts.take(target.host_id)
        if connection is None:
            self._tell(route.name)
            raise _NotYet(f"host {target.host_id} has no data connection", None, status=504)
        first = await self._opened(route, target, connection)
        if first:
            connection.transport.abort()
            raise _NotYet(f"{route.name} spoke before it was asked", LONGEST_DELAY_S)
        return connection.transport, partial(self.hosts.gone, connection)

    @staticmethod
    def _check_stream(route: Route, request: Request) -> Answer | None:
        if request.upgrade.lower() == STREAM_PROTOCOL:
            return None
        asked = (("Upgrade", STREAM_PROTOCOL.decode()), ("Connection", "Upgrade"))
        return Answer(
            426, f"{route.name} is a stream: ask for `Upgrade: roost-stream`", fields=asked
        )

    def _health(self) -> Answer:
        state = {
            "status": "ok",
            "routes": len(self.table.by_name),
            "version": self.table.version,
            "hosts": list(self.hosts.hosts),
            "waiting": self.waiting.requests,
            "streams": len(self._streams),
            "services": len(self._balanced),
        }
        return Answer(200, body=json.dumps(state).encode())

    # --- with patience ---------------------------------------------------------------------------

    async def find(self, request: Request, pool: Pool) -> BackendConnection | Stream | Answer:
        """See ``Router``: waits while the route's hold time lasts."""
        loop = asyncio.get_running_loop()
        share = BODY_SHARE if request.fields.chunked else min(request.fields.length, BODY_SHARE)
        size = request.size + share
        began_s = loop.time()
        delay_s = FIRST_DELAY_S
        entered = False
        try:
            while True:
                ticket = self.changed.ticket()
                try:
                    return await self._attempt(request, pool)
                except _NotYet as error:
                    late = error
                if not entered and not self.waiting.enter(size):
                    return _too_many()
                entered = True
                left_s = began_s + self._budget_s(request) - loop.time()
                if left_s <= 0:
                    return _given_up(late)
                step_s = left_s if late.after_s is None else max(late.after_s, delay_s)
                delay_s = min(delay_s * 2, LONGEST_DELAY_S)
                await asyncio.wait((ticket,), timeout=min(step_s, left_s))
        finally:
            if entered:
                self.waiting.leave(size)

    def _budget_s(self, request: Request) -> float:
        route, _ = self.table.find(request.host, request.path.decode("latin-1"))
        if route is None:
            return 0.0
        return self._stream_hold_s if route.streams else route.hold_s

    async def _attempt(self, request: Request, pool: Pool) -> BackendConnection | Stream | Answer:
        """One look at the table and one try. Raises ``_NotYet``."""
        decision = self.decide(request)
        if isinstance(decision, Answer):
            return decision
        if isinstance(decision, Plan):  # while it waited its address became a service's
            return Answer(503, "the route has changed", problem=False, retry_after_s=1)
        if decision is not None:
            try:
                return await pool.connect(decision)
            except RoostError as error:
                return _refusal(error)
            except (OSError, TimeoutError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it does not answer"
                raise _NotYet(f"the backend cannot be reached: {reason}", 0.0) from error
        route, _ = self.table.find(request.host, request.path.decode("latin-1"))
        assert route is not None
        if isinstance(route.target, Host):
            return await self._open(route, route.target)
        self._tell(route.name)
        raise _NotYet(f"{route.name} is on hold: its place is being prepared", None, status=504)

    async def _open(self, route: Route, target: Host) -> Stream | Answer:
        connection = self.hosts.take(target.host_id)
        if connection is None:
            self._tell(route.name)
            raise _NotYet(f"host {target.host_id} has no data connection", None, status=504)
        try:
            first = await self._opened(route, target, connection)
        except RoostError as error:
            return _refusal(error)
        return self._stream(route, connection, first)

    async def _opened(self, route: Route, target: Host, connection: DataConnection) -> bytes:
        """Have the agent connect ``connection`` to the service. Raises ``_NotYet``, or what is final."""
        try:
            first = await connection.open(target.service, route.epoch, self._ids.new("st"))
        except Retry as error:
            raise _NotYet(error.message, min(error.after_s, 1.0)) from error
        except (Gone, StaleEpoch, Conflict) as error:
            # The route is about to change: control learns of the loss too.
            self._tell(route.name)
            raise _NotYet(error.message, LONGEST_DELAY_S) from error
        if self.table.by_name.get(route.name) != route:
            connection.transport.abort()
            raise _NotYet(f"{route.name} moved meanwhile", 0.0)
        return first

    def _stream(self, route: Route, connection: DataConnection, first: bytes) -> Stream:
        def joined(tunnel: Tunnel) -> None:
            self._streams[tunnel] = route

        def ended(tunnel: Tunnel) -> None:
            self._streams.pop(tunnel, None)
            self.hosts.gone(connection)

        return Stream(connection.transport, STREAM_PROTOCOL, first, joined, ended)

    def _tell(self, name: str) -> None:
        """Somebody waits for this route: said once a second."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told.get(name, -REPEAT_WAITING_S) >= REPEAT_WAITING_S:
            if len(self._told) > 10_000:
                self._told.clear()
            self._told[name] = now_s
            self._on_waiting(name)


def _may(route: Route, authorization: bytes) -> bool:
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer":
        return False
    digest = hashlib.sha256(token.strip()).hexdigest()
    return any([hmac.compare_digest(digest, allowed) for allowed in route.tokens])


def _refusal(error: RoostError) -> Answer:
    return Answer(403 if isinstance(error, Denied) else 502, str(error))


def _too_many() -> Answer:
    return Answer(503, "too many requests wait already", problem=False, retry_after_s=5)


def _given_up(error: _NotYet) -> Answer:
    return Answer(error.status, error.why, problem=False, retry_after_s=2)
