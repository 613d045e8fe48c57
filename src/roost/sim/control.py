"""One life of the control plane: the real services, controllers and queues, wired as ``main.control`` does.

Only the outside differs: providers, links, edge and the turns at which it may die are simulated.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from roost.adapters.jobs import LinkedJobs
from roost.adapters.kernels import LinkedKernels
from roost.fleet.controller import FleetController
from roost.fleet.groups.controller import GroupController
from roost.fleet.groups.model import PREFIX as GROUP
from roost.fleet.groups.model import GroupSpec
from roost.fleet.groups.service import Groups
from roost.fleet.service import FleetService
from roost.gateway.service import GatewayService
from roost.jobs.controller import JobController
from roost.jobs.service import JobService
from roost.kit.ids import Ids
from roost.kit.queue import KeyedQueue
from roost.notebooks.controller import NotebookController
from roost.notebooks.service import NotebookService
from roost.ports import wire
from roost.ports.blobs import Blobs
from roost.ports.errors import Gone, Retry, RoostError
from roost.ports.provider import Capabilities, LedgerLine, Order, Provider, ProviderInstance
from roost.ports.store import Row, Store, StoryLine
from roost.ports.values import Image, Notice
from roost.sim.edge import SimEdge, SimPublisher, SimRoutes, SimServers
from roost.sim.hosts import Hub, SimLinks
from roost.sim.market import advise, odds, rank
from roost.sim.world import Life, World

T = TypeVar("T")

RESYNC_S = 5.0
SWEEPS = 4
"""Resyncs per sweep of the providers' lists."""


class BreakingStore:
    """The real store, which may be locked or full, and at whose calls the control plane may die."""

    def __init__(self, world: World, life: Life, store: Store) -> None:
        self._world = world
        self._life = life
        self._store = store

    async def get(self, kind: str, id: str) -> Row | None:
        await self._before("database is locked")
        return await self._store.get(kind, id)

    async def find(
        self, kind: str, *, state: str | None = None, parent: str | None = None
    ) -> list[Row]:
        await self._before("database is locked")
        return await self._store.find(kind, state=state, parent=parent)

    async def commit(self, rows: Sequence[Row], story: Sequence[StoryLine] = ()) -> None:
        await self._before("database or disk is full")
        await self._store.commit(rows, story)
        await self._world.point(self._life)

    async def story(
        self, object_id: str | None = None, *, after: int = 0, limit: int = 10_000
    ) -> list[StoryLine]:
        await self._before("database is locked")
        return await self._store.story(object_id, after=after, limit=limit)

    async def close(self) -> None:
        """The database outlives this life."""

    async def _before(self, trouble: str) -> None:
        await self._world.point(self._life)
        if self._world.stream("store").random() < self._world.swarm.store_fail:
            self._world.tally["store failures"] += 1
            raise Retry(trouble)


class DistantProvider:
    """A provider at the other end of a network that loses, delays and repeats."""

    def __init__(self, world: World, life: Life, provider: Provider) -> None:
        self._world = world
        self._life = life
        self._provider = provider

    @property
    def capabilities(self) -> Capabilities:
        return self._provider.capabilities

    async def launch(self, order: Order) -> ProviderInstance:
        return await self._call("launch", lambda: self._provider.launch(order))

    async def terminate(self, provider_id: str) -> None:
        await self._call("terminate", lambda: self._provider.terminate(provider_id))

    async def stop(self, provider_id: str) -> None:
        await self._call("stop", lambda: self._provider.stop(provider_id))

    async def start(self, provider_id: str) -> None:
        await self._call("start", lambda: self._provider.start(provider_id))

    async def instances(self) -> list[ProviderInstance]:
        return await self._call("instances", self._provider.instances)

    async def ledger(self) -> list[LedgerLine]:
        return await self._call("ledger", self._provider.ledger)

    async def interrupt(self, provider_id: str, notice: Notice) -> None:
        await self._call("interrupt", lambda: self._provider.interrupt(provider_id, notice))

    async def kill(self, provider_id: str) -> None:
        await self._call("kill", lambda: self._provider.kill(provider_id))

    async def _call(self, name: str, effect: Callable[[], Awaitable[T]]) -> T:
        return await self._world.call(self._life, name, effect)


class ControlPlane:
    """One life."""

    def __init__(
        self,
        world: World,
        hub: Hub,
        edge: SimEdge,
        providers: Mapping[str, Provider],
        store: Store,
        ids: Ids,
        servers: dict[str, None],
        blobs: Blobs,
    ) -> None:
        self.world = world
        self.life = world.life
        self._asides: dict[asyncio.Task[None], None] = {}
        clock = world.clock
        self.store = BreakingStore(world, self.life, store)
        self.links = SimLinks(world, hub, self.life)
        distant = {name: DistantProvider(world, self.life, p) for name, p in providers.items()}
        self.gateway = GatewayService(self.store, SimPublisher(world, edge, self.life).publish)
        self.fleet = FleetService(
            self.store, clock, self.links, distant, lambda key: self.claims.wake(key)
        )
        self.fleet_loop = FleetController(
            self.fleet,
            self.store,
            clock,
            ids,
            self.links,
            distant,
            rank,
            "127.0.0.1:1",
            b"simulated",
            self._wake_owner,
        )
        self._wire_groups(ids)
        self.notebooks = NotebookService(
            self.store, clock, ids, lambda key: self.sessions.wake(key)
        )
        self.notebook_loop = NotebookController(
            self.notebooks,
            self.fleet,
            self.store,
            clock,
            ids,
            LinkedKernels(self.links),
            SimRoutes(self.gateway),
            SimServers(world, self.life, servers),
            advise,
        )
        self.jobs = JobService(self.store, clock, ids, blobs, lambda key: self.running.wake(key))
        self.job_loop = JobController(
            self.jobs, self.fleet, self.store, clock, ids, LinkedJobs(self.links), rank, odds
        )
        self.claims = KeyedQueue(self.fleet_loop.handle, on_error=self._failed)
        self.sessions = KeyedQueue(self.notebook_loop.handle, on_error=self._failed)
        self.running = KeyedQueue(self.job_loop.handle, on_error=self._failed)

    def _wire_groups(self, ids: Ids) -> None:
        clock = self.world.clock
        self.groups = Groups(
            self.store,
            clock,
            self.fleet,
            lambda name: GroupSpec(name=name, image=Image(name="python", python="3.11")),
            lambda key: self.grouping.wake(key),
        )
        self.group_loop = GroupController(
            self.groups, self.fleet, self.store, clock, ids, rank, lambda group_id: None
        )
        self.grouping = KeyedQueue(self.group_loop.handle, on_error=self._failed)

    def start(self) -> None:
        """Adopt what runs and go on."""
        self.aside(self._run())

    async def kill(self) -> None:
        """kill -9: whatever stands at an await stays there for ever."""
        self.life.dead = True
        asides = list(self._asides)
        for task in asides:
            task.cancel()
        await asyncio.gather(*asides, return_exceptions=True)
        await self.claims.stop()
        await self.sessions.stop()
        await self.running.stop()
        await self.grouping.stop()
        await self.notebook_loop.stop()

    def aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` beside the queues, within this life."""
        task = self.world.spawn(self._guarded(work), f"control {self.life.number}")
        self._asides[task] = None
        task.add_done_callback(lambda done: self._asides.pop(done, None))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except RoostError as error:
            self.world.tally[f"aside: {type(error).__name__}"] += 1

    async def _run(self) -> None:
        while True:
            try:
                await self.gateway.load()
                break
            except Retry:
                await asyncio.sleep(1.0)
        self.links.subscribe(self._on_event, self._on_change)
        rounds = 0
        while True:
            try:
                await self._resync(sweep=rounds % SWEEPS == 0)
                rounds += 1
            except RoostError:
                self.world.tally["resyncs failed"] += 1
            await asyncio.sleep(RESYNC_S)

    async def _resync(self, *, sweep: bool) -> None:
        for key in await self.fleet_loop.keys():
            self.claims.wake(key)
        for key in await self.notebook_loop.keys():
            self.sessions.wake(key)
        for key in await self.job_loop.keys():
            self.running.wake(key)
        for key in await self.group_loop.keys():
            self.grouping.wake(key)
        if sweep:
            self.world.tally["swept"] += len(await self.fleet_loop.sweep())

    def _on_event(self, host_id: str, event: wire.EventBody) -> None:
        self.aside(self._take(host_id, event))

    def _on_change(self, host_id: str) -> None:
        self.aside(self._wake_host(host_id))

    async def _take(self, host_id: str, event: wire.EventBody) -> None:
        if isinstance(event, wire.Checkpointed):
            await self.notebooks.note_checkpoint(event.checkpoint)
        elif isinstance(event, wire.CaptureFailed):
            await self.notebooks.note_trouble(event.session_id, event.reason)
        elif isinstance(event, wire.TaskEnded):
            reason = f"exit code {event.exit_code} at epoch {event.epoch}"
            await self.notebooks.note(event.session_id, "KernelEnded", reason)
        await self._wake_host(host_id)

    async def _wake_host(self, host_id: str) -> None:
        try:
            instance = await self.fleet.instance(host_id)
        except Gone:
            return
        self.claims.wake(instance.parent)
        self._wake_owner(instance.owner)

    def _wake_owner(self, owner: str) -> None:
        if owner.startswith(GROUP):
            self.grouping.wake(owner)
        else:
            (self.running if owner.startswith("j-") else self.sessions).wake(owner)

    def _failed(self, key: str, error: Exception) -> None:
        if isinstance(error, RoostError):
            self.world.tally[f"handler: {type(error).__name__}"] += 1
        else:
            self.world.violate("handlers raise typed errors", f"{key}: {error!r}")
