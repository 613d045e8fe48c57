"""How each awkward kind of object is stored, or why it is refused.

Every handler gets the pickler and the object and answers as ``__reduce_ex__`` does, or raises
``Refusal`` with the reason and what the user can do. Never lets a kind through that plain pickle is
known to change silently.
"""

import concurrent.futures
import dataclasses
import functools
import gc
import io
import logging
import mmap
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import types
import typing
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

from roost.runtime.kernel import rebuild
from roost.runtime.kernel.naming import HEAP_TYPE, flags_of


class Refusal(pickle.PicklingError):
    """The object cannot be stored; carries the reason and what to do about it."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class Storing(Protocol):
    """What a handler may ask of the pickler."""

    root: str
    """The session's folder."""

    def note(self, text: str) -> None:
        """Say that something comes back rebuilt rather than as it was."""


Handler = Callable[[Any, Any], Any]
CELL_ADVICE = "create it again after a move, or keep it inside a function"
ADVICE = {
    "Connection": "close it and connect again after a move",
    "Cursor": "fetch the rows and create the cursor again after a move",
    "socket": "connect again after a move",
}


def refuse(what: str, advice: str = CELL_ADVICE) -> Handler:
    """A handler that refuses this kind."""

    def handler(_pickler: Storing, _value: Any) -> NoReturn:
        raise Refusal(what, advice)

    return handler


# --- threads and locks ---------------------------------------------------------------------------


def reduce_lock(_pickler: Storing, value: Any) -> Any:
    """A lock comes back in the same state."""
    return rebuild.lock, (value.locked(),)


def reduce_rlock(_pickler: Storing, value: Any) -> Any:
    """A reentrant lock, when nobody holds it."""
    if value._is_owned() or not value.acquire(blocking=False):
        raise Refusal("a reentrant lock that is held", "release it before the move")
    value.release()
    return threading.RLock, ()


def reduce_thread(pickler: Storing, value: threading.Thread) -> Any:
    """A finished thread stays a finished thread; a live one cannot travel."""
    if value.is_alive() or value.ident is None:
        raise Refusal(
            "a thread that has not finished", "join it before the move, or start it again"
        )
    pickler.note("a finished thread; its result is kept, its id is not")
    own = {k: v for k, v in value.__dict__.items() if not k.startswith("_")}
    return rebuild.finished_thread, (type(value), value.name, value.daemon), own


def reduce_future(_pickler: Storing, value: concurrent.futures.Future[Any]) -> Any:
    """A finished future by value."""
    if not value.done():
        raise Refusal("a future without a result yet", "wait for its result before the move")
    return value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


# --- files ---------------------------------------------------------------------------------------


def reduce_text(pickler: Storing, value: io.TextIOWrapper) -> Any:
    """A text file: reopened at its position."""
    for name in ("stdin", "stdout", "stderr"):
        if value is getattr(sys, f"__{name}__"):
            return rebuild.module_attribute, ("sys", f"__{name}__")
    if value.closed:
        mode = getattr(value, "mode", "r")
        return rebuild.closed_file, ("text", value.name, mode, value.encoding)
    try:
        value.flush()
        cookie = value.tell() if value.seekable() else 0
    except OSError as error:
        raise Refusal(f"an open file in the middle of a loop ({error})", CELL_ADVICE) from error
    return rebuild.text_file, (
        value.buffer,
        getattr(value, "mode", value.buffer.mode),  # type: ignore[attr-defined]
        value.encoding,
        value.errors,
        None,
        value.line_buffering,
        cookie,
    )


def reduce_buffered(_pickler: Storing, value: Any) -> Any:
    """A binary file."""
    if value.closed:
        kind = "buffer+" if isinstance(value, io.BufferedRandom) else "buffer"
        return rebuild.closed_file, (kind, value.raw.name, value.raw.mode, None)
    if not isinstance(value.raw, io.FileIO):
        raise Refusal("a buffer over something that is not a file", CELL_ADVICE)
    value.flush()
    return rebuild.buffered, (type(value), value.raw, value.tell() if value.seekable() else None)


def reduce_raw(pickler: Storing, value: io.FileIO) -> Any:
    """The file itself: name, mode and position; its content travels with the workspace."""
    if value.closed:
        return rebuild.closed_file, ("raw", value.name, value.mode, None)
    name = value.name
    if not isinstance(name, str):
        raise Refusal("an open file without a name", "open it by name, or close it before the move")
    path = str(Path(name).absolute())
    status = os.fstat(value.fileno())
    try:
        same = os.path.samestat(status, os.stat(path))  # noqa: PTH116
    except OSError:
        same = False
    inside = Path(path).is_relative_to(pickler.root)
    if not same or not (inside or path == os.devnull):
        where = "outside the session's folder" if same else "deleted or replaced"
        raise Refusal(
            f"an open file, {where}: {name}", "keep files in the session's folder, or close it"
        )
    mode = value.mode.replace("w", "r").replace("x", "r")
    if mode != value.mode and "+" not in mode:
        mode += "+"
    shown = str(Path(path).relative_to(pickler.root)) if inside else path
    position = value.tell() if value.seekable() else 0
    return rebuild.raw_file, (shown, name, mode, position, status.st_size, inside)


# --- functions and exceptions --------------------------------------------------------------------


def reduce_cached(pickler: Storing, value: Any) -> Any:
    """A function under ``lru_cache``."""
    if value.__module__ != "__main__" and value.__module__ in sys.modules:
        return NotImplemented
    if value.cache_info().currsize:
        pickler.note("its cache starts empty")
    options = value.cache_parameters()
    inner = value.__wrapped__
    return rebuild.cached_function, (inner, options["maxsize"], options["typed"])


def reduce_newtype(_pickler: Storing, value: Any) -> Any:
    """``typing.NewType`` of the notebook."""
    if value.__module__ != "__main__":
        return NotImplemented
    return typing.NewType, (value.__name__, value.__supertype__)


_ERROR_FIELDS = (
    "errno", "strerror", "filename", "filename2", "name", "path", "obj", "code", "value", "encoding",
    "object", "start", "end", "reason", "msg", "lineno", "offset", "text",
)  # fmt: skip


def reduce_exception(pickler: Storing, value: BaseException) -> Any:
    """An exception with cause and context, without the frames of its traceback."""
    if value.__traceback__ is not None:
        pickler.note("its traceback stayed behind")
    kind = type(value)
    if isinstance(value, BaseExceptionGroup):
        return NotImplemented
    fields: dict[str, Any] = {}
    for base in kind.__mro__:
        if not flags_of(base) & HEAP_TYPE and base not in (BaseException, Exception, object):
            found = {n: getattr(value, n) for n in _ERROR_FIELDS if n in base.__dict__}
            fields.update((n, field) for n, field in found.items() if field is not None)
    state = (value.__dict__, fields, value.__cause__, value.__context__, value.__suppress_context__)
    return rebuild.exception, (kind, value.args), state, None, None, rebuild.set_exception


# --- views and iterators -------------------------------------------------------------------------


def reduce_memoryview(_pickler: Storing, value: memoryview) -> Any:
    """A view of a whole object; a view of a part would come back unshared."""
    source = value.obj
    whole = memoryview(source) if source is not None else None
    if whole is None or not value.c_contiguous or whole.nbytes != value.nbytes:
        raise Refusal("a memoryview of a part of an object", "keep the object and slice it again")
    return rebuild.view, (source, value.format, value.shape, value.readonly)


def dict_iterator(view: str) -> Handler:
    """Iterators over dictionaries: plain pickle would detach them."""

    def handler(_pickler: Storing, value: Any) -> Any:
        sources = [r for r in gc.get_referents(value) if type(r) is dict]
        if not sources:
            return iter, ((),)
        return rebuild.advanced, (sources[0], view, len(sources[0]) - value.__length_hint__())

    return handler


def reduce_reference(_pickler: Storing, value: Any) -> Any:
    """A weak reference; its target is in the same group."""
    if value.__callback__ is not None:
        raise Refusal("a weak reference with a callback", CELL_ADVICE)
    return rebuild.weak_reference, (value(),)


def reduce_weak_mapping(_pickler: Storing, value: Any) -> Any:
    """A weak dictionary; keys are not hashed here, their ``__hash__`` may be the user's."""
    return rebuild.weak_mapping, (type(value), list(value.items()))


def reduce_constant(_pickler: Storing, value: Any) -> Any:
    """``dataclasses.MISSING`` and its like are compared by identity."""
    for name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY"):
        if getattr(dataclasses, name, None) is value:
            return rebuild.module_attribute, ("dataclasses", name)
    return NotImplemented


EXACT: dict[type, Handler] = {
    type(threading.Lock()): reduce_lock,
    type(threading.RLock()): reduce_rlock,
    io.TextIOWrapper: reduce_text,
    io.BufferedReader: reduce_buffered,
    io.BufferedWriter: reduce_buffered,
    io.BufferedRandom: reduce_buffered,
    io.FileIO: reduce_raw,
    memoryview: reduce_memoryview,
    functools._lru_cache_wrapper: reduce_cached,
    typing.NewType: reduce_newtype,
    type(iter({})): dict_iterator("keys"),
    type(iter({}.values())): dict_iterator("values"),
    type(iter({}.items())): dict_iterator("items"),
    type(dataclasses.MISSING): reduce_constant,
    type(dataclasses.KW_ONLY): reduce_constant,
    type(getattr(dataclasses, "_HAS_DEFAULT_FACTORY", None)): reduce_constant,
    weakref.ReferenceType: reduce_reference,
    weakref.WeakValueDictionary: reduce_weak_mapping,
    weakref.WeakKeyDictionary: reduce_weak_mapping,
    types.FrameType: refuse("a frame"),
    types.TracebackType: refuse("a traceback"),
    mmap.mmap: refuse("a memory-mapped file", "map it again after a move"),
}  # fmt: skip
EXACT.pop(type(None), None)

BASES: dict[type, Handler] = {
    threading.Thread: reduce_thread,
    concurrent.futures.Future: reduce_future,
    concurrent.futures.Executor: refuse("a pool of workers", "create it again after a move"),
    socket.socket: refuse("a socket", ADVICE["socket"]),
    subprocess.Popen: refuse("a child process", "start it again after a move"),
    logging.Handler: refuse("a logging handler", "set up logging again after a move"),
    tempfile.TemporaryDirectory: refuse("a temporary directory", "use a folder of the session"),
    tempfile._TemporaryFileWrapper: refuse("a temporary file", "use a file of the session"),
    mmap.mmap: refuse("a memory-mapped file", "map it again after a move"),
}

LATE: dict[tuple[str, str], Handler] = {
    ("asyncio", "Future"): refuse("an asyncio future or task", "await it before the move"),
    ("asyncio", "AbstractEventLoop"): refuse("an event loop"),
    ("multiprocessing.process", "BaseProcess"): refuse(
        "a child process", "start it again after a move"
    ),
    ("multiprocessing.pool", "Pool"): refuse("a pool of workers", "create it again after a move"),
    ("sqlite3", "Connection"): refuse("a database connection", ADVICE["Connection"]),
    ("sqlite3", "Cursor"): refuse("a database cursor", ADVICE["Cursor"]),
    ("ipywidgets.widgets.widget", "Widget"): refuse("a widget", "show it again after a move"),
    ("traitlets.config.configurable", "Configurable"): refuse("a part of the kernel itself"),
}
"""Kinds of modules that are not imported for this: looked for when they are loaded."""


def bases() -> dict[type, Handler]:
    """Every base class with a handler, as far as its module is loaded."""
    found = dict(BASES)
    for (module, name), handler in LATE.items():
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            found[kind] = handler
    return found


def advice_for(error: BaseException) -> tuple[str, str]:
    """The reason and the advice for an error of the pickler."""
    if isinstance(error, Refusal):
        return f"it holds {error.reason}", error.advice
    if isinstance(error, RecursionError) or "recursion" in _text(error):
        return "nested too deeply", "use a flatter structure"
    text = _text(error)
    for kind, advice in ADVICE.items():
        if f"'{kind}'" in text or f".{kind}'" in text:
            return text, advice
    return text, CELL_ADVICE


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except Exception:  # a user's exception may fail to print itself
        return type(error).__name__
