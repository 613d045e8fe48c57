"""Captures that a forked child does: which ones, and what becomes of them."""

from collections.abc import Callable

from roost.runtime.kernel.capture import Collector
from roost.runtime.kernel.cells import Cell
from roost.runtime.kernel.forks import LEAST_S, ChildFailed, Forker
from roost.runtime.kernel.jobs import Bytes, Elsewhere, Job, store, wait_for
from roost.runtime.kernel.recorder import Facts, Recorder
from roost.runtime.kernel.snapshot import Snapshot

QUICK_S = 0.01
"""A look that takes longer is left to a child, where that is safe."""
PATIENCE = 3
"""A child may take so many times what it is expected to."""
BYTES_PER_S = 50e6
"""A slow disk."""


class Children:
    """The children of one engine. Main thread."""

    def __init__(self, collector: Collector, bytes_: Bytes) -> None:
        self._collector = collector
        self._bytes = bytes_
        self._forker = Forker()
        self.stored = 0
        """Captures that children have done."""
        self.vain = 0
        """Those that they could not do."""

    @property
    def possible(self) -> bool:
        """Whether there may be children at all."""
        return self._forker.possible

    def safe(self, own: set[int] | None) -> bool:
        """Whether there may be one now. ``own``: threads of the kernel itself."""
        return self._forker.safe(own)

    def limit_s(self, job: Job) -> float | None:
        """How long the kernel itself looks at what a job is about."""
        return None if job.explicit or job.inline or not self.possible else QUICK_S

    def start(
        self, job: Job, recorder: Recorder, log: list[Cell], facts: Facts, then: Callable[[], None]
    ) -> bool:
        """Have a child do a job; false when there can be none."""
        collector = self._collector
        given = Snapshot() if job.snapshot is not None else collector.give(job.touched, log)
        child = self._forker.fork(lambda: store(collector, recorder, job, log, facts, given))
        if child is None:
            return False
        job.child = child
        job.seal.close()
        size = recorder.last.bytes_total if recorder.last is not None else 0
        if job.snapshot is not None:
            size += sum(view.nbytes for one in job.snapshot.fresh for view in one.dump.buffers)
        within_s = LEAST_S + PATIENCE * collector.cost_s(job.touched) + size / BYTES_PER_S
        job.snapshot = None

        def work() -> None:
            wait_for(child, within_s, recorder, job)
            then()

        self._bytes.put(work)
        return True

    def failed(self, error: BaseException) -> bool:
        """Whether it was only the child that could not do it: here it can be done."""
        collector = self._collector
        self.vain += isinstance(error, Elsewhere | ChildFailed)
        if isinstance(error, Elsewhere):
            if not error.names <= collector.home:
                collector.home |= error.names
            elif not collector.give_all:
                collector.give_all = True
            else:  # it had them all: the next would end as this one did
                self._forker.failures += 1
            return True
        if isinstance(error, ChildFailed):
            self._forker.failures += 1
            return True
        return False
