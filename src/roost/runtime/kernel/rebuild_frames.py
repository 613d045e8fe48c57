"""Suspended generators, coroutines and async generators: where the interpreter keeps their frames, and how
one is made to stand where another stood. ``made`` and ``filled`` and their arguments are part of the format.

A generator is first made from its own code with empty arguments, not begun; then its slots (locals, cells,
value stack) and its place in the code are put in. So cycles through its own locals work, its code stays its
own, and no code of the user runs. Each minor version's layout is proven on a sample before it is used.
"""

import contextlib
import ctypes
import functools
import gc
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from roost.runtime.kernel import rebuild_state

State = tuple[list[Any], tuple[int, ...], int, int, int, Any, bool]
"""Values of the slots, indexes of the empty ones, height of the stack, offset in the code, state of the
frame, the exception being handled (None: none), whether an async generator is closed."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets in a generator object of one minor version, and the names of its states."""

    error: int
    flags: int
    """Four bytes: hooks set, closed, running asynchronously, state of the frame."""
    function: int
    code: int
    spot: int
    """Address of an instruction."""
    top: int
    slots: int
    created: int
    suspended: tuple[int, ...]

    @property
    def closed(self) -> int:
        """Offset of the byte that says so."""
        return self.flags + 1

    @property
    def state(self) -> int:
        """Offset of the state of the frame."""
        return self.flags + 3


_NEWER = {
    "error": 40,
    "flags": 64,
    "function": 88,
    "code": 72,
    "spot": 128,
    "top": 136,
    "slots": 144,
}
_LAYOUTS = {
    (3, 11): Layout(48, 72, 80, 112, 136, 144, 152, -2, (-1,)),
    (3, 12): Layout(**_NEWER, created=-2, suspended=(-1,)),
    (3, 13): Layout(**_NEWER, created=-3, suspended=(-2, -1)),
}


class Unknown(Exception):
    """This interpreter keeps frames in a way that is not known here."""


@functools.cache
def layout() -> Layout:
    """The layout of this interpreter, proven on a sample. Raises ``Unknown``."""
    version = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    found = _LAYOUTS.get(sys.version_info[:2])
    plain = sys.implementation.name == "cpython" and not hasattr(sys, "gettotalrefcount")
    if found is None or not plain or sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise Unknown(f"generators of this {version} cannot be moved")
    if not _proven(found):
        raise Unknown(f"generators of this build of {version} cannot be moved")
    return found


def _sample(outer: list[Any]) -> Any:
    for item in (11, 12):
        outer.append((yield item))
    yield len(outer)


def _proven(found: Layout) -> bool:
    """Whether a sample is read as it must be, and a copy goes on as the sample would."""
    sizes = {t.__basicsize__ for t in (types.GeneratorType, types.CoroutineType)}
    sizes.add(types.AsyncGeneratorType.__basicsize__)
    outer: list[Any] = []
    sample = _sample(outer)
    if sizes != {found.slots} or byte_at(sample, found.state) != found.created:
        return False
    next(sample)
    code = _sample.__code__
    references = {found.code: id(code), found.function: id(_sample), found.slots: id(outer)}
    if any(pointer_at(sample, offset) != value for offset, value in references.items()):
        return False
    frame = sample.gi_frame
    if (
        frame is None
        or byte_at(sample, found.state) not in found.suspended
        or offset_of(sample, code, found) != frame.f_lasti
        or pointer_at(sample, found.error) not in (0, id(None))
    ):
        return False
    top = int_at(sample, found.top)
    pointers = slots_of(sample, found, top)
    known = [id(one) for one in gc.get_referents(sample)]
    held = [pointer for pointer in pointers if pointer]
    return top <= slot_count(code) + code.co_stacksize and known[-len(held) :] == held


def byte_at(value: object, offset: int) -> int:
    """A signed byte of an object."""
    return ctypes.c_int8.from_address(id(value) + offset).value


def int_at(value: object, offset: int) -> int:
    """An int of an object."""
    return ctypes.c_int.from_address(id(value) + offset).value


def pointer_at(value: object, offset: int) -> int:
    """A pointer of an object; 0: none."""
    return ctypes.c_void_p.from_address(id(value) + offset).value or 0


def slots_of(value: object, known: Layout, top: int) -> list[int]:
    """Pointers of the locals, cells and the value stack; 0: an empty slot."""
    return list((ctypes.c_size_t * top).from_address(id(value) + known.slots))


def slot_count(code: types.CodeType) -> int:
    """Slots of a frame below its value stack."""
    names = set(code.co_varnames)
    own = sum(name not in names for name in code.co_cellvars)
    return len(code.co_varnames) + own + len(code.co_freevars)


def offset_of(value: object, code: types.CodeType, known: Layout) -> int:
    """Where it stands in its code, in bytes."""
    return pointer_at(value, known.spot) - id(code) - types.CodeType.__basicsize__


# --- what stored pickles call ------------------------------------------------------------------------


def made(
    code: types.CodeType,
    where: str | dict[str, Any] | None,
    name: str,
    qualname: str,
    closure: tuple[types.CellType, ...] | None,
) -> Any:
    """A generator, coroutine or async generator that has not begun, its arguments empty. Runs no user code.

    ``closure`` None: it will be a finished one.
    """
    layout()
    if where is None:
        space = sys.modules["__main__"].__dict__
    else:
        space = rebuild_state.module(where).__dict__ if isinstance(where, str) else where
    cells = tuple(types.CellType() for _ in code.co_freevars) if closure is None else closure
    function = types.FunctionType(code, space, name, None, cells or None)
    named = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    found: Any = function(*[None] * code.co_argcount, **dict.fromkeys(named))
    found.__name__ = name
    found.__qualname__ = qualname
    return found


def filled(value: Any, state: tuple[tuple[Any, ...], list[State | None]]) -> None:
    """Second half of ``made``, for a whole chain of ``yield from`` and ``await``: innermost first."""
    inner, states = state
    for one, own in zip(reversed((value, *inner)), reversed(states), strict=True):
        if own is None:
            _finish(one)
        else:
            _fill(one, own)


def _finish(value: Any) -> None:
    """It has not begun, so nothing of it runs."""
    if type(value) is types.AsyncGeneratorType:
        with contextlib.suppress(StopIteration):
            value.aclose().send(None)
    else:
        value.close()


def _fill(value: Any, state: State) -> None:
    values, empty, top, offset, now, error, closed = state
    known = layout()
    code = code_of(value)
    if (
        len(values) != top
        or not slot_count(code) <= top <= slot_count(code) + code.co_stacksize
        or not -2 <= offset < len(code.co_code)
        or now not in (known.created, *known.suspended)
    ):
        raise ValueError("the stored frame does not fit its code")
    slots = (ctypes.c_size_t * top).from_address(id(value) + known.slots)
    former = [pointer for pointer in slots[: int_at(value, known.top)] if pointer]
    vacant = set(empty)
    for index, item in enumerate(values):
        slots[index] = 0 if index in vacant else _owned(item)
    ctypes.c_int.from_address(id(value) + known.top).value = top
    start = id(code) + types.CodeType.__basicsize__
    ctypes.c_void_p.from_address(id(value) + known.spot).value = start + offset
    ctypes.c_int8.from_address(id(value) + known.closed).value = closed
    if error is not None:
        handled = ctypes.c_void_p.from_address(id(value) + known.error)
        former += [handled.value] if handled.value else []
        handled.value = _owned(error)
    ctypes.c_int8.from_address(id(value) + known.state).value = now
    for pointer in former:
        ctypes.pythonapi.Py_DecRef(ctypes.c_void_p(pointer))


def _owned(value: object) -> int:
    """Its address, with a reference that the frame owns from now on."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    return id(value)


def code_of(value: Any) -> types.CodeType:
    """The code of a generator, coroutine or async generator."""
    kind = type(value)
    if kind is types.GeneratorType:
        found = value.gi_code
    else:
        found = value.cr_code if kind is types.CoroutineType else value.ag_code
    return found


def awaiting(coroutine: Any) -> Iterator[Any]:
    """The wrapper that ``coroutine.__await__()`` gives."""
    found: Iterator[Any] = coroutine.__await__()
    return found


def asking(generator: Any, value: Any) -> Any:
    """What ``async for`` waits on: the next item of an async generator that stands inside an ``await``."""
    return generator.asend(value)
