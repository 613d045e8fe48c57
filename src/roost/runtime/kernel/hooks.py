"""Instances of notebook classes that say themselves how they are copied: stored as they are instead.

A ``__getstate__`` may leave attributes out, a ``__reduce__`` may raise or hang, a ``__new__`` may want
arguments, ``__class__`` may lie. The object's own attributes, slots and content are exact, and no code of
the notebook runs. Only when something in there cannot be stored are the class's own hooks asked.
"""

import collections
import contextlib
import gc
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from roost.runtime.kernel import rebuild_values
from roost.runtime.kernel.naming import (
    CLASS,
    EXCEPTION,
    HEAP_TYPE,
    dict_of,
    flags_of,
    foreign,
    module_of,
    mro_of,
)

STACK_BYTES = 1 << 30
"""Address space only: pages that are not touched cost nothing."""
_HOOKS = frozenset(
    {
        "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__",
        "__getnewargs_ex__", "__new__", "__getattribute__", "__getattr__", "__class__",
    }
)  # fmt: skip
_CONTENT_HOOKS = frozenset(
    {"__setitem__", "__iter__", "items", "extend", "append", "__len__", "update", "add"}
)
_ASKED = frozenset({"__reduce__", "__reduce_ex__", "__getstate__"})
_CONTENT: tuple[type, ...] = (
    collections.OrderedDict, collections.defaultdict, collections.deque, dict, list, set,
)  # fmt: skip
_ATOMS: dict[type, Any] = {
    tuple: lambda v: (tuple.__getitem__(v, slice(None)),),
    str: lambda v: (str.__str__(v),),
    int: lambda v: (int.__add__(v, 0),),
    float: lambda v: (float.__add__(v, 0.0) if float.__ne__(v, 0.0) else float.__pos__(v),),
    bytes: lambda v: (bytes.__getitem__(v, slice(None)),),
    frozenset: lambda v: (frozenset(frozenset.__iter__(v)),),
    complex: lambda v: (complex.__add__(v, 0),),
}


def raw_base(kind: type) -> type | None:
    """The builtin a notebook class is made of, when its instances are to be stored as they are."""
    if flags_of(kind) & EXCEPTION or not foreign(kind):
        return None
    found: set[str] = set()
    for cls in mro_of(kind):
        if cls is object or any(cls is one for one in (*_CONTENT, *_ATOMS)):
            return cls if _hooked(found, cls) else None
        if not flags_of(cls) & HEAP_TYPE:
            return None
        names = dict_of(cls).keys()
        if not foreign(cls):
            # A library's base class knows best, unless it says nothing about copies.
            if names & _ASKED or module_of(cls) == "enum":
                return None
            continue
        if {"_fields", "_make"} <= names:
            return None  # made by ``namedtuple``: plain pickle is right and faster
        found.update(names)
    return None


def _hooked(names: set[str], base: type) -> bool:
    frozen = "__setattr__" in names and "__slots__" in names
    content = base in _CONTENT and not names.isdisjoint(_CONTENT_HOOKS)
    return frozen or content or not names.isdisjoint(_HOOKS)


def reduce_raw(value: Any, base: type) -> Any:
    """Attributes, slots and content of an instance."""
    kind = type(value)
    slots = []
    for cls in mro_of(kind):
        for name, found in dict_of(cls).items() if flags_of(cls) & HEAP_TYPE else ():
            if type(found).__name__ == "member_descriptor":
                try:
                    slots.append((cls, name, found.__get__(value)))
                except AttributeError:
                    continue
    make = _ATOMS.get(base)
    content, more = _content(value, base)
    state = (base, rebuild_values.vars_of(value), slots, content, more)
    return (
        rebuild_values.raw_object, (kind, base, make(value) if make else ()), state, None, None,
        rebuild_values.fill_raw,
    )  # fmt: skip


def _content(value: Any, base: type) -> tuple[Any, Any]:
    if base is collections.OrderedDict:
        return list(collections.OrderedDict.items(value)), None
    if base is collections.defaultdict:
        factory = collections.defaultdict.__dict__["default_factory"].__get__(value)
        return dict(dict.items(value)), (factory,)
    if base is collections.deque:
        limit = collections.deque.__dict__["maxlen"].__get__(value)
        return list(collections.deque.__iter__(value)), ((), limit)
    if base is dict:
        return dict(dict.items(value)), None
    if base is list:
        return list.__getitem__(value, slice(None)), None
    if base is set:
        return list(set.__iter__(value)), None
    return None, None


def depth(value: Any, most: int) -> int:
    """How deep objects lie in each other, as pickle would go; ``most`` or more is not counted."""
    seen: set[int] = set()
    stack: list[tuple[Any, int]] = [(value, 1)]
    deepest = 0
    while stack:
        item, level = stack.pop()
        if id(item) in seen or level > most:
            continue
        seen.add(id(item))
        deepest = max(deepest, level)
        if type(item) in (str, int, float, bytes, type(None), bool, types.ModuleType):
            continue
        if flags_of(type(item)) & CLASS or type(item) in (types.FunctionType, types.CodeType):
            continue
        stack.extend((below, level + 1) for below in gc.get_referents(item))
    return deepest


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Code of the notebook gets so long, then ``TimeoutError`` is raised in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(_number: int, _frame: Any) -> None:
        raise TimeoutError(f"the object's own code took more than {seconds:g} s")

    kept = signal.signal(signal.SIGALRM, over)
    left = signal.setitimer(signal.ITIMER_REAL, seconds)
    begun = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
        if left[0]:
            rest = max(0.001, left[0] - (time.monotonic() - begun))
            signal.setitimer(signal.ITIMER_REAL, rest, left[1])


def too_deep(error: BaseException) -> bool:
    """Whether a stack came to its end."""
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def on_deep_stack(work: Callable[[], None], depth: int) -> None:
    """Run it on a thread with a big stack; raises what it raises."""
    faults: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # handed to the caller
            faults.append(error)

    limit = sys.getrecursionlimit()
    kept = threading.stack_size(min(STACK_BYTES, (64 << 20) + depth * 16_384))
    try:
        thread = threading.Thread(target=run, name="roost-deep", daemon=True)
        sys.setrecursionlimit(max(limit, depth * 10 + 10_000))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(kept)
        sys.setrecursionlimit(limit)
    if faults:
        raise faults[0]
