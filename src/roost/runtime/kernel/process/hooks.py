"""Handlers of signals, tracing, import finders, streams and the way of warnings that the notebook set; the
last error."""

import asyncio
import signal
import socket
import sys
import types
import typing
import warnings
from collections.abc import Iterator
from typing import Any

from roost.runtime.kernel.naming import BY_VALUE, foreign
from roost.runtime.kernel.process.base import Baseline
from roost.runtime.kernel.refusal import Refusal

_SIGNALS = tuple(
    kind for kind in sorted(signal.valid_signals()) if kind not in (signal.SIGKILL, signal.SIGSTOP)
)
_PLAIN = (signal.SIG_DFL, signal.SIG_IGN)


def note(_shell: Any) -> dict[int, Any]:
    """The handlers before the user's first cell."""
    handlers: dict[int, Any] = {int(kind): signal.getsignal(kind) for kind in _SIGNALS}
    return handlers | {_SHOWING: getattr(warnings, _SHOW, None)}


_SHOW = "_showwarnmsg_impl"
"""What ``catch_warnings(record=True)`` replaces."""
_SHOWING = -1


def objects(base: Baseline) -> Iterator[tuple[str, Any]]:
    """Handlers that differ; those of libraries come with their libraries."""
    known = base.noted["hooks"]
    for kind in _SIGNALS:
        handler = signal.getsignal(kind)
        if handler is known[int(kind)] or handler is None:
            continue
        # ipykernel ignores interrupts between cells and puts its own way back after each.
        if foreign(handler) or (handler in _PLAIN and kind != signal.SIGINT):
            yield f"signal {signal.Signals(kind).name if kind in _NAMED else int(kind)}", handler

    for word, function in (("trace", sys.gettrace()), ("profile", sys.getprofile())):
        if function is not None and foreign(function):
            yield word, function
    for word in ("meta_path", "path_hooks"):
        row = [(place, one) for place, one in enumerate(getattr(sys, word)) if foreign(one)]
        if row:
            yield f"finders {word}", base.steady(word, row)
    for word, before in base.streams.items():
        now = getattr(sys, word)
        if now is not before and type(now).__name__ != "_Hush":
            yield f"stream {word}", now
    shows = getattr(warnings, _SHOW, None)
    if shows is not known[_SHOWING] and type(shows) is types.BuiltinMethodType:
        yield "warnings", shows

    if isinstance(error := getattr(sys, "last_value", None), BaseException):
        yield "error", error

    yield from _overloads(base)
    yield from _loop(base)


def _overloads(base: Baseline) -> Iterator[tuple[str, Any]]:
    """What ``typing.get_overloads`` knows of the notebook's functions."""
    registry: Any = getattr(typing, "_overload_registry", {})
    homes = [registry[name] for name in ("__main__", *BY_VALUE) if name in registry]
    if found := [one for home in homes for lines in home.values() for one in lines.values()]:
        yield "overloads", base.steady("overloads", found)


_NAMED = frozenset(int(kind) for kind in signal.Signals)


def place(name: str, value: Any, _base: Baseline, _shell: Any) -> None:
    """Set the handler."""
    kind_of, _, word = name.partition(" ")
    if kind_of == "error":  # what ``%debug`` and ``%tb`` ask for
        sys.last_type, sys.last_value, sys.last_traceback = type(value), value, value.__traceback__
        if sys.version_info >= (3, 12):
            sys.last_exc = value
        return
    if kind_of == "stream":
        setattr(sys, word, value)
        return
    if kind_of == "warnings":
        setattr(warnings, _SHOW, value)
        return
    if kind_of == "overloads":
        for function in value:
            typing.overload(function)
        return
    if kind_of == "finders":
        for index, one in value:
            getattr(sys, word).insert(index, one)
        return
    if kind_of in ("trace", "profile"):
        (sys.settrace if kind_of == "trace" else sys.setprofile)(value)
        return
    kind = int(word) if word.isdigit() else signal.Signals[word]
    signal.signal(kind, value)


# --- the event loop ------------------------------------------------------------------------------


class Watched:
    """A descriptor that the event loop watches for the notebook, known by its number alone."""

    def __reduce__(self) -> Any:
        raise Refusal("a descriptor that the event loop watches", "add the reader again")


def _own(function: Any) -> bool:
    """Whether it is the notebook's, or the method of one of its containers."""
    owner = function.__self__ if type(function) is types.BuiltinMethodType else None
    return foreign(function) or (owner is not None and type(owner) is not types.ModuleType)


_LOOP_DEFAULT = [0.1, False]
"""``slow_callback_duration`` and debug mode."""


def _loop(base: Baseline) -> Iterator[tuple[str, Any]]:
    """What the notebook set in the loop that runs its cells."""
    loop: Any = asyncio._get_running_loop()
    if loop is None:
        return
    handler, factory = loop.get_exception_handler(), loop.get_task_factory()
    handles = getattr(loop, "_signal_handlers", {}).items()
    signals = [(number, one._callback, one._args) for number, one in handles if _own(one._callback)]
    found = [
        handler if foreign(handler) else None,
        factory if foreign(factory) else None,
        loop.slow_callback_duration,
        loop.get_debug(),
        signals,
    ]
    if foreign(handler) or foreign(factory) or signals or found[2:4] != _LOOP_DEFAULT:
        yield "loop settings", base.steady("loop settings", found)
    selector = getattr(loop, "_selector", None)
    for key in list((selector.get_map() or {}).values()) if selector is not None else ():
        rows = [one and (one._callback, one._args) for one in key.data] if _pair(key.data) else []
        if any(row and _own(row[0]) for row in rows):
            what = key.fileobj if type(key.fileobj) is socket.socket else Watched()
            yield f"loop descriptor {key.fd}", base.steady(f"loop {key.fd}", [what, *rows])


def _pair(data: Any) -> bool:
    return type(data) is tuple and all(one is None or hasattr(one, "_callback") for one in data)


def place_loop(name: str, value: Any, _base: Baseline, _shell: Any) -> None:
    """Set the loop up again."""
    loop: Any = asyncio._get_running_loop()
    if loop is None:
        raise Refusal("the event loop's own", "set it again after a move")
    if name.startswith("loop descriptor"):
        what, reader, writer = value
        if reader:
            loop.add_reader(what, reader[0], *reader[1])
        if writer:
            loop.add_writer(what, writer[0], *writer[1])
        return
    handler, factory, slow, debug, signals = value
    if handler is not None:
        loop.set_exception_handler(handler)
    if factory is not None:
        loop.set_task_factory(factory)
    loop.slow_callback_duration = slow
    loop.set_debug(debug)
    for number, function, arguments in signals:
        loop.add_signal_handler(number, function, *arguments)
