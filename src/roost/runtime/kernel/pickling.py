"""One pickle of one group of variables: pickle 5, big memory out of band, sharing kept.

The bytes are both the data and the fingerprint. Runs on the main thread only. Never calls ``==``,
``len`` or ``repr`` on a user's object; what the user's own ``__reduce__`` does is the user's.
"""

import bisect
import builtins
import copyreg
import ctypes
import gc
import io
import mmap
import pickle
import sys
import time
import types
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as cloud

from roost.runtime.kernel import (
    data,
    files,
    frames,
    homing,
    hooks,
    iterators,
    rebuild,
    rebuild_data,
    rebuild_state,
    tasks,
    values,
)
from roost.runtime.kernel.chunks import Mapping
from roost.runtime.kernel.kinds import EXACT, Handler, Refusal, bases, reduce_exception
from roost.runtime.kernel.kinds_state import STATE, state_bases, trap
from roost.runtime.kernel.memory import Memory, Range, joined, span
from roost.runtime.kernel.naming import (
    CLASS,
    EXCEPTION,
    HEAP_TYPE,
    HOMES,
    Singletons,
    dict_of,
    flags_of,
    foreign,
    globals_of,
    importable_class,
    importable_function,
    mro_of,
    place_of,
    real_module,
)
from roost.runtime.kernel.watched import Taken

IN_BAND_BYTES = 64 << 10
"""Memory smaller than this goes into the pickle itself."""
SHALLOW, DEEPEST = 150, 100_000
"""Between these depths a second try with more stack is worth it."""
HOOK_S = 3.0
"""So long may the notebook's own classes take to say how their instances are copied."""
_RAW_KINDS = "biufcmMSUV?"
"""numpy dtype kinds whose memory holds no pointers."""
# By id: a notebook's metaclass may define __hash__ and __eq__.
_EXACT: dict[int, Handler] = {
    id(kind): handler
    for kind, handler in {
        **EXACT,
        **frames.EXACT,
        **iterators.EXACT,
        **tasks.EXACT,
        **STATE,
    }.items()
}


@dataclass(slots=True)
class Dump:
    """A pickle and its out-of-band memory, still the user's own."""

    content: bytes
    buffers: Sequence[Taken]
    notes: list[str]
    seconds: float
    alive: list[Any] = field(default_factory=list)
    """Keeps the memory from going away while it is read."""


@dataclass(slots=True)
class Surroundings:
    """What a pickler must know of its kernel."""

    root: str
    namespace: dict[str, Any]
    singletons: Singletons
    shell: Any
    streams: dict[int, str]
    """Ids of the kernel's output streams -> their names in ``sys``."""
    table: dict[type, Any] = field(default_factory=dict)
    """Reducers of ``copyreg`` and cloudpickle as they are now."""
    bases: dict[int, Handler] = field(default_factory=dict)
    """Handlers by the id of a base class."""
    forked: bool = False
    """This is a forked child: plain data only."""

    def __post_init__(self) -> None:
        if self.table:
            return
        # The C pickler looks reducers up in a plain dict much faster than in cloudpickle's ChainMap.
        self.table = {**_copyreg(), **cloud.Pickler._dispatch_table}
        self.bases = {
            id(kind): handler
            for kind, handler in {**bases(), **state_bases(), **tasks.BASES}.items()
        }


def _copyreg() -> dict[type, Any]:
    """What libraries registered; what the notebook did for its own classes may change the copy."""
    return {kind: way for kind, way in copyreg.dispatch_table.items() if not foreign(kind)}


class _Storing:
    """What the picklers here have in common: handlers for awkward kinds, and what they ask for."""

    def __init__(
        self,
        file: io.BytesIO,
        around: Surroundings,
        in_band_bytes: int,
        joined: Sequence[Range],
        *,
        ask: bool = False,
    ) -> None:
        self.dispatch_table = around.table  # looked up once, by the C pickler's own __init__
        super().__init__(file, protocol=5, buffer_callback=self._keep)  # type: ignore[call-arg]
        self.around = around
        self._in_band_bytes = in_band_bytes
        self.root = around.root
        self.notes: dict[str, None] = {}
        self.buffers: list[memoryview] = []
        self.alive: list[Any] = []
        self._memories: dict[tuple[int, int], Memory] = {}
        self._joined = joined
        self._kinds: dict[int, tuple[type, Handler | None]] = {}
        self.ask = ask
        """Whether classes of the notebook are asked how their instances are copied."""
        self.hooked = False
        """Whether a class was met that has an answer."""
        self.promised: dict[int, Any] = {}
        """Generators whose state is stored somewhere in this pickle, by id."""
        self._numpy: Any = sys.modules.get("numpy")

    def note(self, text: str) -> None:
        """Say that something comes back rebuilt rather than as it was."""
        self.notes[text] = None

    def reducer_override(self, obj: Any) -> Any:
        """Called for everything but plain containers and atoms."""
        kind = type(obj)
        found = self._kinds.get(id(kind))
        if found is None:
            if self.around.forked:
                homing.check(kind, {*_EXACT, *self.around.bases})
            found = self._kinds[id(kind)] = (kind, self._handler(kind))
        if found[1] is not None:
            return found[1](self, obj)
        if (stream := self.around.streams.get(id(obj))) is not None:
            return rebuild.module_attribute, ("sys", stream)
        place = self.around.singletons.where(obj)
        return NotImplemented if place is None else (rebuild.module_attribute, place)

    def memory(self, start: int, size: int, owner: Any) -> tuple[Any, int]:
        """What is stored for this range, and where that begins: the one stand-in, or who lends the memory."""
        if (whole := self.joined(start, size)) is not None:
            if whole.lender is not None:
                return whole.lender, whole.start
            start, size = whole.start, whole.end - whole.start
        self.alive.append(owner)
        known = self._memories.get((start, size))
        if known is None:
            known = self._memories[start, size] = Memory(start, size)
        return known, start

    def joined(self, start: int, size: int) -> Range | None:
        """The range that several kinds of objects share and that this one is a part of."""
        place = bisect.bisect_right(self._joined, start, key=lambda one: one.start)
        if not place or start + size > self._joined[place - 1].end:
            return None
        return self._joined[place - 1]

    def _keep(self, buffer: pickle.PickleBuffer) -> bool:
        """Collect big buffers; true means: in band."""
        raw = buffer.raw()
        if raw.nbytes < self._in_band_bytes:
            return True
        self.buffers.append(raw)
        return False

    def _handler(self, kind: type) -> Handler | None:
        flags = flags_of(kind)
        if flags & CLASS:
            return reduce_class
        if (exact := _CODE.get(id(kind)) or _EXACT.get(id(kind))) is not None:
            return exact
        if self._numpy is not None and kind is self._numpy.ndarray:
            return reduce_array
        mro = mro_of(kind)
        if any(base is types.ModuleType for base in mro):
            return reduce_module
        if kind is type(self.around.shell):
            return reduce_shell
        for base in mro:
            if (handler := self.around.bases.get(id(base))) is not None:
                return handler
        if foreign(kind) and (handler := values.own(mro)) is not None:
            return handler
        if self._numpy is not None and any(base is self._numpy.ndarray for base in mro):
            return reduce_array
        return reduce_error if flags & EXCEPTION else self._own_way(kind)

    def _own_way(self, kind: type) -> Handler | None:
        """How instances of the notebook's classes that say how they are copied are stored."""
        made_of = hooks.raw_base(kind)
        if made_of is None:
            return trap(kind)
        self.hooked = True
        return None if self.ask else lambda _pickler, value: hooks.reduce_raw(value, made_of)


class GroupPickler(_Storing, cloudpickle.Pickler):
    """Stores one group. Handlers for awkward kinds come first, cloudpickle's second."""


class DeepPickler(_Storing, vars(pickle)["_Pickler"]):  # type: ignore[misc]
    """The same in Python, which nests deeper: from 3.12 on C code has a fixed limit."""


def dump(
    value: Any, around: Surroundings, *, in_band: bool = False, shared: Iterable[Range] = ()
) -> Dump:
    """Pickle one value. Raises whatever the pickler or the user's own code raises.

    ``shared``: where its memory lies, when libraries share memory without a reference.
    """
    begun = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # otherwise a big pickle walks the whole heap again and again
    try:
        return _dump(
            value, around, sys.maxsize if in_band else IN_BAND_BYTES, joined(shared), begun
        )
    finally:
        if collecting:
            gc.enable()


def _dump(
    value: Any, around: Surroundings, in_band_bytes: int, ranges: Sequence[Range], begun: float
) -> Dump:
    with io.BytesIO() as file:
        pickler: Any = GroupPickler(file, around, in_band_bytes, ranges)
        try:
            _run(pickler, value)
        except Exception as error:
            if hooks.too_deep(error):
                return _dump_deep(value, around, in_band_bytes, ranges, begun, error)
            if not pickler.hooked:
                raise
            # What its classes say about copies may leave out what cannot be stored.
            file.seek(0)
            file.truncate()
            pickler = GroupPickler(file, around, in_band_bytes, ranges, ask=True)
            with hooks.limited(HOOK_S):
                _run(pickler, value)
            pickler.note("stored as its own class says, which may leave something out")
        seconds = time.perf_counter() - begun
        notes = list(pickler.notes)
        return Dump(file.getvalue(), pickler.buffers, notes, seconds, pickler.alive)


def _dump_deep(
    value: Any,
    around: Surroundings,
    in_band_bytes: int,
    ranges: Sequence[Range],
    begun: float,
    error: Exception,
) -> Dump:
    """What lies deeper in itself than a C stack allows, up to a measured depth."""
    depth = hooks.depth(value, DEEPEST)
    if not SHALLOW < depth < DEEPEST:
        raise error
    with io.BytesIO() as file:
        kind = GroupPickler if sys.version_info < (3, 12) else DeepPickler
        pickler: Any = kind(file, around, in_band_bytes, ranges)
        hooks.on_deep_stack(lambda: _run(pickler, value), depth)
        seconds = time.perf_counter() - begun
        notes = list(pickler.notes)
        return Dump(file.getvalue(), pickler.buffers, notes, seconds, pickler.alive)


def _run(pickler: Any, value: Any) -> None:
    try:
        pickler.dump(value)
    finally:  # the pickler is part of a cycle: what it holds of the user's would outlive it
        pickler.clear_memo()
        pickler.promised.clear()


# --- what the notebook defines -------------------------------------------------------------------


def reduce_function(pickler: GroupPickler, function: types.FunctionType) -> Any:
    """By name when importable; else code over live globals."""
    if importable_function(function):
        return NotImplemented
    slots: dict[str, Any] = {
        "__defaults__": function.__defaults__,
        "__kwdefaults__": function.__kwdefaults__,
        "__annotations__": function.__annotations__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "__doc__": function.__doc__,
    }
    if sys.version_info >= (3, 12) and function.__type_params__:
        slots["__type_params__"] = function.__type_params__
    where = place_of(pickler.around.namespace, function.__globals__)
    arguments: tuple[Any, ...] = (
        function.__code__, where, function.__name__, function.__closure__,
    )  # fmt: skip
    own = vars(types.FunctionType)["__builtins__"].__get__(function)
    if type(where) is dict and own is not vars(builtins):
        arguments += (own,)
    state = (function.__dict__, slots)
    return rebuild.make_function, arguments, state, None, None, rebuild.set_function


def reduce_builtin(_pickler: GroupPickler, function: types.BuiltinFunctionType) -> Any:
    """A library's function in C, also while the notebook has put another in its place."""
    home = function.__self__
    if type(home) is not types.ModuleType:
        return NotImplemented
    there = globals_of(home).get(function.__name__, function)
    if there is function or type(function.__module__) is not str:
        return NotImplemented
    return rebuild.displaced, (function.__module__, function.__name__)


def reduce_cell(_pickler: GroupPickler, cell: types.CellType) -> Any:
    """Closure cells are shared objects of their own."""
    try:
        content = cell.cell_contents
    except ValueError:
        return rebuild.make_cell, ()
    return rebuild.make_cell, (), (content,), None, None, rebuild.set_cell


_CODE: dict[int, Handler] = {
    id(types.FunctionType): reduce_function,
    id(types.BuiltinFunctionType): reduce_builtin,
    id(types.CellType): reduce_cell,
}


def reduce_class(_pickler: GroupPickler, cls: type) -> Any:
    """By name when importable; else by value."""
    if importable_class(cls):
        return NotImplemented
    if not flags_of(cls) & HEAP_TYPE:
        return cloud._class_reduce(cls)
    if data.is_ctypes(cls) and (made := data.reduce_ctypes_class(cls)) is not None:
        return made
    mro = mro_of(cls)
    # An enum is filled like any class: its members are made without running its ``__new__`` again.
    is_enum = any(base is cloud.Enum for base in mro)
    own = dict_of(cls)
    body = {k: own[k] for k in ("__module__", "__qualname__", "__orig_bases__") if k in own}
    if type(own.get("__class__")) is property:
        body["__class__"] = property()  # its functions follow
    body.setdefault("__qualname__", type.__getattribute__(cls, "__qualname__"))
    if "__slots__" in own:
        body["__slots__"] = _slots(own["__slots__"], own)
    builder = type if is_enum else next(m for m in mro_of(type(cls)) if importable_class(m))
    name = type.__getattribute__(cls, "__name__")
    bases = type.__getattribute__(cls, "__bases__")
    state = ({k: v for k, v in own.items() if _carried(k, v)}, _registered(cls, own))
    arguments = (type(cls), builder, name, bases, body)
    if type(cls).__name__ == "_TypedDictMeta" and type(cls).__module__ in (
        "typing",
        "typing_extensions",
    ):
        return rebuild_state.plain_class, arguments, state, None, None, rebuild.set_class
    return rebuild.make_class, arguments, state, None, None, rebuild.set_class


_NOT_CARRIED = frozenset(
    {"__dict__", "__weakref__", "__slots__", "__module__", "__qualname__", "_abc_impl"}
)  # fmt: skip


def _carried(name: str, value: Any) -> bool:
    return name not in _NOT_CARRIED and type(value) is not types.MemberDescriptorType


def _slots(declared: Any, own: AbstractMapping[str, Any]) -> Any:
    if type(declared) in (str, tuple, list, dict):
        return declared
    # An iterator is used up by now: take what it made.
    return tuple(k for k, v in own.items() if type(v) is types.MemberDescriptorType)


def _registered(cls: type, own: AbstractMapping[str, Any]) -> tuple[type, ...]:
    if "_abc_impl" not in own:
        return ()
    registry = cloud.abc._get_dump(cls)[0]
    found = (reference() for reference in registry)
    return tuple(other for other in found if other is not None)


def reduce_module(_pickler: GroupPickler, module: types.ModuleType) -> Any:
    """Modules by name."""
    if (key := HOMES.get(id(globals_of(module)))) is not None:
        return rebuild_state.module, (key,)
    if not real_module(module):
        raise Refusal(
            "a module made at run time", "bind it to a variable, or put its code into a file"
        )
    return cloud.subimport, (globals_of(module)["__name__"],)


def reduce_shell(_pickler: GroupPickler, _shell: Any) -> Any:
    """The shell is the new kernel's shell."""
    return rebuild.shell, ()


def reduce_error(pickler: GroupPickler, error: BaseException) -> Any:
    """See ``values.reduce_exception``; an own ``__reduce__`` is asked when that fails."""
    for base in mro_of(type(error)):
        if flags_of(base) & HEAP_TYPE and dict_of(base).keys() & {"__reduce__", "__reduce_ex__"}:
            if pickler.ask or importable_class(base):
                return NotImplemented
            pickler.hooked = True
    return reduce_exception(pickler, error)


# --- arrays --------------------------------------------------------------------------------------


def reduce_array(pickler: GroupPickler, array: Any) -> Any:
    """An array of plain numbers: a view on memory that is stored once."""
    numpy = pickler._numpy
    dtype = numpy.ndarray.dtype.__get__(array)
    plain = type(array) is numpy.ndarray
    if dtype.hasobject and plain:
        return data.reduce_object_array(array)
    if dtype.hasobject or dtype.kind not in _RAW_KINDS or array.nbytes == 0:
        return NotImplemented
    owner = array
    while isinstance(base := _below(owner), numpy.ndarray):
        owner = base
    root, start = _root(pickler, owner, owner.base)
    place = numpy.ndarray.__array_interface__.__get__(array)["data"][0]
    shape, strides = numpy.ndarray.shape.__get__(array), numpy.ndarray.strides.__get__(array)
    form = (place - start, dtype, shape, strides, bool(array.flags.writeable))
    if plain:
        return rebuild.array, (root, *form)
    state = getattr(array, "__dict__", {})
    return (
        rebuild_data.sub_array,
        (type(array), root, *form),
        state,
        None,
        None,
        (rebuild_data.set_dict),
    )


def _below(array: Any) -> Any:
    """The array that this one is a view of, also through ``as_strided``; else what it has for a base."""
    base = array.base
    return base.base if type(base).__name__ == "DummyArray" else base


def _root(pickler: GroupPickler, owner: Any, base: Any) -> tuple[Any, int]:
    """What holds the memory, and its address."""
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, bytes | bytearray) or type(base).__name__ == "array":
        numpy = pickler._numpy
        start = numpy.frombuffer(base, dtype="u1").__array_interface__["data"][0]
        return base, start
    if type(base) is Mapping:
        raw = memoryview(base)
        start = ctypes.addressof(ctypes.c_char.from_buffer(base))
        return pickler.memory(start, raw.nbytes, base)
    if isinstance(base, mmap.mmap | ctypes.Array | ctypes.Structure):
        return base, files.address_of(base)
    low, high = span(owner)
    return pickler.memory(low, high - low, owner)
