"""The capture engine of one kernel: watches cells, captures after them, restores.

Everything that touches user objects runs on the kernel's main thread between cells; bytes are hashed and
written on a thread of their own. Puts no name into the namespace and never interrupts a cell.
"""

import asyncio
import builtins
import contextvars
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roost.runtime.kernel import asking, journal, process, rebuild, tasks
from roost.runtime.kernel.again import Again, entries, listen
from roost.runtime.kernel.capture import INLINE_BYTES, Collector, Dear, Snapshot, drained
from roost.runtime.kernel.cells import Cell, names_of
from roost.runtime.kernel.children import QUICK_S, Children
from roost.runtime.kernel.format import (
    FINISHED_LIMIT,
    Entry,
    manifest_numbers,
    manifest_path,
)
from roost.runtime.kernel.jobs import Bytes, Fields, Job, answer, write
from roost.runtime.kernel.loops import Running
from roost.runtime.kernel.notice import Mover, Transformer, check
from roost.runtime.kernel.pace import RETRY_S, Pace
from roost.runtime.kernel.pausing import Continued, Pauser
from roost.runtime.kernel.recorder import Facts, Overtaken, Recorder, Seal, Written
from roost.runtime.kernel.restore import CannotRestore, Restored, restore

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
CHILD_SETTLE_S = 0.01
CHILD_NOTICE_S = 3.0
"""How long a cell, a notice waits for a child that captures at most."""
SETTLE_S = 0.25
"""How long a cell waits at most for the capture before it to be written."""

Listener = Callable[[Fields], None]


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
        self._log: list[Cell] = asking.former_cells(shell)
        self._finished: deque[str] = deque(maxlen=FINISHED_LIMIT)
        self._depth = 0
        self._current = ("", False)
        self._begun_s = time.monotonic()
        self._restoring = False
        """The cell that runs has restored: it is not logged."""
        self._touched: set[str] | None = set()
        self._fresh = False
        """A cell has run since everything was looked at."""
        self._pace = Pace(self._quick, self._idle)
        self._collecting: tuple[Generator[None, None, Snapshot], Job] | None = None
        self._job: Job | None = None
        self._waiting: deque[Job] = deque()
        self._overtaken = 0
        self._bytes = Bytes()
        self._children = Children(self.collector, self._bytes)
        self.running = Running()
        self.mover: Mover | None = None
        """Journals requests and answers notices, while tracking on its own."""
        self.pauser: Pauser | None = None
        """Pauses the running cell for a keeper, while tracking for one."""
        self._transformer = Transformer(
            self.running, lambda: (self.mover or self.pauser) is not None and self._depth == 1
        )
        shell.ast_transformers.append(self._transformer)
        self.again = Again(self.kernel, self.running, self._transformer, self._last_ok)
        self.continued = Continued(self.kernel, self.running, self._transformer)
        self._listens = False
        self._former: dict[Path, tuple[journal.Facts, int]] = {}
        """Journal and newest capture of a directory as they were before this kernel tracked into it."""
        self._threads: set[int] | None = None
        """Threads of the kernel itself, noted before the first cell."""
        self._context = contextvars.copy_context()
        """The context variables of cells: callbacks of the loop have others."""
        self._unset: dict[str, Any] = {}
        """Restored pieces that live in context variables, until a cell's context can take them."""
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

    def track(self, directory: Path | None, *, alone: bool = False) -> None:
        """Capture into this directory after each cell; None ends that.

        ``alone``: nobody else knows the requests, so they are journalled here and notices are answered here.
        """
        if self.mover is not None:
            self.mover.close()
            self.mover = None
        self.pauser = None
        if directory is None:
            self._recorder = None
            return
        directory = directory.absolute()
        if alone:
            number = max(manifest_numbers(directory), default=0)
            if directory not in self._former:
                self._former[directory] = (journal.read(directory), number)
                self.hold(number)
            self.mover = Mover(
                directory, self.shell.user_ns, self.running, self._capture_now, self._last_answer,
                self.base.root, self.again.waiting(),
            )  # fmt: skip
            self._listen()
        else:
            self.pauser = Pauser(self.kernel, self.shell.user_ns, self.running, self._capture_now)
        self.running.install(builtins.__dict__)
        self._recorder = Recorder(directory, None)
        self._bytes.spare = self._recorder.sync_one
        self.collector.records = {}
        self._touched = None
        self._fresh = True
        self._arm()

    def _listen(self) -> None:
        def arrived(message: journal.Message) -> None:
            if self.mover is not None:
                self.mover.journal.arrived(message)

        if not self._listens:
            self._listens = listen(self.kernel, arrived)

    def newest(self, directory: Path) -> int:
        """Number of the capture to restore from a directory: none of this kernel's own; 0: none."""
        former = self._former.get(directory.absolute())
        return former[1] if former else max(manifest_numbers(directory), default=0)

    def facts(self, directory: Path) -> journal.Facts:
        """The journal that belongs to ``newest``."""
        former = self._former.get(directory.absolute())
        return former[0] if former else journal.read(directory)

    def restore(
        self, directory: Path, manifest: Path, *, in_cell: bool = False, replay: bool = True
    ) -> Restored:
        """Restore into this kernel. ``in_cell``: from inside a cell; ``replay``: what ran and waited there is
        run afterwards. Raises ``CannotRestore``."""
        done = restore(directory, manifest, self.shell, self.base, in_cell=in_cell)
        self.report = done.report
        self._unset = dict(done.in_context)
        self._log = list(done.cells)
        self._finished = deque(done.manifest.finished, maxlen=FINISHED_LIMIT)
        if in_cell:
            self._restoring = True
        if in_cell and replay:
            facts = self.facts(directory)
            former = self._former.pop(directory.absolute(), None)
            if former is not None:
                self.release(former[1])
            done.report += entries(facts, done.manifest)
            self.running.install(builtins.__dict__)
            self.again.load(facts, done.manifest, done.loops)
            if self.mover is not None:
                self.mover.journal.carry(self.again.waiting())
            self.again.schedule(self.loop)
        else:
            self.continued.loops = done.loops
        if self._recorder is not None and self._recorder.directory == directory.absolute():
            # What is stored here already need not be written again.
            self._recorder = Recorder(directory.absolute(), done.manifest)
            self._bytes.spare = self._recorder.sync_one
            path = manifest_path(directory.absolute(), done.manifest.number)
            if path.exists():
                self.last = Written(done.manifest, path, 0)
        self.collector.records = {}
        self._touched = None
        self._fresh = True
        self._arm()
        return done

    @property
    def directory(self) -> Path | None:
        """Where captures go."""
        return None if self._recorder is None else self._recorder.directory

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

    def settle(self) -> None:
        """Wait until what was last handed over is written."""
        if self._job is not None:
            self._job.ended.wait(SEAL_WAIT_S)

    @property
    def log(self) -> list[Cell]:
        """The cells of the session so far."""
        return list(self._log)

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
        job = Job(None, explicit=True)
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
        snapshot = drained(collector.collect(None, list(self._log)))
        recorder = Recorder(directory.absolute(), None)
        return answer(recorder.write(snapshot, self._facts(), Seal()), 0.0)

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
            self._threads = asking.other_threads()
        while self._unset:
            name, value = self._unset.popitem()
            process.IN_CONTEXT[name](value, self.base, self.shell)
        self._current = (asking.message_id(self.kernel), True)
        self._begun_s = time.monotonic()
        self._let_cell_begin()
        if self.mover is not None:
            self.collector.loops = dict(self.running.saved) or self.again.loops
            self._capture_before()
            self.mover.begins(asking.message(self.kernel), self.again.rest)
        elif self.pauser is not None:
            self.pauser.begins(asking.message(self.kernel))

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
        if self.pauser is not None:
            self.pauser.ends()
        self.running.clear()
        self.collector.loops = self.again.loops
        self._context = contextvars.copy_context()
        self._arm()

    def _post_run_cell(self, result: Any) -> None:
        info = getattr(result, "info", None)
        if self._depth or info is None:
            return
        if self._restoring:  # this cell takes no number in the restored history
            self._restoring = False
            if self.mover is not None:
                self.mover.ends()
            return
        code = info.raw_cell
        parsed = info.transformed_cell or self.shell.transform_cell(code)
        names = names_of(parsed)
        if (
            names is None
            or self._touched is None
            or asking.other_threads() - (self._threads or set())
            or tasks.live()
        ):
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
                file=asking.file_name(self.shell, code, parsed),
                seconds=round(time.monotonic() - self._begun_s, 3),
            )
        )
        if self.mover is not None:
            self.mover.ends()

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
        if recorder is None:
            return
        if job is not None and job.ended.wait(CHILD_SETTLE_S if job.child else SETTLE_S):
            self._settle(job)
        if self._job is not None or not (self._fresh or self._touched is None or self._touched):
            return
        safe = self._children.safe(self._threads)
        limit_s = None if self.running.saved else QUICK_S if safe else BEFORE_S
        job = Job(self._touched, explicit=False)
        self._touched = set()
        self._pace.looked()
        try:
            if limit_s is not None and self.collector.cost_s(job.touched) > limit_s:
                raise Dear
            generator = self.collector.collect(job.touched, list(self._log), limit_s=limit_s)
            snapshot = drained(generator)
        except Dear:
            if not self._forked(job):
                self._put_back(job)
            return
        if snapshot.own_memory(INLINE_BYTES if safe else BEFORE_BYTES):
            self._hand_over(snapshot, job)
            return
        job.snapshot = snapshot
        if not self._forked(job):
            self._put_back(job)

    def _capture_now(self, iterators: dict[int, Any]) -> Fields:
        """Capture at once on the main thread, also inside a cell; durable when it returns.

        Raises ``CannotPause`` and ``OSError``; nothing is stored then.
        """
        recorder = self._recorder
        if recorder is None:
            raise CannotRestore("no_directory", "captures were switched off")
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
        self._bytes.put(lambda: write(recorder, snapshot, facts, job, sync=True))
        job.ended.wait()
        if self._job is not None:  # it was written before this one
            self._job = None
        self._touched = None
        if isinstance(job.outcome, Written):
            self._noted(job.outcome)
            return answer(job.outcome, time.perf_counter() - job.begun)
        raise job.outcome or CannotRestore("failed", "the capture was not written")

    def _last_answer(self) -> Fields:
        return answer(self.last, 0.0) if self.last is not None else {"number": 0}

    def _last_ok(self) -> bool:
        return not self._log or self._log[-1].ok

    def _put_back(self, job: Job) -> None:
        if job.explicit:
            self._waiting.appendleft(job)
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
        if self.busy or self._collecting or self._job or not self._waiting:
            return
        job = self._waiting.popleft()
        if job.touched is not None:
            job.touched = None if self._touched is None else job.touched | self._touched
        self._touched = set()
        self._pace.looked()
        if job.touched is None:
            self._fresh = False
        job.whole = tasks.live()
        self._collect(job)

    def _collect(self, job: Job) -> None:
        limit_s = self._children.limit_s(job)
        generator = self.collector.collect(job.touched, list(self._log), limit_s=limit_s)
        self._collecting = (generator, job)
        self._step()

    def _step(self) -> None:
        """Collect for a slice of time, all of it for an explicit capture."""
        if self._collecting is None:
            return
        generator, job = self._collecting
        until = time.perf_counter() + SLICE_S
        try:
            while job.explicit or job.whole or time.perf_counter() < until:
                next(generator)
        except StopIteration as stop:
            self._collecting = None
            self._hand_over(stop.value, job)
            return
        except Dear:
            self._collecting = None
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

    def _hand_over(self, snapshot: Snapshot, job: Job) -> None:
        recorder = self._recorder
        if recorder is None:
            job.done.set_exception(CannotRestore("no_directory", "captures were switched off"))
            return
        if snapshot.own_memory():
            job.seal.close()
        elif not job.explicit:
            job.snapshot = snapshot
            if self._forked(job):
                return
        self._job = job
        facts = self._facts()

        def work() -> None:
            write(recorder, snapshot, facts, job, sync=job.explicit)
            self._back(lambda: self._settle(job))

        self._bytes.put(work)

    def _forked(self, job: Job) -> bool:
        """Have a forked child do what is left of a job, where that is safe."""
        recorder = self._recorder
        if recorder is None or job.inline or not self._children.safe(self._threads):
            return False

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
        if self._job is not job:
            if not job.done.done():
                self._conclude(job)
            return
        self._job = None
        self._conclude(job)

    def _conclude(self, job: Job) -> None:
        written = job.outcome
        if not isinstance(written, Written):
            self._failed(job, written or RuntimeError("nothing was written"))
            return
        if job.knowledge is not None:
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
        self.collector.records = {group.names: group for group in written.manifest.groups}
        self.last = written
        if self.mover is not None:
            self.mover.journal.trim(written.manifest.finished)
        return new

    def _failed(self, job: Job, error: BaseException) -> None:
        if isinstance(error, Overtaken) or self._children.failed(error):
            self._overtaken += isinstance(error, Overtaken)
            self._put_back(job)
            self._arm()
            return
        self._touched = None
        self._fresh = True
        reason = asking.words(error)
        self.tell({"event": "capture_failed", "reason": reason, "refused": []})
        if not job.done.done():
            job.done.set_exception(error)
        if self.loop is not None:
            self.loop.call_later(RETRY_S, self._arm, context=self._context)
