"""Requests that wait for a free slot of a service: first come, first served, bounded in number and time.

A woken waiter holds a promise until it picks (or leaves), so that nobody who came later takes the slot
it was woken for. Knows nothing of backends: who has free slots tells it so.
"""

import asyncio
from collections import deque
from collections.abc import Callable

TICK_S = 0.01
"""While somebody waits, slots that become free without a request's end are looked for this often."""


class WaitingLine:
    """The waiters of one service, oldest first."""

    def __init__(self, free: Callable[[float], int]) -> None:
        self._free = free
        """How many more requests the service takes now; time goes on by being asked."""
        self.waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        """Until when, and who. Waiters that left are removed late."""
        self.promised: set[asyncio.Future[None]] = set()
        """Woken, but not yet served."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(not future.done() for _, future in self.waiting)

    def join(self, bound: int, patience_s: float) -> asyncio.Future[None] | None:
        """A place at the end; None when the line is full. It fails with ``TimeoutError``."""
        if len(self.waiting) >= bound:
            kept = [place for place in self.waiting if not place[1].done()]
            self.waiting.clear()
            self.waiting.extend(kept)
            if len(kept) >= bound:
                return None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self.waiting.append((loop.time() + patience_s, future))
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick, loop)
        return future

    def serve(self, future: asyncio.Future[None]) -> None:
        """A woken waiter picks now: its promise is kept."""
        self.promised.discard(future)

    def leave(self, future: asyncio.Future[None], now_s: float) -> None:
        """A waiter gives up, woken or not; what it was promised goes to the next."""
        if not future.done():
            future.cancel()
        elif future in self.promised:
            self.promised.discard(future)
            self.wake(now_s)

    def passes(self, now_s: float) -> bool:
        """Whether a newcomer may take a slot: nobody waits, and not all that is free is promised."""
        while self.waiting and self.waiting[0][1].done():
            self.waiting.popleft()
        return not self.waiting and self._free(now_s) > len(self.promised)

    def wake(self, now_s: float) -> None:
        """Slots may be free: wake as many as there are."""
        waiting = self.waiting
        if not waiting:
            return
        free = self._free(now_s) - len(self.promised)
        while waiting and free > 0:
            _, future = waiting.popleft()
            if not future.done():
                self.promised.add(future)
                future.set_result(None)
                free -= 1

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now_s = loop.time()
        waiting = self.waiting
        self.wake(now_s)
        while waiting and (waiting[0][1].done() or waiting[0][0] <= now_s):
            _, future = waiting.popleft()
            if not future.done():
                future.set_exception(TimeoutError())
                future.exception()  # read once, so that a waiter that left without a word is no warning
        if waiting:
            self._timer = loop.call_later(TICK_S, self._tick, loop)
