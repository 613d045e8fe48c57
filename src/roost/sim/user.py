"""A person who types cells, with the bridge's memory: what was asked is sent again until it is finished.

It reaches a kernel only through the edge's route and believes only what comes back on an open stream.
"""

import asyncio
from typing import Protocol

from roost.gateway.model import Host
from roost.sim.edge import SimEdge, Stream
from roost.sim.hosts import Hub
from roost.sim.kernels import SimKernel
from roost.sim.world import World

LOOK_S = 0.25


class Witness(Protocol):
    """Who is told what users see (the checkers)."""

    def accepted(self, session_id: str, kernel: SimKernel) -> None:
        """A kernel took a cell that came through the route."""


class TypingUser:
    """One session's user."""

    def __init__(
        self, world: World, hub: Hub, edge: SimEdge, session_id: str, witness: Witness
    ) -> None:
        self._world = world
        self._hub = hub
        self._edge = edge
        self._witness = witness
        self._rng = world.stream(f"user/{session_id}")
        self.session_id = session_id
        self.asked = 0
        """Cells typed so far: cell n is the n-th, from 0."""
        self.acknowledged = 0
        """Cells whose reply has come."""
        self.stream: Stream | None = None
        self.typing = True
        self._thinking_s = self._rng.uniform(3.0, 25.0)
        world.spawn(self._type(), f"typist {session_id}")
        world.spawn(self._bridge(), f"bridge {session_id}")

    @property
    def served(self) -> bool:
        """Whether every cell has its reply, from the kernel that the route points to now."""
        return self.acknowledged == self.asked and self.stream is not None and self.stream.open

    async def _type(self) -> None:
        while self.typing:
            await asyncio.sleep(self._rng.expovariate(1 / self._thinking_s))
            burst = self._rng.randrange(2, 6) if self._rng.random() < 0.1 else 1
            self.asked += burst if self.typing else 0

    async def _bridge(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self.stream is None or not self.stream.open or not self.stream.kernel.alive:
                self.stream = self._attach()
            if self.stream is not None:
                self._exchange(self.stream.kernel)

    def _attach(self) -> Stream | None:
        route = self._edge.route(self.session_id)
        if route is None or not isinstance(route.target, Host):
            return None
        host = self._hub.hosts.get(route.target.host_id)
        kernel = host.kernels.get(self.session_id) if host is not None else None
        if kernel is None or not kernel.accepts or kernel.epoch != route.epoch:
            return None
        return self._edge.open(route, kernel)

    def _exchange(self, kernel: SimKernel) -> None:
        """Read replies, then send what this kernel neither has finished nor holds."""
        self.acknowledged = max(self.acknowledged, len(kernel.cells))
        held = len(kernel.cells) + len(kernel.queue) + kernel.busy
        for cell in range(held, self.asked):
            if not kernel.accept(cell):
                return
            self._witness.accepted(self.session_id, kernel)
