"""The capture engine of one kernel: watches cells, captures after them, restores.

Everything that touches user objects runs on the kernel's main thread between cells; bytes are hashed and
written on a thread of their own. Puts no name into the namespace and never interrupts a cell.
"""

import ast
import asyncio
import builtins
import contextvars
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from roost.runtime.kernel import asking, cells, journal, process, proving, rebuild, tasks
from roost.runtime.kernel.again import Again, entries, listen
from roost.runtime.kernel.calm import calm
from roost.runtime.kernel.capture import Collector, drained
from roost.runtime.kernel.captures import SEAL_WAIT_S, Captures
from roost.runtime.kernel.cells import Cell
from roost.runtime.kernel.format import (
    FINISHED_LIMIT,
    Entry,
    manifest_numbers,
    manifest_path,
)
from roost.runtime.kernel.interrupts import Interrupts
from roost.runtime.kernel.jobs import Fields, Job, answer
from roost.runtime.kernel.notice import Mover, Transformer
from roost.runtime.kernel.pausing import Continued, Pauser
from roost.runtime.kernel.recorder import Recorder, Seal, Written
from roost.runtime.kernel.restore import CannotRestore, Restored, restore


class Engine(Captures):
    """See the module. Methods run on the main thread unless they say otherwise."""

    def __init__(self, shell: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        super().__init__(shell, loop)
        self.report: list[Entry] = []
        """The last restore's report."""
        self._current = ("", False)
        self._tree: ast.Module | None = None
        self._cell_calm = False
        self._restoring = False
        """The cell that runs has restored: it is not logged."""
        self.pauser: Pauser | None = None
        """Pauses the running cell for a keeper, while tracking for one."""
        self._interrupts = Interrupts()
        self._transformer = Transformer(
            self.running,
            lambda: (self.mover or self.pauser) is not None and self._depth == 1,
            self._interrupts.begin,
        )
        shell.ast_transformers.append(self._transformer)
        self.again = Again(self.kernel, self.running, self._transformer, self._last_ok)
        self.continued = Continued(self.kernel, self.running, self._transformer)
        self._listens = False
        self._former: dict[Path, tuple[journal.Facts, int]] = {}
        """Journal and newest capture of a directory as they were before this kernel tracked into it."""
        self._unset: dict[str, Any] = {}
        """Restored pieces that live in context variables, until a cell's context can take them."""
        proving.guard(self.kernel, self.prove, self._comm_message)
        self.proven: Callable[[], None] = lambda: None
        """Called when all restored variables are verified: the report is final."""
        self._hooks = {
            "pre_execute": self._pre_execute,
            "post_execute": self._post_execute,
            "pre_run_cell": self._pre_run_cell,
            "post_run_cell": self._post_run_cell,
        }
        for event, hook in self._hooks.items():
            shell.events.register(event, hook)

    # --- what others ask -------------------------------------------------------------------------

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
            "children": {"stored": self._children.stored, "vain": self._children.vain},
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
        self.settle()
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
        self.collector.stored(())
        self._touched = None
        self._fresh = True
        self._arm()

    def _listen(self) -> None:
        if not self._listens:
            self._listens = listen(self.kernel, lambda: self.mover.journal if self.mover else None)

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
        self.prove()
        self.settle()
        done = restore(directory, manifest, self.shell, self.base, in_cell=in_cell)
        self._watch(done, in_cell=in_cell)
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
        self.collector.stored(())
        self._touched = None
        self._fresh = True
        self._arm()
        return done

    def _watch(self, done: Restored, *, in_cell: bool) -> None:
        """Have what is still being verified taken note of when it is."""
        self.unproven = done.unproven
        if not self.unproven:
            return
        running = asking.message(self.kernel) if in_cell else None
        if self.loop is None or (
            in_cell and (running is None or not journal.own_lines(running["content"]["code"]))
        ):
            self.prove_told()  # the rest of this cell may look at anything
            return
        self.unproven.then(lambda: self._back(self._verified))

    def _verified(self) -> None:
        self.prove()
        self.proven()
        self._advance()
        self._arm()

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
        self._drained()
        if self._job is not None:
            self._job.ended.wait(SEAL_WAIT_S)
        self._settle_all()

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
        self.prove()
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

    def _set_key(self, key: bytes) -> None:
        session = getattr(self.kernel, "session", None)
        if session is not None:
            session.key = key
            session.digest_history = set()

    # --- cells -----------------------------------------------------------------------------------

    def _comm_message(self, handle: Callable[[], Any]) -> Any:
        """A message to a comm is handled as a cell without code. Of one whose callback raises the shell does
        not say that it has ended; one of a subshell runs beside the cells, in a thread of its own."""
        before, beside = self._depth, asking.beside()
        try:
            return handle()
        finally:
            if beside:
                self._back(self._beside)
            while not beside and self._depth > before:
                self._post_execute()

    def _beside(self) -> None:
        self._touched = None
        self._calm = False
        self._fresh = True
        self._arm()

    def _pre_execute(self) -> None:
        if asking.beside():
            return
        self._depth += 1
        self._interrupts.hold()
        if self.unproven:
            running = asking.message(self.kernel)
            if self._depth > 1 or running is None or running["content"].get("user_expressions"):
                self.prove()
        if self._depth > 1:
            return
        if self._threads is None:
            self._threads = asking.other_threads()
        while self._unset:
            name, value = self._unset.popitem()
            process.IN_CONTEXT[name](value, self.base, self.shell)
        self._current = (asking.message_id(self.kernel), True)
        self._cell_calm = False
        self._begun_s = time.monotonic()
        self._let_cell_begin()
        if self.mover is not None:
            self.collector.loops = dict(self.running.saved) or self.again.loops
            self._capture_before()
            self.mover.begins(asking.message(self.kernel), self.again.rest)
        elif self.pauser is not None:
            self.pauser.begins(asking.message(self.kernel))

    def _pre_run_cell(self, info: Any) -> None:
        if asking.beside():
            return
        if self.unproven:
            source = self.shell.transform_cell(info.raw_cell)
            self.prove(self.unproven.needs(source, self.shell.user_ns, self.base.root))
        for entry in self._amended:
            print(f"{entry.name}: {entry.outcome}: {entry.reason}", file=sys.stderr)
        self._amended = []
        if self._depth == 1:
            self._current = (self._current[0], False)
            self._read(info)

    def _read(self, info: Any) -> None:
        """Read the code of the cell that begins: which names are in it, whether it can do anything else."""
        parsed = getattr(info, "transformed_cell", None)
        self._tree = cells.tree_of(parsed) if type(parsed) is str else None
        try:
            self._cell_calm = self._tree is not None and calm(self._tree, self.shell.user_ns)
        except RuntimeError:  # a container changed while it was looked at
            self._cell_calm = False

    def _post_execute(self) -> None:
        if asking.beside():
            return
        self._interrupts.let_go()
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        message_id, silent = self._current
        if message_id:
            self._finished.append(message_id)
        if silent:
            self._touched = None
        self._calm = self._calm and self._cell_calm
        self._fresh = True
        if self.pauser is not None:
            self.pauser.ends()
        self.running.clear()
        self.collector.loops = self.again.loops
        self._context = contextvars.copy_context()
        self._arm()

    def _post_run_cell(self, result: Any) -> None:
        info = getattr(result, "info", None)
        if self._depth or info is None or asking.beside():
            return
        if self._restoring:  # this cell takes no number in the restored history
            self._restoring = False
            if self.mover is not None:
                self.mover.ends()
            return
        code = info.raw_cell
        parsed = info.transformed_cell or self.shell.transform_cell(code)
        names = cells.names_of(parsed) if self._tree is None else cells.names_in(self._tree)
        self._calm = self._calm and self._cell_calm and bool(result.success)
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
                seconds=(time.monotonic() - self._begun_s).__round__(3),
            )
        )
        if self.mover is not None:
            self.mover.ends(failed=not result.success)

    def _last_ok(self) -> bool:
        return not self._log or self._log[-1].ok
