"""The running cell, moved by a keeper: paused in a loop here, continued there when its request comes again.

A keeper has the requests itself and waits for cells that end, so nothing is journalled or given up here.
"""

import base64
import contextlib
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

from roost.runtime.kernel.journal import Message
from roost.runtime.kernel.loops import Loop, Pause, Running, resumed
from roost.runtime.kernel.notice import SIGNAL, TICK_S, CannotPause, Transformer, tree_of
from roost.runtime.kernel.restore import CannotRestore

MARK = "roost_mark"
"""Type of the message on iopub behind the last output before a pause."""

Fields = dict[str, Any]


class Asked:
    """One request to pause; answered once."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.done: Future[Fields] = Future()
        self.off = threading.Event()
        self._lock = threading.Lock()

    @property
    def paused(self) -> bool:
        """Whether the answer was that the cell stands."""
        return self.done.done() and self.done.result()["mode"] == "paused"

    def answer(self, fields: Fields) -> bool:
        """Whether this is the answer; False: there was one before."""
        with self._lock:
            if self.done.done():
                return False
            self.done.set_result(fields)
            return True


class Pauser:
    """Pauses the running cell when it is asked to. ``capture``: see ``Mover``."""

    def __init__(
        self,
        kernel: Any,
        space: dict[str, Any],
        running: Running,
        capture: Callable[[dict[int, Any]], Fields],
    ) -> None:
        self._kernel = kernel
        self._space = space
        self._running = running
        self._capture = capture
        self._asked: Asked | None = None
        self._pause: Pause | None = None
        self._current: Message | None = None
        signal.signal(SIGNAL, self._interrupted)

    # --- cells, on the main thread -----------------------------------------------------------------

    def begins(self, message: Message | None) -> None:
        """A cell begins."""
        self._current = message

    def ends(self) -> None:
        """It has ended: there is nothing to pause any more."""
        self._current = None
        if self._pause is not None:
            self._pause.disarm()
            self._pause = None
        if self._asked is not None:
            self._asked.answer({"mode": "over"})

    # --- from any thread ---------------------------------------------------------------------------

    def ask(self, token: str) -> Asked:
        """Pause the running cell. While one is asked for, or stands, it is the same one."""
        asked = self._asked
        if asked is None or asked.off.is_set() or (asked.done.done() and not asked.paused):
            self._asked = asked = Asked(token)
        return asked

    def poke(self) -> None:
        """Have the main thread look for a place to pause at."""
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    def go_on(self) -> None:
        """The move is off: a paused cell goes on, one not yet paused runs on."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.answer({"mode": "off"})
            asked.off.set()

    # --- the pause ---------------------------------------------------------------------------------

    def _interrupted(self, _number: int, frame: FrameType | None) -> None:
        asked = self._asked
        if asked is None or asked.done.done() or self._current is None or self._pause is not None:
            return
        if self._running.plan:
            pause = Pause(self._running, self._space, self._reached)
            if pause.arm(frame):
                self._pause = pause

    def _reached(self, top: int, loop: Loop) -> None:
        """The cell stands at the beginning of a loop's body."""
        self._pause = None
        asked, plan = self._asked, self._running.plan
        if asked is None or asked.done.done() or plan is None:
            return
        try:
            answer = self._capture(self._running.open_at(top, loop))
        except (CannotPause, OSError) as error:
            asked.answer({"mode": "cannot", "reason": str(error)})
            return
        tail = base64.b85encode(pickle.dumps(resumed(plan, top, loop))).decode()
        self._mark(asked.token)
        if asked.answer({**answer, "mode": "paused", "tail": tail}):
            _hold(asked.off)

    def _mark(self, token: str) -> None:
        """Everything printed goes out, and behind it a message that says so."""
        for stream in (sys.stdout, sys.stderr):
            if type(stream).__module__ == "ipykernel.iostream":
                stream.flush()
        with contextlib.suppress(AttributeError):  # not a kernel's shell
            self._kernel.session.send(self._kernel.iopub_socket, MARK, {"token": token})


def _hold(off: threading.Event) -> None:
    """Stay here; an interrupt reaches the cell only when it goes on."""
    interrupted = False
    while not off.is_set():
        try:
            time.sleep(TICK_S)
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt


class Continued:
    """Runs the rest of another kernel's cell when that cell's request comes."""

    def __init__(self, kernel: Any, running: Running, transformer: Transformer) -> None:
        self._running = running
        self._transformer = transformer
        self.loops: dict[int, Any] = {}
        """Iterators of the restored cell's loops."""
        self._message_id = ""
        self._tail = ""
        handlers = getattr(kernel, "shell_handlers", {})
        self._handler = handlers.get("execute_request")
        if self._handler is not None:
            handlers["execute_request"] = self._execute

    def expect(self, message_id: str, tail: str) -> None:
        """The request with this id runs ``tail`` in the place of its code. Raises ``CannotRestore``."""
        if self._handler is None or not message_id or tree_of(tail) is None:
            raise CannotRestore("damaged", "the rest of the running cell cannot be read")
        self._message_id, self._tail = message_id, tail

    async def _execute(self, stream: Any, ident: Any, parent: Message) -> None:
        handler: Any = self._handler
        if not self._message_id or parent["header"]["msg_id"] != self._message_id:
            await handler(stream, ident, parent)
            return
        self._message_id = ""
        self._transformer.instead = tree_of(self._tail)
        self._running.saved, self.loops = self.loops, {}
        try:
            await handler(stream, ident, parent)
        finally:
            self._transformer.instead = None
