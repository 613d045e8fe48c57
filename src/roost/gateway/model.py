"""Routes and their table: which name points where, at which epoch. Pure.

A route's name is ``<kind>/<id>`` (``n/s-1``, ``kernel/s-1``, ``api``). The table is an immutable
snapshot: it is replaced as a whole, never changed.
"""

from collections.abc import Iterable

import msgspec

from roost.ports.errors import StaleEpoch
from roost.ports.frames import Frames
from roost.ports.seen import Seen as Seen
from roost.ports.seen import ServiceSeen as ServiceSeen
from roost.ports.store import DEFAULT_TENANT

HOLD_S = 60.0
"""How long a request waits for a live target."""
STREAM_HOLD_S = 300.0
"""How long the opening of a ``roost-stream`` waits: its client is a program that would only dial again."""
SNAPSHOT_LIMIT = 64 << 20
"""Largest snapshot on the wire, in bytes (about 200,000 routes)."""
STREAM_KINDS = ("kernel", "files", "shell")
"""Kinds of routes that carry raw streams to a host."""
SERVICE_KIND = "svc/"
"""Begins the names of routes to services: ``svc/<service id>``."""


class _Target(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base: the JSON or msgpack map carries the class name as its tag."""


class Tcp(_Target, frozen=True, kw_only=True):
    """An HTTP server at a TCP address."""

    host: str
    port: int


class Unix(_Target, frozen=True, kw_only=True):
    """An HTTP server on a unix socket of this machine."""

    path: str


class Host(_Target, frozen=True, kw_only=True):
    """A service of a host, through one of its parked data connections: a raw stream, or HTTP on routes
    of other kinds."""

    host_id: str
    service: str


class Hold(_Target, frozen=True, kw_only=True):
    """Nobody yet: requests wait, within bounds."""


class HostMember(msgspec.Struct, frozen=True, kw_only=True):
    """A host among those that serve a service. Its share is what it reports itself (``Roost-Load``)."""

    host_id: str
    draining: bool = False
    """It gets nothing new; what is in flight may end."""


class Hosts(_Target, frozen=True, kw_only=True):
    """A service on several hosts: HTTP through their data connections, balanced by the load they report.
    Without a member that may be asked, requests wait as on ``Hold``."""

    service: str
    """What the hosts open: ``svc/<id>``."""
    members: tuple[HostMember, ...] = ()


Target = Tcp | Unix | Host | Hosts | Hold


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Where a name points now."""

    name: str
    prefix: str
    """Path prefix, without a slash at its end; it matches whole segments."""
    target: Target
    epoch: int = 0
    tokens: tuple[str, ...] = ()
    """SHA-256 (hex) of the bearer tokens that may pass; empty = open."""
    hold_s: float = HOLD_S
    tenant: str = DEFAULT_TENANT
    hosts: tuple[str, ...] = ()
    """Host names (lower case, no port) whose requests are this route's, whatever their path."""
    strip: bool = False
    """The prefix is taken off before a request is passed on (not where the host name matched)."""
    bound_s: float = 0.0
    """Requests that take longer are counted as late; 0 = none is."""

    @property
    def id(self) -> str:
        """The store's key."""
        return self.name

    @property
    def state(self) -> str:
        """``hold`` or ``live``."""
        target = self.target
        empty = isinstance(target, Hosts) and not target.members
        return "hold" if empty or isinstance(target, Hold) else "live"

    @property
    def balanced(self) -> bool:
        """Whether it is the route of a service (also while it is on hold)."""
        return self.name.startswith(SERVICE_KIND)

    @property
    def streams(self) -> bool:
        """Whether this route carries raw streams (also while it is on hold)."""
        return self.name.split("/", 1)[0] in STREAM_KINDS


def service_of(name: str) -> str:
    """The id of the service a route is of; empty where it is none's."""
    return name[len(SERVICE_KIND) :] if name.startswith(SERVICE_KIND) else ""


def default_prefix(name: str) -> str:
    """The path prefix of a route by its name: ``/n/s-1``, ``/api``, ``/_roost/kernel/s-1``."""
    return f"/_roost/{name}" if name.split("/", 1)[0] in STREAM_KINDS else f"/{name}"


class RouteTable:
    """Routes by longest prefix, in whole path segments."""

    def __init__(self, routes: Iterable[Route] = (), *, version: int = 0) -> None:
        self.version = version
        self.by_name = {route.name: route for route in routes}
        self._by_prefix = {route.prefix.rstrip("/"): route for route in self.by_name.values()}
        self._by_host = {h.encode(): r for r in self.by_name.values() for h in r.hosts}
        self._depth = max((prefix.count("/") for prefix in self._by_prefix), default=0)

    def find(self, host: bytes, path: str) -> tuple[Route | None, bool]:
        """The route of a request, and whether its host name (lower case, no port) made it that."""
        if self._by_host:
            route = self._by_host.get(host)
            if route is not None:
                return route, True
        return self.match(path), False

    def match(self, path: str) -> Route | None:
        """The route with the longest prefix of ``path``."""
        parts = path.split("/", self._depth + 1)[: self._depth + 1]
        while parts:
            route = self._by_prefix.get("/".join(parts))
            if route is not None:
                return route
            parts.pop()
        return None

    def replaced(self, snapshot: "RouteSnapshot") -> "tuple[RouteTable, tuple[str, ...]]":
        """The table after ``snapshot``, and the names for which it was older than what is known."""
        stale = []
        routes = []
        for route in snapshot.routes:
            known = self.by_name.get(route.name)
            if known is not None and known.epoch > route.epoch:
                stale.append(route.name)
                route = known
            routes.append(route)
        return RouteTable(routes, version=snapshot.version), tuple(stale)

    def snapshot(self) -> "RouteSnapshot":
        """This table as a message, in order of names."""
        routes = tuple(self.by_name[name] for name in sorted(self.by_name))
        return RouteSnapshot(version=self.version, routes=routes)


def changed(old: Route | None, new: Route) -> Route:
    """``new``, if it may replace ``old``. Raises ``StaleEpoch``."""
    if old is not None and old.epoch > new.epoch:
        raise StaleEpoch(
            f"route {new.name} is at epoch {old.epoch}, epoch {new.epoch} may not change it"
        )
    return new


# --- between control and edges: control dials <state>/run/edge-<n>.sock -------------------------------


class RouteSnapshot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """control -> edge: all routes."""

    version: int
    routes: tuple[Route, ...] = ()


class RouteAck(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """edge -> control: the snapshot is in effect and on disk."""

    version: int


class HoldWaiting(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """edge -> control: somebody waits for a route without a live target (at most once a second each)."""

    name: str


class HostDataUp(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """edge -> control: a host has parked a data connection."""

    host_id: str


class HostDataDown(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """edge -> control: a host's last parked data connection is gone."""

    host_id: str


EdgeEvent = HoldWaiting | HostDataUp | HostDataDown | Seen
ToEdge = RouteSnapshot
FromEdge = RouteAck | HoldWaiting | HostDataUp | HostDataDown | Seen


def to_edge() -> Frames[RouteSnapshot]:
    """Codec of what control sends."""
    return Frames(RouteSnapshot, limit=SNAPSHOT_LIMIT)


def from_edge() -> Frames[FromEdge]:
    """Codec of what edges send."""
    return Frames(FromEdge)
