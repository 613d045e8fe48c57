"""The life of the kernel process: started, watched, replaced when it ends by itself.

    start -> up -> ended by itself -> start again (a few times in a row, then given up)
                -> ended on purpose (restart, shutdown, stop)

Never knows what a session or a request is: its owner is told through ``LifeHooks``.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from roost.agent.keeper.engine import Engine, Fields
from roost.agent.keeper.process import KernelConfig, KernelProcess
from roost.kit.ids import Ids
from roost.ports.errors import Never, Retry
from roost.ports.jupyter import Parts

START_TIMEOUT_S = 120.0
"""A kernel that imports on a loaded machine is slow, not dead."""
RAPID_DEATHS = 3
"""Kernels that end one after the other before any ran a cell: then the keeper gives up."""
CANNOT_RUN = 127
"""Exit code, as a shell's, for an interpreter that cannot even be executed."""

log = logging.getLogger("roost.keeper")


def reason_of(answer: Fields) -> str:
    """Why the engine refused, in its words."""
    return str(answer.get("message") or answer.get("error") or "no reason given")


class LifeHooks(Protocol):
    """What the owner of a kernel is told."""

    def on_message(self, channel: str, parts: Parts) -> None:
        """The kernel sent a Jupyter message."""

    def on_engine(self, fields: Fields) -> None:
        """The engine sent an event."""

    async def on_started(self, key: str) -> None:
        """The kernel answers; it is up when this returns."""

    def on_up(self) -> None:
        """The kernel is up."""

    def on_died(self, exit_code: int, restarting: bool) -> None:
        """It ended by itself; everything it sent has been delivered."""


class Life:
    """Keeps one kernel running."""

    def __init__(self, config: KernelConfig, ids: Ids, hooks: LifeHooks) -> None:
        self._config = config
        self._ids = ids
        self._hooks = hooks
        self._generation = 0
        self._deaths = 0
        self._kernel: KernelProcess | None = None
        self._engine: Engine | None = None
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._up = asyncio.Event()
        self._news = asyncio.Event()
        """It came up, or never will."""
        self._stopped = False
        self.failure = ""
        """Why no kernel is started any more."""

    @property
    def up(self) -> bool:
        """The kernel takes requests."""
        return self._up.is_set()

    @property
    def pid(self) -> int:
        """Process id of the kernel, 0 without one."""
        return self._kernel.pid if self._kernel else 0

    def start(self) -> None:
        """Start a kernel in the background, unless one runs or none may."""
        starting = self._starting is not None and not self._starting.done()
        if self._kernel is None and not starting and not self.failure and not self._stopped:
            self._starting = self.spawn(self._start())

    @property
    def heard(self) -> bool:
        """Its outputs reach us."""
        return self._kernel is not None and self._kernel.heard.is_set()

    async def reach_again(self) -> None:
        """Another program has taken the kernel's place: its engine answers when this returns."""
        kernel, engine = self._kernel, self._engine
        if kernel is None or engine is None:
            raise Retry("the kernel has ended")
        kernel.heard.clear()
        await engine.close()
        await self._reach_engine(kernel, engine, hear=False)

    async def wait_up(self) -> None:
        """Raises ``Never`` when no kernel comes, ``Retry`` when it takes too long."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self._up.is_set() and not self.failure:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise Retry("the kernel is still starting", after_s=2.0) from error
        if self.failure:
            raise Never(self.failure)

    async def end(self, grace_s: float = 0.0) -> None:
        """End the kernel on purpose; ``start`` begins a fresh one."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        kernel, self._kernel, self._engine = self._kernel, None, None
        self._up.clear()
        self.failure, self._deaths = "", 0
        if kernel is not None:
            await kernel.kill(grace_s)

    async def stop(self, grace_s: float) -> None:
        """End the kernel for good, and what was started here."""
        self._stopped = True
        await self.end(grace_s)
        waiting = [task for task in self._tasks if task is not asyncio.current_task()]
        if waiting:
            await asyncio.wait(waiting, timeout=2.0)

    async def send(self, channel: str, parts: Parts) -> None:
        """Give the kernel a message; without a kernel it is lost (the owner knows that it is gone)."""
        if self._kernel is not None:
            await self._kernel.send(channel, parts)

    def signal(self, number: int) -> None:
        """Signal the kernel and its children."""
        if self._kernel is not None:
            self._kernel.signal(number)

    async def ask(self, op: str, **fields: Any) -> Fields:
        """Ask the engine; the answer's ``ok`` may be false."""
        if self._engine is None:
            raise Retry("the kernel is starting")
        return await self._engine.ask(op, **fields)

    async def demand(self, op: str, **fields: Any) -> Fields:
        """Ask the engine; a refusal becomes ``Never`` with its words."""
        answer = await self.ask(op, **fields)
        if not answer.get("ok", True):
            raise Never(f"the kernel refused to {op}: {reason_of(answer)}")
        return answer

    def proven(self) -> None:
        """The kernel ran a cell: its next end is not one of a row."""
        self._deaths = 0

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` beside; an error is logged, never lost."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s", error, exc_info=error)

    async def _start(self) -> None:
        self._generation += 1
        key = self._ids.secret()
        kernel = KernelProcess(self._config, self._generation, key, self._hooks.on_message)
        engine = Engine(self._hooks.on_engine)
        self._kernel, self._engine = kernel, engine
        try:
            kernel.start()
            self.spawn(self._watch(kernel, engine))
            await self._reach_engine(kernel, engine)
            await self._hooks.on_started(key)
        except (OSError, Retry, Never) as error:
            log.error("kernel %d did not start: %s", self._generation, error)
            if kernel.pid:
                await kernel.kill()
            else:
                self._kernel = self._engine = None
                self.failure = f"the kernel cannot be started: {error}"
                self._news.set()
                self._hooks.on_died(CANNOT_RUN, False)
            return
        self._up.set()
        self._news.set()
        self._hooks.on_up()

    async def _reach_engine(
        self, kernel: KernelProcess, engine: Engine, *, hear: bool = True
    ) -> None:
        """Connect to the engine, unless the kernel ends first."""

        async def connect() -> None:
            await engine.connect(kernel.engine_path)
            await engine.ask("status")
            # A cell that ran before we hear its outputs would never be seen to end.
            if hear:
                await kernel.heard.wait()

        connecting = asyncio.create_task(connect())
        try:
            await asyncio.wait(
                (connecting, kernel.ended),
                timeout=START_TIMEOUT_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not connecting.done():
                raise Retry("its engine does not answer")
            connecting.result()
        finally:
            connecting.cancel()

    async def _watch(self, kernel: KernelProcess, engine: Engine) -> None:
        """Wait for one kernel's end; one that was not asked to end is replaced."""
        code = await asyncio.shield(kernel.ended)
        wanted = self._kernel is not kernel
        if not wanted:
            self._up.clear()
        await engine.close()
        await kernel.close(deliver=not wanted)
        if wanted or self._stopped:
            return
        self._kernel = self._engine = None
        self._deaths += 1
        restarting = self._deaths < RAPID_DEATHS
        log.warning("the kernel ended by itself with exit code %d", code)
        if not restarting:
            self.failure = (
                f"the kernel ended {self._deaths} times in a row, last with exit code {code}"
            )
            self._news.set()
        self._hooks.on_died(code, restarting)
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        self.start()
