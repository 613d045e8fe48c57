"""What stored pickles of process state call when they are opened. Names here are part of the format."""

import contextvars
import dis
import importlib
import logging
import random
import sys
import threading
import types
from typing import Any

MODULES: dict[str, types.ModuleType] = {}
"""Modules restored by value, also those that ``sys.modules`` does not list."""


def module(key: str) -> types.ModuleType:
    """A module by its name, or by the name it is stored under."""
    found = MODULES.get(key)
    return found if found is not None else importlib.import_module(key)


def context_variable(name: str, defaults: tuple[Any, ...]) -> Any:
    """A context variable without a value."""
    return (
        contextvars.ContextVar(name, default=defaults[0])
        if defaults
        else contextvars.ContextVar(name)
    )


def local(kind: Any) -> Any:
    """A thread's own storage, empty."""
    return threading.local() if kind is threading.local else kind.__new__(kind)


def values_of_local(value: Any) -> dict[str, Any]:
    """What this thread has in it, past whatever its class does about attributes."""
    found: dict[str, Any] = threading.local.__getattribute__(value, "__dict__")
    return found


def fill(value: Any, state: dict[str, Any]) -> None:
    """The main thread's values."""
    values_of_local(value).update(state)


def handler(kind: Any) -> Any:
    """A logging handler before it is filled."""
    return kind.__new__(kind)


def fill_handler(made: logging.Handler, state: dict[str, Any]) -> None:
    """Attributes of a handler, its lock, and its place among all handlers."""
    made.__dict__.update(state)
    made.createLock()
    add = getattr(logging, "_addHandlerRef", None)
    if add is not None:
        add(made)
    if state.get("_roost_open"):
        del made.__dict__["_roost_open"]
        made.stream = made._open()  # type: ignore[attr-defined]


def magics(kind: Any) -> Any:
    """An instance of a class of magics, without its ``__init__``."""
    made = kind.__new__(kind)
    made.shell = sys.modules["__main__"].__dict__["get_ipython"]()
    made.options_table = {}
    return made


def fill_magics(made: Any, state: dict[str, Any]) -> None:
    """Its own attributes."""
    for name, value in state.items():
        setattr(made, name, value)


def instance(kind: type) -> Any:
    """An object before its attributes are there."""
    return object.__new__(kind)


def fill_instance(made: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Attributes and slots, past a class's own ``__getattr__`` and ``__setattr__``."""
    own, slots = state
    if own:
        object.__getattribute__(made, "__dict__").update(own)
    for name, value in slots.items():
        object.__setattr__(made, name, value)


def plain_class(
    metaclass: type, _builder: type, name: str, bases: tuple[type, ...], body: dict[str, Any]
) -> type:
    """A class whose metaclass refuses to be called with a finished body."""
    return type.__new__(metaclass, name, bases, dict(body))


def traceback(rows: list[tuple[Any, ...]]) -> types.TracebackType | None:
    """A traceback of stub frames: files, lines, columns and names are right, the variables are gone."""
    made: types.TracebackType | None = None
    for *facts, instruction, line in reversed(rows):
        made = types.TracebackType(made, _stub(*facts), instruction, line)
    return made


def _stub(
    file: str, name: str, qualname: str, first: int, positions: bytes, size: int, home: str
) -> types.FrameType:
    body = _template.__code__
    # The stub's own instructions come first; what follows is never reached and only keeps positions.
    nothing = bytes((dis.opmap["NOP"], 0))
    replaced = body.replace(
        co_code=body.co_code + nothing * max(0, (size - len(body.co_code)) // 2),
        co_filename=file,
        co_name=name,
        co_qualname=qualname,
        co_firstlineno=first,
        co_linetable=positions,
    )
    frame: types.FrameType = types.FunctionType(replaced, {"sys": sys, "__name__": home})()
    return frame


def _template() -> Any:
    return sys._getframe()


def registry(kind: Any) -> Any:
    """matplotlib's registry of callbacks, before it is filled."""
    return kind.__new__(kind)


def fill_registry(made: Any, state: dict[str, Any]) -> None:
    """Callbacks under the numbers they had."""
    made.__setstate__(state)


def generator_of(kind: Any) -> Any:
    """A random generator of a class of the notebook, whose ``__init__`` may want arguments."""
    return kind.__new__(kind)


def fill_generator(value: Any, state: tuple[Any, dict[str, Any]]) -> None:
    """Its state, and its own attributes."""
    numbers, own = state
    random.Random.setstate(value, numbers)
    vars(value).update(own)
