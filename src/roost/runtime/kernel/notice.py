"""A notice has come: what runs is paused, finished or given up, and everything is made durable in time.

``Mover`` belongs to an engine that tracks into a directory. It journals requests, and at a notice it has the
last word on the main thread: after its answer the old kernel does nothing more until the deadline is over.
"""

import ast
import base64
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any

from roost.runtime.kernel.format import REFUSED
from roost.runtime.kernel.journal import Journal, Message, Request
from roost.runtime.kernel.loops import Loop, Pause, Running, resumed, wrap
from roost.runtime.kernel.workfiles import Workfiles

SIGNAL = signal.SIGURG
"""Interrupts the main thread's system calls; ignored by default, so that nobody is harmed by it."""
RESERVE_SHARE = 0.2
RESERVE_S = 2.0
"""Kept back of the time of a notice for giving up a cell: this share, at most so many seconds."""
AFTER_S = 5.0
"""Past the deadline by so much the machine is still there: the move is off, the cell goes on."""
TICK_S = 0.02

Fields = dict[str, Any]


class Notice:
    """One notice, until it is answered."""

    def __init__(self, within_s: float) -> None:
        self.done: Future[Fields] = Future()
        self.off = threading.Event()
        self.deadline = self.give_up = 0.0
        self.again(within_s)

    def again(self, within_s: float) -> None:
        """The deadline is another one now."""
        self.deadline = time.monotonic() + within_s
        self.give_up = self.deadline - min(RESERVE_S, within_s * RESERVE_SHARE)

    @property
    def over(self) -> bool:
        """The machine is still there, long after the deadline, or stays: the move is off."""
        return self.off.is_set() or time.monotonic() > self.deadline + AFTER_S

    @property
    def left_s(self) -> float:
        """Seconds until the cell would have to be given up."""
        return max(0.0, self.give_up - time.monotonic())

    def answer(self, fields: Fields) -> None:
        """Once; later answers do not count."""
        if not self.done.done():
            self.done.set_result(fields)

    def hold(self) -> None:
        """Stay here until the machine is gone, or the move is off; an interrupt reaches the cell only then:
        what the cell did in answer to it would be lost."""
        interrupted = False
        while not self.over:
            try:
                time.sleep(TICK_S)
            except KeyboardInterrupt:
                interrupted = True
        if interrupted:
            raise KeyboardInterrupt


class Mover:
    """See the module. ``capture`` captures at once on the main thread and returns its answer when durable."""

    def __init__(
        self,
        directory: Path,
        space: dict[str, Any],
        running: Running,
        capture: Callable[[dict[int, Any]], Fields],
        last: Callable[[], Fields],
        root: str,
        carried: Iterable[Request] = (),
    ) -> None:
        self.journal = Journal(directory, carried)
        self._files = Workfiles(directory, Path(root))
        self._space = space
        self._running = running
        self._capture = capture
        self._last = last
        self._notice: Notice | None = None
        self._pause: Pause | None = None
        self._current: Message | None = None
        signal.signal(SIGNAL, self._interrupted)

    def close(self) -> None:
        """Track no more."""
        self.journal.close()
        self._files.close()
        if self._notice is not None:
            self._notice.off.set()

    # --- cells, on the main thread -----------------------------------------------------------------

    def begins(self, message: Message | None, rest: str) -> None:
        """A cell begins; ``rest`` where it continues another kernel's."""
        notice = self._notice
        if notice is not None and notice.done.done() and not notice.over:
            notice.hold()  # it is the next kernel's to run: it waits in the journal
        self._current = message
        files = self._files.before()
        if message is not None:
            self.journal.begun(message, rest, files)

    def rests(self) -> None:
        """No cell has followed the last one."""
        self._files.rests()

    def ends(self, *, failed: bool = False) -> None:
        """The cell has ended: at a notice its effects are captured before anything else runs."""
        message, self._current = self._current, None
        if message is not None:
            self.journal.ended(message["header"]["msg_id"])
            if failed and message["content"].get("stop_on_error", True):
                self.journal.failed()
        notice = self._notice
        if self._pause is not None:
            self._pause.disarm()
            self._pause = None
        if notice is None:
            return
        if not notice.done.done():
            self._finish(notice, "finished")
        notice.hold()  # also a cell that was given up and ended all the same: what waits is not run here

    # --- a notice ------------------------------------------------------------------------------------

    def begin(self, within_s: float, *, busy: bool) -> "Future[Fields]":
        """A notice has come while a cell runs (``busy``) or none. From any thread."""
        notice = self._notice
        if notice is not None and not notice.over:
            notice.again(within_s)  # told twice: one answer
            return notice.done
        notice = self._notice = Notice(within_s)
        if busy:
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
        return notice.done

    def idle(self, notice_done: "Future[Fields]") -> None:
        """No cell runs: capture now. On the main thread."""
        notice = self._notice
        if notice is not None and notice.done is notice_done and not notice.done.done():
            self._finish(notice, "idle")

    def late(self) -> None:
        """The time is nearly over: the cell is given up. From any thread."""
        notice = self._notice
        if notice is None or notice.done.done():
            return
        # Its effects from here on are nobody's: the main thread stops where it is, if it can.
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
        self.journal.sync()
        notice.answer({"mode": "rerun", **self._last()})

    def call_off(self) -> None:
        """The machine stays: go on."""
        if self._notice is not None:
            self._notice.off.set()

    @property
    def give_up_at(self) -> float:
        """When the present notice gives up its cell (monotonic seconds)."""
        return 0.0 if self._notice is None else self._notice.give_up

    def _finish(self, notice: Notice, mode: str) -> None:
        try:
            answer = self._capture({})
        except Exception as error:  # told to whoever waits
            if not notice.done.done():
                notice.done.set_exception(error)
            notice.off.set()
            return
        self._files.at_pause(notice.left_s / 2)
        self.journal.sync()
        notice.answer({"mode": mode, **answer})

    def _interrupted(self, _number: int, frame: FrameType | None) -> None:
        """``SIGNAL``, on the main thread between two instructions."""
        notice = self._notice
        if notice is None or self._current is None:
            return
        if notice.done.done():
            notice.hold()
        elif self._running.plan and self._pause is None:
            pause = Pause(self._running, self._space, self._reached)
            if pause.arm(frame):
                self._pause = pause

    def _reached(self, top: int, loop: Loop) -> None:
        """The cell stands at the beginning of a loop's body."""
        self._pause = None
        notice, plan, message = self._notice, self._running.plan, self._current
        if notice is None or notice.done.done() or plan is None or message is None:
            return
        iterators = self._running.open_at(top, loop)
        try:
            answer = self._capture(iterators)
        except CannotPause:
            return  # the cell may still finish in time
        except Exception as error:  # told to whoever waits
            notice.done.set_exception(error)
            notice.off.set()
            return
        tail = base64.b85encode(pickle.dumps(resumed(plan, top, loop))).decode()
        message_id = message["header"]["msg_id"]
        files = self._files.at_pause(notice.left_s / 2)
        self.journal.paused(message_id, answer["number"], tail, files)
        self.journal.sync()
        notice.answer({"mode": "paused", **answer})
        try:
            notice.hold()
        finally:
            self.journal.went_on(message_id)


class CannotPause(Exception):
    """An iterator of the loop cannot be stored."""


def check(report: list[Fields]) -> None:
    """Raises ``CannotPause`` when a loop's iterator was refused."""
    for entry in report:
        if entry["outcome"] == REFUSED and str(entry["name"]).startswith("loop "):
            raise CannotPause(entry["reason"])


class Transformer(ast.NodeTransformer):
    """Has the loops of a cell wrapped, and puts the rest of a continued cell in the place of its code."""

    def __init__(
        self, running: Running, wanted: Callable[[], bool], begins: Callable[[], None]
    ) -> None:
        """``wanted``: whether loops are wrapped now; ``begins``: told that the code is about to run."""
        self._running = running
        self._wanted = wanted
        self._begins = begins
        self.instead: ast.Module | None = None

    def visit(self, node: ast.AST) -> ast.AST:
        """Called by IPython with the whole cell."""
        if not isinstance(node, ast.Module):
            return node
        self._begins()
        if self.instead is not None:
            node, self.instead = self.instead, None
        if not self._wanted():
            return node
        first = max(self._running.saved, default=-1) + 1
        try:
            self._running.plan = wrap(node, first)
        except RecursionError:  # a cell nested this deep is simply not resumable
            self._running.plan = None
        return node


def tree_of(text: str) -> ast.Module | None:
    """A syntax tree out of a journal."""
    if not text:
        return None
    found = pickle.loads(base64.b85decode(text))
    return found if isinstance(found, ast.Module) else None
