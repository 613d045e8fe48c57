"""The agent: obeys commands of control, reports once a second, tells what happens by itself.

    command -> epochs are checked -> tasks, restore, capture -> one reply
    keeper events -> captures off the host -> events

Epochs fence before everything else. Nothing here waits for control: with control away for a minute
kernels run on and events wait. It never decides where a session lives.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from roost.agent import machine
from roost.agent.captures import Captures
from roost.agent.facts import read_facts
from roost.agent.jobs.host import JobHost
from roost.agent.kernels import KernelStarter
from roost.agent.measure import Measure
from roost.agent.memory import Memory
from roost.agent.model import Emit, HostFacts, Places, Task
from roost.agent.replicas.host import ReplicaHost
from roost.agent.services import Serve, Services, Stream
from roost.agent.tasks import Tasks
from roost.ports import wire
from roost.ports.clock import Clock
from roost.ports.errors import Gone, Retry, RoostError
from roost.ports.keeper import CaptureNotMade, CaptureReady, KeeperEvent, KernelEnded
from roost.ports.kernels import Checkpoint
from roost.ports.notices import NoticeSource
from roost.ports.values import HostReport, Notice, NoticeKind, TaskReport

log = logging.getLogger(__name__)

POLL_S = 0.5
"""How often the metadata service is asked for a notice."""
LOOK_S = 1.0
"""How often usage is measured."""
UPLOAD_SHARE = 0.25
UPLOAD_MOST_S = 5.0
"""Of a capture's budget, what is kept for the way off the host."""
REPORTED_REFUSALS = 20
"""Refused variables named in a report; all of them are in the event."""


class Agent:
    """One host's agent, without its links."""

    def __init__(
        self,
        host_id: str,
        *,
        places: Places,
        tasks: Tasks,
        starter: KernelStarter,
        captures: Captures,
        memory: Memory,
        services: Services,
        jobs: JobHost,
        replicas: ReplicaHost,
        notices: NoticeSource,
        clock: Clock,
        emit: Emit,
        beat: Callable[[], None],
    ) -> None:
        """``emit`` tells control an event, ``beat`` sends a report at once."""
        self._host_id = host_id
        self._places = places
        self._tasks = tasks
        self._starter = starter
        self._captures = captures
        self._memory = memory
        self._services = services
        self._jobs = jobs
        self._replicas = replicas
        self._notices = notices
        self._clock = clock
        self._emit = emit
        self._beat = beat
        self._measure = Measure()
        self._facts = HostFacts()
        self._notice: Notice | None = None
        self._draining = False
        self._report = HostReport(host_id=host_id, at_s=clock.now_s())

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Adopt what an earlier agent left running; report truthfully from the first heartbeat."""
        found = await self._tasks.recover()
        for task in found:
            log.info("adopted %s: %s", task.task_id, task.session_id or "standby")
        self._jobs.recover()
        await self._replicas.recover()
        self._look()

    async def run(self) -> None:
        """Watch for notices and measure until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_notices())
            group.create_task(self._keep_looking())
            group.create_task(self._replicas.run())

    async def close(self) -> None:
        """Let go: keepers and kernels run on."""
        await self._captures.close()
        await self._tasks.close()
        await self._jobs.close()
        await self._replicas.close()

    # --- what the link asks -------------------------------------------------------------------

    def report(self) -> HostReport:
        """The host as it is now (usage as last measured)."""
        usage = {task.task_id: task for task in self._report.tasks}
        tasks = tuple(self._task_report(t, usage.get(t.task_id)) for t in self._tasks.all())
        return msgspec.structs.replace(
            self._report,
            at_s=self._clock.now_s(),
            tasks=(*tasks, *self._jobs.reports()),
            replicas=self._replicas.reports(),
            services=self._replicas.services(),
            replicas_generation=self._replicas.generation,
            notice=self._notice,
        )

    async def open(self, request: wire.Open) -> Stream | Serve:
        """A service of this host for a data connection."""
        return await self._services.open(request)

    async def handle(self, command: wire.Command) -> wire.ReplyBody:
        """Obey one command. Every one may be repeated."""
        epoch = command.epoch
        match command.body:
            case wire.StartKernel(order=order):
                self._must_be_ready()
                return wire.Started(up=await self._starter.start(order))
            case wire.Fence(session_id=session_id):
                await self._fence(session_id, epoch)
            case wire.CaptureNow(session_id=session_id, budget_s=budget_s):
                checkpoint = await self._capture(session_id, epoch, budget_s)
                return wire.CaptureDone(checkpoint=checkpoint)
            case wire.StopKernel(session_id=session_id):
                await self._stop(session_id, epoch)
            case wire.Warm(imports=imports):
                self._must_be_ready()
                await self._starter.warm(imports)
            case wire.Prefetch(session_id=session_id, checkpoint=checkpoint_digest):
                self._must_be_ready()
                await self._starter.prefetch(session_id, checkpoint_digest)
            case wire.Drain():
                self._draining = True
                await self._jobs.end()
                await self._replicas.end()
                await self._starter.drain()
                await self._captures.close()
                await self._tasks.stop([task.task_id for task in self._tasks.all()])
                self._look()
            case _:
                return await self._handle_work(command)
        return wire.Done()

    async def _handle_work(self, command: wire.Command) -> wire.ReplyBody:
        """Commands about jobs and replicas."""
        match command.body:
            case wire.StartJob(order=job):
                self._must_be_ready()
                if self._leaving is not None:
                    raise Gone(f"host {self._host_id} is leaving")
                await self._jobs.start(job)
            case wire.StopJob(job_id=job_id, grace_s=grace_s):
                self._jobs.stop(job_id, command.epoch, grace_s)
            case wire.SetReplicas(replicas=replicas):
                await self._replicas.set(replicas)
            case wire.ReadReplicaLogs(replica_id=replica_id, tail_bytes=tail_bytes):
                return wire.ReplicaLogs(text=await self._replicas.logs(replica_id, tail_bytes))
            case wire.ExecuteInReplica(replica_id=replica_id, argv=argv, timeout_s=timeout_s):
                done = await self._replicas.execute(replica_id, argv, timeout_s)
                return wire.ReplicaExecuted(executed=done)
        return wire.Done()

    @property
    def _leaving(self) -> Notice | None:
        """The notice after which this host is gone. A rebalance recommendation alone does not say so."""
        notice = self._notice
        return notice if notice is not None and notice.kind is not NoticeKind.REBALANCE else None

    def _must_be_ready(self) -> None:
        self._facts = read_facts(self._places.instance)
        if self._draining:
            raise Gone(f"host {self._host_id} is leaving")
        if not self._facts.ready:
            raise Retry(f"host {self._host_id} is not ready: {self._facts.detail}")

    async def _fence(self, session_id: str, epoch: int) -> None:
        # The order matters: first no kernel of this epoch can be started here any more, then the one
        # that runs accepts no work.
        await self._finish(session_id, epoch)
        task = machine.kernel_of(self._tasks.all(), session_id, epoch)
        keeper = await self._tasks.keeper(task.task_id)
        await keeper.fence(epoch)
        self._tasks.put(machine.observe(task, await keeper.status()))
        await self._services.close_files(session_id)

    async def _capture(self, session_id: str, epoch: int, budget_s: float) -> Checkpoint:
        task = machine.kernel_of(self._tasks.all(), session_id, epoch)
        keeper = await self._tasks.keeper(task.task_id)
        for_upload_s = min(UPLOAD_MOST_S, budget_s * UPLOAD_SHARE)
        try:
            async with asyncio.timeout(budget_s):
                capture = await keeper.capture(budget_s - for_upload_s)
                return await self._captures.now(session_id, capture)
        except TimeoutError:
            raise Retry(f"no durable capture of {session_id} within {budget_s:g} s") from None

    async def _stop(self, session_id: str, epoch: int) -> None:
        await self._finish(session_id, epoch)
        await self._services.close_files(session_id)
        await self._captures.drop(session_id)
        mine = [task for task in self._tasks.all() if task.session_id == session_id]
        await self._tasks.stop([task.task_id for task in mine])

    async def _finish(self, session_id: str, epoch: int) -> None:
        """This epoch is over here, whether it runs, is starting or never came. ``StaleEpoch``."""
        mine = [task for task in self._tasks.all() if task.session_id == session_id]
        machine.check_newest(mine, session_id, epoch)
        self._memory.set_over(session_id, epoch)
        await self._starter.abandon(session_id, epoch)

    # --- what happens by itself -----------------------------------------------------------------

    def on_keeper_event(self, task: Task, event: KeeperEvent) -> None:
        """A keeper says something besides its state."""
        session_id = task.session_id
        match event:
            case CaptureReady(capture=capture) if session_id:
                self._captures.offer(session_id, capture)
            case CaptureNotMade(reason=reason, refused=refused) if session_id:
                failed = wire.CaptureFailed(
                    session_id=session_id, epoch=task.epoch, reason=reason, refused=refused
                )
                self._emit(failed)
            case KernelEnded(exit_code=exit_code) if session_id:
                ended = wire.TaskEnded(session_id=session_id, epoch=task.epoch, exit_code=exit_code)
                self._emit(ended)

    def on_task_end(self, task: Task) -> None:
        """A kernel will not come back on this host: its keeper ended or gave up."""
        exit_code = -9 if task.exit_code is None else task.exit_code
        self._emit(
            wire.TaskEnded(session_id=task.session_id, epoch=task.epoch, exit_code=exit_code)
        )

    async def on_durable(self, checkpoint: Checkpoint) -> None:
        """A checkpoint is stored off the host: its keeper and bridge may forget what is in it."""
        for task in self._tasks.all():
            if task.session_id == checkpoint.session_id and task.epoch == checkpoint.epoch:
                try:
                    await (await self._tasks.keeper(task.task_id)).durable(checkpoint.number)
                except RoostError as error:
                    log.info("keeper of %s was not told: %s", task.task_id, error)
        self._beat()

    async def _watch_notices(self) -> None:
        while True:
            notice = await self._notices.poll()
            if notice is not None and _differs(notice, self._notice):
                log.warning("notice: %s from %s", notice.kind, notice.source)
                self._notice = notice
                self._emit(wire.Noticed(notice=notice))
                self._beat()
            if (leaving := self._leaving) is not None:
                # Without waiting for control: the time that is left is the scripts'.
                until_s = leaving.deadline_s
                self._jobs.tell(None if until_s is None else until_s - self._clock.now_s())
            await asyncio.sleep(POLL_S)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._look()

    def _look(self) -> None:
        """Measure, and read what the machine below says."""
        facts = read_facts(self._places.instance)
        host = self._measure.host()
        tasks = self._tasks.all()
        usage = self._measure.tasks(task for task in tasks if not task.dead)
        was_ready = self._report.ready
        self._facts = facts
        self._report = HostReport(
            host_id=self._host_id,
            at_s=self._clock.now_s(),
            ready=facts.ready and not self._draining,
            detail="draining" if self._draining else facts.detail,
            cpu_percent=host.cpu_percent,
            memory_used_mib=facts.memory_used_mib or host.memory_used_mib,
            memory_total_mib=facts.memory_limit_mib or host.memory_total_mib,
            tasks=tuple(
                TaskReport(
                    task_id=task.task_id,
                    kind="standby" if task.standby else "kernel",
                    cpu_percent=usage[task.task_id].cpu_percent,
                    memory_mib=usage[task.task_id].memory_mib,
                )
                for task in tasks
                if task.task_id in usage
            ),
            isolation=(*facts.isolation, *self._replicas.held),
            network_bytes=host.network_bytes,
        )
        if self._report.ready != was_ready:
            self._beat()

    def _task_report(self, task: Task, usage: TaskReport | None) -> TaskReport:
        checkpoint = self._memory.checkpoint(task.session_id) if task.session_id else None
        if checkpoint is not None:
            few = checkpoint.refused[:REPORTED_REFUSALS]
            checkpoint = msgspec.structs.replace(checkpoint, refused=few)
        return TaskReport(
            task_id=task.task_id,
            kind="standby" if task.standby else "kernel",
            session_id=task.session_id,
            epoch=task.epoch,
            state=task.state,
            cpu_percent=usage.cpu_percent if usage else 0.0,
            memory_mib=usage.memory_mib if usage else 0.0,
            exit_code=task.exit_code,
            checkpoint=checkpoint,
            imports=task.imports,
        )


def _differs(new: Notice, old: Notice | None) -> bool:
    """Whether this is news: the moment it was seen does not count."""
    if old is None:
        return True
    return (new.kind, new.deadline_s, new.source) != (old.kind, old.deadline_s, old.source)


def prepare(places: Places) -> None:
    """Make the folders the agent writes to."""
    for folder in ("work", "captures", "logs", "agent", "jobs"):
        Path(places.instance, folder).mkdir(mode=0o700, parents=True, exist_ok=True)
