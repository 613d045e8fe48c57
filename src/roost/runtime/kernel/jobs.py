"""One capture on its way: from the main thread, which collects, to the bytes thread, which writes."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from roost.runtime.kernel.capture import Collector, drained
from roost.runtime.kernel.capture import Learned as CollectorLearned
from roost.runtime.kernel.cells import Cell
from roost.runtime.kernel.forks import Child
from roost.runtime.kernel.format import REFUSED
from roost.runtime.kernel.recorder import Facts, Recorder, Seal, Written
from roost.runtime.kernel.recorder import Learned as RecorderLearned
from roost.runtime.kernel.snapshot import Snapshot

Fields = dict[str, Any]
LAG_S = 0.01
"""A cell that has run for so long is no short one."""


class Job:
    """One capture on its way."""

    def __init__(self, touched: set[str] | None, *, explicit: bool) -> None:
        self.touched = touched
        self.explicit = explicit
        self.calm = False
        """Variables have changed and nothing else: the process needs no look."""
        self.whole = False
        """Tasks of the user run between cells: what is seen must be of one moment."""
        self.begun = time.perf_counter()
        self.done: Future[Fields] = Future()
        self.again()
        self.snapshot: Snapshot | None = None
        """Pickled already; a forked child only writes it."""
        self.child: Child | None = None
        self.awaited = False
        """A cell has waited for it already."""
        self.knowledge: Knowledge | None = None
        self.inline = False
        """Not in a forked child: that is not safe, or was tried."""
        self._wanted = threading.Event()

    def again(self) -> None:
        """Nothing has become of it so far."""
        self.seal = Seal()
        self.ended = threading.Event()
        """The bytes thread has done with it."""
        self.outcome: Written | BaseException | None = None
        self.settled = False
        """The engine has taken note of the outcome."""

    def hurry(self) -> None:
        """Write it now if it still waits."""
        self._wanted.set()

    def wait(self, most_s: float, urgent: Callable[[], bool]) -> None:
        """Until it is wanted, or urgent, or so old. On the bytes thread."""
        until = self.begun + most_s
        while not self._wanted.wait(LAG_S) and not urgent() and time.perf_counter() < until:
            pass


class Bytes:
    """The thread that hashes and writes, one piece of work after the other."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.spare: Callable[[], bool] | None = None
        """What it does when there is nothing else; false: it has no more."""
        threading.Thread(target=self._run, name="roost-bytes", daemon=True).start()

    def put(self, work: Callable[[], None]) -> None:
        """Have this done. From any thread."""
        self._work.put(work)

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get_nowait()
            except queue.Empty:
                spare = self.spare
                if spare is not None and spare():
                    continue
                work = self._work.get()
            work()


def write(
    recorder: Recorder,
    snapshot: Snapshot,
    facts: Facts,
    job: Job,
    *,
    sync: bool,
    look: bool = False,
) -> None:
    """Store a job's snapshot, on the bytes thread; ``job.ended`` tells. ``look``: the main thread waits, and
    has not asked yet what was written to memory."""
    try:
        if look:
            recorder.look(snapshot)
        job.outcome = recorder.write(snapshot, facts, job.seal, sync=sync)
    except BaseException as error:  # told to whoever waits
        job.outcome = error
    finally:
        job.ended.set()


class Elsewhere(Exception):
    """A forked child met names that only their own process can store."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(names)
        self.names = names


@dataclass(slots=True)
class Knowledge:
    """What a forked child has learned."""

    recorder: RecorderLearned
    collector: CollectorLearned


def store(
    collector: Collector,
    recorder: Recorder,
    job: Job,
    log: list[Cell],
    facts: Facts,
    given: Snapshot,
) -> tuple[Written, Knowledge]:
    """In a forked child: look at everything the job is about and write it."""
    snapshot = job.snapshot
    if snapshot is None:
        snapshot = drained(collector.collect(job.touched, log, given=given))
        if snapshot.home:
            raise Elsewhere(snapshot.home)
        recorder.here()
    written = recorder.write(snapshot, facts, Seal(), sync=False)
    return written, Knowledge(recorder.learned(), collector.learned())


def wait_for(child: Child, within_s: float, recorder: Recorder, job: Job) -> None:
    """Wait for a forked child, on the bytes thread; ``job.ended`` tells."""
    try:
        job.outcome, job.knowledge = child.result(within_s)
        recorder.learn(job.knowledge.recorder)
    except BaseException as error:  # told to whoever waits
        job.outcome = error
    finally:
        job.ended.set()


def answer(written: Written, seconds: float) -> Fields:
    """What is told of a capture."""
    manifest = written.manifest
    report = [asdict(entry) for entry in manifest.report]
    return {
        "number": manifest.number,
        "manifest": str(written.path),
        "bytes_new": written.bytes_new,
        "bytes_total": manifest.bytes_total,
        "seconds": seconds,
        "finished": list(manifest.finished),
        "execution_count": manifest.execution_count,
        "refused": [entry for entry in report if entry["outcome"] == REFUSED],
        "report": report,
    }
