"""A simulated kernel: its memory is the list of cells it has run, so that a checker can read it.

Cells run one after the other; a capture in the background follows each. Nothing here decides anything.
"""

import asyncio
from collections import deque

from roost.ports import wire
from roost.ports.errors import Gone, Retry, StaleEpoch
from roost.ports.kernels import Checkpoint, KernelOrder, KernelUp
from roost.ports.values import TaskReport
from roost.sim.world import World

WAIT_STEP_S = 0.1


class Machinery:
    """What a kernel needs of its host."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.events: deque[wire.EventBody] = deque()

    def tell(self, event: wire.EventBody) -> None:
        """Have the agent report ``event`` until control has acknowledged it."""
        self.events.append(event)


class SimKernel:
    """The kernel of one session at one epoch on one host."""

    def __init__(
        self, machinery: Machinery, host_id: str, order: KernelOrder, cells: tuple[int, ...]
    ) -> None:
        self._machinery = machinery
        self._world = machinery.world
        self._rng = self._world.stream("kernels")
        self.host_id = host_id
        self.session_id = order.session_id
        self.epoch = order.epoch
        self.cells = cells
        self.restored = len(cells)
        self.queue: deque[int] = deque()
        self.ended = False
        self.fenced = False
        self.busy = False
        self.up: KernelUp | None = None
        self.ready = asyncio.Event()
        self.checkpoint: Checkpoint | None = None
        self._number = 0
        self._dirty = False
        self._running = False

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._machinery.alive and not self.ended

    @property
    def accepts(self) -> bool:
        """Whether it takes new work."""
        return self.alive and not self.fenced and self.up is not None

    def begin(self, up: KernelUp) -> None:
        """Its state is restored: it takes work from here."""
        self.up = up
        self.ready.set()
        self._world.spawn(self._die(), "kernel death")

    def renew(self, epoch: int) -> None:
        """It goes on at the next epoch, as it is."""
        self.epoch = epoch
        self.fenced = False
        self.restored = len(self.cells)
        self.checkpoint = None
        self._number = 0
        self.up = KernelUp(
            session_id=self.session_id, epoch=epoch, task_id=self.report().task_id, warm=True
        )

    def end(self) -> None:
        """Its process is gone."""
        self.ended = True
        self.ready.set()

    def accept(self, cell: int) -> bool:
        """Queue ``cell``; False when it takes no work."""
        if not self.accepts:
            return False
        self.queue.append(cell)
        if not self._running:
            self._running = True
            self._world.spawn(self._run(), "cells")
        return True

    def report(self) -> TaskReport:
        """As its host reports it."""
        if not self.alive:
            state = "dead"
        elif self.up is None:
            state = "starting"
        elif self.fenced:
            state = "fenced"
        else:
            state = "busy" if self.busy else "ready"
        return TaskReport(
            task_id=f"kernel/{self.session_id}/{self.epoch}",
            kind="kernel",
            session_id=self.session_id,
            epoch=self.epoch,
            state=state,
            checkpoint=self.checkpoint,
        )

    async def capture(self, budget_s: float) -> Checkpoint:
        """Capture now and make it durable within the budget."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + budget_s
        while self.busy and loop.time() < end_s:
            await asyncio.sleep(WAIT_STEP_S)
            self._must_live()
        if self.busy:
            raise Retry("a cell still runs")
        cells = self.cells
        took_s = self._rng.uniform(0.1, 2.5)
        if loop.time() + took_s > end_s:
            raise Retry("the capture does not fit in its budget")
        await asyncio.sleep(took_s)
        self._must_live()
        if self._rng.random() < self._world.swarm.capture_fail:
            self._world.tally["captures failed"] += 1
            raise Retry("no space left on the device")
        self._world.tally["captures"] += 1
        return self._durable(cells)

    async def _run(self) -> None:
        while self.queue and self.accepts:
            cell = self.queue.popleft()
            self.busy = True
            await asyncio.sleep(self._duration_s())
            if not self.alive:
                return
            self.busy = False
            self.cells = (*self.cells, cell)
            self._world.tally["cells run"] += 1
            if not self._dirty:
                self._dirty = True
                self._world.spawn(self._background(), "background capture")
        self.queue.clear()
        self._running = False

    def _duration_s(self) -> float:
        long = self._rng.random() < 0.02
        return self._rng.uniform(20.0, 90.0) if long else self._rng.expovariate(1 / 0.8)

    async def _background(self) -> None:
        """Capture after a cell; what is run meanwhile is captured next."""
        while self._dirty and self.alive and not self.fenced:
            self._dirty = False
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))
            cells = self.cells
            await asyncio.sleep(self._rng.uniform(0.1, 3.0))
            if not self.alive:
                return
            if self._rng.random() < self._world.swarm.capture_fail:
                self._machinery.tell(
                    wire.CaptureFailed(
                        session_id=self.session_id, epoch=self.epoch, reason="disk full"
                    )
                )
                self._dirty = True
                await asyncio.sleep(5.0)
            elif self.checkpoint is None or len(cells) > len(
                self._world.blobs[self.checkpoint.digest]
            ):
                self._machinery.tell(wire.Checkpointed(checkpoint=self._durable(cells)))

    def _durable(self, cells: tuple[int, ...]) -> Checkpoint:
        self._number += 1
        digest = f"{self.session_id}/{self.epoch}/{self.host_id}/{self._number}"
        self._world.blobs[digest] = cells
        self.checkpoint = Checkpoint(
            session_id=self.session_id,
            epoch=self.epoch,
            digest=digest,
            number=self._number,
            at_s=self._world.now_s(),
            bytes_total=1_000 * len(cells),
            bytes_moved=1_000,
            imports=("pandas",) if cells else (),
        )
        return self.checkpoint

    async def _die(self) -> None:
        await self._world.pause("kernel death", lambda: self._world.swarm.kernel_death_mean_s)
        if self.alive:
            self._world.tally["kernel deaths"] += 1
            self.end()
            self._machinery.tell(
                wire.TaskEnded(session_id=self.session_id, epoch=self.epoch, exit_code=-9)
            )

    def _must_live(self) -> None:
        if not self.alive:
            raise Gone(f"the kernel of {self.session_id} has ended")


def check_epoch(session_id: str, known: int, asked: int) -> None:
    """``StaleEpoch`` when ``asked`` is older than what the host has seen."""
    if asked < known:
        raise StaleEpoch(f"{session_id} is at epoch {known} here, epoch {asked} is over")
