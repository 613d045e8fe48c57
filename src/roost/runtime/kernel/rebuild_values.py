"""What stored pickles of caches, weak references, errors and raw objects call: only add."""

import collections
import contextlib
import ctypes
import importlib
import itertools
import sys
import types
import typing
import weakref
from collections.abc import Sequence
from typing import Any

from roost.runtime.kernel import rebuild

# --- functions -----------------------------------------------------------------------------------


def fill_cache(made: Any, state: tuple[dict[str, Any], list[Any], tuple[int, int]]) -> None:
    """Fill a cache without running its function: its code is another one meanwhile."""
    attributes, calls, (hits, misses) = state
    made.__dict__.update(attributes)
    function = made.__wrapped__
    if not calls and not misses:
        return
    results: list[Any] = []
    code = function.__code__
    names = ", ".join(code.co_freevars)
    text = f"def outer({names}):\n def stub(*a, **k):\n  if 0: ({names or '0'})\n  return 'R'.pop()"
    space: dict[str, Any] = {}
    exec(text + "\n return stub", space)
    stub = space["outer"](*code.co_freevars).__code__
    constants = tuple(results if one == "R" else one for one in stub.co_consts)
    kept = (function.__defaults__, function.__kwdefaults__)
    function.__code__ = stub.replace(co_consts=constants)
    try:
        for _ in range(misses - len(calls)):
            with contextlib.suppress(IndexError):
                made()  # a call that fails counts, and leaves nothing
        for (arguments, words), result in calls:
            results.append(result)
            made(*arguments, **words)
            results.clear()
        if calls:
            arguments, words = calls[-1][0]
            for _ in itertools.repeat(None, hits):
                made(*arguments, **words)
    finally:
        function.__code__ = code
        function.__defaults__, function.__kwdefaults__ = kept


def parameter_spec(name: str, bound: Any, covariant: bool, contravariant: bool) -> Any:
    """``typing.ParamSpec`` of the notebook."""
    made = typing.ParamSpec(  # type: ignore[misc]
        name, bound=bound, covariant=covariant, contravariant=contravariant
    )
    made.__module__ = "__main__"
    return made


def type_variables(name: str) -> Any:
    """``typing.TypeVarTuple`` of the notebook."""
    made = typing.TypeVarTuple(name)  # type: ignore[misc]
    made.__module__ = "__main__"
    return made


def type_alias(name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    """``type X = ...`` of the notebook."""
    kind: Any = typing.__dict__["TypeAliasType"]
    return kind(name, value, type_params=parameters)


# --- weak references -----------------------------------------------------------------------------


class _Gone:
    """Dies at once."""


def watched_reference(target: Any, callback: Any) -> Any:
    """A weak reference with a callback."""
    if target is None:
        return weakref.ref(_Gone())
    return weakref.ref(target, callback)


def weak_method(cls: type, method: Any) -> Any:
    """A weak reference to a bound method."""
    if method is None:
        return cls(_Dying().gone)
    return cls(method)


class _Dying:
    def gone(self) -> None:
        """A method of what is gone at once."""


def weak_proxy(target: Any) -> Any:
    """``weakref.proxy``."""
    return weakref.proxy(_Gone() if target is None else target)


def target_of(proxy: Any) -> Any:
    """What a proxy stands for, None when that is gone."""
    ask = ctypes.pythonapi["PyWeakref_GetObject"]
    # By its address: ctypes would ask what the proxy stands for, which may be gone.
    ask.argtypes, ask.restype = (ctypes.c_void_p,), ctypes.c_void_p
    place = ask(id(proxy))
    return ctypes.cast(place, ctypes.py_object).value if place else None


def weak_container(cls: type) -> Any:
    """An empty weak set or dictionary."""
    return cls()


def fill_weak_set(made: Any, items: list[Any]) -> None:
    """Its members."""
    for item in items:
        made.add(item)


def fill_weak_mapping(made: Any, items: list[tuple[Any, Any]]) -> None:
    """Its items."""
    for key, value in items:
        made[key] = value


def finalizer() -> Any:
    """A finalizer to be filled."""
    return weakref.finalize.__new__(weakref.finalize)


def fill_finalizer(made: Any, state: tuple[Any, ...]) -> None:
    """Register it; without a target it has run or was detached."""
    if state:
        target, function, arguments, words, at_exit = state
        weakref.finalize.__init__(made, target, function, *arguments, **(words or {}))
        made.atexit = at_exit


# --- errors --------------------------------------------------------------------------------------


def error_group(cls: Any, message: str, errors: Sequence[BaseException]) -> Any:
    """A group of exceptions."""
    return BaseExceptionGroup.__new__(cls, message, errors)


def set_error(error: BaseException, state: tuple[Any, ...]) -> None:
    """Attributes, cause, context and traceback."""
    rebuild.set_exception(error, state[:5])
    error.__traceback__ = state[5]


# --- mocks, progress bars ---------------------------------------------------------------


def mock(base: Any) -> Any:
    """A new mock of this kind."""
    made = base.__new__(base)
    base.__init__(made)
    return made


def fill_mock(made: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Children, calls and what was configured."""
    attributes, extras = state
    made.__dict__.clear()
    made.__dict__.update(attributes)
    for name, value in extras.items():
        type.__setattr__(type(made), name, value)


def mock_call(cls: Any, content: tuple[Any, ...]) -> Any:
    """A recorded call."""
    return tuple.__new__(cls, content)


def fill_mock_call(made: Any, state: dict[str, Any]) -> None:
    """Whose call it was."""
    object.__getattribute__(made, "__dict__").update(state)


def progress(cls: Any) -> Any:
    """A progress bar to be filled."""
    return cls.__new__(cls)


def fill_progress(made: Any, state: tuple[dict[str, Any], Any]) -> None:
    """Its count, its start and its stream."""
    attributes, file = state
    made.__dict__.update(attributes)
    if file is None:
        file = sys.stderr
    utils: Any = importlib.import_module("tqdm.utils")
    made.fp = utils.DisableOnWriteError(file, tqdm_instance=made)
    made.sp = made.status_printer(made.fp)


# --- objects without their own hooks -------------------------------------------------------------

_FILL: dict[type, Any] = {
    dict: dict.update,
    collections.OrderedDict: dict.update,
    collections.defaultdict: dict.update,
    list: list.extend,
    set: set.update,
    collections.deque: collections.deque.extend,
}


def raw_object(cls: type, base: Any, arguments: tuple[Any, ...]) -> Any:
    """An instance as ``base`` makes it: no ``__new__`` or ``__init__`` of the notebook runs."""
    return base.__new__(cls, *arguments)


def fill_raw(made: Any, state: tuple[Any, ...]) -> None:
    """Attributes, slots and content, past all hooks of its class."""
    base, attributes, slots, content, more = state
    if attributes:
        vars_of(made).update(attributes)
    for cls, name, value in slots:
        type.__getattribute__(cls, "__dict__")[name].__set__(made, value)
    if more is not None:
        base.__init__(made, *more)
    if content:
        if base is collections.OrderedDict:
            for key, value in content:
                collections.OrderedDict.__setitem__(made, key, value)
        else:
            _FILL[base](made, content)


def vars_of(value: Any) -> dict[str, Any]:
    """An object's own attributes, without asking it."""
    for cls in type.__getattribute__(type(value), "__mro__"):
        found = type.__getattribute__(cls, "__dict__").get("__dict__")
        if type(found) is types.GetSetDescriptorType:
            attributes: dict[str, Any] = found.__get__(value)
            return attributes
    return {}


# --- members of enums ----------------------------------------------------------------------------


def member(kind: type, builder: Any, arguments: tuple[Any, ...]) -> Any:
    """A member of an enum, which its class will list; neither is asked."""
    return builder.__new__(kind, *arguments)


def fill_member(value: Any, state: dict[str, Any]) -> None:
    """Name, value, and what its class gave it."""
    for base in type.__dict__["__mro__"].__get__(type(value)):
        own = type.__dict__["__dict__"].__get__(base).get("__dict__")
        if own is not None:
            own.__get__(value).update(state)
            return
