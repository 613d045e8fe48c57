"""asyncio: futures, tasks with the coroutines they run, timers. They go on in the loop of the new kernel.

A task waits for a future, a timer or another task that comes along; what waits for the world outside
(sockets, threads, child processes) is refused by name. The rebuilding half is ``rebuild_tasks``.
"""

import asyncio
import contextvars
import functools
import gc
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

from roost.runtime.kernel import rebuild_tasks as rebuild
from roost.runtime.kernel.frames import IDS
from roost.runtime.kernel.kinds import Handler, Refusal
from roost.runtime.kernel.naming import mro_of
from roost.runtime.kernel.rebuild_frames import code_of

ADVICE = "await it before the move, or start it again after it"
_KERNEL = frozenset(
    {
        "ipykernel",
        "IPython",
        "tornado",
        "zmq",
        "jupyter_client",
        "anyio",
        "roost",
        "comm",
        "debugpy",
    }
)
"""Packages whose tasks are the kernel's own."""
_KERNEL_PATH = re.compile(rf"[/\\](?:{'|'.join(sorted(_KERNEL))})[/\\]")


def reduce_loop(_pickler: Any, value: Any) -> Any:
    """The loop that runs the cells is the new kernel's loop."""
    if value is not asyncio._get_running_loop():
        raise Refusal("an event loop of its own", "make it again after a move")
    return rebuild.loop, ()


def reduce_future(pickler: Any, value: Any) -> Any:
    """Futures and tasks: their outcome, or what they wait for and who waits for them."""
    kind = type(value)
    if any(base is asyncio.Task for base in mro_of(kind)):
        coroutine = value.get_coro()
        if kind is not asyncio.Task or id(type(coroutine)) not in IDS:
            raise Refusal("a task of a kind of its own", ADVICE)
        return rebuild.task, (kind, coroutine), _task_state(value), None, None, rebuild.set_future
    state = _state(value)
    if state["outcome"] is None and value.get_loop() is not asyncio._get_running_loop():
        raise Refusal("a future of another event loop", ADVICE)
    return rebuild.future, (kind, True), state, None, None, rebuild.set_future


def _task_state(value: Any) -> dict[str, Any]:
    state = _state(value)
    state["name"] = value.get_name()
    state["cancels"] = bool(value._must_cancel)
    if state["outcome"] is None:
        loop = asyncio._get_running_loop()
        if value.get_loop() is not loop:
            raise Refusal("a task of another event loop", ADVICE)
        if asyncio.current_task(loop) is value:
            raise Refusal("the task that is running", ADVICE)
        state["context"] = variables(value)
    return state


def variables(task: Any) -> list[tuple[Any, Any]]:
    """The notebook's context variables with their values in a task's own context."""
    found = [one for one in gc.get_referents(task) if type(one) is contextvars.Context]
    names = list(sys.modules["__main__"].__dict__.values())
    ours = {id(one) for one in names if type(one) is contextvars.ContextVar}
    return [pair for context in found for pair in context.items() if id(pair[0]) in ours]


def _state(value: Any) -> dict[str, Any]:
    outcome: tuple[str, Any] | None = None
    if value.cancelled():
        outcome = ("cancelled", value._cancel_message)
    elif value.done():
        error = value._exception
        outcome = ("result", value._result) if error is None else ("exception", error)
    return {
        "outcome": outcome,
        "logs": bool(value._log_traceback),
        "blocking": bool(value._asyncio_future_blocking),
        "callbacks": [] if outcome else list(_callbacks(value)),
        "own": _own(value, outcome[1] if outcome else None),
    }


def _own(value: Any, outcome: Any) -> dict[str, Any]:
    """Attributes of its own: futures in C have them, and no ``__dict__``."""
    found = [one for one in gc.get_referents(value) if type(one) is dict and one is not outcome]
    return dict(found[-1]) if found else {}


def _callbacks(value: Any) -> Iterator[Any]:
    """Who wants to hear of it. Tasks that wait for it ask again by themselves."""
    for callback, _context in value._callbacks or ():
        if type(callback) is types.BuiltinFunctionType and _is_task(callback.__self__):
            continue
        owner, function = _parts(callback)
        if owner is asyncio._get_running_loop() or function is None:
            raise Refusal("a future that waits for a socket, a thread or a process", ADVICE)
        name = function.__qualname__
        if name.startswith("_chain_future") or _foreign(function.__module__):
            raise Refusal("a future that waits for a thread, a process or the kernel", ADVICE)
        yield callback


def is_future(value: Any) -> bool:
    """Whether it is a future or a task."""
    return any(base is asyncio.Future for base in mro_of(type(value)))


def _is_task(value: Any) -> bool:
    return any(base is asyncio.Task for base in mro_of(type(value)))


def _parts(callback: Any) -> tuple[Any, types.FunctionType | None]:
    """The object and the function of a callback; no function: it is something else."""
    while type(callback) is functools.partial:
        callback = callback.func
    owner = None
    if type(callback) is types.MethodType:
        owner, callback = callback.__self__, callback.__func__
    return owner, callback if type(callback) is types.FunctionType else None


def _foreign(module: Any) -> bool:
    return type(module) is str and module.partition(".")[0] in _KERNEL


def reduce_waiting(_pickler: Any, value: Any) -> Any:
    """What ``await`` waits on, for a future."""
    below = [one for one in gc.get_referents(value) if one is not type(value)]
    return (rebuild.waiting, (below[0],)) if below else (iter, ((),))


def reduce_timer(_pickler: Any, value: Any) -> Any:
    """A timer waits for the rest of its time."""
    loop: Any = asyncio._get_running_loop()
    if value._loop is not loop:
        raise Refusal("a timer of another event loop", ADVICE)
    standing = "waiting" if value._scheduled else "gone"
    if value._cancelled:
        return rebuild.timer, (), (None, (), 0.0, "cancelled"), None, None, rebuild.set_timer
    remaining = max(0.0, value._when - loop.time())
    if not value._scheduled and any(one is value for one in loop._ready):
        standing, remaining = "waiting", 0.0
    state = (value._callback, value._args, remaining, standing)
    return rebuild.timer, (), state, None, None, rebuild.set_timer


def roots() -> Iterator[tuple[str, Any]]:
    """The user's tasks that have not finished and timers, under names: nothing else may refer to them."""
    loop: Any = asyncio._get_running_loop()
    if loop is None:
        return
    current = asyncio.current_task(loop)
    for task in asyncio.all_tasks(loop):
        if task is not current and _is_users(task):
            yield f"task {task.get_name()}", task
    space = sys.modules["__main__"].__dict__
    timers = [one for one in getattr(loop, "_scheduled", ()) if not one._cancelled]
    timers = [one for one in timers if getattr(_parts(one._callback)[1], "__globals__", 0) is space]
    for number, handle in enumerate(sorted(timers, key=lambda one: one._when), 1):
        yield f"timer {number}", handle


def _is_users(task: Any) -> bool:
    coroutine = task.get_coro()
    if id(type(coroutine)) not in IDS:
        return False
    return not _KERNEL_PATH.search(code_of(coroutine).co_filename)


def live() -> bool:
    """Whether tasks or timers of the user change things between cells."""
    return next(roots(), None) is not None


class _NoLoop:
    """Enough of an event loop for a future that is thrown away."""

    def get_debug(self) -> bool:
        return False


_NO_LOOP: Any = _NoLoop()
EXACT: dict[type, Handler] = {
    type(asyncio.Future(loop=_NO_LOOP).__await__()): reduce_waiting,
    asyncio.TimerHandle: reduce_timer,
}
EXACT.pop(types.GeneratorType, None)  # futures without C code wait in a generator
BASES: dict[type, Handler] = {
    asyncio.Future: reduce_future,
    asyncio.AbstractEventLoop: reduce_loop,
}
