"""Locks, queues, threads, pools, sockets and child processes: idle ones come back, busy ones are refused."""

import _queue
import concurrent.futures._base
import os
import pickle
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild, rebuild_live
from roost.runtime.kernel.refusal import ADVICE, Handler, Refusal, Storing, refuse

_OWNER = re.compile(r"owner=(\d+) count=(\d+)")
_PLAIN_THREAD = frozenset(vars(threading.Thread(name="Roost"))) | {
    "_handle", "_os_thread_handle", "_tstate_lock", "_target", "_args", "_kwargs", "_native_id",
}  # fmt: skip
SETTLE_S = 0.1
"""A worker that has just finished needs a moment to say so."""


# --- locks and queues ----------------------------------------------------------------------------


def reduce_lock(_pickler: Storing, value: Any) -> Any:
    """A lock comes back in the same state."""
    return rebuild.lock, (value.locked(),)


def reduce_rlock(_pickler: Storing, value: Any) -> Any:
    """A reentrant lock: free, or held as often by the main thread."""
    found = _OWNER.search(repr(value))
    owner, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if count and owner != threading.main_thread().ident:
        raise Refusal("a reentrant lock that another thread holds", "release it before the move")
    return rebuild_live.reentrant, (count,)


def reduce_condition(_pickler: Storing, value: threading.Condition) -> Any:
    """Conditions, and with them events, semaphores and queues: when nobody waits."""
    if value._waiters:  # type: ignore[attr-defined]
        raise Refusal("a lock, event or queue that a thread waits for", "end the thread first")
    return NotImplemented


def reduce_simple_queue(_pickler: Storing, value: Any) -> Any:
    """What lies in it, in order. Nothing else runs while it is taken out and put back."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e4)
    try:
        found = []
        try:
            while True:
                found.append(value.get_nowait())
        except queue.Empty:
            pass
        for item in found:
            value.put(item)
    finally:
        sys.setswitchinterval(interval)
    return rebuild_live.simple_queue, (), found, None, None, rebuild_live.fill_queue


# --- threads -------------------------------------------------------------------------------------


def reduce_thread(pickler: Storing, value: threading.Thread) -> Any:
    """Finished: stays finished. Not begun: as it was. A timer: for the time that is left."""
    state = value.__dict__
    own = {k: v for k, v in state.items() if k not in _PLAIN_THREAD}
    if value.ident is None:
        begin = (state.get("_target"), state.get("_args", ()), state.get("_kwargs", {}))
        more = (value.name, value.daemon, begin, own)
        return rebuild_live.new_thread, (type(value),), more, None, None, rebuild_live.fill_thread
    if value.is_alive():
        if type(value) is threading.Timer and not value.finished.is_set():
            return _timer(value, own)
        raise Refusal(
            "a thread that has not finished", "join it before the move, or start it again"
        )
    own["_ident"] = value.ident
    return rebuild.finished_thread, (type(value), value.name, value.daemon), own


def _timer(value: threading.Timer, own: dict[str, Any]) -> Any:
    begun = _age_s(value.native_id)
    left = max(0.5, value.interval - begun)
    own = {k: v for k, v in own.items() if k != "finished"}
    state = (value.name, value.daemon, left, value.interval, own)
    return rebuild_live.timer, (type(value),), state, None, None, rebuild_live.start_timer


def _age_s(task: int | None) -> float:
    """How long a thread of this process has run: the system notes when it began."""
    fields = Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()
    begun = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - begun)


def reduce_future(_pickler: Storing, value: concurrent.futures._base.Future[Any]) -> Any:
    """A finished future by value."""
    if not value.done():
        raise Refusal("a future without a result yet", "wait for its result before the move")
    return value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


# --- pools ---------------------------------------------------------------------------------------


def reduce_thread_pool(_pickler: Storing, value: Any) -> Any:
    """An idle pool: a new one of the same size."""
    inner: Any = value
    until = time.monotonic() + SETTLE_S
    while not _idle(inner):
        if time.monotonic() > until:
            raise Refusal("a pool with work under way", "wait for its results before the move")
        time.sleep(0.002)
    options = {
        "max_workers": inner._max_workers,
        "thread_name_prefix": inner._thread_name_prefix,
    }
    if hasattr(inner, "_initializer"):
        options |= {"initializer": inner._initializer, "initargs": inner._initargs}
    return rebuild_live.executor, (type(value), "thread", options, inner._shutdown)


def _idle(pool: Any) -> bool:
    alive = [thread for thread in pool._threads if thread.is_alive()]
    if pool._shutdown:
        return not alive
    return bool(pool._work_queue.empty() and pool._idle_semaphore._value >= len(alive))


def reduce_process_pool(_pickler: Storing, value: Any) -> Any:
    """An idle pool of processes: a new one of the same size."""
    inner: Any = value
    if inner._pending_work_items:
        raise Refusal("a pool with work under way", "wait for its results before the move")
    options = {
        "max_workers": inner._max_workers,
        "initializer": inner._initializer,
        "initargs": inner._initargs,
    }
    per_child = getattr(inner, "_max_tasks_per_child", None)
    if per_child is not None:
        options["max_tasks_per_child"] = per_child
    method = inner._mp_context.get_start_method(allow_none=True)
    return rebuild_live.executor, (
        type(value), f"process {method or ''}", options, inner._shutdown_thread,
    )  # fmt: skip


def reduce_multi_pool(_pickler: Storing, value: Any) -> Any:
    """``multiprocessing.Pool`` and its sibling of threads, idle."""
    inner: Any = value
    if inner._cache:
        raise Refusal("a pool with work under way", "wait for its results before the move")
    arguments = (inner._processes, inner._initializer, inner._initargs)
    pools: Any = sys.modules["multiprocessing.pool"]
    threads = isinstance(value, pools.ThreadPool)
    more = () if threads else (inner._maxtasksperchild,)
    method = "" if threads else inner._ctx.get_start_method(allow_none=True) or ""
    return rebuild_live.multi_pool, (type(value), (*arguments, *more), method, inner._state)


def reduce_pool_result(_pickler: Storing, value: Any) -> Any:
    """A result that has come."""
    if not value.ready():
        raise Refusal("a result that has not come yet", "wait for it before the move")
    state = {k: v for k, v in value.__dict__.items() if k not in ("_cache", "_pool")}
    return rebuild_live.pool_result, (type(value),), state


# --- sockets and children ------------------------------------------------------------------------


def reduce_socket(_pickler: Storing, value: socket.socket) -> Any:
    """Listening, bound or new: made again. A connection cannot move."""
    if type(value) is not socket.socket:
        raise Refusal("a socket", ADVICE["socket"])
    if value.fileno() < 0:
        return rebuild_live.closed_socket, ()
    try:
        value.getpeername()
    except OSError:
        pass
    else:
        raise Refusal("a connected socket", ADVICE["socket"])
    listening = bool(value.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    name = value.getsockname()
    anonymous = not name or (isinstance(name, tuple) and name[1] == 0)
    if not listening and _half_open(value):
        raise Refusal("a connected socket", ADVICE["socket"])
    options = [
        (level, option, value.getsockopt(level, option)) for level, option in _options(value.family)
    ]
    return rebuild_live.bound_socket, (
        value.family, value.type, value.proto, None if anonymous else name, listening,
        value.gettimeout(), options,
    )  # fmt: skip


def _half_open(value: socket.socket) -> bool:
    """A stream that was connected once: its other end is gone."""
    if value.type != socket.SOCK_STREAM or value.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    state = value.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return state[0] not in (7, 10)  # TCP_CLOSE, TCP_LISTEN


def _options(family: int) -> list[tuple[int, int]]:
    found = [
        (socket.SOL_SOCKET, getattr(socket, name))
        for name in ("SO_REUSEADDR", "SO_REUSEPORT", "SO_BROADCAST", "SO_KEEPALIVE")
    ]
    if family == socket.AF_UNIX:
        return [one for one in found if one[1] == socket.SO_REUSEADDR]
    return found


def reduce_child(_pickler: Storing, value: subprocess.Popen[Any]) -> Any:
    """A finished child process: its arguments and return code."""
    code = value.returncode
    if code is None:
        code = _ended(value.pid)
    if code is None:
        raise Refusal(
            "a child process that still runs", "let it end before the move, or start it again"
        )
    for pipe in (value.stdin, value.stdout, value.stderr):
        if pipe is not None and not pipe.closed:
            raise Refusal(
                "a child process whose output was not read", "call communicate() before the move"
            )
    state = {k: v for k, v in value.__dict__.items() if k != "_waitpid_lock"}
    state["returncode"] = code
    return rebuild_live.child, (type(value),), state, None, None, rebuild_live.fill_child


def _ended(pid: int) -> int | None:
    """The return code of a child that nobody has asked for yet; it stays there to be asked for."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


EXACT: dict[type, Handler] = {
    type(threading.Lock()): reduce_lock,
    type(threading.RLock()): reduce_rlock,
    threading.Condition: reduce_condition,
    _queue.SimpleQueue: reduce_simple_queue,
}
BASES: dict[type, Handler] = {
    threading.Thread: reduce_thread,
    concurrent.futures._base.Future: reduce_future,
    concurrent.futures._base.Executor: refuse("a pool of workers", "create it again after a move"),
    socket.socket: reduce_socket,
    subprocess.Popen: reduce_child,
}
LATE: dict[tuple[str, str], Handler] = {
    ("concurrent.futures.thread", "ThreadPoolExecutor"): reduce_thread_pool,
    ("concurrent.futures.process", "ProcessPoolExecutor"): reduce_process_pool,
    ("multiprocessing.pool", "Pool"): reduce_multi_pool,
    ("multiprocessing.pool", "ApplyResult"): reduce_pool_result,
    ("multiprocessing.process", "BaseProcess"): refuse(
        "a child process", "start it again after a move"
    ),
}
"""By module and name: their modules are only looked at when the user has loaded them."""
