"""When the engine captures: soon after a cell, wholly in a pause, never so often that cells wait for it."""

import asyncio
import contextvars
import time
from collections.abc import Callable

QUICK_S = 0.05
"""Pause after a cell before its effects are captured: the reply is out by then."""
LATEST_S = 1.0
"""Cells that follow each other closely postpone a capture at most this long."""
IDLE_S = 1.0
"""After this long without a cell everything is looked at, not only what the last cells name."""
DEAR_S = 2.0
"""What takes longer to pickle waits for that pause, or for an explicit capture."""
SHARE = 10
"""While cells follow each other, captures take at most one part in so many of the time."""
RETRY_S = 5.0
"""Pause before a failed capture is tried again without a new cell."""


class Pace:
    """The clock of one engine. Main thread only.

    One timer, set anew only when it goes off: with cells that follow each other it mostly goes off in vain,
    which costs less than to cancel and set two with each of them.
    """

    def __init__(self, quick: Callable[[], None], idle: Callable[[], None]) -> None:
        self._due: list[tuple[float, Callable[[], None]]] = []
        """When what is to be called, the soonest first."""
        self._quick = quick
        self._idle = idle
        self._timer: asyncio.TimerHandle | None = None
        self._context = contextvars.copy_context()
        self._first: float | None = None
        """When the oldest effect that is not captured was noticed."""
        self._captured = 0.0

    def arm(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        """A cell has ended: a capture is due soon."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        quick_s = max(0.0, min(QUICK_S, self._first + LATEST_S - now))
        self._due = [(now + quick_s, self._quick), (now + IDLE_S, self._idle)]
        self._context = context
        self._set(loop, now)

    def stop(self) -> None:
        """A cell begins."""
        self._due = []

    def _set(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        # Timers belong to the loop; without a running loop they wait for it.
        wait_s = max(0.0, self._due[0][0] - now)
        if self._timer is not None and self._timer.when() > loop.time() + wait_s + QUICK_S:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_later(wait_s, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._due and self._due[0][0] <= time.monotonic():
            _when, call = self._due.pop(0)
            self._context.run(call)
        if self._due:
            self._set(loop, time.monotonic())

    def looked(self) -> None:
        """A capture has begun."""
        self._first = None

    def stored(self) -> None:
        """A capture is on disk."""
        self._captured = time.monotonic()

    def affordable(self, cost_s: float) -> bool:
        """Whether a capture that costs so much may run soon after a cell."""
        if cost_s >= DEAR_S:
            return False
        now = time.monotonic()
        late = self._first is not None and now - self._first > LATEST_S / 2
        return not (late and now - self._captured < SHARE * cost_s)
