"""Simulated hosts: an agent with a control connection that may be cut, kernels, a standby kernel, notices.

``SimLinks`` implements ``ports.link.Links`` for one life of the control plane; the host's answers are
those of a real agent: epochs fence, repeated commands are harmless.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from roost.ports import wire
from roost.ports.errors import Gone, Never, Retry, RoostError, StaleEpoch
from roost.ports.kernels import KernelOrder, KernelUp
from roost.ports.values import HostReport, NoticeKind, TaskReport
from roost.ports.wire import CommandBody, EventBody, ReplyBody
from roost.sim.jobs import SimRun, SimRuns
from roost.sim.kernels import Machinery, SimKernel, check_epoch
from roost.sim.provider import Machine
from roost.sim.world import Life, World

HEARTBEAT_S = 1.0

T = TypeVar("T")


class SimHost(Machinery):
    """One host: what the agent does and reports."""

    def __init__(self, world: World, machine: Machine, links: "Hub") -> None:
        super().__init__(world)
        self.id = machine.order.host_id
        self.machine = machine
        self.kernels: dict[str, SimKernel] = {}
        self.runs = SimRuns(self, self.id)
        self.report: HostReport | None = None
        self.linked: Life | None = None
        self._hub = links
        self._rng = world.stream("hosts")
        self._epochs: dict[str, int] = {}
        self._fenced: dict[str, int] = {}
        self._standby: tuple[str, ...] | None = None
        self._noticed = False
        self._cut_until_s = 0.0
        self._ready_s = world.clock.monotonic_s() + self._rng.uniform(1.0, 15.0)
        world.spawn(self._beat(), f"agent {self.id}")
        world.spawn(self._cuts(), f"cuts {self.id}")

    def die(self) -> None:
        """The machine is gone with everything on it."""
        self.alive = False
        self.linked = None
        for kernel in self.kernels.values():
            kernel.end()
        self._hub.changed(self.id)

    # --- commands ----------------------------------------------------------------------------------

    async def do(self, body: CommandBody, epoch: int) -> ReplyBody:
        """Answer one command as an agent does."""
        match body:
            case wire.StartKernel(order=order):
                return wire.Started(up=await self._start(order))
            case wire.Fence(session_id=session_id):
                self._fence(session_id, epoch)
            case wire.CaptureNow(session_id=session_id, budget_s=budget_s):
                kernel = self._kernel(session_id, epoch)
                return wire.CaptureDone(checkpoint=await kernel.capture(budget_s))
            case wire.StopKernel(session_id=session_id):
                self._stop(session_id, epoch)
            case wire.Warm(imports=imports):
                await self._warm(imports)
            case wire.Prefetch():
                self._must_be_ready()
            case wire.StartJob(order=job):
                self._must_be_ready()
                if self._leaving:
                    raise Gone(f"{self.id} is leaving")
                run = self.runs.start(job)
                if run is not None:
                    self._hub.run_started(run)
            case wire.StopJob(job_id=job_id):
                self.runs.stop(job_id, epoch)
            case wire.Drain():
                raise Never("hosts of the simulator are ended by their provider")
        return wire.Done()

    async def _start(self, order: KernelOrder) -> KernelUp:
        session_id = order.session_id
        self._must_be_ready()
        check_epoch(session_id, self._epochs.get(session_id, 0), order.epoch)
        check_epoch(session_id, self._fenced.get(session_id, -1) + 1, order.epoch)
        kernel = self.kernels.get(session_id)
        if kernel is not None and kernel.alive and kernel.epoch == order.epoch - 1 and kernel.up:
            # The move was called off: what is in its memory is newer than any checkpoint.
            self._epochs[session_id] = order.epoch
            kernel.renew(order.epoch)
            self._hub.started(kernel)
        elif kernel is None or kernel.epoch < order.epoch:
            if kernel is not None:
                kernel.end()
            kernel = self._begin(order)
        elif not kernel.alive:
            raise Gone(f"the kernel of {session_id} at epoch {order.epoch} has ended")
        await kernel.ready.wait()
        if kernel.up is None or self.kernels[session_id] is not kernel:
            raise StaleEpoch(f"epoch {order.epoch} of {session_id} was overtaken")
        return kernel.up

    def _begin(self, order: KernelOrder) -> SimKernel:
        cells = self.world.blobs[order.checkpoint] if order.checkpoint else ()
        kernel = SimKernel(self, self.id, order, cells)
        self.kernels[order.session_id] = kernel
        self._epochs[order.session_id] = order.epoch
        warm = self._standby is not None
        self._standby = None
        self.world.spawn(self._restore(kernel, order, warm), f"restore {order.session_id}")
        return kernel

    async def _restore(self, kernel: SimKernel, order: KernelOrder, warm: bool) -> None:
        await asyncio.sleep(self._rng.uniform(0.2, 1.5) if warm else self._rng.uniform(3.0, 20.0))
        if kernel.alive:
            task_id = kernel.report().task_id
            self._hub.started(kernel)
            kernel.begin(
                KernelUp(session_id=order.session_id, epoch=order.epoch, task_id=task_id, warm=warm)
            )
            self._hub.changed(self.id)

    def _fence(self, session_id: str, epoch: int) -> None:
        check_epoch(session_id, self._epochs.get(session_id, 0), epoch)
        self._fenced[session_id] = max(epoch, self._fenced.get(session_id, 0))
        self._kernel(session_id, epoch).fenced = True

    def _kernel(self, session_id: str, epoch: int) -> SimKernel:
        check_epoch(session_id, self._epochs.get(session_id, 0), epoch)
        kernel = self.kernels.get(session_id)
        if kernel is None or not kernel.alive or kernel.epoch != epoch:
            raise Gone(f"no kernel of {session_id} at epoch {epoch}")
        return kernel

    def _stop(self, session_id: str, epoch: int) -> None:
        check_epoch(session_id, self._epochs.get(session_id, 0), epoch)
        kernel = self.kernels.get(session_id)
        if kernel is not None:
            kernel.end()

    async def _warm(self, imports: tuple[str, ...]) -> None:
        self._must_be_ready()
        await asyncio.sleep(self._rng.uniform(1.0, 8.0))
        self._standby = imports

    @property
    def _leaving(self) -> bool:
        notice = self.machine.notice
        return notice is not None and notice.kind is not NoticeKind.REBALANCE

    def _must_be_ready(self) -> None:
        if self.world.clock.monotonic_s() < self._ready_s:
            raise Retry(f"{self.id} is still installing packages")

    # --- the agent's own life ----------------------------------------------------------------------

    async def _beat(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, HEARTBEAT_S))
        while self.alive:
            if self._leaving:
                self.runs.tell()
            life = self.world.life
            cut = self.world.clock.monotonic_s() < self._cut_until_s
            if cut or life.dead:
                self._unlink()
            elif self._hub.listening(life):
                self._report(life)
            await asyncio.sleep(HEARTBEAT_S)

    def _unlink(self) -> None:
        if self.linked is not None:
            self.linked = None
            self._hub.changed(self.id)

    def _report(self, life: Life) -> None:
        """One heartbeat: connect, report, deliver events (again, until control took them)."""
        notice = self.machine.notice
        if notice is not None and not self._noticed:
            self._noticed = True
            self.tell(wire.Noticed(notice=notice))
        old, new = self.report, self._measure()
        told = self.linked is life and old is not None and _same(old, new)
        self.report = new
        self.linked = life
        if not told:
            self._hub.changed(self.id)
        while self.events:
            self._hub.event(self.id, self.events.popleft())

    def _measure(self) -> HostReport:
        tasks = [kernel.report() for _, kernel in sorted(self.kernels.items())]
        if self._standby is not None:
            tasks.append(
                TaskReport(task_id="standby", kind="standby", state="ready", imports=self._standby)
            )
        tasks += self.runs.reports()
        return HostReport(
            host_id=self.id,
            at_s=self.world.now_s(),
            ready=self.world.clock.monotonic_s() >= self._ready_s,
            tasks=tuple(tasks),
            notice=self.machine.notice,
        )

    async def _cuts(self) -> None:
        while self.alive:
            await self.world.pause("cuts", lambda: self.world.swarm.cut_mean_s)
            if self.alive:
                self.world.tally["cuts"] += 1
                seconds = self._rng.uniform(0.2, self.world.swarm.cut_s)
                self._cut_until_s = self.world.clock.monotonic_s() + seconds


def _same(old: HostReport, new: HostReport) -> bool:
    """Whether a change between two reports is one that wakes nobody."""
    return (
        old.ready == new.ready
        and old.notice == new.notice
        and [(t.task_id, t.state, t.job) for t in old.tasks]
        == [(t.task_id, t.state, t.job) for t in new.tasks]
    )


class Hub:
    """All hosts, and where they report to."""

    def __init__(
        self,
        world: World,
        on_start: Callable[[SimKernel], None],
        on_run: Callable[[SimRun], None],
    ) -> None:
        self._world = world
        self.hosts: dict[str, SimHost] = {}
        self.started = on_start
        self.run_started = on_run
        self._on_event: Callable[[str, EventBody], None] | None = None
        self._on_change: Callable[[str], None] | None = None
        self._listening: Life | None = None

    def boot(self, machine: Machine) -> None:
        """A machine is up: its agent starts to dial."""
        self.hosts[machine.order.host_id] = SimHost(self._world, machine, self)

    def end(self, machine: Machine) -> None:
        """A machine is gone."""
        host = self.hosts.get(machine.order.host_id)
        if host is not None and host.machine is machine:
            del self.hosts[host.id]
            host.die()

    def kernels(self, session_id: str) -> list[SimKernel]:
        """The session's kernels that live, in order of hosts."""
        found = [host.kernels.get(session_id) for host in self.hosts.values()]
        return [kernel for kernel in found if kernel is not None and kernel.alive]

    # --- towards control ---------------------------------------------------------------------------

    def listen(
        self,
        life: Life,
        on_event: Callable[[str, EventBody], None],
        on_change: Callable[[str], None],
    ) -> None:
        """A life of the control plane takes calls."""
        self._listening, self._on_event, self._on_change = life, on_event, on_change

    def listening(self, life: Life) -> bool:
        """Whether ``life`` can be dialled."""
        return self._listening is life and not life.dead

    def event(self, host_id: str, event: EventBody) -> None:
        """An event reaches control."""
        if self._on_event is not None and self._listening is not None and not self._listening.dead:
            self._on_event(host_id, event)

    def changed(self, host_id: str) -> None:
        """Something about a host changed."""
        if self._on_change is not None and self._listening is not None and not self._listening.dead:
            self._on_change(host_id)


class SimLinks:
    """Implements ``ports.link.Links`` for one life of the control plane."""

    def __init__(self, world: World, hub: Hub, life: Life) -> None:
        self._world = world
        self._hub = hub
        self._life = life

    def reports(self) -> Mapping[str, HostReport]:
        return {
            host.id: host.report
            for host in self._hub.hosts.values()
            if host.linked is self._life and host.report is not None
        }

    def connected(self, host_id: str) -> bool:
        host = self._hub.hosts.get(host_id)
        return host is not None and host.linked is self._life

    def subscribe(
        self, on_event: Callable[[str, EventBody], None], on_change: Callable[[str], None]
    ) -> None:
        self._hub.listen(self._life, on_event, on_change)

    async def call(
        self, host_id: str, body: CommandBody, *, epoch: int, timeout_s: float
    ) -> ReplyBody:
        name = type(body).__name__
        return await self._world.call(
            self._life, name, lambda: self._delivered(host_id, body, epoch, timeout_s)
        )

    async def _delivered(
        self, host_id: str, body: CommandBody, epoch: int, timeout_s: float
    ) -> ReplyBody:
        """The host's answer; ``Retry`` when it is not connected, or gone before it answered."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        while (host := self._connected(host_id)) is None:
            if loop.time() >= end_s:
                raise Retry(f"{host_id} is not connected")
            await asyncio.sleep(0.2)
        try:
            answer: ReplyBody | RoostError = await host.do(body, epoch)
        except RoostError as error:
            answer = error
        while self._connected(host_id) is None:
            if loop.time() >= end_s:
                raise Retry(f"{host_id} did not answer in time")
            await asyncio.sleep(0.2)
        if isinstance(answer, RoostError):
            raise answer
        return answer

    def _connected(self, host_id: str) -> SimHost | None:
        host = self._hub.hosts.get(host_id)
        linked = host is not None and host.alive and host.linked is not None
        return host if linked else None
