"""Keeps a zone's notebooks in step with an edge's routes and hosts. Never changes a route."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Protocol

from roost.gateway.dns.zone import Zone
from roost.gateway.holding import Pulse
from roost.gateway.model import RouteTable

log = logging.getLogger(__name__)


class Routes(Protocol):
    """Who has the present table (the edge's router)."""

    table: RouteTable
    changed: Pulse


class RouteFollower:
    """Looks at the routes whenever they may have changed: a lost wake-up costs time, never truth."""

    def __init__(
        self, zone: Zone, routes: Routes, hosts: Callable[[], Mapping[str, str]] = lambda: {}
    ) -> None:
        """``hosts`` gives the address of each host as its connections come from it."""
        self._zone = zone
        self._routes = routes
        self._hosts = hosts
        self._running: asyncio.Task[None] | None = None
        self._table: RouteTable | None = None
        self._known: dict[str, str] = {}

    def start(self) -> None:
        """Follow from now on; what is known already is in the zone when this returns."""
        self._look()
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop following; the zone stays as it is."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def _run(self) -> None:
        while True:
            ticket = self._routes.changed.ticket()
            self._look()
            await asyncio.wait((ticket,))

    def _look(self) -> None:
        hosts = dict(self._hosts())
        if self._routes.table is self._table and hosts == self._known:
            return
        self._table, self._known = self._routes.table, hosts
        stale = self._zone.follow(self._table, reachable(hosts))
        if stale:
            log.warning("older epochs refused for %s", ", ".join(stale[:10]))


def reachable(hosts: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The hosts with an address of their own: one on this machine is reached as the edge is."""
    found: dict[str, tuple[str, ...]] = {}
    for host_id, text in hosts.items():
        try:
            address = ip_address(text)
        except ValueError:
            continue  # a unix socket
        if not (address.is_loopback or address.is_unspecified or address.is_link_local):
            found[host_id] = (str(address),)
    return found
