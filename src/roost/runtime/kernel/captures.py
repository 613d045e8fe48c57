"""What is captured when, by whom, and what became of it: the half of the engine that nobody outside calls.

A capture is looked at on the main thread and written on the bytes thread, or all of it is done by a forked
child. There is one at a time.
"""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import Any

from roost.runtime.kernel import asking, process, rebuild, tasks
from roost.runtime.kernel.capture import Collector, Dear, drained
from roost.runtime.kernel.cells import Cell
from roost.runtime.kernel.children import QUICK_S, Children
from roost.runtime.kernel.format import FINISHED_LIMIT, Entry
from roost.runtime.kernel.jobs import LAG_S, Bytes, Fields, Job, answer, write
from roost.runtime.kernel.loops import Running
from roost.runtime.kernel.notice import Mover, check
from roost.runtime.kernel.pace import RETRY_S, Pace
from roost.runtime.kernel.proving import Unproven
from roost.runtime.kernel.recorder import Facts, NotStored, Overtaken, Recorder, Written
from roost.runtime.kernel.restore import CannotRestore
from roost.runtime.kernel.snapshot import Snapshot

SLICE_S = 0.02
"""The main thread looks after other things at least this often during a capture in the background."""
OVERTAKEN_LIMIT = 3
"""After so many captures void because cells came, the next cell waits for the capture's bytes."""
SEAL_WAIT_S = 5.0
"""How long a cell waits at most for an explicit capture to have read the user's memory."""
BEFORE_S = 0.3
"""What takes longer to pickle is not captured on the way into the next cell."""
BEFORE_BYTES = 64 << 20
"""Memory copied on the way into the next cell, at most."""
CHILD_SETTLE_S, CHILD_SOON_S = 0.01, 0.05
"""So long a cell waits for a child that captures, once, if the child's work took less than that last time."""
CHILD_NOTICE_S = 3.0
"""How long a notice waits for it at most."""
SETTLE_S = 0.25
"""How long a cell waits at most for the capture before it to be written."""
LAGGING_S = 0.25
"""What short cells that follow each other did is written when they make a pause, or one of them takes its
time, or after so long: writing and running both want the interpreter."""
LAGGING = 64
"""Captures that wait to be written, at most."""

Listener = Callable[[Fields], None]


class Captures:
    """The captures of one kernel. Methods run on the main thread unless they say otherwise."""

    def __init__(self, shell: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.shell = shell
        self.kernel = getattr(shell, "kernel", None)
        self.loop = loop
        self.base = process.Baseline(shell)
        rebuild.set_root(self.base.root)
        self.collector = Collector(shell, self.kernel, self.base)
        self.listeners: list[Listener] = []
        self.last: Written | None = None
        self.session_id = ""
        self._recorder: Recorder | None = None
        self._held: dict[int, int] = {}
        self._log: list[Cell] = asking.former_cells(shell)
        self._finished: deque[str] = deque(maxlen=FINISHED_LIMIT)
        self._depth = 0
        self._begun_s = time.monotonic()
        """When the last cell began."""
        self._touched: set[str] | None = set()
        self._calm = False
        """Whatever ran since the last look changed variables and nothing else."""
        self._fresh = False
        """A cell has run since everything was looked at."""
        self._pace = Pace(self._quick, self._idle)
        self._collecting: tuple[Generator[None, None, Snapshot], Job] | None = None
        self._job: Job | None = None
        self._waiting: deque[Job] = deque()
        self._overtaken = 0
        self._lagging: deque[Job] = deque()
        """Captures without memory of the user that are to be written before long, the oldest first."""
        self._bytes = Bytes()
        self._children = Children(self.collector, self._bytes)
        self.running = Running()
        self.mover: Mover | None = None
        """Journals requests and answers notices, while tracking on its own."""
        self.unproven: Unproven | None = None
        """Restored variables whose bytes are still being verified: nothing is captured before."""
        self._amended: list[Entry] = []
        """Of these what was damaged, until somebody is told."""
        self._threads: set[int] | None = None
        """Threads of the kernel itself, noted before the first cell."""
        self._context = contextvars.copy_context()
        """The context variables of cells: callbacks of the loop have others."""

    @property
    def busy(self) -> bool:
        """Whether a cell runs. From any thread."""
        return self._depth > 0

    def tell(self, fields: Fields) -> None:
        """Send an event to whoever listens. From any thread."""
        for listener in list(self.listeners):
            listener(fields)

    def prove(self, names: set[str] | None = None) -> None:
        """These restored variables (None: all) are what was captured when it returns."""
        if self.unproven:
            amended = self.unproven.settle(names)
            self._amended += amended
            if amended:
                told = [asdict(entry) for entry in amended]
                reason = "what was restored is damaged in the store"
                self.tell({"event": "amended", "reason": reason, "refused": told})

    def prove_told(self) -> None:
        """All of them; the one who asks has a report that tells what was damaged."""
        self.prove()
        self._amended = []

    # --- as cells begin --------------------------------------------------------------------------

    def _let_cell_begin(self) -> None:
        """A cell begins: a capture that still reads the user's memory is void, or is waited for."""
        self._pace.stop()
        if self._collecting is not None:
            generator, job = self._collecting
            self._collecting = None
            generator.close()
            self._put_back(job)
        elif self._job is not None and not self._job.seal.done.is_set():
            if self._job.explicit or self._overtaken >= OVERTAKEN_LIMIT:
                self._job.seal.done.wait(SEAL_WAIT_S)
            self._job.seal.overtake()

    def _capture_before(self) -> None:
        """What the last cells did is stored before the next one begins, where that is quick: a cell that
        is given up can then be run again from the state before it."""
        recorder, job = self._recorder, self._job
        if recorder is None or self.unproven:
            return
        if job is not None and job.ended.wait(self._patience_s(job)):
            self._settle(job)
        if len(self._lagging) >= LAGGING:
            self._drained()
            self._settle_all()
        if self._job is not None or not (self._fresh or self._touched is None or self._touched):
            return
        job = self._next_job(self._touched)
        self._pace.looked()
        # Whether a fork is safe costs a look at every thread: asked only where one is wanted.
        for limit_s in (QUICK_S, BEFORE_S) if self._children.possible else (BEFORE_S,):
            snapshot = self._look(job, None if self.running.saved else limit_s)
            recorder.look(snapshot)
            if snapshot is not None and recorder.own_memory(snapshot):
                self._hand_over(snapshot, job, lags=True)
                return
            job.snapshot = snapshot
            if self._forked(job):
                return
            if snapshot is not None and recorder.own_memory(snapshot, BEFORE_BYTES):
                job.snapshot = None
                self._hand_over(snapshot, job)
                return
        job.snapshot = None
        self._put_back(job)

    def _patience_s(self, job: Job) -> float:
        """How long a cell waits for the capture before it: for a child only once, if it is soon done."""
        if job.child is None:
            return SETTLE_S
        cost_s = self.collector.cost_s(job.touched)
        soon = not job.awaited and 0 < cost_s < CHILD_SOON_S
        job.awaited = True
        return CHILD_SETTLE_S if soon else 0.0

    def _next_job(self, touched: set[str] | None) -> Job:
        """For what the cells since the last look have done."""
        job = Job(touched, explicit=False)
        job.calm = touched is not None and self._calm
        self._touched, self._calm = set(), True
        return job

    def _look(self, job: Job, limit_s: float | None) -> Snapshot | None:
        """What a job is about; None when that takes too long."""
        if limit_s is not None and self.collector.cost_s(job.touched) > limit_s:
            return None
        try:
            return drained(
                self.collector.collect(job.touched, list(self._log), limit_s=limit_s, calm=job.calm)
            )
        except Dear:
            return None

    def _capture_now(self, iterators: dict[int, Any]) -> Fields:
        """Capture at once on the main thread, also inside a cell; durable when it returns.

        Raises ``CannotPause`` and ``OSError``; nothing is stored then.
        """
        recorder = self._recorder
        if recorder is None:
            raise CannotRestore("no_directory", "captures were switched off")
        self.prove()
        if self._collecting is not None:
            self._collecting[0].close()
            self._collecting = None
        if self._job is not None and self._job.child and not self._job.ended.wait(CHILD_NOTICE_S):
            self._job.child.kill()
        former, self.collector.loops = self.collector.loops, iterators
        job = Job(None, explicit=True)
        try:
            snapshot = drained(self.collector.collect(None, list(self._log)))
            check([asdict(entry) for entry in snapshot.refused])
            if self.busy:
                snapshot.execution_count = asking.running_count(self.shell)
        finally:
            self.collector.loops = former
        facts = self._facts()
        self._hurry()

        def work() -> None:
            # The look too comes behind whatever was still being written.
            write(recorder, snapshot, facts, job, sync=True, look=True)

        self._bytes.put(work)
        job.ended.wait()
        while self._lagging:  # they were written before this one, or never
            self._lagging.pop().settled = True
        self._job = None
        self._touched = None
        if isinstance(job.outcome, Written):
            self._noted(job.outcome)
            return answer(job.outcome, time.perf_counter() - job.begun)
        raise job.outcome or CannotRestore("failed", "the capture was not written")

    def _last_answer(self) -> Fields:
        return answer(self.last, 0.0) if self.last is not None else {"number": 0}

    def _put_back(self, job: Job) -> None:
        if job.explicit:
            job.again()
            self._waiting.appendleft(job)
        self._calm = self._calm and job.calm
        self.collector.unseen()
        if job.touched is None or self._touched is None:
            self._touched, self._fresh = None, True
        else:
            self._touched |= job.touched

    # --- when ------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self.loop is None or (self._recorder is None and not self._waiting):
            return
        self._pace.arm(self.loop, self._context)

    def _quick(self) -> None:
        if self.mover is not None:
            self.mover.rests()
        self._hurry()
        cost = 0.0 if self._children.possible else self.collector.cost_s(self._touched)
        if (self._fresh and self._pace.affordable(cost)) or self._waiting:
            self._begin(self._touched)

    def _idle(self) -> None:
        if self._fresh:
            self._begin(None)

    def _begin(self, touched: set[str] | None) -> None:
        if self._recorder is not None and not self._waiting:
            self._waiting.append(Job(touched, explicit=False))
        self._advance()

    def _advance(self) -> None:
        """Start the next capture if none is under way and no cell runs."""
        if self.busy or self._collecting or self._job or not self._waiting or self.unproven:
            return
        job = self._waiting.popleft()
        if job.touched is not None:
            job.touched = None if self._touched is None else job.touched | self._touched
        job.calm = job.touched is not None and self._calm
        self._touched, self._calm = set(), True
        self._pace.looked()
        if job.touched is None:
            self._fresh = False
        job.whole = tasks.live()
        self._collect(job)

    def _collect(self, job: Job) -> None:
        limit_s = self._children.limit_s(job)
        generator = self.collector.collect(
            job.touched, list(self._log), limit_s=limit_s, calm=job.calm
        )
        self._collecting = (generator, job)
        self._step()

    def _step(self) -> None:
        """Collect for a slice of time, all of it for an explicit capture."""
        if self._collecting is None:
            return
        generator, job = self._collecting
        until = time.perf_counter() + SLICE_S
        try:
            try:
                while job.explicit or job.whole or time.perf_counter() < until:
                    next(generator)
            except StopIteration as stop:
                self._collecting = None
                self._hand_over(stop.value, job)
                return
            except Dear:
                self._collecting = None
                if self._recorder is not None:
                    self._recorder.look(None)
                if not self._forked(job):
                    job.inline = True
                    self._collect(job)
                return
        except Exception as error:  # a defect of ours must not end captures for good
            self._collecting = None
            self._failed(job, error)
            return
        if self.loop is not None:
            self.loop.call_later(0, self._step, context=self._context)

    # --- bytes -----------------------------------------------------------------------------------

    def _hand_over(self, snapshot: Snapshot, job: Job, *, lags: bool = False) -> None:
        recorder = self._recorder
        if recorder is None:
            job.done.set_exception(CannotRestore("no_directory", "captures were switched off"))
            return
        recorder.look(snapshot)
        if recorder.own_memory(snapshot):
            job.seal.close()
        elif not job.explicit:
            job.snapshot = snapshot
            if self._forked(job):
                return
        if lags and snapshot.light:
            self._lagging.append(job)
            self.collector.stored(snapshot.groups)
        else:
            self._hurry()
            job.hurry()
            self._job = job
        facts = self._facts()

        def work() -> None:
            job.wait(LAGGING_S, self._takes_time)
            write(recorder, snapshot, facts, job, sync=job.explicit)
            self._back(lambda: self._settle(job))

        self._bytes.put(work)

    def _takes_time(self) -> bool:
        """Whether a cell runs that is no short one. From any thread."""
        return self._depth > 0 and time.monotonic() - self._begun_s > LAG_S

    def _hurry(self) -> None:
        """What waits to be written is wanted."""
        for job in self._lagging:
            job.hurry()

    def _drained(self) -> bool:
        """Have it written; whether it is."""
        self._hurry()
        return all(job.ended.wait(SETTLE_S) for job in self._lagging)

    def _settle_all(self) -> None:
        """Take note of what is written."""
        for job in [*self._lagging, *filter(None, (self._job,))]:
            if job.ended.is_set():
                self._settle(job)

    def _forked(self, job: Job) -> bool:
        """Have a forked child do what is left of a job, where that is safe."""
        recorder = self._recorder
        if recorder is None or job.inline or not self._children.safe(self._threads):
            return False
        if not self._drained():
            return False  # both would give their captures the same number

        def then() -> None:
            self._back(lambda: self._settle(job))

        if not self._children.start(job, recorder, list(self._log), self._facts(), then):
            return False
        self._job = job
        return True

    def _back(self, work: Callable[[], None]) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(work, context=self._context)

    def _facts(self) -> Facts:
        return Facts(
            session_id=self.session_id,
            root=self.base.root,
            finished=tuple(self._finished),
            held=frozenset(self._held),
        )

    def _settle(self, job: Job) -> None:
        """Take note of what the bytes thread made of a job. Once; from the main thread."""
        if self._job is job:
            self._job = None
        elif job in self._lagging:
            self._lagging.remove(job)
        if not job.settled:
            job.settled = True
            self._conclude(job)

    def _conclude(self, job: Job) -> None:
        written = job.outcome
        if not isinstance(written, Written):
            self._failed(job, written or RuntimeError("nothing was written"))
            return
        if job.knowledge is not None:
            self._children.stored += 1
            self.collector.learn(job.knowledge.collector)
        self._overtaken = 0
        self._pace.stored()
        if self._recorder is not None and written.path.parent == self._recorder.directory:
            new = self._noted(written)
            told = answer(written, time.perf_counter() - job.begun)
            if new:
                short = {k: v for k, v in told.items() if k != "report"}
                self.tell({"event": "captured", **short})
            if not job.done.done():
                job.done.set_result(told)
        elif not job.done.done():
            job.done.set_exception(CannotRestore("moved", "captures go elsewhere now"))
        self._advance()

    def _noted(self, written: Written) -> bool:
        """The newest capture is this one, unless a newer is known; whether it is new."""
        last = self.last
        if last is not None and last.path.parent == written.path.parent:
            if last.manifest.number > written.manifest.number:
                return False
            new = last.manifest.number != written.manifest.number
        else:
            new = True
        if not self._lagging:
            self.collector.stored(group.names for group in written.manifest.groups)
        self.last = written
        if self.mover is not None:
            self.mover.journal.trim(written.manifest.finished)
        return new

    def _failed(self, job: Job, error: BaseException) -> None:
        if isinstance(error, Overtaken | NotStored) or self._children.failed(error):
            self._overtaken += isinstance(error, Overtaken)
            if isinstance(error, NotStored):
                self.collector.stored(())
            self._put_back(job)
            self._arm()
            return
        self._touched = None
        self._calm = False
        self._fresh = True
        self.collector.stored(())
        reason = asking.words(error)
        self.tell({"event": "capture_failed", "reason": reason, "refused": []})
        if not job.done.done():
            job.done.set_exception(error)
        if self.loop is not None:
            self.loop.call_later(RETRY_S, self._arm, context=self._context)
