"""Handlers of signals, tracing, import finders, streams and the way of warnings that the notebook set."""

import signal
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

from roost.runtime.kernel.naming import foreign
from roost.runtime.kernel.process.base import Baseline

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
        if handler in _PLAIN or foreign(handler):
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


_NAMED = frozenset(int(kind) for kind in signal.Signals)


def place(name: str, value: Any, _base: Baseline, _shell: Any) -> None:
    """Set the handler."""
    kind_of, _, word = name.partition(" ")
    if kind_of == "stream":
        setattr(sys, word, value)
        return
    if kind_of == "warnings":
        setattr(warnings, _SHOW, value)
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
