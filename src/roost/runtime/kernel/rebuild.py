"""What stored pickles call when they are opened. Names and arguments here are part of the format.

Only what a pickle names is here; nothing in this file runs during a capture.
"""

import functools
import importlib
import io
import itertools
import os
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild_state
from roost.runtime.kernel.naming import ours

_root = "."


def namespace() -> dict[str, Any]:
    """The notebook's namespace."""
    return sys.modules["__main__"].__dict__


def shell() -> Any:
    """The running IPython shell."""
    return namespace()["get_ipython"]()


def module_attribute(module: str, name: str) -> Any:
    """An object that a library holds as a global of its own."""
    found = importlib.import_module(module).__dict__[name]
    # While a session is restored, what is printed goes nowhere: not what the object is to print to.
    return found._stream if type(found).__name__ == "_Hush" else found


def same(value: Any) -> Any:
    """The argument: stands for memory that arrays share."""
    return value


DISPLACED: dict[tuple[str, str], Any] = {}
"""Functions in C that restored patches took the place of, by module and name."""


def displaced(module: str, name: str) -> Any:
    """A function in C that a patch stands in the place of, or will."""
    found = DISPLACED.get((module, name)) or getattr(importlib.import_module(module), name)
    if type(found) is not types.BuiltinFunctionType:
        raise ValueError(f"{module}.{name} is patched here")
    return found


# --- functions and classes of the notebook -------------------------------------------------------


def make_function(
    code: types.CodeType,
    where: str | dict[str, Any] | None,
    name: str,
    closure: tuple[types.CellType, ...] | None,
    builtins: dict[str, Any] | None = None,
) -> types.FunctionType:
    """A function over live globals: the namespace (None), a module's, or a dictionary of its own.

    ``builtins``: where it looks for what its globals do not have, when that is not Python's own.
    """
    if where is None:
        where = namespace()
    elif isinstance(where, str):
        where = rebuild_state.module(where).__dict__
    if builtins is None:
        return types.FunctionType(code, where, name, None, closure)
    # A function takes its builtins out of its globals once; these may be filled only afterwards.
    there = "__builtins__" in where
    before = where.get("__builtins__")
    where["__builtins__"] = builtins
    try:
        return types.FunctionType(code, where, name, None, closure)
    finally:
        if there:
            where["__builtins__"] = before
        else:
            del where["__builtins__"]


def set_function(
    function: types.FunctionType, state: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Second half of ``make_function``: defaults may hold the function itself."""
    attributes, slots = state
    function.__dict__.update(attributes)
    for name, value in slots.items():
        setattr(function, name, value)


def make_cell() -> types.CellType:
    """An empty closure cell."""
    return types.CellType()


def set_cell(cell: types.CellType, state: tuple[Any]) -> None:
    """Fill a closure cell."""
    cell.cell_contents = state[0]


def make_class(
    metaclass: type, builder: type, name: str, bases: tuple[type, ...], body: dict[str, Any]
) -> type:
    """An empty class. ``builder`` is the metaclass's newest importable ancestor: a metaclass and an
    ``__init_subclass__`` of the notebook have had their effects already and do not run again."""
    quiet = [base for base in bases if ours(base.__module__)]
    kept = [(base, base.__dict__.get("__init_subclass__")) for base in quiet]
    for base in quiet:
        type.__setattr__(base, "__init_subclass__", classmethod(_no_effect))
    try:
        make: Any = builder.__new__
        return make(metaclass, name, bases, dict(body))
    finally:
        for base, method in kept:
            if method is None:
                type.__delattr__(base, "__init_subclass__")
            else:
                type.__setattr__(base, "__init_subclass__", method)


def set_class(cls: type, state: tuple[dict[str, Any], tuple[type, ...]]) -> None:
    """Second half of ``make_class``: attributes, and the classes registered with an ABC."""
    attributes, registered = state
    for name, value in attributes.items():
        if name == "__class__":
            lie = type.__getattribute__(cls, "__dict__")[name]
            lie.__init__(value.fget, value.fset, value.fdel, value.__doc__)
        else:
            type.__setattr__(cls, name, value)
    for other in registered:
        cls.register(other)  # type: ignore[attr-defined]


def _no_effect(cls: type, /, **options: Any) -> None:
    pass


# --- arrays --------------------------------------------------------------------------------------


def array(
    root: Any,
    offset: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    writeable: bool,
) -> Any:
    """An array over shared memory."""
    numpy = sys.modules["numpy"]
    made = numpy.ndarray.__new__(numpy.ndarray, shape, dtype, root, offset, strides)
    if made.flags.writeable and not writeable:
        made.flags.writeable = False
    return made


def memmap(
    path: str, dtype: Any, mode: str, offset: int, shape: tuple[int, ...], order: str
) -> Any:
    """An array over a file."""
    numpy = importlib.import_module("numpy")
    return numpy.memmap(
        absolute(path), dtype=dtype, mode=mode, offset=offset, shape=shape, order=order
    )


# --- the rest ------------------------------------------------------------------------------------


def exception(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """An exception without calling its ``__init__``."""
    builder = next(base for base in cls.__mro__ if not base.__flags__ & (1 << 9))
    made: BaseException = builder.__new__(cls)  # type: ignore[call-overload]
    made.args = args
    return made


def set_exception(error: BaseException, state: tuple[Any, Any, Any, Any, bool]) -> None:
    """Attributes, cause and context."""
    attributes, fields, cause, context, suppress = state
    if attributes:
        error.__dict__.update(attributes)
    for name, value in fields.items():
        setattr(error, name, value)
    error.__cause__ = cause
    error.__context__ = context
    error.__suppress_context__ = suppress


def lock(locked: bool) -> Any:
    """A lock in the same state."""
    made = threading.Lock()
    if locked:
        made.acquire()
    return made


def finished_thread(cls: type[threading.Thread], name: str, daemon: bool) -> threading.Thread:
    """A thread that has run to its end."""
    made = threading.Thread(name=name, daemon=daemon)
    made.start()
    made.join()
    made.__class__ = cls
    return made


def cached_function(function: Any, limit: int | None, typed: bool) -> Any:
    """``functools.lru_cache`` around it, the cache empty."""
    return functools.lru_cache(limit, typed)(function)


def advanced(source: dict[Any, Any], view: str, consumed: int) -> Iterator[Any]:
    """An iterator over a dictionary that stands where it stood."""
    views: Any = {"keys": source.keys, "values": source.values, "items": source.items}
    iterator: Iterator[Any] = iter(views[view]())
    for _ in itertools.islice(iterator, consumed):
        pass
    return iterator


def weak_reference(target: Any) -> Any:
    """A weak reference; dead when the target is gone."""
    return weakref.ref(_Gone() if target is None else target)


class _Gone:
    """Dies at once."""


def weak_mapping(cls: type, items: list[tuple[Any, Any]]) -> Any:
    """A weak dictionary."""
    made = cls()
    for key, value in items:
        made[key] = value
    return made


def view(source: Any, format: str, shape: tuple[int, ...], readonly: bool) -> Any:
    """A memoryview of all of ``source``."""
    made: Any = memoryview(source).cast("B")
    made = made.cast(format, shape)
    return made.toreadonly() if readonly else made


def absolute(path: str) -> str:
    """A path of a file in the session's folder, wherever that folder is now."""
    return str(Path(_root) / path)


def set_root(path: str) -> None:
    """Where the session's folder is now."""
    global _root
    _root = path


def raw_file(path: str, name: Any, mode: str, position: int, size: int, inside: bool) -> io.FileIO:
    """A file reopened where it stood; never truncated. Raises when it became shorter."""
    place = absolute(path) if inside else path
    made = io.FileIO(place, mode)
    if inside and os.fstat(made.fileno()).st_size < size:
        raise OSError(f"{path} is shorter than it was")
    if made.seekable():
        made.seek(position)
    made.name = name
    return made


def closed_file(kind: str, name: Any, mode: str, encoding: str | None) -> Any:
    """A file object that was closed already."""
    raw = io.FileIO(os.devnull, "r+" if "+" in kind else "r")
    raw.name = name
    made: Any = raw
    if kind != "raw":
        made = io.BufferedReader(raw)
    if kind == "text":
        made = io.TextIOWrapper(made, encoding=encoding)
        made.mode = mode
    made.close()
    return made


def buffered(cls: type, raw: io.FileIO, position: int | None) -> Any:
    """A buffer over a raw file, which may have read ahead."""
    made: Any = cls(raw)
    if position is not None:
        made.seek(position)
    return made


def text_file(
    buffer: Any,
    mode: str,
    encoding: str,
    errors: str | None,
    newline: str | None,
    line_buffering: bool,
    cookie: int,
    write_through: bool = False,
) -> Any:
    """A text file over a buffer."""
    made = io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering, write_through)
    if made.seekable():
        made.seek(cookie)
    made.mode = mode  # type: ignore[misc]
    return made
