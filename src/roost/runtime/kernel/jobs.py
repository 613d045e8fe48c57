"""One capture on its way: from the main thread, which collects, to the bytes thread, which writes."""

import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from roost.runtime.kernel.capture import Snapshot
from roost.runtime.kernel.format import REFUSED
from roost.runtime.kernel.recorder import Facts, Recorder, Seal, Written

Fields = dict[str, Any]


class Job:
    """One capture on its way."""

    def __init__(self, touched: set[str] | None, *, explicit: bool) -> None:
        self.touched = touched
        self.explicit = explicit
        self.whole = False
        """Tasks of the user run between cells: what is seen must be of one moment."""
        self.seal = Seal()
        self.begun = time.perf_counter()
        self.done: Future[Fields] = Future()
        self.ended = threading.Event()
        """The bytes thread has done with it."""
        self.outcome: Written | BaseException | None = None


class Bytes:
    """The thread that hashes and writes, one piece of work after the other."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="roost-bytes", daemon=True).start()

    def put(self, work: Callable[[], None]) -> None:
        """Have this done. From any thread."""
        self._work.put(work)

    def _run(self) -> None:
        while True:
            self._work.get()()


def write(recorder: Recorder, snapshot: Snapshot, facts: Facts, job: Job, *, sync: bool) -> None:
    """Store a job's snapshot, on the bytes thread; ``job.ended`` tells."""
    try:
        job.outcome = recorder.write(snapshot, facts, job.seal, sync=sync)
    except BaseException as error:  # told to whoever waits
        job.outcome = error
    finally:
        job.ended.set()


def drain(generator: Generator[None, None, Snapshot]) -> Snapshot:
    """Collect to the end at once."""
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            snapshot: Snapshot = stop.value
            return snapshot


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
