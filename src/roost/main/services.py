"""The room ``services`` with everything it needs, wired for ``main.control``."""

import asyncio
import logging
from collections.abc import Callable

from roost.adapters.replicas import LinkedReplicas
from roost.fleet.groups.model import PREFIX as GROUP
from roost.fleet.groups.service import Groups
from roost.gateway.service import GatewayService
from roost.gateway.service_routes import EdgeEvents, ServiceRoutes
from roost.kit.ids import Ids
from roost.kit.queue import KeyedQueue
from roost.ports.blobs import Blobs
from roost.ports.clock import Clock
from roost.ports.errors import RoostError
from roost.ports.link import Links
from roost.ports.seen import Seen
from roost.ports.store import Store
from roost.services.archive import Archive
from roost.services.controller import ServiceController
from roost.services.ledger import Ledger
from roost.services.plan import decide
from roost.services.pools import GroupPools
from roost.services.scaler import Scaler
from roost.services.service import ServiceService

log = logging.getLogger(__name__)

AT_ONCE = 64
KEEP_S = 300.0
"""A control plane that dies loses the arrivals of at most so many seconds."""


class ServiceRooms:
    """Services, their loops and their queues."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        ids: Ids,
        blobs: Blobs,
        links: Links,
        gateway: GatewayService,
        groups: Groups,
        period_s: float,
        failed: Callable[[str, Exception], None],
        aside: Callable[[str], None],
    ) -> None:
        """``aside`` is given the id of a service for which requests wait: it calls ``awaited``."""
        pools = GroupPools(groups, clock)
        self._aside = aside
        self.ledger = Ledger(store)
        self.service = ServiceService(store, clock, ids, blobs, pools, self._wake)
        self.scaler = Scaler(
            self.service, self.ledger, pools, store, clock, links, decide, period_s=period_s
        )
        self.archive = Archive(store, clock, self.scaler.history)
        self.loop = ServiceController(
            self.service,
            self.ledger,
            pools,
            store,
            clock,
            ids,
            links,
            LinkedReplicas(links),
            ServiceRoutes(gateway),
            lambda host_id: self._telling.wake(host_id),
            self.scaler.short,
        )
        self._serving = KeyedQueue(self.loop.handle, on_error=failed, parallel=AT_ONCE)
        self._telling = KeyedQueue(self.loop.handle_host, on_error=failed, parallel=AT_ONCE)
        groups.uses = self.loop.uses

    def _wake(self, service_id: str) -> None:
        self._serving.wake(service_id)

    def edge_events(self, usage: Callable[[Seen], None]) -> EdgeEvents:
        """What the edges' events are given to; what they counted, to ``usage`` too."""

        def seen(counted: Seen) -> None:
            self.scaler.history.seen(counted)
            usage(counted)

        return EdgeEvents(self._aside, seen)

    def on_host(self, host_id: str) -> None:
        """Something changed on a host."""
        self._telling.wake(host_id)
        for service_id in self.loop.concerned(host_id):
            self._wake(service_id)

    async def on_group(self, group_id: str) -> None:
        """The hosts of a group changed."""
        name = group_id.removeprefix(GROUP)
        for service in await self.service.list_all():
            if service.wish.group == name:
                self._wake(service.id)

    async def resync(self) -> None:
        """Wake everything: losing any single event costs time only."""
        for key in await self.loop.keys():
            self._wake(key)
        for host_id in await self.loop.host_keys():
            self._telling.wake(host_id)

    async def awaited(self, service_id: str) -> None:
        """Requests wait at an edge."""
        await self.scaler.awaited(service_id)
        self._wake(service_id)

    async def run(self) -> None:
        """Scale, and keep what forecasts live on, until cancelled."""
        await self.archive.load()
        await asyncio.gather(self.scaler.run(), self._keep())

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            await self._save()

    async def _save(self) -> None:
        try:
            await self.archive.save([service.id for service in await self.service.list_all()])
        except RoostError as error:  # the next time writes the same and more
            log.warning("arrivals are not kept: %s", error)

    async def stop(self) -> None:
        """Let go."""
        await self._save()
        await self._serving.stop()
        await self._telling.stop()
