"""A capture in a forked child: the state stands still there while the user goes on.

A fork is safe only while no other thread of the process is at work: a lock held at that moment is held for
ever in the child, and a fork beside a running BLAS call can stop the parent. So it is done on the main
thread, with no thread of the user's alive and none of a library's running; else there is no fork. The child
opens nothing of the user's, leaves by ``os._exit``, and is killed when it takes too long.
"""

import contextlib
import ctypes
import gc
import os
import pickle
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from roost.runtime.kernel import asking

LEAST_S = 10.0
"""A child gets at least so long; more where the estimate says so."""
FAILURES = 2
"""After so many children that hung or died, no more are made in this session."""
NICE = 5
_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_HEAD = 8


class ChildFailed(Exception):
    """The child hung or died: what it was doing must be done here."""


class Forker:
    """Makes children of one kernel. Main thread, but for what ``Child`` says."""

    def __init__(self) -> None:
        self.failures = 0
        self.enabled = hasattr(os, "fork") and sys.platform == "linux"

    @property
    def possible(self) -> bool:
        """Whether forks are made at all."""
        return self.enabled and self.failures < FAILURES

    def safe(self, own: set[int] | None) -> bool:
        """Whether a fork is safe at this moment. ``own``: threads of the kernel itself."""
        return (
            self.possible
            and own is not None
            and threading.current_thread() is threading.main_thread()
            and not asking.other_threads() - own
            and not _at_work(own)
        )

    def fork(self, work: Callable[[], Any]) -> "Child | None":
        """A child that does this; None when the system lets us make none."""
        inside, outside = os.pipe()
        try:
            with _unwarned():
                pid = os.fork()
        except OSError:
            os.close(inside)
            os.close(outside)
            return None
        if pid == 0:
            _live(work, outside)
        os.close(outside)
        return Child(pid, inside)


class Child:
    """A forked child. Its methods run on one thread; ``kill`` on any."""

    def __init__(self, pid: int, handle: int) -> None:
        self.pid = pid
        self._handle = handle
        self._lock = threading.Lock()
        self._reaped = False

    def result(self, within_s: float) -> Any:
        """What its work gave; raises what it raised, and ``ChildFailed``. The child is gone afterwards."""
        try:
            content = self._read(time.monotonic() + within_s)
        finally:
            os.close(self._handle)
            self.kill()
            self._reap()
        good, value = pickle.loads(content)
        if not good:
            raise value
        return value

    def kill(self) -> None:
        """End it; ``result`` then fails."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if not self._reaped:
                os.kill(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        with self._lock:
            with contextlib.suppress(ChildProcessError):  # the user's code waited for any child
                os.waitpid(self.pid, 0)
            self._reaped = True

    def _read(self, until: float) -> bytes:
        content = bytearray()
        while len(content) < _HEAD or len(content) < _HEAD + _size(content):
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise ChildFailed("the forked child took too long")
            poll = select.poll()  # not select(): file numbers may be above 1024
            poll.register(self._handle, select.POLLIN)
            if not poll.poll(1000 * left_s):
                continue
            piece = os.read(self._handle, 1 << 20)
            if not piece:
                raise ChildFailed("the forked child died")
            content += piece
        return bytes(content[_HEAD:])


def _size(content: bytearray) -> int:
    return int.from_bytes(content[:_HEAD], "little")


def _live(work: Callable[[], Any], outside: int) -> None:
    """The whole life of a child."""
    pid = os.getpid()
    try:
        gc.disable()  # nothing of the user's is to be finalised here
        _LIBC.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # Blocked, not ignored: the handlers are part of what is captured here.
        signal.pthread_sigmask(
            signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGURG)
        )
        nothing = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(nothing, handle)
        os.nice(NICE)
        try:
            answer = pickle.dumps((True, work()))
        except BaseException as error:
            answer = _told(error)
        # A user's __reduce__ may have forked: the copy says nothing.
        if os.getpid() == pid:
            view = memoryview(len(answer).to_bytes(_HEAD, "little") + answer)
            while view.nbytes:
                view = view[os.write(outside, view) :]
    finally:
        os._exit(0)


def _told(error: BaseException) -> bytes:
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)
        return answer
    except Exception:  # an error that cannot travel
        return pickle.dumps((False, ChildFailed(asking.words(error))))


def _at_work(own: set[int]) -> bool:
    """Whether a thread of a library is running or waits for the disk."""
    mine = {
        thread.native_id
        for thread in threading.enumerate()
        if thread.ident in own or thread.name.startswith("roost-")
    }
    mine.add(threading.main_thread().native_id)
    tasks = Path("/proc/self/task").iterdir()
    return any(_state(task) in "RD" for task in tasks if int(task.name) not in mine)


def _state(task: Path) -> str:
    try:
        fields = (task / "stat").read_text()
    except OSError:  # ended meanwhile
        return "S"
    return fields[fields.rindex(")") + 2]


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Python 3.12 and later warn of a fork beside threads: this one is made on purpose."""
    if sys.version_info < (3, 12):
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
