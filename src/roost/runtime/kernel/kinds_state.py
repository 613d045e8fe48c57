"""How objects that belong to the process are stored: loggers' handlers, context variables, tracebacks."""

import contextvars
import copyreg
import gc
import logging
import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from roost.runtime.kernel import rebuild_state
from roost.runtime.kernel.naming import (
    HEAP_TYPE,
    dict_of,
    flags_of,
    foreign,
    module_of,
    mro_of,
)
from roost.runtime.kernel.refusal import Handler, Refusal, Storing

_COUNT = re.compile(r"count\((\d+)")
_LONGEST_TRACEBACK = 2000


def reduce_traceback(pickler: Storing, value: types.TracebackType) -> Any:
    """Stub frames in the same places."""
    pickler.note("its traceback keeps files, lines and names, not the variables of its frames")
    rows = []
    step: types.TracebackType | None = value
    while step is not None and len(rows) < _LONGEST_TRACEBACK:
        code = step.tb_frame.f_code
        home = step.tb_frame.f_globals.get("__name__")
        rows.append(
            (
                code.co_filename, code.co_name, code.co_qualname, code.co_firstlineno, code.co_linetable,
                len(code.co_code), home if type(home) is str else "", step.tb_lasti, step.tb_lineno,
            )
        )  # fmt: skip
        step = step.tb_next
    return rebuild_state.traceback, (rows,)


def reduce_handler(_pickler: Storing, value: logging.Handler) -> Any:
    """A logging handler: its attributes, a new lock; a file of its own is opened to go on at its end."""
    state = {k: v for k, v in value.__dict__.items() if k not in ("lock", "_closed")}
    if "_closed" in value.__dict__:
        state["_closed"] = value.__dict__["_closed"]
    if isinstance(value, logging.FileHandler) and state.get("stream") is not None:
        value.flush()
        state["stream"] = None
        state["mode"] = (
            "a" if "w" in str(state.get("mode")) or "x" in str(state.get("mode")) else state["mode"]
        )
        state["_roost_open"] = True
    kind = type(value)
    if any(
        base.__module__ == "logging.handlers" and base.__name__ in _LIVE for base in mro_of(kind)
    ):
        raise Refusal("a logging handler with a connection or thread", "set up logging again")
    return rebuild_state.handler, (kind,), state, None, None, rebuild_state.fill_handler


_LIVE = frozenset({"QueueListener", "SysLogHandler"})


def reduce_context_variable(_pickler: Storing, value: contextvars.ContextVar[Any]) -> Any:
    """Name and default; its value is a piece of process state."""
    below = gc.get_referents(value)
    # The name comes first; with one referent there is no default.
    return rebuild_state.context_variable, (value.name, tuple(below[1:2]))


def reduce_context(_pickler: Storing, _value: contextvars.Context) -> Any:
    """A copied context also holds the kernel's own variables, which cannot be had elsewhere."""
    raise Refusal("a copied context", "copy the context again after a move")


def reduce_magics(_pickler: Storing, value: Any) -> Any:
    """An instance of a notebook's class of magics."""
    if not foreign(value):
        raise Refusal("a part of the kernel itself", "ask get_ipython() for it")
    state = {
        k: v for k, v in value.__dict__.items() if not k.startswith("_") and k not in _KERNEL_SIDE
    }
    return rebuild_state.magics, (type(value),), state, None, None, rebuild_state.fill_magics


_KERNEL_SIDE = frozenset(
    {"shell", "parent", "config", "magics", "options_table", "registered", "log"}
)


def reduce_local(_pickler: Storing, value: Any) -> Any:
    """A thread's own storage with the values of the main thread."""
    state = dict(rebuild_state.values_of_local(value))
    return rebuild_state.local, (type(value),), state, None, None, rebuild_state.fill


def reduce_registry(pickler: Storing, value: Any) -> Any:
    """matplotlib's registry of callbacks, with those of the notebook."""
    state = dict(vars(value))
    cids = set(state.get("_pickled_cids", ()))
    kept: dict[Any, dict[int, Any]] = {}
    for signal, entries in state.get("callbacks", {}).items():
        for cid, reference in entries.items():
            function = reference()
            if function is not None and (cid in cids or _connected(function)):
                kept.setdefault(signal, {})[cid] = function
    found = _COUNT.match(repr(state.get("_cid_gen")))
    state.update(
        callbacks=kept,
        _pickled_cids=cids,
        _func_cid_map=None,
        _cid_gen=int(found[1]) if found else 0,
    )
    return rebuild_state.registry, (type(value),), state, None, None, rebuild_state.fill_registry


def reduce_trap(_pickler: Storing, value: Any) -> Any:
    """An instance of a notebook's class that answers attributes itself: its class is not asked."""
    state = raw_state(value)
    return rebuild_state.instance, (type(value),), state, None, None, rebuild_state.fill_instance


def raw_state(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes and slots of an object, past what its class answers."""
    kind = type(value)
    own: dict[str, Any] = {}
    slots: dict[str, Any] = {}
    for base in mro_of(kind):
        for name, member in dict_of(base).items():
            if type(member) is types.MemberDescriptorType and flags_of(base) & HEAP_TYPE:
                try:
                    slots.setdefault(name, member.__get__(value, kind))
                except AttributeError:
                    continue
        if "__dict__" in dict_of(base) and flags_of(base) & HEAP_TYPE:
            own = dict(dict_of(base)["__dict__"].__get__(value))
    return own, slots


def _connected(function: Any) -> bool:
    """Whether the notebook connected it, itself or through a widget of matplotlib."""
    kind = type(function)
    if kind is types.BuiltinMethodType:
        return type(function.__self__) is not types.ModuleType
    if kind is types.FunctionType and function.__module__ == "matplotlib.widgets":
        return True  # a lambda of the widget's around what it was given
    return foreign(function)


_REFUSING = frozenset({"torch.nn.utils.parametrize"})
"""Here classes are made for single objects, whose ``__getstate__`` refuses."""
_ASKED = ("__getattr__", "__getattribute__", "__setattr__")
_OWN_WAYS = frozenset(
    {"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__"}
)


def trap(kind: type) -> Callable[[Any, Any], Any] | None:
    """The handler for instances of a class with attribute traps, or of a library's that cannot be made
    without arguments and does not say which; None for any other class."""
    if module_of(kind) != "__main__" and not foreign(kind):
        made_at_run_time = module_of(kind) in _REFUSING
        return reduce_trap if made_at_run_time or _wants_arguments(kind) else None
    asked = False
    for base in mro_of(kind):
        if base is object:
            return reduce_trap if asked else None
        own = dict_of(base)
        if not flags_of(base) & HEAP_TYPE or own.keys() & _OWN_WAYS:
            return None
        asked = asked or any(name in own for name in _ASKED)
    return None


def _wants_arguments(kind: type) -> bool:
    """Whether pickle would make an instance by a ``__new__`` in Python that wants more than the class."""
    made: Any = None
    for base in mro_of(kind):
        own = dict_of(base)
        if base is object:
            break
        if not flags_of(base) & HEAP_TYPE or own.keys() & _OWN_WAYS:
            return False
        made = made or own.get("__new__")
    function = made.__func__ if type(made) is staticmethod else made
    if type(function) is not types.FunctionType or kind in copyreg.dispatch_table:
        return False
    wanted = function.__code__.co_argcount - len(function.__defaults__ or ())
    return wanted > 1


STATE: dict[type, Handler] = {
    types.TracebackType: reduce_traceback,
    contextvars.ContextVar: reduce_context_variable,
    contextvars.Context: reduce_context,
    threading.local: reduce_local,
}
STATE_BASES: dict[type, Handler] = {
    logging.Handler: reduce_handler,
    threading.local: reduce_local,
}


_LATE: tuple[tuple[str, str, Handler], ...] = (
    ("matplotlib.cbook", "CallbackRegistry", reduce_registry),
    ("IPython.core.magic", "Magics", reduce_magics),
)


def state_bases() -> dict[type, Handler]:
    """Base classes with a handler here, as far as their modules are loaded."""
    found = dict(STATE_BASES)
    for module, name, handler in _LATE:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            found[kind] = handler
    return found
