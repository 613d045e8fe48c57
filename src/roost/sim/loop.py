"""Virtual time for asyncio: when nothing is ready, the clock jumps to the next timer.

The loop is the stock selector loop with another clock and another selector; tasks, timers and futures
are asyncio's own, so the code under test is the code of production. Nothing here touches the network.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START_S = 1_800_000_000.0
"""UTC seconds at which every simulation begins (a January day of 2027)."""


class NothingLeft(Exception):
    """No task is ready and no timer is set: the program waits for something that cannot happen."""


class _VirtualSelector(selectors.SelectSelector):
    """Waits by moving the clock. The loop's own wake-up pipe is registered, and stays silent."""

    def __init__(self, loop: "VirtualLoop") -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingLeft("every task waits and no timer is set")
        if timeout > 0:
            self._loop.elapsed_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose ``time()`` is virtual."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        super().__init__(_VirtualSelector(self))

    def time(self) -> float:
        return self.elapsed_s


class VirtualClock:
    """Implements ``ports.clock.Clock`` on a virtual loop. Wall time may be stepped; the other never is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        return START_S + self._loop.time()

    def monotonic_s(self) -> float:
        return self._loop.time()


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main()`` to its end on virtual time, then end what it left running."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main())
    finally:
        _cancel_all(loop)
        asyncio.set_event_loop(None)
        loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    # Ending a task may start another (a queue that goes on), so until none is left.
    while tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
