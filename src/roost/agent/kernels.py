"""Bring kernels up: a standby kept warm, a session's checkpoint restored into it.

One start per session at a time; the same order again joins it and gets the same answer. A higher epoch
takes the place of a start under way, and a fence or stop ends it. It never captures.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

import msgspec

from roost.agent import machine
from roost.agent.checkpoints import Checkpoints
from roost.agent.groups import together
from roost.agent.keeper_client import KeeperClient
from roost.agent.memory import Memory
from roost.agent.model import Places, Task
from roost.agent.restore import Fetched, Restorer, said
from roost.agent.tasks import Tasks
from roost.ports.errors import RoostError, StaleEpoch
from roost.ports.keeper import Adopt, Adopted
from roost.ports.kernels import KernelOrder, KernelUp

log = logging.getLogger(__name__)

REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class _Start:
    epoch: int
    job: asyncio.Task[KernelUp]


class KernelStarter:
    """Starts kernels of sessions and keeps the standby kernel."""

    def __init__(
        self,
        *,
        places: Places,
        tasks: Tasks,
        memory: Memory,
        restorer: Restorer,
        checkpoints: Checkpoints,
    ) -> None:
        self._places = places
        self._tasks = tasks
        self._memory = memory
        self._restorer = restorer
        self._checkpoints = checkpoints
        self._starts: dict[str, _Start] = {}
        self._ups: dict[tuple[str, int], KernelUp] = {}
        self._promised: set[str] = set()
        self._warming = asyncio.Lock()

    async def start(self, order: KernelOrder) -> KernelUp:
        """Start, adopt or find the kernel of this epoch. ``StaleEpoch``, ``Gone``, ``Retry``, ``Never``."""
        session_id = order.session_id
        running = self._starts.get(session_id)
        if running is None or running.epoch != order.epoch:
            await self.abandon(session_id, order.epoch)
            running = _Start(order.epoch, asyncio.create_task(self._bring_up(order)))
            self._starts[session_id] = running
        try:
            return await asyncio.shield(running.job)
        except asyncio.CancelledError:
            if running.job.cancelled():
                raise StaleEpoch(f"epoch {order.epoch} of {session_id} was called off") from None
            raise
        finally:
            if running.job.done() and self._starts.get(session_id) is running:
                del self._starts[session_id]

    async def abandon(self, session_id: str, epoch: int) -> None:
        """End a start under way up to this epoch. ``StaleEpoch`` when it is of a newer one."""
        running = self._starts.get(session_id)
        if running is None:
            return
        if running.epoch > epoch:
            raise StaleEpoch(f"{session_id} is starting at epoch {running.epoch}")
        running.job.cancel()
        await asyncio.gather(running.job, return_exceptions=True)
        if self._starts.get(session_id) is running:
            del self._starts[session_id]

    async def drain(self) -> None:
        """End all starts under way."""
        for session_id, running in list(self._starts.items()):
            await self.abandon(session_id, running.epoch)

    async def warm(self, imports: tuple[str, ...]) -> None:
        """Have one standby kernel with these modules imported."""
        async with self._warming:
            free = [task for task in self._tasks.all() if task.task_id not in self._promised]
            plan = machine.plan_warm(free, imports)
            await self._tasks.stop(plan.stop)
            task_id = plan.keep or (await self._tasks.start(self._tasks.new_id())).task_id
            keeper = await self._tasks.keeper(task_id)
            warmed = await keeper.warm(imports)
            if warmed.failed:
                log.warning("a standby kernel could not import %s", ", ".join(warmed.failed))
            await self._look(task_id, keeper)

    async def prefetch(self, session_id: str, checkpoint: str) -> None:
        """Have a session's durable chunks here before it comes; nothing while its kernel is here."""
        here = any(task.session_id == session_id and not task.dead for task in self._tasks.all())
        if not here and session_id not in self._starts:
            await self._restorer.ahead(session_id, checkpoint)

    # --- one start ----------------------------------------------------------------------------

    async def _bring_up(self, order: KernelOrder) -> KernelUp:
        key = (order.session_id, order.epoch)
        free = [task for task in self._tasks.all() if task.task_id not in self._promised]
        plan = machine.plan_start(free, order, self._memory.over(order.session_id))
        log.info("start %s at epoch %d: %s", *key, plan.reason)
        if plan.up and key in self._ups:
            return self._ups[key]
        await self._tasks.stop(plan.stop)
        if plan.up or plan.keep:
            up = await self._renew(order, plan.up or plan.keep)
        else:
            up = await self._restore(order, plan.take)
        self._ups[key] = up
        while len(self._ups) > REMEMBERED:
            del self._ups[next(iter(self._ups))]
        return up

    async def _renew(self, order: KernelOrder, task_id: str) -> KernelUp:
        """The kernel is here: it gets the epoch (repeated: the same answer)."""
        await self._restorer.change(order.session_id, order.files)
        adopted = await self._adopt(order, task_id, None)
        report = said(adopted.report)
        return KernelUp(
            session_id=order.session_id,
            epoch=order.epoch,
            task_id=task_id,
            warm=True,
            report=report,
        )

    async def _restore(self, order: KernelOrder, standby: str) -> KernelUp:
        """Fetch while a kernel starts, then bring both together. On failure no task is left."""
        task_id = standby or self._tasks.new_id()
        self._promised.add(task_id)
        begun_s = time.monotonic()
        try:
            async with together() as group:
                fetching = group.create_task(self._fetch(order))
                if not standby:
                    group.create_task(self._tasks.start(task_id))
            fetched = fetching.result()
            warm = bool(standby)
            if standby and fetched is not None and fetched.packages:
                # Its imports are of the packages as they were.
                await self._tasks.stop([task_id])
                warm = False
                await self._tasks.start(task_id)
            fetched_s = time.monotonic()
            adopted = await self._adopt(order, task_id, fetched)
        except BaseException:
            await asyncio.shield(self._tasks.stop([task_id], grace_s=0.0))
            raise
        finally:
            self._promised.discard(task_id)
        log.info(
            "%s at epoch %d: %.2f s to fetch, %.2f s to adopt, %.2f s of these to restore",
            order.session_id,
            order.epoch,
            fetched_s - begun_s,
            time.monotonic() - fetched_s,
            adopted.report.seconds,
        )
        return KernelUp(
            session_id=order.session_id,
            epoch=order.epoch,
            task_id=task_id,
            warm=warm,
            report=said(adopted.report, fetched.packages if fetched else ()),
            bytes_fetched=fetched.bytes_fetched if fetched else 0,
        )

    async def _fetch(self, order: KernelOrder) -> Fetched | None:
        self._checkpoints.forget(order.session_id)
        fetched = None
        if order.checkpoint:
            fetched = await self._restorer.fetch(order.session_id, order.checkpoint)
        else:
            await self._restorer.empty(order.session_id)
        await self._restorer.change(order.session_id, order.files)
        return fetched

    async def _adopt(self, order: KernelOrder, task_id: str, fetched: Fetched | None) -> Adopted:
        session_id = order.session_id
        self._check(order)
        keeper = await self._tasks.keeper(task_id)
        adopted = await keeper.adopt(
            Adopt(
                session_id=session_id,
                epoch=order.epoch,
                key=order.key,
                kernel=order.kernel,
                cwd=self._places.workspace(session_id),
                captures_dir=self._places.captures(session_id),
                restore_manifest=fetched.manifest_path if fetched else "",
                spool=fetched.blob.spool if fetched else (),
                finished=fetched.blob.finished if fetched else (),
                running=fetched.blob.running if fetched else None,
                running_epoch=fetched.blob.epoch if fetched else 0,
            )
        )
        await self._look(task_id, keeper)
        # A fence may have come while the kernel was restored: it must not accept work for a moment.
        try:
            self._check(order)
        except StaleEpoch:
            await keeper.fence(order.epoch)
            raise
        return adopted

    def _check(self, order: KernelOrder) -> None:
        if self._memory.over(order.session_id) >= order.epoch:
            raise StaleEpoch(f"epoch {order.epoch} of {order.session_id} was fenced meanwhile")

    async def _look(self, task_id: str, keeper: KeeperClient) -> None:
        task: Task | None = self._tasks.get(task_id)
        try:
            status = await keeper.status()
        except RoostError as error:
            log.info("keeper of %s: %s", task_id, error)
            return
        if task is not None:
            self._tasks.put(machine.observe(task, msgspec.structs.replace(status, task_id=task_id)))
