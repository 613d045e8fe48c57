"""The host's own balancer: requests that edges send over data connections reach a replica of their service.

It runs on ``proxy`` and knows exactly what is in flight where: the replica with the fewest requests gets
the next, none gets more than its ``concurrency``, the rest wait in line, first come, first served. Every
answer of a replica carries ``Roost-Load``, which the edge takes off. It listens nowhere.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import cast

import msgspec

from roost.ports.replicas import BOUNDS_S, ServiceReport
from roost.proxy import policy
from roost.proxy.answers import Answer
from roost.proxy.front import ClientConnection, Limits, Proxy
from roost.proxy.heads import Request
from roost.proxy.plan import Finished, Plan
from roost.proxy.pool import BackendConnection, Pool
from roost.proxy.server import SWEEP_S
from roost.proxy.tunnel import Tunnel
from roost.proxy.upstream import Upstream, Upstreams
from roost.proxy.websocket import SERVICE_RESTART, tell_all

WAITING = 1000
"""Most requests of one service that wait here."""
WAITING_S = 60.0
"""Longest wait; then the edge is told to try another host."""
EVERYBODY = (ip_network("0.0.0.0/0"), ip_network("::/0"))
"""Only edges get here, and only by connections this host dialled: what they say of the client is believed."""
UNKNOWN = Answer(503, "this host has no replica of the service", retry_after_s=1)
LIMITS = Limits(idle_s=600.0, connections=100_000)
"""The edge keeps the connections and ends those it no longer wants."""
RETRIES = policy.Retries(attempts=3)
HEDGING = policy.Hedging(enabled=False)
"""A second copy is the edge's business: it knows other hosts."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A replica as the balancer sees it."""

    replica_id: str
    address: str
    """``host:port``."""
    slots: int = 0
    """Requests it serves at once; 0 = no bound."""
    ready: bool = True
    """False: nothing new, what is in flight may end."""


class _Service:
    """One service: its backends and what was counted."""

    def __init__(self, service_id: str, began_s: float) -> None:
        self.service_id = service_id
        self.began_s = began_s
        self.members: tuple[Member, ...] = ()
        self.upstreams = Upstreams(_policy(service_id, ()))
        self.plan = Plan(
            name=service_id,
            upstreams=self.upstreams,
            retries=RETRIES,
            hedging=HEDGING,
            mark=self.load_line,
        )
        self.slots = 0
        self.by_address: dict[str, str] = {}
        self.bytes: dict[str, float] = {}
        """Moved, by replica."""
        self.requests = self.errors = 0
        self.busy_s = self.busy_s2 = self.waited_s = 0.0
        self.slow = [0] * (len(BOUNDS_S) + 1)
        self.recent_ms = 0.0
        """Mean time inside replicas, of late."""

    @property
    def in_flight(self) -> int:
        """In replicas now."""
        return self.upstreams.active

    @property
    def queued(self) -> int:
        """In line now."""
        return len(self.upstreams.line)

    def load_line(self) -> bytes:
        """``active`` counts those in line too; ``ms`` is the mean time inside a replica of late."""
        active = min(999_999, self.in_flight + self.queued)
        return b"Roost-Load: active=%d; slots=%d; ms=%d\r\n" % (
            active,
            self.slots,
            self.recent_ms,
        )

    def count(self, record: Finished) -> None:
        """A request is over."""
        self.requests += 1
        replica_id = self._replica(record.upstream)
        if replica_id is not None:
            moved = record.bytes_in + record.bytes_out
            self.bytes[replica_id] = self.bytes.get(replica_id, 0.0) + moved
        if record.status >= 500 or record.outcome == "cut":
            self.errors += 1
        if record.outcome == "own":
            return  # no replica served it
        self.waited_s += record.waited_s
        self.slow[bisect_left(BOUNDS_S, record.seconds)] += 1
        if record.status != 101:  # a tunnel is counted when it ends
            self.served(max(0.0, record.seconds - record.waited_s))

    def served(self, seconds: float) -> None:
        """A replica was busy for so long with one request, or one tunnel."""
        self.busy_s += seconds
        self.busy_s2 += seconds * seconds
        self.recent_ms += 0.05 * (1000.0 * seconds - self.recent_ms)

    def tunnel(self, upstream: Upstream | None, moved: int, seconds: float) -> None:
        """A tunnel is over."""
        self.served(seconds)
        replica_id = self._replica(upstream)
        if replica_id is not None:
            self.bytes[replica_id] = self.bytes.get(replica_id, 0.0) + moved

    def _replica(self, upstream: Upstream | None) -> str | None:
        return None if upstream is None else self.by_address.get(upstream.address)

    def set(self, members: tuple[Member, ...]) -> None:
        """These are the replicas from now on."""
        self.members = members
        self.by_address = {member.address: member.replica_id for member in members}
        present = set(self.by_address.values())
        self.bytes = {name: moved for name, moved in self.bytes.items() if name in present}
        self.slots = sum(max(1, member.slots) for member in members if member.ready)
        self.upstreams.updated(_policy(self.service_id, members))

    def report(self) -> ServiceReport:
        return ServiceReport(
            service_id=self.service_id,
            began_s=self.began_s,
            requests=self.requests,
            errors=self.errors,
            in_flight=self.in_flight,
            queued=self.queued,
            busy_s=self.busy_s,
            busy_s2=self.busy_s2,
            waited_s=self.waited_s,
            slow=tuple(self.slow),
        )


def _policy(service_id: str, members: Iterable[Member]) -> policy.Service:
    return policy.Service(
        name=service_id,
        backends=tuple(
            policy.BackendSpec(
                address=member.address,
                slots=member.slots,
                state="ready" if member.ready else "draining",
            )
            for member in members
        ),
        balance="least-requests",
        breaker=policy.Breaker(max_pending=WAITING, pending_s=WAITING_S),
        retries=RETRIES,
        hedging=HEDGING,
    )


class Balancer:
    """All services of this host. Implements ``proxy.plan.Router`` and ``Observer``."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        """``now_s``: the UTC clock, for when counting began."""
        self._now_s = now_s
        self._services: dict[str, _Service] = {}
        self._proxy = Proxy(router=self, limits=LIMITS, observer=self, trusted=EVERYBODY)
        self._proxy.on_tunnel = self._tunnel_over

    def set(self, service_id: str, members: Iterable[Member]) -> None:
        """The replicas of a service from now on; requests in flight at others end where they are."""
        service = self._services.get(service_id)
        if service is None:
            service = self._services[service_id] = _Service(service_id, self._now_s())
        found = tuple(members)
        if found != service.members:
            service.set(found)

    def has(self, service_id: str) -> bool:
        """Whether a replica of it could take a request, now or in a moment."""
        service = self._services.get(service_id)
        return service is not None and bool(service.members)

    def load(self, service_id: str, replica_id: str) -> tuple[int, float]:
        """Requests in flight at a replica, and bytes moved since it began."""
        upstream = self._upstream(service_id, replica_id)
        if upstream is None:
            return 0, 0.0
        moved = sum(sum(t.moved) for t in self._proxy.tunnels if t.owner is upstream)
        return upstream.active, self._services[service_id].bytes.get(replica_id, 0.0) + moved

    def work(self, service_id: str, replica_id: str) -> tuple[int, int]:
        """Requests in flight at a replica, and how many it has answered well."""
        upstream = self._upstream(service_id, replica_id)
        return (0, 0) if upstream is None else (upstream.active, upstream.served)

    def _upstream(self, service_id: str, replica_id: str) -> Upstream | None:
        service = self._services.get(service_id)
        if service is None:
            return None
        for member in service.upstreams.members:
            if service.by_address.get(member.address) == replica_id:
                return member
        return None

    def part(self, service_id: str, replica_id: str) -> None:
        """The replica ends soon: its WebSockets are told to come back, and so land elsewhere."""
        service = self._services.get(service_id)
        if service is None:
            return
        mine = [
            tunnel
            for tunnel in self._proxy.tunnels
            if isinstance(tunnel.owner, Upstream)
            and tunnel.owner.owner is service.upstreams
            and service.by_address.get(tunnel.owner.address) == replica_id
        ]
        tell_all(mine, SERVICE_RESTART, "this replica ends")

    def reports(self) -> tuple[ServiceReport, ...]:
        """Every service there is or was, by id."""
        return tuple(self._services[name].report() for name in sorted(self._services))

    # --- connections ---------------------------------------------------------------------------

    async def serve(
        self, service_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Requests of one data connection, until it ends. ``reader`` holds nothing yet: an edge sends
        its first byte after it was told that the service is open."""
        transport = cast("asyncio.Transport", writer.transport)
        if transport.is_closing():
            return
        connection = _Connection(self._proxy, service_id)
        before = transport.get_protocol()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        try:
            await connection.over.wait()
        finally:
            # The stream's owner waits for its own protocol's end.
            before.connection_lost(None)
            if not connection.over.is_set():
                transport.abort()

    async def run(self) -> None:
        """Apply the time limits until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            self._proxy.sweep(loop.time())

    def close(self) -> None:
        """End every connection."""
        self._proxy.close()

    # --- what the proxy asks -------------------------------------------------------------------

    def decide(self, request: Request) -> Plan | Answer:
        """See ``Router``: a connection is for one service."""
        service = self._services.get(request.listener)
        return UNKNOWN if service is None else service.plan

    async def find(self, request: Request, pool: Pool) -> BackendConnection | Answer:
        """See ``Router``; ``decide`` always knows."""
        return UNKNOWN

    def done(self, record: Finished) -> None:
        """See ``Observer``."""
        service = self._services.get(record.route)
        if service is not None:
            service.count(record)

    def _tunnel_over(
        self, route: str, upstream: Upstream | None, tunnel: Tunnel, seconds: float
    ) -> None:
        service = self._services.get(route)
        if service is not None:
            service.tunnel(upstream, sum(tunnel.moved), seconds)


class _Connection(ClientConnection):
    """A data connection that carries requests for one service."""

    def __init__(self, proxy: Proxy, service_id: str) -> None:
        super().__init__(proxy, listener=service_id)
        self.over = asyncio.Event()

    def eof_received(self) -> bool:
        # An edge never closes one half: it has given the request up, and the replica shall be free.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.over.set()

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
        def over(tunnel: Tunnel) -> None:
            ended(tunnel)
            self.over.set()  # from here on the transport's protocol is the tunnel's

        return super().tunnel(other, first, over, protocol=protocol, idle_s=idle_s, owner=owner)
