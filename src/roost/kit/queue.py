"""A keyed, level-triggered work queue.

An event only *wakes* a key; the handler reads the whole truth again. The same key is never handled
twice at once, a key woken while it is handled is handled once more, and losing any single wake costs
time, never correctness, because every key is also woken by the periodic resync.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from roost.kit.retry import RetryPolicy

Handler = Callable[[str], Awaitable[float | None]]


class KeyedQueue:
    """Runs ``handler(key)`` for woken keys with bounded parallelism.

    The handler returns None (done until woken) or the seconds after which to look again.
    An exception is given to ``on_error`` and the key is tried again after the back-off.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        on_error: Callable[[str, Exception], None],
        parallel: int = 16,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._handler = handler
        self._on_error = on_error
        self._parallel = parallel
        self._retry = retry or RetryPolicy()
        self._ready: OrderedDict[str, None] = OrderedDict()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._again: OrderedDict[str, None] = OrderedDict()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._stopped = False

    def wake(self, key: str) -> None:
        """Have ``key`` handled as soon as possible (once more, if it is being handled now)."""
        if self._stopped:
            return
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._running:
            self._again[key] = None
        else:
            self._ready[key] = None
            self._pump()

    async def stop(self) -> None:
        """Stop handling: running handlers are cancelled where they stand (they must allow for that)."""
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _pump(self) -> None:
        while self._ready and len(self._running) < self._parallel and not self._stopped:
            key, _ = self._ready.popitem(last=False)
            self._running[key] = asyncio.get_running_loop().create_task(self._run(key))

    async def _run(self, key: str) -> None:
        delay_s: float | None = None
        try:
            delay_s = await self._handler(key)
            self._failures.pop(key, None)
        except Exception as error:  # the queue is the one place that must outlive any handler
            self._failures[key] = self._failures.get(key, 0) + 1
            delay_s = self._retry.delay_s(self._failures[key])
            self._on_error(key, error)
        finally:
            del self._running[key]
            if not self._stopped:
                self._settle(key, delay_s)

    def _settle(self, key: str, delay_s: float | None) -> None:
        if key in self._again:
            del self._again[key]
            self._ready[key] = None
        elif delay_s is not None:
            loop = asyncio.get_running_loop()
            self._timers[key] = loop.call_later(delay_s, self._due, key)
        self._pump()

    def _due(self, key: str) -> None:
        self._timers.pop(key, None)
        self.wake(key)
