"""Generators, coroutines and async generators as they stand: read from their frames, stored without running.

What is read from memory is checked against what the garbage collector says the object refers to, in the same
order; where the two differ, or the interpreter is not known, the object is refused. The rebuilding half is
``rebuild_frames``.
"""

import gc
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from roost.runtime.kernel import rebuild_frames as rebuild
from roost.runtime.kernel.kinds import Handler, Refusal
from roost.runtime.kernel.naming import place_of
from roost.runtime.kernel.rebuild_frames import Layout, State, Unknown

WORDS = {
    types.GeneratorType: "a generator",
    types.CoroutineType: "a coroutine",
    types.AsyncGeneratorType: "an async generator",
}
_STEP_STATE = 32
"""Offset of the state of ``generator.asend(x)``: not begun, under way, ended."""
IDS = frozenset(id(kind) for kind in WORDS)
ADVICE = "create it again after a move"


@dataclass(frozen=True, slots=True)
class Frame:
    """A generator that has not finished."""

    code: types.CodeType
    function: types.FunctionType
    state: State

    @property
    def inner(self) -> Any:
        """What ``yield from`` or ``await`` waits for, when it is a frame too."""
        values, _empty, top = self.state[:3]
        if top <= rebuild.slot_count(self.code):
            return None
        last = values[-1]
        if type(last) is _WRAPPER:
            last = gc.get_referents(last)[0]
        return last if id(type(last)) in IDS else None

    def named(self) -> list[tuple[str, Any]]:
        """Its locals, and what lies on its stack under names of what it is there for."""
        count = rebuild.slot_count(self.code)
        values = self.state[0]
        names = [self.code._varname_from_oparg(n) for n in range(count)]  # type: ignore[attr-defined]
        found = list(zip(names, values[:count], strict=True))
        found += [("what it loops over or waits for", value) for value in values[count:]]
        return found


async def _nothing() -> None:
    pass


def _wrapper() -> type:
    coroutine = _nothing()
    try:
        return type(coroutine.__await__())
    finally:
        coroutine.close()


_WRAPPER = _wrapper()


def read(value: Any) -> Frame | None:
    """The frame of a generator, None when it has finished. Raises ``Refusal``."""
    what = WORDS[type(value)]
    try:
        known = rebuild.layout()
    except Unknown as error:
        raise Refusal(f"{what} ({error})", ADVICE) from error
    now = rebuild.byte_at(value, known.state)
    if now == 0:
        raise Refusal(f"{what} that is running", "let it come to its next yield before the move")
    if now > 0:
        return None
    if now not in (known.created, *known.suspended):
        raise Refusal(f"{what} in a state that is not known", ADVICE)
    found = _read(value, known, now)
    if found is None:
        raise Refusal(f"{what} whose frame could not be read with certainty", ADVICE)
    return found


def _read(value: Any, known: Layout, now: int) -> Frame | None:
    code = rebuild.code_of(value)
    top = rebuild.int_at(value, known.top)
    low = rebuild.slot_count(code)
    offset = rebuild.offset_of(value, code, known)
    if not low <= top <= low + code.co_stacksize or not -2 <= offset < len(code.co_code):
        return None
    slots = rebuild.slots_of(value, known, top)
    error = rebuild.pointer_at(value, known.error)
    referents = gc.get_referents(value)
    held = [pointer for pointer in (*slots, error) if pointer]
    rest = len(referents) - len(held)
    if rest < 0 or [id(one) for one in referents[rest:]] != held:
        return None
    pointer = rebuild.pointer_at(value, known.function)
    function = next((one for one in referents[:rest] if id(one) == pointer), None)
    if type(function) is not types.FunctionType or rebuild.pointer_at(value, known.code) != id(
        code
    ):
        return None
    objects = {id(one): one for one in referents[rest:]}
    values = [objects.get(slot) for slot in slots]
    empty = tuple(index for index, slot in enumerate(slots) if not slot)
    closed = type(value) is types.AsyncGeneratorType and rebuild.byte_at(value, known.closed) == 1
    handled = objects.get(error) if error else None
    return Frame(code, function, (values, empty, top, offset, now, handled, closed))


def begun(value: Any) -> bool:
    """Whether it is a generator (coroutine, async generator) that has moved or may have."""
    kind = type(value)
    if id(kind) not in IDS:
        return type.__getattribute__(kind, "__name__") == "generator"  # compiled: it does not tell
    try:
        known = rebuild.layout()
    except Unknown:
        return True
    return rebuild.byte_at(value, known.state) != known.created


def referents(value: Any) -> tuple[list[Any], types.CodeType, dict[str, Any] | None]:
    """What its slots hold, its code, and its globals; nothing once it has finished.

    An async generator refers to its event loop, too, which is none of its own.
    """
    code = rebuild.code_of(value)
    found = gc.get_referents(value)
    for index, one in enumerate(found):
        if type(one) is types.FunctionType and one.__code__ is code:
            return found[index + 1 :], code, one.__globals__
    return [], code, None


def reduce_frame(pickler: Any, value: Any) -> Any:
    """The whole chain of what it waits for goes into one flat state: depth costs no recursion."""
    promised: dict[int, Any] = pickler.promised
    frame = read(value)
    if id(value) in promised:  # its state comes with the chain, or with the reduction under way
        return rebuild.made, _making(pickler, value, frame)
    promised[id(value)] = value
    inner: list[Any] = []
    states = [None if frame is None else frame.state]
    arguments = _making(pickler, value, frame)
    following = None if frame is None else frame.inner
    while following is not None and id(following) not in promised:
        promised[id(following)] = following
        inner.append(following)
        below = read(following)
        states.append(None if below is None else below.state)
        following = None if below is None else below.inner
    return rebuild.made, arguments, (tuple(inner), states), None, None, rebuild.filled


def _making(pickler: Any, value: Any, frame: Frame | None) -> tuple[Any, ...]:
    names = (value.__name__, value.__qualname__)
    code = rebuild.code_of(value)
    if frame is None:
        return code, "builtins", *names, None
    where = place_of(pickler.around.namespace, frame.function.__globals__)
    return code, where, *names, frame.function.__closure__ or ()


def reduce_wrapper(_pickler: Any, value: Any) -> Any:
    """What ``coroutine.__await__()`` gives."""
    return rebuild.awaiting, (gc.get_referents(value)[0],)


def reduce_asking(_pickler: Any, value: Any) -> Any:
    """The step of an async generator under way; asked again, it goes on inside."""
    below = gc.get_referents(value)
    used = rebuild.int_at(value, _STEP_STATE) not in (0, 1)
    if used or not below or type(below[0]) is not types.AsyncGeneratorType:
        raise Refusal("a step of an async generator that has ended", ADVICE)
    return rebuild.asking, (below[0], below[1] if len(below) > 1 else None)


def culprit(value: Any, fails: Callable[[Any], BaseException | None]) -> BaseException | None:
    """Why a generator that was refused cannot be stored, with the name of its local at fault.

    ``fails`` tries to store one value on its own.
    """
    if id(type(value)) not in IDS:
        return None
    seen: set[int] = set()
    way = ""
    while id(value) not in seen:
        seen.add(id(value))
        try:
            frame = read(value)
        except Refusal as error:
            return error
        if frame is None:
            return None
        for name, held in frame.named():
            fault = None if held is frame.inner else fails(held)
            if fault is None:
                continue
            reason = fault.reason if isinstance(fault, Refusal) else _text(fault)
            of = f"{WORDS[type(value)]} {frame.code.co_name!r}{way}"
            local = name if name.startswith("what ") else f"its local {name!r}"
            return Refusal(f"{of}; {local} is or holds {reason}", ADVICE)
        if frame.inner is None:
            return None
        value, way = frame.inner, " that it waits for"
    return None


def _text(error: BaseException) -> str:
    try:
        return f"{error}"[:200]
    except Exception:  # a user's exception may fail to print itself
        return type(error).__name__


async def _sample() -> Any:
    yield None


def _step() -> type:
    """The type of ``generator.asend(x)``, which has no name."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)  # the loop shall not hear of this one
    try:
        step = _sample().__anext__()
        step.close()
    finally:
        sys.set_asyncgen_hooks(*hooks)
    return type(step)


EXACT: dict[type, Handler] = {
    types.GeneratorType: reduce_frame,
    types.CoroutineType: reduce_frame,
    types.AsyncGeneratorType: reduce_frame,
    _WRAPPER: reduce_wrapper,
    _step(): reduce_asking,
}
