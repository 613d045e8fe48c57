"""The room ``metrics`` with everything it needs, wired for ``main.control``."""

import asyncio
import logging

import httpx

from roost.client.top import TopView
from roost.fleet.groups.model import HostState
from roost.fleet.groups.service import Groups
from roost.metrics.history import History
from roost.metrics.model import Facts, HostFacts, ReplicaFacts, ServiceFacts
from roost.metrics.page import text
from roost.metrics.remote_write import HEADERS, body
from roost.metrics.top import view
from roost.ports.clock import Clock
from roost.ports.errors import RoostError
from roost.ports.link import Links
from roost.ports.seen import Seen
from roost.services.ledger import Ledger
from roost.services.service import ServiceService

log = logging.getLogger(__name__)

SAMPLE_S = 1.0
SEND_S = 15.0
"""Between two remote writes."""
TIMEOUT_S = 10.0
FORGET_EVERY = 15
"""Each so many samples what has gone is forgotten."""


class UsageRoom:
    """The history of use, fed once a second; what is asked of it."""

    def __init__(
        self,
        *,
        clock: Clock,
        links: Links,
        groups: Groups,
        services: ServiceService,
        ledger: Ledger,
        remote_write: str = "",
    ) -> None:
        """``remote_write`` is the URL that the metrics are sent to; empty = nowhere."""
        self.history = History()
        self._clock = clock
        self._links = links
        self._groups = groups
        self._services = services
        self._ledger = ledger
        self._remote_write = remote_write

    def seen(self, seen: Seen) -> None:
        """What an edge counted."""
        self.history.seen(seen, self._clock.now_s())

    async def run(self) -> None:
        """Sample, and send where that is wanted, until cancelled."""
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._sample())
            if self._remote_write:
                parts.create_task(self.send(self._remote_write))

    async def _sample(self) -> None:
        samples = 0
        while True:
            try:
                if samples % FORGET_EVERY == 0:
                    there = [s.id for s in await self._services.list_all() if not s.deleted]
                    self.history.keep(there, self._links.reports())
                self.history.sample(self._links.reports(), self._clock.now_s())
            except RoostError as error:  # a full disk must not end it
                log.warning("usage: %s", error)
            samples += 1
            await asyncio.sleep(SAMPLE_S)

    async def send(self, url: str) -> None:
        """Write the page to a Prometheus until cancelled. What cannot be sent is left out: counters
        only grow, so the next one says it again."""
        failed = False
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            while True:
                await asyncio.sleep(SEND_S)
                try:
                    content = body(await self.page(), self._clock.now_s())
                    answer = await client.post(url, content=content, headers=HEADERS)
                    answer.raise_for_status()
                    failed = False
                except (RoostError, httpx.HTTPError, httpx.InvalidURL) as error:
                    if not failed:  # said once, not four times a minute
                        log.warning("metrics cannot be sent: %s", error)
                    failed = True

    async def facts(self) -> Facts:
        """Who there is now."""
        await self._ledger.load()
        services = [
            ServiceFacts(
                id=service.id,
                name=service.name,
                state=service.state.value,
                group=service.wish.group,
                wanted=service.wanted(),
                vcpus=service.current.spec.vcpus,
                concurrency=service.current.spec.concurrency,
                why=service.message or service.reason,
                replicas=tuple(
                    ReplicaFacts(id=r.id, host_id=r.host_id, state=r.state.value)
                    for r in self._ledger.of(service.id)
                ),
            )
            for service in await self._services.list_all()
            if not service.deleted
        ]
        hosts = []
        for group in await self._groups.list_all():
            for host in await self._groups.hosts(group.spec.name):
                if not host.host_id:
                    continue
                hosts.append(
                    HostFacts(
                        id=host.host_id,
                        group=group.spec.name,
                        state=host.state.value,
                        offer=host.offer.key if host.offer else "",
                        slots=host.slots,
                        usd_hour=host.offer.price_usd_hour if host.offer else 0.0,
                        why=host.keep if host.state is HostState.READY else host.reason,
                        empty_s=host.idle_s,
                    )
                )
        return Facts(services=tuple(services), hosts=tuple(hosts))

    async def top(self) -> TopView:
        """What serves, what it uses, what idles."""
        return view(self.history, await self.facts(), self._clock.now_s())

    async def page(self) -> str:
        """For Prometheus."""
        return text(self.history, await self.top())

    async def id_of(self, kind: str, name_or_id: str) -> str:
        """The id under which a service or host is recorded."""
        if kind == "services" and name_or_id not in self.history.services:
            return (await self._services.get(name_or_id)).id
        return name_or_id
