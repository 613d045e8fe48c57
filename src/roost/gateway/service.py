"""What the rest of Roost calls to point, hold and remove routes. Durable first, then published to edges.

Never talks to an edge itself (``publisher.py`` does) and never decides where a route should point.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from roost.gateway.model import (
    Hold,
    Route,
    RouteSnapshot,
    RouteTable,
    Target,
    changed,
    default_prefix,
)
from roost.ports.errors import Conflict
from roost.ports.store import Row, Store, Table

KIND = "route"
VERSION_KIND = "route_version"
VERSION_ID = "snapshot"
REMOVED = "removed"
ATTEMPTS = 8
PUBLISH_S = 2.0
"""How long a change waits for the edges' acknowledgement; a slower edge gets it when it is back."""

Publish = Callable[[RouteSnapshot, float], Awaitable[int]]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A stored route. A removed one leaves its epoch behind, so that an old writer cannot revive it."""

    route: Route
    removed: bool = False

    @property
    def id(self) -> str:
        return self.route.name

    @property
    def epoch(self) -> int:
        return self.route.epoch

    @property
    def tenant(self) -> str:
        return self.route.tenant

    @property
    def state(self) -> str:
        return REMOVED if self.removed else self.route.state


@dataclass(frozen=True, slots=True)
class _Change:
    """What of a route is to become different; None keeps what there is."""

    target: Target
    epoch: int
    prefix: str | None = None
    tokens: tuple[str, ...] | None = None
    hold_s: float | None = None
    removed: bool = False
    hosts: tuple[str, ...] | None = None
    strip: bool | None = None
    bound_s: float | None = None

    def applied(self, name: str, old: Route | None) -> Route:
        base = old or Route(name=name, prefix=default_prefix(name), target=Hold())
        return msgspec.structs.replace(
            base,
            target=self.target,
            epoch=self.epoch,
            prefix=base.prefix if self.prefix is None else self.prefix,
            tokens=base.tokens if self.tokens is None else self.tokens,
            hold_s=base.hold_s if self.hold_s is None else self.hold_s,
            hosts=base.hosts if self.hosts is None else self.hosts,
            strip=base.strip if self.strip is None else self.strip,
            bound_s=base.bound_s if self.bound_s is None else self.bound_s,
        )


class GatewayService:
    """The routes of this cell. All methods raise ``StaleEpoch`` where an older epoch speaks."""

    def __init__(self, store: Store, publish: Publish | None = None) -> None:
        self._store = store
        self._table = Table(store, KIND, _Kept)
        self._publish = publish
        self._routes = RouteTable()
        # Two of our own writes would only conflict over the snapshot's version.
        self._writing = asyncio.Lock()

    def attach(self, publish: Publish) -> None:
        """Have each new snapshot published (``Publisher.publish``)."""
        self._publish = publish

    def snapshot(self) -> RouteSnapshot:
        """All routes, as last loaded or written."""
        return self._routes.snapshot()

    def route(self, name: str) -> Route | None:
        """One route."""
        return self._routes.by_name.get(name)

    async def load(self) -> RouteSnapshot:
        """Read the stored routes (once at start) and publish them."""
        await self._read()
        await self._push()
        return self.snapshot()

    async def point(
        self,
        name: str,
        target: Target,
        *,
        epoch: int,
        prefix: str | None = None,
        tokens: tuple[str, ...] | None = None,
        hold_s: float | None = None,
        hosts: tuple[str, ...] | None = None,
        strip: bool | None = None,
        bound_s: float | None = None,
    ) -> None:
        """Send ``name`` to ``target``. None keeps what the route has (or its default)."""
        change = _Change(target, epoch, prefix, tokens, hold_s, False, hosts, strip, bound_s)
        await self._write(name, change)

    async def hold(
        self,
        name: str,
        *,
        epoch: int,
        prefix: str | None = None,
        tokens: tuple[str, ...] | None = None,
    ) -> None:
        """Have requests to ``name`` wait; the route is made where it does not exist."""
        await self._write(name, _Change(Hold(), epoch, prefix, tokens))

    async def remove(self, name: str, *, epoch: int | None = None) -> None:
        """Take the route away (unknown names are ignored). None: whatever its epoch."""
        known = await self._table.get(name)
        if known is None or known.value.removed:
            return
        at = known.value.epoch if epoch is None else epoch
        await self._write(name, _Change(Hold(), at, removed=True))

    async def _write(self, name: str, change: _Change) -> None:
        """Compare and set; somebody else's write in between means reading again."""
        async with self._writing:
            await self._commit(name, change)
        await self._push()

    async def _commit(self, name: str, change: _Change) -> None:
        for _ in range(ATTEMPTS):
            stored = await self._table.get(name)
            old = None if stored is None else stored.value
            base = None if old is None or old.removed else old.route
            route = changed(None if old is None else old.route, change.applied(name, base))
            new = _Kept(route=route, removed=change.removed)
            if new == old:
                return
            version = await self._version()
            with contextlib.suppress(Conflict):
                await self._store.commit([self._table.row(new, stored), version])
                await self._written(new, version.version)
                return
        raise Conflict(f"route {name} is being written by somebody else")

    async def _version(self) -> Row:
        row = await self._store.get(VERSION_KIND, VERSION_ID)
        return row or Row(kind=VERSION_KIND, id=VERSION_ID)

    async def _written(self, kept: _Kept, over: int) -> None:
        """``kept`` was written over the snapshot ``over``: thousands of routes are not read for one."""
        if over != self._routes.version:  # somebody else wrote too
            await self._read()
            return
        routes = dict(self._routes.by_name)
        routes.pop(kept.id, None)
        if not kept.removed:
            routes[kept.id] = kept.route
        self._routes = RouteTable(routes.values(), version=over + 1)

    async def _read(self) -> None:
        version = (await self._version()).version
        kept = [stored.value for stored in await self._table.find()]
        self._routes = RouteTable((k.route for k in kept if not k.removed), version=version)

    async def _push(self) -> None:
        if self._publish is not None:
            await self._publish(self.snapshot(), PUBLISH_S)
