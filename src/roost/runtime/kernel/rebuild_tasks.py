"""The halves of ``tasks`` that stored pickles call. Names and arguments here are part of the format.

Nothing that was made here runs before ``start``: of a pickle that cannot be opened nothing ever does.
"""

import asyncio
import contextvars
import heapq
from typing import Any

_tasks: dict[int, tuple[Any, Any, contextvars.Context]] = {}
"""By id: tasks made from the pickle that is being opened, the handles of their first step, their contexts."""
_ready: list[tuple[Any, Any, Any]] = []
"""Event loop, task (or None) and handle of what shall go on."""


def loop() -> Any:
    """The event loop of this kernel's cells. Raises ``RuntimeError`` where there is none."""
    return asyncio.get_running_loop()


def start() -> None:
    """The pickle is open: what it held goes on."""
    for around, task, handle in _ready:
        if task is None:
            if not handle._scheduled:
                handle._scheduled = True
                heapq.heappush(around._scheduled, handle)
        else:
            task._log_destroy_pending = True
            around._ready.append(handle)
    forget()


def forget() -> None:
    """The pickle could not be opened."""
    _ready.clear()
    _tasks.clear()


def future(kind: type, looped: bool) -> Any:
    """A future without a result."""
    make: Any = kind.__new__
    made = make(kind)
    if looped:
        asyncio.Future.__init__(made, loop=loop())
    return made


def task(kind: type, coroutine: Any) -> Any:
    """A task that does not begin."""
    around: Any = loop()
    context = contextvars.copy_context()
    made = kind(coroutine, loop=around, context=context)
    handle = around._ready.pop()  # its first step, scheduled by its making
    made._log_destroy_pending = False
    _tasks[id(made)] = (made, handle, context)
    return made


def set_future(made: Any, state: dict[str, Any]) -> None:
    """Second half of ``future`` and ``task``."""
    for name, value in state["own"].items():
        setattr(made, name, value)
    if "name" in state:
        made.set_name(state["name"])
    known = _tasks.pop(id(made), None)
    outcome = state["outcome"]
    if outcome is not None:
        _settle(made, *outcome)
        if not state["logs"]:
            made._log_traceback = False
        return
    if state["blocking"] is not None and known is None:
        made._asyncio_future_blocking = state["blocking"]
    for callback in state["callbacks"]:
        made.add_done_callback(callback)
    if known is not None:
        if state["cancels"]:
            made.cancel()
        task, handle, context = known
        for variable, value in state.get("context", ()):
            context.run(variable.set, value)
        _ready.append((loop(), task, handle))


def _settle(made: Any, how: str, value: Any) -> None:
    """By ``Future``'s own methods: a task forbids it with its own."""
    if how == "cancelled":
        asyncio.Future.cancel(made, value)
    elif how == "exception":
        asyncio.Future.set_exception(made, value)
    else:
        asyncio.Future.set_result(made, value)


def waiting(on: Any) -> Any:
    """What ``await`` waits on, for a future."""
    return on.__await__()


def timer() -> Any:
    """A timer that is not set."""
    return asyncio.TimerHandle(0.0, _nothing, (), loop())


def set_timer(made: Any, state: tuple[Any, tuple[Any, ...], float, str]) -> None:
    """Second half of ``timer``: what, with what, in how many seconds, and whether it waits still."""
    made._callback, made._args, remaining, standing = state
    made._when = made._loop.time() + remaining
    if standing == "cancelled":
        made.cancel()
    elif standing == "waiting":
        _ready.append((made._loop, None, made))


def _nothing() -> None:
    pass
