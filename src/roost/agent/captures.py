"""Background captures on their way to the blob store: only the newest of a session, few at a time.

A failure is told and the session goes on; the next capture tries again. A capture asked for by command
takes the place of one under way.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from roost.agent.checkpoints import Checkpoints
from roost.agent.memory import Memory
from roost.agent.model import Emit
from roost.ports.errors import Retry, RoostError
from roost.ports.keeper import KeeperCapture
from roost.ports.kernels import Checkpoint
from roost.ports.wire import CaptureFailed, Checkpointed

log = logging.getLogger(__name__)

PARALLEL = 2
"""Sessions uploading in the background at once."""
RETRIES = 3
"""Attempts for one background capture while no newer one has come."""

OnDurable = Callable[[Checkpoint], Awaitable[None]]


class Captures:
    """Uploads captures and tells the outcome."""

    def __init__(
        self, checkpoints: Checkpoints, memory: Memory, emit: Emit, on_durable: OnDurable
    ) -> None:
        """``on_durable`` hears of every checkpoint once it is stored off the host."""
        self._checkpoints = checkpoints
        self._memory = memory
        self._emit = emit
        self._on_durable = on_durable
        self._newest: dict[str, KeeperCapture] = {}
        self._offered: dict[str, asyncio.Event] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(PARALLEL)

    def offer(self, session_id: str, capture: KeeperCapture) -> None:
        """A background capture is ready: upload it, unless a newer one comes first."""
        known = self._memory.checkpoint(session_id)
        position = (capture.epoch, capture.number)
        if known is not None and position <= (known.epoch, known.number):
            return
        self._newest[session_id] = capture
        self._offered.setdefault(session_id, asyncio.Event()).set()
        if session_id not in self._workers:
            worker = asyncio.create_task(self._work(session_id))
            self._workers[session_id] = worker

    async def now(self, session_id: str, capture: KeeperCapture) -> Checkpoint:
        """Upload this capture at once; the caller bounds the time."""
        await self.drop(session_id)
        return await self._save(session_id, capture)

    async def drop(self, session_id: str) -> None:
        """End background work for the session."""
        self._newest.pop(session_id, None)
        self._offered.pop(session_id, None)
        worker = self._workers.pop(session_id, None)
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    async def close(self) -> None:
        """End all background work."""
        for session_id in list(self._workers):
            await self.drop(session_id)

    async def _work(self, session_id: str) -> None:
        this = asyncio.current_task()
        try:
            while (capture := self._newest.get(session_id)) is not None:
                async with self._slots:
                    await self._attempts(session_id, self._newest.get(session_id, capture))
        finally:
            if self._workers.get(session_id) is this:
                del self._workers[session_id]

    async def _attempts(self, session_id: str, capture: KeeperCapture) -> None:
        """Until it is durable, replaced by a newer one, or given up."""
        for attempt in range(1, RETRIES + 1):
            try:
                await self._save(session_id, capture)
                break
            except RoostError as error:
                log.warning("capture %d of %s: %s", capture.number, session_id, error)
                self._fail(session_id, capture, str(error))
                if not isinstance(error, Retry) or attempt == RETRIES:
                    break
                await self._pause(session_id, capture, error.after_s * attempt)
            except Exception as error:  # a defect here must not end captures of the session
                log.exception("capture %d of %s", capture.number, session_id)
                self._fail(session_id, capture, f"{type(error).__name__}: {error}")
                break
            if self._newest.get(session_id) is not capture:
                return
        if self._newest.get(session_id) is capture:
            del self._newest[session_id]

    async def _pause(self, session_id: str, capture: KeeperCapture, seconds: float) -> None:
        """Until the next attempt is due or a newer capture has come."""
        offered = self._offered.setdefault(session_id, asyncio.Event())
        offered.clear()
        if self._newest.get(session_id) is not capture:
            return
        # Not asyncio.timeout: its cancellation was seen to end this task on Python 3.11.2.
        newer = asyncio.create_task(offered.wait())
        try:
            await asyncio.wait({newer}, timeout=seconds)
        finally:
            newer.cancel()

    async def _save(self, session_id: str, capture: KeeperCapture) -> Checkpoint:
        checkpoint = await self._checkpoints.save(session_id, capture)
        self._memory.set_checkpoint(checkpoint)
        self._emit(Checkpointed(checkpoint=checkpoint))
        await self._on_durable(checkpoint)
        return checkpoint

    def _fail(self, session_id: str, capture: KeeperCapture, reason: str) -> None:
        self._emit(
            CaptureFailed(
                session_id=session_id,
                epoch=capture.epoch,
                reason=reason,
                refused=capture.refused,
            )
        )
