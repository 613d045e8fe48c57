"""The simulated edge: the gateway's real route table, and the streams it has spliced.

It outlives the control plane, as the real one does. A stream is cut when its route points elsewhere.
"""

import asyncio

from roost.gateway.model import Hold, Host, Route, RouteSnapshot, RouteTable
from roost.gateway.service import GatewayService
from roost.notebooks.model import Session
from roost.sim.kernels import SimKernel
from roost.sim.world import Life, World


class Stream:
    """A user's bridge attached to a kernel through the edge."""

    def __init__(self, route: Route, kernel: SimKernel) -> None:
        self.route = route
        self.kernel = kernel
        self.open = True


class SimEdge:
    """Routes as users meet them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.table = RouteTable()
        self._streams: list[Stream] = []
        self._away_until_s = 0.0
        self._latest: RouteSnapshot | None = None
        world.spawn(self._leave(), "edge away")

    def route(self, session_id: str) -> Route | None:
        """The session's kernel route as the edge knows it."""
        return self.table.by_name.get(f"kernel/{session_id}")

    def open(self, route: Route, kernel: SimKernel) -> Stream:
        """Splice a stream."""
        stream = Stream(route, kernel)
        self._streams = [s for s in self._streams if s.open and s.kernel.alive]
        self._streams.append(stream)
        return stream

    @property
    def away_s(self) -> float:
        """How long it will not hear control; 0 = it listens."""
        return max(0.0, self._away_until_s - self._world.clock.monotonic_s())

    def receive(self, snapshot: RouteSnapshot) -> None:
        """A snapshot reaches the edge, at once or when it is back."""
        self._latest = snapshot
        if not self.away_s:
            self._apply(snapshot)

    def _apply(self, snapshot: RouteSnapshot) -> None:
        self._latest = None
        self.table, _ = self.table.replaced(snapshot)
        for stream in self._streams:
            route = self.table.by_name.get(stream.route.name)
            moved = route is not None and not isinstance(route.target, Hold)
            if route is None or (
                moved and (route.target, route.epoch) != (stream.route.target, stream.route.epoch)
            ):
                stream.open = False

    async def _leave(self) -> None:
        rng = self._world.stream("edge")
        while True:
            await self._world.pause("edge away", lambda: self._world.swarm.edge_away_mean_s)
            self._world.tally["edge away"] += 1
            seconds = rng.uniform(0.1, 6.0)
            self._away_until_s = self._world.clock.monotonic_s() + seconds
            await asyncio.sleep(seconds)
            self._away_until_s = 0.0
            if self._latest is not None:
                self._apply(self._latest)


class SimPublisher:
    """Control's side of the edge's connection, for one life."""

    def __init__(self, world: World, edge: SimEdge, life: Life) -> None:
        self._world = world
        self._edge = edge
        self._life = life

    async def publish(self, snapshot: RouteSnapshot, wait_s: float) -> int:
        """Returns how many edges (0 or 1) have the snapshot, as the real publisher does."""
        await self._world.point(self._life)
        self._edge.receive(snapshot)
        await asyncio.sleep(min(wait_s, self._edge.away_s))
        await self._world.point(self._life)
        return 0 if self._edge.away_s else 1


class SimRoutes:
    """Implements ``notebooks.model.Routes`` over the real gateway service."""

    def __init__(self, gateway: GatewayService) -> None:
        self._gateway = gateway

    async def point(self, session: Session, host_id: str, epoch: int) -> None:
        name = f"kernel/{session.id}"
        await self._gateway.point(name, Host(host_id=host_id, service=name), epoch=epoch)

    async def hold(self, session: Session, epoch: int) -> None:
        await self._gateway.hold(f"kernel/{session.id}", epoch=epoch)

    async def remove(self, session: Session) -> None:
        await self._gateway.remove(f"kernel/{session.id}")


class SimServers:
    """Implements ``notebooks.model.Servers``: which sessions have a Jupyter server."""

    def __init__(self, world: World, life: Life, running: dict[str, None]) -> None:
        self._world = world
        self._life = life
        self._running = running

    async def ensure(self, session: Session) -> None:
        await self._world.point(self._life)
        self._running[session.id] = None

    async def remove(self, session: Session) -> None:
        await self._world.point(self._life)
        self._running.pop(session.id, None)
