"""Threads for bytes: hashing, reading and writing let go of the interpreter, so several at once are faster.

They are started once, with the engine: a thread that appears later would look like one of the user's.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

MOST = 4

Item = TypeVar("Item")
Made = TypeVar("Made")


class Crew:
    """A few threads. In a forked child, where they do not exist, the caller does all of it itself."""

    def __init__(self, size: int) -> None:
        self._pid = os.getpid()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for number in range(size):
            threading.Thread(target=self._run, name=f"roost-crew-{number}", daemon=True).start()

    def submit(self, work: Callable[[], Made]) -> "Future[Made]":
        """Have this done."""
        done: Future[Made] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # handed to the one who waits
                done.set_exception(error)

        if os.getpid() == self._pid:
            self._work.put(run)
        else:
            run()
        return done

    def map(self, work: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
        """Do this for each item, all of them before it returns; raises the first error."""
        done: list[Future[Any]] = [self.submit(partial(work, item)) for item in items]
        for one in done:
            one.exception()
        return [one.result() for one in done]

    def _run(self) -> None:
        while True:
            self._work.get()()


crew = Crew(min(MOST, os.cpu_count() or 1))
"""The one of this process."""
