"""Requests that wait for a free slot of a service: first come, first served, bounded in number and time.

A woken waiter holds a promise until it picks (or leaves), so that nobody who came later takes the slot
it was woken for. Knows nothing of backends: who has free slots tells it so.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from roost.proxy.slots import Cell

TICK_S = 0.01
"""While somebody waits, slots that become free without a request's end are looked for this often ..."""
SHARED_TICK_S = 0.002
"""... and where other workers may free them."""
FAIR_S = 0.05
"""Who waits in another worker goes first when it has waited for so much longer."""
LONGEST_S = 10.0
"""Taken for the patience of others before anybody has waited here."""

_MASK = 0xFFFFFFFF


class WaitingLine:
    """The waiters of one service, oldest first."""

    def __init__(self, free: Callable[[float], int]) -> None:
        self._free = free
        """How many more requests the service takes now; time goes on by being asked."""
        self.waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        """Until when, and who. Waiters that left are removed late."""
        self.promised: set[asyncio.Future[None]] = set()
        """Woken, but not yet served."""
        self.shared: Cell | None = None
        """Where the workers tell each other since when their first one waits (ms; 0: nobody)."""
        self._patience_s = 0.0
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
        self._patience_s = patience_s
        self.waiting.append((loop.time() + patience_s, future))
        self._tell()
        self._arm(loop)
        return future

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None:
            tick_s = TICK_S if self.shared is None else SHARED_TICK_S
            self._timer = loop.call_later(tick_s, self._tick, loop)

    def _tell(self) -> None:
        if self.shared is not None:
            since_s = self.waiting[0][0] - self._patience_s if self.waiting else 0.0
            self.shared.set(int(since_s * 1000) & _MASK)

    def others_first(self, since_s: float, now_s: float) -> bool:
        """Whether somebody in another worker waits for much longer than since ``since_s``."""
        if self.shared is None:
            return False
        mine = int(since_s * 1000)
        # Nobody waits longer than allowed: what is older was left by a worker that hangs.
        longest_s = (self._patience_s or LONGEST_S) - (now_s - since_s)
        low, high = FAIR_S * 1000, longest_s * 1000
        return any(
            since and low < ((mine - since) & _MASK) < high for since in self.shared.values()
        )

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

    def passes(self, now_s: float, *, again: bool = False) -> bool:
        """Whether a newcomer may take a slot: nobody waits, and not all that is free is promised.

        ``again``: no newcomer, but another attempt of a request; other workers' do not hold it up.
        """
        if not self.waiting and not self.promised:
            return again or self.shared is None or not self.others_first(now_s, now_s)
        while self.waiting and self.waiting[0][1].done():
            self.waiting.popleft()
        return not self.waiting and self._free(now_s) > len(self.promised)

    def wake(self, now_s: float) -> None:
        """Slots may be free: wake as many as there are."""
        waiting = self.waiting
        if not waiting:
            return
        free = self._free(now_s) - len(self.promised)
        if free > 0 and self.others_first(waiting[0][0] - self._patience_s, now_s):
            return
        while waiting and free > 0:
            _, future = waiting.popleft()
            if not future.done():
                self.promised.add(future)
                future.set_result(None)
                free -= 1
        self._tell()

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
        self._tell()
        if waiting:
            self._arm(loop)
