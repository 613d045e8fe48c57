"""The keepers of this host: started, found again, watched, stopped. Decides nothing about sessions."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from roost.agent import machine
from roost.agent.keeper_client import KeeperClient
from roost.agent.model import Places, Task
from roost.kit.ids import Ids
from roost.ports.driver import Driver, TaskOrder
from roost.ports.errors import Gone, Never, Retry, RoostError
from roost.ports.keeper import KeeperEvent, StateChanged

log = logging.getLogger(__name__)

GRACE_S = 2.0
START_S = 60.0
"""A keeper on a loaded machine starts slowly; it is not dead before its process is."""

RECOVER_S = 5.0
CONNECT_PAUSE_S = 0.05

OnEvent = Callable[[Task, KeeperEvent], None]
"""An event of a task's keeper, other than its state."""
OnEnd = Callable[[Task], None]
"""A task with a session is dead."""


class Tasks:
    """All tasks of this host."""

    def __init__(
        self,
        *,
        places: Places,
        driver: Driver,
        ids: Ids,
        keeper_argv: Sequence[str],
        on_event: OnEvent,
        on_end: OnEnd,
        on_change: Callable[[], None],
    ) -> None:
        """``keeper_argv``: how a keeper is started; ``--task`` and ``--log`` are added."""
        self._places = places
        self._driver = driver
        self._ids = ids
        self._keeper_argv = tuple(keeper_argv)
        self._on_event = on_event
        self._on_end = on_end
        self._on_change = on_change
        self._tasks: dict[str, Task] = {}
        self._keepers: dict[str, KeeperClient] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._jobs: set[asyncio.Task[None]] = set()

    def all(self) -> list[Task]:
        """A snapshot, ordered by id."""
        return [self._tasks[task_id] for task_id in sorted(self._tasks)]

    def get(self, task_id: str) -> Task | None:
        return self._tasks.get(task_id)

    async def recover(self) -> list[Task]:
        """Adopt the keepers an earlier agent left running."""
        adoptions = []
        for handle in await self._driver.recover():
            self._tasks[handle.task_id] = Task(task_id=handle.task_id, keeper_pid=handle.pid)
            adoptions.append(self._spawn(self._adopt(handle.task_id)))
        if adoptions:
            # One that hangs must not keep the host away from control: it is dealt with later.
            await asyncio.wait(adoptions, timeout=RECOVER_S)
        return self.all()

    def new_id(self) -> str:
        """An id for a task to be started."""
        return self._ids.new("t")

    async def start(self, task_id: str) -> Task:
        """Start a keeper with a standby kernel; returns when it listens (its kernel may still start)."""
        log_path = self._places.log(task_id)
        order = TaskOrder(
            task_id=task_id,
            argv=(*self._keeper_argv, "--task", task_id, "--log", log_path),
            cwd=self._places.instance,
            log_path=log_path,
        )
        self._tasks[task_id] = Task(task_id=task_id)
        try:
            handle = await self._driver.start(order)
            self._put(msgspec.structs.replace(self._tasks[task_id], keeper_pid=handle.pid))
            await self._reach(task_id)
        except (RoostError, OSError) as error:
            self._tasks.pop(task_id, None)
            await self._driver.stop(task_id, grace_s=0.0)
            raise Retry(f"no kernel could be started: {error}") from error
        return self._tasks[task_id]

    async def keeper(self, task_id: str) -> KeeperClient:
        """The management connection of a task, made again if it was lost. ``Gone``."""
        task = self._tasks.get(task_id)
        if task is None or task.dead:
            raise Gone(f"task {task_id} has ended")
        link = self._keepers.get(task_id)
        if link is None:
            await self._reach(task_id)
            link = self._keepers[task_id]
        return link

    async def stop(self, task_ids: Iterable[str], *, grace_s: float = GRACE_S) -> None:
        """End tasks and forget them; unknown ones are fine."""
        await asyncio.gather(*(self._stop(task_id, grace_s) for task_id in task_ids))

    def put(self, task: Task) -> None:
        """Record what is known of a task after a command (only for one that is still there)."""
        if task.task_id in self._tasks:
            self._put(task)

    async def close(self) -> None:
        """Let go of the keepers; they run on."""
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        keepers, self._keepers = self._keepers, {}
        await asyncio.gather(*(link.close() for link in keepers.values()), return_exceptions=True)

    # --- one task -----------------------------------------------------------------------------

    async def _adopt(self, task_id: str) -> None:
        try:
            await self._reach(task_id)
        except RoostError as error:
            log.warning("task %s runs but its keeper does not answer: %s", task_id, error)
            await self._driver.stop(task_id, grace_s=GRACE_S)
            self._end(task_id)

    async def _reach(self, task_id: str) -> None:
        """Connect to a keeper, once at a time."""
        job = self._connecting.get(task_id)
        if job is None:
            job = asyncio.create_task(self._connect_keeper(task_id))
            self._connecting[task_id] = job
            job.add_done_callback(lambda _: self._connecting.pop(task_id, None))
        await asyncio.shield(job)

    async def _connect_keeper(self, task_id: str) -> None:
        early: list[KeeperEvent] = []
        hear: list[Callable[[KeeperEvent], None]] = [early.append]
        try:
            async with asyncio.timeout(START_S):
                link = await self._connect(task_id, lambda event: hear[0](event))
                status = await link.status()
        except TimeoutError:
            raise Retry(f"the keeper of {task_id} does not answer") from None
        task = self._tasks.get(task_id)
        if task is None:
            await link.close()
            raise Gone(f"task {task_id} was stopped")
        self._keepers[task_id] = link
        self._put(machine.observe(task, status))
        self._spawn(self._watch(task_id, link))
        # Events may come before it is known whose they are: they wait for the status.
        hear[0] = partial(self._heard, task_id)
        for event in early:
            self._heard(task_id, event)

    async def _connect(self, task_id: str, on_event: Callable[[KeeperEvent], None]) -> KeeperClient:
        while True:
            try:
                return await KeeperClient.connect(self._places.keeper_socket(task_id), on_event)
            except (Gone, Retry) as error:
                if not await self._driver.alive(task_id):
                    raise Never(f"the keeper of {task_id} ended: {error}") from error
                await asyncio.sleep(CONNECT_PAUSE_S)

    async def _watch(self, task_id: str, link: KeeperClient) -> None:
        """When the connection ends, reach the keeper again, unless it is dead."""
        await link.closed.wait()
        if self._keepers.get(task_id) is link:
            del self._keepers[task_id]
        await link.close()
        task = self._tasks.get(task_id)
        if task is not None and not task.dead:
            await self._return_or_end(task_id)

    def _heard(self, task_id: str, event: KeeperEvent) -> None:
        task = self._tasks.get(task_id)
        if task is None:
            return
        if isinstance(event, StateChanged):
            seen = machine.observe(task, event.status)
            self._put(seen)
            if seen.dead and not task.dead:
                self._given_up(seen)
        else:
            self._on_event(task, event)

    def _given_up(self, task: Task) -> None:
        """A keeper could not keep a kernel alive."""
        if task.standby:
            self._spawn(self._stop(task.task_id, 0.0))
        else:
            self._on_end(task)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    async def _return_or_end(self, task_id: str) -> None:
        try:
            if await self._driver.alive(task_id):
                await self._reach(task_id)
                return
        except RoostError as error:
            log.warning("task %s: %s", task_id, error)
        self._end(task_id)

    def _end(self, task_id: str) -> None:
        task = self._tasks.get(task_id)
        if task is None or task.dead:
            return
        if task.standby:
            del self._tasks[task_id]
            self._on_change()
            return
        dead = machine.end(task, None)
        self._put(dead)
        self._on_end(dead)

    async def _stop(self, task_id: str, grace_s: float) -> None:
        task = self._tasks.pop(task_id, None)
        link = self._keepers.pop(task_id, None)
        if task is not None:
            self._on_change()
        if link is not None:
            try:
                async with asyncio.timeout(grace_s + 1.0):
                    await link.stop(grace_s)
            except (RoostError, OSError, TimeoutError) as error:
                log.info("keeper of %s did not stop itself: %s", task_id, error)
            await link.close()
        await self._driver.stop(task_id, grace_s=grace_s)

    def _put(self, task: Task) -> None:
        before = self._tasks.get(task.task_id)
        self._tasks[task.task_id] = task
        if before != task:
            self._on_change()
