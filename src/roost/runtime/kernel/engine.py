"""The capture engine of one kernel: watches cells, captures after them, restores.

Everything that touches user objects runs on the kernel's main thread between cells; bytes are hashed and
written on a thread of their own. Puts no name into the namespace and never interrupts a cell.
"""

import asyncio
import contextvars
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roost.runtime.kernel import process, rebuild
from roost.runtime.kernel.capture import Collector, Snapshot
from roost.runtime.kernel.cells import Cell, names_of
from roost.runtime.kernel.format import (
    FINISHED_LIMIT,
    REFUSED,
    Entry,
    manifest_path,
)
from roost.runtime.kernel.recorder import Facts, Overtaken, Recorder, Seal, Written
from roost.runtime.kernel.restore import CannotRestore, Restored, restore

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
SLICE_S = 0.02
"""The main thread looks after other things at least this often during a capture in the background."""
OVERTAKEN_LIMIT = 3
"""After so many captures void because cells came, the next cell waits for the capture's bytes."""
SEAL_WAIT_S = 5.0
"""How long a cell waits at most for an explicit capture to have read the user's memory."""
RETRY_S = 5.0
"""Pause before a failed capture is tried again without a new cell."""

Fields = dict[str, Any]
Listener = Callable[[Fields], None]


class _Job:
    """One capture on its way."""

    def __init__(self, touched: set[str] | None, *, explicit: bool) -> None:
        self.touched = touched
        self.explicit = explicit
        self.seal = Seal()
        self.begun = time.perf_counter()
        self.done: Future[Fields] = Future()


class Engine:
    """See the module. Methods run on the main thread unless they say otherwise."""

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
        self.report: list[Entry] = []
        """The last restore's report."""
        self._recorder: Recorder | None = None
        self._held: dict[int, int] = {}
        self._log: list[Cell] = _former_cells(shell)
        self._finished: deque[str] = deque(maxlen=FINISHED_LIMIT)
        self._depth = 0
        self._current = ("", False)
        self._touched: set[str] | None = set()
        self._fresh = False
        """A cell has run since everything was looked at."""
        self._first: float | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._collecting: tuple[Generator[None, None, Snapshot], _Job] | None = None
        self._job: _Job | None = None
        self._waiting: deque[_Job] = deque()
        self._overtaken = 0
        self._captured = 0.0
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads: set[int] | None = None
        """Threads of the kernel itself, noted before the first cell."""
        self._context = contextvars.copy_context()
        """The context variables of cells: callbacks of the loop have others."""
        self._unset: dict[str, Any] = {}
        """Restored pieces that live in context variables, until a cell's context can take them."""
        threading.Thread(target=self._run_bytes, name="roost-bytes", daemon=True).start()
        self._hooks = {
            "pre_execute": self._pre_execute,
            "post_execute": self._post_execute,
            "pre_run_cell": self._pre_run_cell,
            "post_run_cell": self._post_run_cell,
        }
        for event, hook in self._hooks.items():
            shell.events.register(event, hook)

    # --- what others ask -------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a cell runs. From any thread."""
        return self._depth > 0

    def status(self) -> Fields:
        """A look at the engine. From any thread."""
        return {
            "busy": self.busy,
            "pid": os.getpid(),
            "execution_count": int(self.shell.execution_count),
            "imports": list(process.imports(self.base)),
            "number": self.last.manifest.number if self.last else 0,
            "manifest": str(self.last.path) if self.last else "",
            "session_id": self.session_id,
            "capturing": self._recorder is not None,
        }

    def adopt(self, request: Fields) -> Fields:
        """Become the kernel of a session: key, folder, environment, where captures go."""
        if (cwd := request.get("cwd")) is not None:
            os.chdir(cwd)
        os.environ.update({str(k): str(v) for k, v in (request.get("env") or {}).items()})
        for path in reversed(request.get("sys_path") or []):
            if path not in sys.path:
                sys.path.insert(0, str(path))
        self.base.note()
        rebuild.set_root(self.base.root)
        self.session_id = str(request.get("session_id") or "")
        if (key := request.get("key")) is not None:
            self._set_key(str(key).encode())
        if request.get("captures"):
            self.track(Path(request["captures"]))
        return {}

    def track(self, directory: Path | None) -> None:
        """Capture into this directory after each cell; None ends that."""
        if directory is None:
            self._recorder = None
            return
        self._recorder = Recorder(directory.absolute(), None)
        self.collector.records = {}
        self._touched = None
        self._arm()

    def restore(self, directory: Path, manifest: Path, *, in_cell: bool = False) -> Restored:
        """Restore into this kernel. Raises ``CannotRestore``."""
        done = restore(directory, manifest, self.shell, self.base, in_cell=in_cell)
        self.report = done.report
        self._unset = dict(done.in_context)
        self._log = list(done.cells)
        self._finished = deque(done.manifest.finished, maxlen=FINISHED_LIMIT)
        if self._recorder is not None and self._recorder.directory == directory.absolute():
            # What is stored here already need not be written again.
            self._recorder = Recorder(directory.absolute(), done.manifest)
            path = manifest_path(directory.absolute(), done.manifest.number)
            if path.exists():
                self.last = Written(done.manifest, path, 0)
        self.collector.records = {}
        self._touched = None
        self._fresh = True
        self._arm()
        return done

    def warm(self, names: list[str]) -> Fields:
        """Import modules; what fails is told."""
        begun = time.perf_counter()
        missing = {name: why for name in names if (why := process.bring_in(name))}
        imported = [name for name in names if name not in missing]
        return {
            "imported": imported,
            "failed": sorted(missing),
            "missing": missing,
            "seconds": time.perf_counter() - begun,
        }

    def hold(self, number: int) -> Fields:
        """Keep a manifest and its chunks until ``release``."""
        self._held[number] = self._held.get(number, 0) + 1
        return {}

    def release(self, number: int) -> Fields:
        """Undo one ``hold``."""
        self._held[number] = self._held.get(number, 0) - 1
        if self._held[number] <= 0:
            del self._held[number]
        return {}

    def capture(self) -> "Future[Fields]":
        """Capture all that has changed as soon as no cell runs."""
        job = _Job(None, explicit=True)
        if self._recorder is None:
            job.done.set_exception(CannotRestore("no_directory", "adopt with a captures directory"))
        else:
            self._waiting.append(job)
            self._advance()
        return job.done

    def withdraw(self, done: "Future[Fields]") -> None:
        """Nobody waits for this capture any more: drop it unless it has begun."""
        self._waiting = deque(job for job in self._waiting if job.done is not done)

    def capture_here(self, directory: Path) -> Fields:
        """Capture at once, from inside a cell, into any directory; returns when it is durable."""
        collector = Collector(self.shell, self.kernel, self.base)
        snapshot = _drain(collector.collect(None, list(self._log)))
        recorder = Recorder(directory.absolute(), None)
        return self._answer(recorder.write(snapshot, self._facts(), Seal()), 0.0)

    def on_main(self, work: Callable[[], Any]) -> "Future[Any]":
        """Run something on the main thread between cells. From any thread."""
        done: Future[Any] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(work())
            except BaseException as error:  # handed to the one who asked
                done.set_exception(error)

        if self.loop is None:
            raise RuntimeError("the kernel has no event loop")
        self.loop.call_soon_threadsafe(run, context=self._context)
        return done

    def tell(self, fields: Fields) -> None:
        """Send an event to whoever listens. From any thread."""
        for listener in list(self.listeners):
            listener(fields)

    def _set_key(self, key: bytes) -> None:
        session = getattr(self.kernel, "session", None)
        if session is not None:
            session.key = key
            session.digest_history = set()

    # --- cells -----------------------------------------------------------------------------------

    def _pre_execute(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        if self._threads is None:
            self._threads = _other_threads()
        while self._unset:
            name, value = self._unset.popitem()
            process.IN_CONTEXT[name](value, self.base, self.shell)
        self._current = (_message_id(self.kernel), True)
        self._let_cell_begin()

    def _pre_run_cell(self, _info: Any) -> None:
        if self._depth == 1:
            self._current = (self._current[0], False)

    def _post_execute(self) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        message_id, silent = self._current
        if message_id:
            self._finished.append(message_id)
        if silent:
            self._touched = None
        self._fresh = True
        self._context = contextvars.copy_context()
        self._arm()

    def _post_run_cell(self, result: Any) -> None:
        info = getattr(result, "info", None)
        if self._depth or info is None:
            return
        code = info.raw_cell
        parsed = info.transformed_cell or self.shell.transform_cell(code)
        names = names_of(parsed)
        if names is None or self._touched is None or _other_threads() - (self._threads or set()):
            self._touched = None
        else:
            self._touched |= names
        self._log.append(
            Cell(
                code=code,
                count=int(self.shell.execution_count) - 1 if info.store_history else 0,
                msg_id=self._current[0],
                ok=bool(result.success),
                parsed=parsed if parsed.rstrip("\n") != code.rstrip("\n") else "",
                file=_file_name(self.shell, code, parsed),
            )
        )

    def _let_cell_begin(self) -> None:
        """A cell begins: a capture that still reads the user's memory is void, or is waited for."""
        for timer in self._timers:
            timer.cancel()
        self._timers = []
        if self._collecting is not None:
            generator, job = self._collecting
            self._collecting = None
            generator.close()
            self._put_back(job)
        elif self._job is not None and not self._job.seal.done.is_set():
            if self._job.explicit or self._overtaken >= OVERTAKEN_LIMIT:
                self._job.seal.done.wait(SEAL_WAIT_S)
            self._job.seal.overtake()

    def _put_back(self, job: _Job) -> None:
        if job.explicit:
            self._waiting.appendleft(job)
        self._touched = (
            None if job.touched is None or self._touched is None else self._touched | job.touched
        )

    # --- when ------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self.loop is None or (self._recorder is None and not self._waiting):
            return
        now = self.loop.time()
        if self._first is None:
            self._first = now
        quick = max(now, min(now + QUICK_S, self._first + LATEST_S))
        for timer in self._timers:
            timer.cancel()
        # Timers belong to the loop; without a running loop they wait for it.
        self._timers = [
            self.loop.call_at(quick, self._quick, context=self._context),
            self.loop.call_at(now + IDLE_S, self._idle, context=self._context),
        ]

    def _quick(self) -> None:
        cost = self.collector.cost_s(self._touched)
        late = (
            self._first is not None
            and self.loop is not None
            and (self.loop.time() - self._first > LATEST_S / 2)
        )
        in_a_row = late and time.monotonic() - self._captured < SHARE * cost
        if (self._fresh and cost < DEAR_S and not in_a_row) or self._waiting:
            self._begin(self._touched)

    def _idle(self) -> None:
        if self._fresh:
            self._begin(None)

    def _begin(self, touched: set[str] | None) -> None:
        if self._recorder is not None and not self._waiting:
            self._waiting.append(_Job(touched, explicit=False))
        self._advance()

    def _advance(self) -> None:
        """Start the next capture if none is under way and no cell runs."""
        if self.busy or self._collecting or self._job or not self._waiting:
            return
        job = self._waiting.popleft()
        if job.touched is not None:
            job.touched = None if self._touched is None else job.touched | self._touched
        self._touched = set()
        self._first = None
        if job.touched is None:
            self._fresh = False
        generator = self.collector.collect(job.touched, list(self._log))
        self._collecting = (generator, job)
        self._step()

    def _step(self) -> None:
        """Collect for a slice of time, all of it for an explicit capture."""
        if self._collecting is None:
            return
        generator, job = self._collecting
        until = time.perf_counter() + SLICE_S
        try:
            while job.explicit or time.perf_counter() < until:
                next(generator)
        except StopIteration as stop:
            self._collecting = None
            self._hand_over(stop.value, job)
            return
        except Exception as error:  # a defect of ours must not end captures for good
            self._collecting = None
            self._failed(job, error)
            return
        if self.loop is not None:
            self.loop.call_later(0, self._step, context=self._context)

    # --- bytes -----------------------------------------------------------------------------------

    def _hand_over(self, snapshot: Snapshot, job: _Job) -> None:
        recorder = self._recorder
        if recorder is None:
            job.done.set_exception(CannotRestore("no_directory", "captures were switched off"))
            return
        if snapshot.own_memory():
            job.seal.close()
        self._job = job
        facts = self._facts()

        def work() -> None:
            try:
                written = recorder.write(snapshot, facts, job.seal)
            except BaseException as error:  # told to whoever waits
                fault = error
                self._back(lambda: self._failed(job, fault))
            else:
                self._back(lambda: self._written(job, recorder, written))

        self._work.put(work)

    def _back(self, work: Callable[[], None]) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(work, context=self._context)

    def _run_bytes(self) -> None:
        while True:
            self._work.get()()

    def _facts(self) -> Facts:
        return Facts(
            session_id=self.session_id,
            root=self.base.root,
            finished=tuple(self._finished),
            held=frozenset(self._held),
        )

    def _written(self, job: _Job, recorder: Recorder, written: Written) -> None:
        self._job = None
        self._overtaken = 0
        self._captured = time.monotonic()
        if recorder is self._recorder:
            self.collector.records = {group.names: group for group in written.manifest.groups}
            new = self.last is None or self.last.manifest.number != written.manifest.number
            self.last = written
            answer = self._answer(written, time.perf_counter() - job.begun)
            if new:
                short = {k: v for k, v in answer.items() if k != "report"}
                self.tell({"event": "captured", **short})
            if not job.done.done():
                job.done.set_result(answer)
        elif not job.done.done():
            job.done.set_exception(CannotRestore("moved", "captures go elsewhere now"))
        self._advance()

    def _failed(self, job: _Job, error: BaseException) -> None:
        self._job = None
        if isinstance(error, Overtaken):
            self._overtaken += 1
            self._put_back(job)
            self._arm()
            return
        self._touched = None
        self._fresh = True
        reason = _words(error)
        self.tell({"event": "capture_failed", "reason": reason, "refused": []})
        if not job.done.done():
            job.done.set_exception(error)
        if self.loop is not None:
            self.loop.call_later(RETRY_S, self._arm, context=self._context)

    def _answer(self, written: Written, seconds: float) -> Fields:
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


def _drain(generator: Generator[None, None, Snapshot]) -> Snapshot:
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            snapshot: Snapshot = stop.value
            return snapshot


def _words(error: BaseException) -> str:
    if isinstance(error, OSError):
        full = error.errno in (27, 28, 122)  # EFBIG, ENOSPC, EDQUOT
        text = error.strerror or str(error)
        return f"disk full: {text}; free some space, the next capture tries again" if full else text
    return f"{type(error).__name__}: {error}"[:300]


def _message_id(kernel: Any) -> str:
    """The id of the request that runs now."""
    try:
        parent = kernel.get_parent("shell")
        return str(parent["header"]["msg_id"])
    except (AttributeError, KeyError, TypeError, LookupError):
        return ""


def _file_name(shell: Any, code: str, parsed: str) -> str:
    try:
        return str(shell.compile.get_code_name(code, parsed, 0))
    except Exception:  # an older IPython names cells differently; only tracebacks suffer
        return ""


def _former_cells(shell: Any) -> list[Cell]:
    """Cells that ran before the engine was loaded."""
    raw = list(shell.history_manager.input_hist_raw)[1:]
    return [Cell(code=str(code), count=number) for number, code in enumerate(raw, 1) if code]


def _other_threads() -> set[int]:
    return {ident for ident in sys._current_frames() if ident != threading.main_thread().ident}
