"""The control plane: REST door, controllers, store, the agents' control links. No user traffic.

This file is the table of contents: it names every concrete class once. Killed at any moment and
started again it adopts what runs: the store holds intent and epochs, providers list the instances.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import logging
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from roost.adapters.blobs.local import LocalBlobs
from roost.adapters.clock import SystemClock
from roost.adapters.jobs import LinkedJobs
from roost.adapters.kernels import LinkedKernels
from roost.adapters.link.server import LinkServer
from roost.adapters.providers.local import LocalProvider, load_image
from roost.adapters.store.sqlite.store import open_store
from roost.client.model import CostLineView, CostView
from roost.doors.rest.app import RestDoor
from roost.doors.rest.groups import GroupDoor
from roost.doors.rest.jobs import JobDoor
from roost.doors.rest.services import ServiceDoor
from roost.doors.rest.top import TopDoor
from roost.doors.rest.views import Views
from roost.fleet.controller import FleetController
from roost.fleet.groups.controller import GroupController
from roost.fleet.groups.members import GroupMembers
from roost.fleet.groups.model import PREFIX as GROUP
from roost.fleet.groups.model import GroupSpec
from roost.fleet.groups.service import Groups
from roost.fleet.model import Better, RankedOffer
from roost.fleet.service import FleetService, live, token_hash
from roost.gateway.model import Host, Tcp
from roost.gateway.publisher import Publisher
from roost.gateway.service import GatewayService
from roost.jobs.controller import JobController
from roost.jobs.service import JobService
from roost.kit.ids import SystemIds
from roost.kit.money import usd
from roost.kit.queue import KeyedQueue
from roost.main import played
from roost.main.services import ServiceRooms
from roost.main.sessions import SessionRoutes, SessionServers
from roost.main.settings import StateDir, settings
from roost.main.usage import UsageRoom
from roost.market.catalogue import Catalogue
from roost.market.decision import REGION_SHARE
from roost.market.history import History
from roost.market.live import newest
from roost.market.service import Market
from roost.market.watch import better
from roost.metering.service import MeteringService
from roost.notebooks.controller import NotebookController
from roost.notebooks.service import NotebookService
from roost.ports import wire
from roost.ports.errors import Gone, RoostError
from roost.ports.values import Ask, Image, Offer

log = logging.getLogger("roost.control")

RESYNC_S = 2.0
"""How often every key is woken: losing any single event costs at most this long."""
CLOUDS = ("aws", "azure", "gcp")
"""The local provider plays all three: an instance bears the offer it was launched for."""
RANKED = 50
MARKET_S = 300.0
"""Seconds between two looks at the facts of the market."""
SESSIONS_AT_ONCE = 512
"""A start may take minutes: it must never keep another session's notice waiting."""


class Control:
    """All parts of one control plane, wired."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.endpoints = state.endpoints()
        self.clock = SystemClock()
        self.ids = SystemIds()
        self.owner_token = state.read_secret("owner.token")
        self.store = open_store(state.database)
        agent_argv = (sys.executable, "-m", "roost.main.agent")
        self.provider = LocalProvider(
            state.root, clock=self.clock, agent_argv=agent_argv, conditions=played.chosen(state)
        )
        self.providers = {cloud: self.provider for cloud in CLOUDS}
        self.shipped = Catalogue.load()
        self.market = Market(self.shipped)
        self.links = LinkServer(
            clock=self.clock,
            ids=self.ids,
            book=self,
            data_secret=state.read_secret("data.secret").encode(),
            data_addresses=lambda: tuple(self.endpoints["data_addresses"]),
        )
        self.fleet = FleetService(
            self.store, self.clock, self.links, self.providers, lambda key: self.claims.wake(key)
        )
        self.fleet_loop = FleetController(
            self.fleet,
            self.store,
            self.clock,
            self.ids,
            self.links,
            self.providers,
            self.rank,
            self.endpoints["link_address"],
            state.read_secret("join.secret").encode(),
            self._wake_owner,
        )
        self.gateway = GatewayService(self.store)
        self.notebooks = NotebookService(
            self.store, self.clock, self.ids, lambda key: self.sessions.wake(key)
        )
        self.notebook_loop = NotebookController(
            self.notebooks,
            self.fleet,
            self.store,
            self.clock,
            self.ids,
            LinkedKernels(self.links),
            SessionRoutes(self.gateway, state, self.owner_token),
            SessionServers(state, self.endpoints["public_url"]),
            self.advise,
        )
        self._wire_groups()
        self._wire_jobs()
        self._wire_services()
        self.metering = MeteringService(self.store, self.clock, self.providers)
        self.claims = KeyedQueue(self.fleet_loop.handle, on_error=self._failed)
        self.sessions = KeyedQueue(
            self.notebook_loop.handle, on_error=self._failed, parallel=SESSIONS_AT_ONCE
        )
        self._asides: set[asyncio.Task[None]] = set()

    def _wire_services(self) -> None:
        self.serving = ServiceRooms(
            store=self.store,
            clock=self.clock,
            ids=self.ids,
            blobs=LocalBlobs(self.state.blobs),
            links=self.links,
            gateway=self.gateway,
            groups=self.groups,
            period_s=settings(str(self.state.root)).scale_period_s,
            failed=self._failed,
            aside=lambda key: self._aside(self.serving.awaited(key)),
        )
        self.usage = UsageRoom(
            clock=self.clock,
            links=self.links,
            groups=self.groups,
            services=self.serving.service,
            ledger=self.serving.ledger,
            remote_write=settings(str(self.state.root)).remote_write,
        )

    def _wire_groups(self) -> None:
        self.groups = Groups(
            self.store,
            self.clock,
            self.fleet,
            self.group_defaults,
            lambda key: self.grouping.wake(key),
            self.odds,
        )
        self.group_loop = GroupController(
            self.groups,
            self.fleet,
            self.store,
            self.clock,
            self.ids,
            self.rank,
            self._group_changed,
        )
        self.grouping = KeyedQueue(self.group_loop.handle, on_error=self._failed)

    def _wire_jobs(self) -> None:
        self.jobs = JobService(
            self.store,
            self.clock,
            self.ids,
            LocalBlobs(self.state.blobs),
            lambda key: self.running.wake(key),
        )
        self.job_loop = JobController(
            self.jobs,
            self.fleet,
            self.store,
            self.clock,
            self.ids,
            LinkedJobs(self.links),
            self.rank,
            self.odds,
        )
        self.running = KeyedQueue(
            self.job_loop.handle, on_error=self._failed, parallel=SESSIONS_AT_ONCE
        )

    # --- plugs ---------------------------------------------------------------------------------

    async def admit(self, host_id: str, join_token: str, public_key: bytes) -> None:
        """Join book of the link."""
        await self.fleet.admit(host_id, join_token, public_key)

    async def rank(self, ask: Ask) -> list[RankedOffer]:
        """Offers for an ask, best first; in a thread, because it looks at 150,000 offers."""
        ranked = await asyncio.to_thread(self.market.rank, ask, RANKED)
        return [
            RankedOffer(
                offer=r.offer,
                reason=r.reason,
                usd_useful_hour=r.usd_useful_hour,
                usd_undisturbed_hour=r.usd_undisturbed_hour,
            )
            for r in ranked
        ]

    async def odds(self, offers: Sequence[Offer], hours: float) -> list[float]:
        """The probability of each offer that an instance lasts so many hours."""
        return self.market.odds(offers, hours)

    async def advise(self, held: Offer, ask: Ask) -> Better | None:
        """Whether a session should leave the offer it holds."""
        found = await asyncio.to_thread(better, self.market, held, ask)
        return Better(offer=found.best, why=found.why) if found is not None and found.move else None

    def group_defaults(self, name: str) -> GroupSpec:
        """A group that is made because a service needs it."""
        image = load_image(settings(str(self.state.root)).image)
        ask = Ask(vcpus=2, memory_gib=4)
        return GroupSpec(name=name, ask=ask, image=image, region_share=REGION_SHARE)

    async def check_ask(self, ask: Ask) -> None:
        """``Invalid`` naming the constraint that leaves nothing."""
        await asyncio.to_thread(self.market.rank, ask, 1)

    async def bill(self) -> CostView:
        """The bill as clients see it."""
        bill = await self.metering.bill()
        lines = [
            CostLineView(
                host_id=line.instance_id,
                session_id=line.session_id,
                role=line.role,
                offer=line.offer_key,
                purchase_option=str(line.purchase_option),
                started_s=line.started_s,
                seconds=line.seconds,
                price_usd_hour=line.price_usd_hour,
                usd=usd(line.charge_nano_usd),
                on_demand_usd=usd(line.on_demand_nano_usd),
                running=line.open,
            )
            for line in bill.lines
        ]
        differences = [
            f"{d.instance_id}: {d.reason}, metered {d.metered_s} s, ledger {d.ledger_s} s"
            for d in await self.metering.reconcile()
        ]
        return CostView(
            at_s=bill.now_s,
            usd=usd(bill.total.charge_nano_usd),
            on_demand_usd=usd(bill.total.on_demand_nano_usd),
            saved_usd=usd(bill.total.saved_nano_usd),
            lines=tuple(lines),
            differences=tuple(differences),
        )

    # --- events: they only wake ------------------------------------------------------------------

    def on_event(self, host_id: str, event: wire.EventBody) -> None:
        """An agent's event."""
        self._aside(self._take(host_id, event))

    async def _take(self, host_id: str, event: wire.EventBody) -> None:
        with contextlib.suppress(RoostError):  # the next report repairs what is lost here
            if isinstance(event, wire.Checkpointed):
                await self.notebooks.note_checkpoint(event.checkpoint)
            elif isinstance(event, wire.CaptureFailed):
                await self.notebooks.note_trouble(event.session_id, event.reason)
            elif isinstance(event, wire.TaskEnded):
                reason = f"exit code {event.exit_code} at epoch {event.epoch}"
                await self.notebooks.note(event.session_id, "KernelEnded", reason)
        await self._wake_host(host_id)

    def on_change(self, host_id: str) -> None:
        """A host connected, left, became ready, or its tasks changed state."""
        self._aside(self._wake_host(host_id))

    async def _wake_host(self, host_id: str) -> None:
        try:
            instance = await self.fleet.instance(host_id)
        except Gone:
            return
        self.claims.wake(instance.parent)
        self._wake_owner(instance.owner)
        self.serving.on_host(host_id)

    def _wake_owner(self, owner: str) -> None:
        """Whoever claimed a host: a group, a job or a session."""
        if owner.startswith(GROUP):
            self.grouping.wake(owner)
        else:
            (self.running if owner.startswith("j-") else self.sessions).wake(owner)

    def _group_changed(self, group_id: str) -> None:
        """The hosts of a group changed."""
        self._aside(self.serving.on_group(group_id))

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    @staticmethod
    def _failed(key: str, error: Exception) -> None:
        expected = isinstance(error, RoostError)
        log.log(
            logging.INFO if expected else logging.ERROR, "%s: %s", key, error, exc_info=not expected
        )

    # --- life ----------------------------------------------------------------------------------

    async def resync(self) -> None:
        """Wake everything now and then, keep host routes, end instances nobody knows."""
        while True:
            try:
                await self._look_at_everything()
            except (
                RoostError
            ) as error:  # a full disk, a provider that is away: it must not end for that
                log.warning("resync: %s", error)
            await asyncio.sleep(RESYNC_S)

    async def follow_market(self) -> None:
        """Rank by the newest facts of the history (`roost market record`), looked at now and then."""
        history = History(self.state.market)
        while True:
            try:
                newer = await asyncio.to_thread(newest, self.shipped, history, self.clock.now_s())
                self.market = Market(self.shipped, newer=newer)
            except (RoostError, OSError) as error:  # then the last one stands
                log.warning("facts of the market: %s", error)
            await asyncio.sleep(MARKET_S)

    async def _look_at_everything(self) -> None:
        for key in await self.fleet_loop.keys():
            self.claims.wake(key)
        for key in await self.notebook_loop.keys():
            self.sessions.wake(key)
        for key in await self.job_loop.keys():
            self.running.wake(key)
        await self.serving.resync()
        for key in await self.group_loop.keys():
            self.grouping.wake(key)
        await self._host_routes()
        for provider_id in await self.fleet_loop.sweep():
            log.warning("ended %s, which no row knows", provider_id)

    async def _host_routes(self) -> None:
        """A shell on every live host; none on ended ones."""
        for instance in await self.fleet.instances():
            name = f"shell/{instance.id}"
            known = self.gateway.route(name)
            if live(instance) and known is None:
                tokens = (token_hash(self.owner_token),)
                target = Host(host_id=instance.id, service="shell")
                await self.gateway.point(name, target, epoch=1, tokens=tokens)
            elif instance.ended and known is not None:
                await self.gateway.remove(name)
                self.links.forget(instance.id)

    def door(self) -> RestDoor:
        """The REST door."""
        views = Views(
            notebooks=self.notebooks,
            jobs=self.jobs,
            fleet=self.fleet,
            links=self.links,
            store=self.store,
            bill=self.bill,
            public_url=self.endpoints["public_url"],
            state_dir=str(self.state.root),
            edges=self.endpoints["edges"],
            version=importlib.metadata.version("roost"),
        )
        default = settings(str(self.state.root)).image

        def image(name: str) -> Image:
            return load_image(name or default)

        return RestDoor(
            notebooks=self.notebooks,
            fleet=self.fleet,
            store=self.store,
            clock=self.clock,
            views=views,
            load_image=image,
            check_ask=self.check_ask,
            jobs=JobDoor(
                jobs=self.jobs, clock=self.clock, load_image=image, check_ask=self.check_ask
            ),
            services=ServiceDoor(
                services=self.serving.service,
                loop=self.serving.loop,
                scaler=self.serving.scaler,
                public_url=self.endpoints["public_url"],
            ),
            top=TopDoor(self.usage),
            groups=GroupDoor(
                groups=self.groups,
                members=GroupMembers(
                    self.store, self.clock, self.fleet, self.groups, self.grouping.wake
                ),
                clock=self.clock,
                load_image=image,
                check_ask=self.check_ask,
                defaults=self.group_defaults,
            ),
            owner_token=self.owner_token,
        )

    async def run(self, rest: socket.socket, link: socket.socket) -> None:
        """Serve until told to stop."""
        publisher = Publisher(self.state.run, self.serving.edge_events(self.usage.seen))
        publisher.start()
        self.gateway.attach(publisher.publish)
        self.links.subscribe(self.on_event, self.on_change)
        await self.gateway.load()
        host, port = self.endpoints["control_url"].removeprefix("http://").rsplit(":", 1)
        await self.gateway.point("api", Tcp(host=host, port=int(port)), epoch=0)
        await self.links.serve(link)
        config = uvicorn.Config(
            self.door().app(), log_level="warning", lifespan="off", access_log=False
        )
        server = uvicorn.Server(config)
        loop = asyncio.get_running_loop()
        rooms = (self.serving.run(), self.usage.run())
        loops = (self.resync(), self.follow_market(), *rooms)
        background = [loop.create_task(one) for one in loops]
        try:
            await server.serve(sockets=[rest])
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self.claims.stop()
            await self.sessions.stop()
            await self.running.stop()
            await self.serving.stop()
            await self.grouping.stop()
            await self.notebook_loop.stop()
            await self.links.close()
            await publisher.close()
            await self.store.close()


def main() -> None:
    """``python -m roost.main.control --state DIR --rest-fd N --link-fd N``"""
    parser = argparse.ArgumentParser(description="The control plane of one Roost installation.")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--rest-fd", type=int, required=True)
    parser.add_argument("--link-fd", type=int, required=True)
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    rest, link = socket.socket(fileno=options.rest_fd), socket.socket(fileno=options.link_fd)
    control = Control(StateDir(options.state))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asyncio.run(control.run(rest, link))


if __name__ == "__main__":
    main()
