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
    """The timers of one engine. Main thread only."""

    def __init__(self, quick: Callable[[], None], idle: Callable[[], None]) -> None:
        self._quick = quick
        self._idle = idle
        self._timers: list[asyncio.TimerHandle] = []
        self._first: float | None = None
        """When the oldest effect that is not captured was noticed."""
        self._captured = 0.0

    def arm(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        """A cell has ended: a capture is due soon."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        quick_s = max(0.0, min(QUICK_S, self._first + LATEST_S - now))
        self.stop()
        # Timers belong to the loop; without a running loop they wait for it.
        self._timers = [
            loop.call_later(quick_s, self._quick, context=context),
            loop.call_later(IDLE_S, self._idle, context=context),
        ]

    def stop(self) -> None:
        """A cell begins."""
        for timer in self._timers:
            timer.cancel()
        self._timers = []

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
