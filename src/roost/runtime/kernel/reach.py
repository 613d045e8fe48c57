"""Which variables belong together: those that reach a common object that can change.

Walks references with the garbage collector's own traversal and never calls a user object. It never
walks into modules, importable classes and functions, the namespace or what libraries hold as globals.
"""

import asyncio
import contextvars
import gc
import logging
import sys
import time
import types
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.runtime.kernel import frames, rebuild_values, tasks, tensors, widgets
from roost.runtime.kernel.memory import Range, clusters, of_array, of_bytes
from roost.runtime.kernel.naming import (
    CLASS,
    EXCEPTION,
    HEAP_TYPE,
    HOMES,
    IN_C,
    Singletons,
    flags_of,
    globals_of,
    importable_class,
    importable_function,
    is_module,
    mro_of,
    place_of,
)

_ATOMS = frozenset(
    id(kind)
    for kind in (
        type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis), type(NotImplemented),
    )
)  # fmt: skip
_LEAVES = _ATOMS | frozenset(
    id(kind)
    for kind in (
        types.CodeType, types.MethodDescriptorType, types.WrapperDescriptorType, types.FrameType,
        types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType,
        types.ModuleType, types.TracebackType, contextvars.Context,
    )
)  # fmt: skip


PROBE = 1024
"""Objects walked between two looks at the clock."""
PROBE_BYTES = 4 << 20
"""A container of this size alone takes too long, where there is a limit."""


@dataclass(slots=True)
class Reach:
    """What one variable reaches."""

    ids: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    """Global names that functions on the way use."""
    cut: bool = False
    """The walk took too long and was not finished."""
    namespace: bool = False
    """It holds the notebook's namespace dictionary itself."""
    sets: list[Any] = field(default_factory=list)
    """Sets on the way: their order is kept."""
    memory: list[Range] = field(default_factory=list)
    """Where memory lies that others may have without a reference to its owner."""


def is_atom(value: object) -> bool:
    """Whether nothing can be shared through it."""
    return id(type(value)) in _ATOMS


_WEAK = frozenset(
    id(kind)
    for kind in (
        weakref.ReferenceType, weakref.KeyedRef, weakref.WeakMethod, weakref.ProxyType,
        weakref.CallableProxyType, weakref.finalize,
    )
)  # fmt: skip


def _weakly_held(value: Any, kind: type) -> list[Any]:
    """What a weak reference, proxy or finalizer leads to."""
    if kind is weakref.ProxyType or kind is weakref.CallableProxyType:
        return [rebuild_values.target_of(value)]
    if kind is weakref.finalize:
        return list(value.peek() or ())
    below = [value()]
    if kind is weakref.ReferenceType:
        below.append(value.__callback__)
    return below


class Walker:
    """Walks from variables. One per capture: it remembers which classes are importable."""

    def __init__(self, namespace: dict[str, Any], singletons: Singletons, stops: Iterable[object]):
        self._namespace = namespace
        self._singletons = singletons
        self._stops = {id(stop) for stop in stops} | {id(sys.modules), id(sys.__dict__)}
        self._classes: dict[int, tuple[type, bool]] = {}
        numpy: Any = sys.modules.get("numpy")
        self._array: Any = getattr(numpy, "ndarray", None)
        self._record: Any = getattr(numpy, "void", None)
        self._flat: Any = getattr(numpy, "flatiter", self)
        self._ufunc: Any = getattr(numpy, "ufunc", self)
        self._specials: dict[int, tuple[type, type | None]] = {}
        self._descriptor = widgets.descriptor_kind()
        self._dtype: Any = getattr(numpy, "dtype", self)
        self._torch = tensors.loaded()
        self._memories: dict[int, tuple[type, bool]] = {}

    def reach(self, root: object, until: float | None = None) -> Reach:
        """Everything that ``root`` leads to, unless it takes until this moment of the clock."""
        found = Reach()
        seen = found.ids
        # Tuples are walked through but bind nothing together: libraries share constants of their code.
        passed: set[int] = set(self._stops)
        stack = [root] if id(type(root)) not in _LEAVES else []
        steps = 0
        while stack:
            value = stack.pop()
            key = id(value)
            if key in seen or key in passed:
                continue
            steps += 1
            if until is not None and _too_long(value, steps, until):
                found.cut = True
                break
            kind = type(value)
            if kind is set or kind is frozenset:
                found.sets.append(value)
            if kind is tuple or kind is frozenset:
                passed.add(key)
                below: list[Any] | None = gc.get_referents(value)
            elif kind is dict and value is self._namespace:
                found.namespace = True
                continue
            elif kind is list or kind is dict or kind is set:
                seen.add(key)
                below = gc.get_referents(value)
            else:
                below = self._below(value, kind, found)
                (seen if below is not None else passed).add(key)
            if below:
                stack += [item for item in below if id(type(item)) not in _LEAVES]
        if type(root) is tuple and root:
            seen.add(id(root))
        return found

    def _below(self, value: Any, kind: type, found: Reach) -> list[Any] | None:
        """References worth following; None when the value is known by name."""
        if kind is types.FunctionType:
            return self._function(value, found)
        if id(kind) in frames.IDS:
            return self._frame(value, found)
        flags = flags_of(kind)
        if flags & CLASS:
            return None if self._known(value) else gc.get_referents(value)
        if id(kind) in _WEAK:
            return _weakly_held(value, kind)
        if kind is contextvars.Context:
            return [one for pair in value.items() for one in pair if pair[0].name not in IN_C]
        special = self._special(kind)
        if special is asyncio.Task:
            held = [one for pair in tasks.variables(value) for one in pair]
            return [*gc.get_referents(value), *held]
        if special is logging.Logger:
            return [value.handlers, value.filters]  # its manager knows every other logger
        if kind is self._flat:
            return [value.base]  # which the collector is not told of
        if kind is self._ufunc:
            return gc.get_referents(value) or None  # of ``frompyfunc``: the function under it
        if self._by_name(value, kind):
            return None
        if self._array is not None and any(
            base is self._array or base is self._record for base in mro_of(kind)
        ):
            return self._elements(value, found)
        return self._referents(value, kind, found)

    def _referents(self, value: Any, kind: type, found: Reach) -> list[Any]:
        """What an ordinary object refers to."""
        below, flags = gc.get_referents(value), flags_of(kind)
        if self._torch is not None and self._has_memory(kind):
            below += self._borrowed(value, kind, found)
        if flags & EXCEPTION:
            below = [b for b in below if type(b) is not types.TracebackType]
        if flags & HEAP_TYPE and not self._known(kind):
            below.append(kind)
        return below

    def _frame(self, value: Any, found: Reach) -> list[Any]:
        below, code, inside = frames.referents(value)
        if inside is self._namespace:
            found.names |= code_names(code)
        elif inside is not None and isinstance(place_of(self._namespace, inside), dict):
            below.append(inside)
        return below

    def _function(self, function: types.FunctionType, found: Reach) -> list[Any] | None:
        if importable_function(function):
            return None
        below: list[Any] = [function.__closure__, function.__defaults__, function.__kwdefaults__]
        below += [function.__dict__, function.__annotations__]
        inside = function.__globals__
        if inside is self._namespace:
            found.names |= code_names(function.__code__)
        elif (key := HOMES.get(id(inside))) is not None:
            found.names |= {f"process: attribute {key}:{n}" for n in code_names(function.__code__)}
        else:
            home = sys.modules.get(str(inside.get("__name__")))
            if home is None or not is_module(home) or globals_of(home) is not inside:
                below.append(inside)
        return below

    def _has_memory(self, kind: type) -> bool:
        """Whether its instances have memory of torch's, or may have lent it theirs."""
        known = self._memories.get(id(kind))
        if known is None:
            having = (bytearray, *tensors.kinds(self._torch))
            found = any(base is one for base in mro_of(kind) for one in having)
            known = self._memories[id(kind)] = (kind, found)
        return known[1]

    def _borrowed(self, value: Any, kind: type, found: Reach) -> list[Any]:
        """Note memory that tensors have or may have been lent; what else a tensor leads to."""
        if kind is bytearray:
            if (lent := of_bytes(value)) is not None:
                found.memory.append(lent)
            return []
        for address, lies in tensors.storages(self._torch, value):
            found.ids.add(address)
            if lies is not None:
                found.memory.append(lies)
        return list(tensors.below(self._torch, value))

    def _elements(self, array: Any, found: Reach) -> list[Any]:
        """An array's base and, when it holds objects, these; the array that a record lies in."""
        if not isinstance(array, self._array):
            return [self._record.base.__get__(array)]
        below = gc.get_referents(array)
        base = array.base
        below.append(base)
        if self._torch is not None and not isinstance(base, self._array):
            lies = of_array(array)
            found.memory += [lies] if lies is not None else []
        if type(base) is memoryview:
            below.append(base.obj)
        if array.dtype.hasobject and array.dtype.kind == "O":
            below.extend(array.ravel(order="K").tolist())
        return below

    def _special(self, kind: type) -> type | None:
        """The ancestor that says how its instances are walked, if any."""
        known = self._specials.get(id(kind))
        if known is None:
            special = (
                asyncio.Task,
                logging.Logger,
                types.ModuleType,
                asyncio.AbstractEventLoop,
                self._descriptor,
            )
            found = [base for base in mro_of(kind) if any(base is one for one in special)]
            known = self._specials[id(kind)] = (kind, found[0] if found else None)
        return known[1]

    def _by_name(self, value: Any, kind: type) -> bool:
        """Whether another process has it already."""
        if kind is self._dtype or self._singletons.where(value) is not None:
            return True
        special = self._special(kind)
        if special is self._descriptor and special is not None:
            return widgets.place_of(value) is not None
        return special is types.ModuleType or special is asyncio.AbstractEventLoop

    def _known(self, kind: type) -> bool:
        known = self._classes.get(id(kind))
        if known is None:
            known = self._classes[id(kind)] = (kind, importable_class(kind))
        return known[1]


def _too_long(value: Any, steps: int, until: float) -> bool:
    """Whether the walk should be left to somebody who has the time."""
    if type(value) in (list, dict, set) and sys.getsizeof(value) > PROBE_BYTES:
        return True
    return not steps % PROBE and time.perf_counter() > until


def code_names(code: types.CodeType) -> set[str]:
    """Global names that a code object and those inside it use."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= code_names(constant)
    return names


def group(reaches: Mapping[str, Reach]) -> list[tuple[str, ...]]:
    """Names that reach a common object or have the same memory together, each group and the list sorted."""
    leader = {name: name for name in reaches}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    owner: dict[int, str] = {}
    for name, reach in reaches.items():
        for one in owner.keys() & reach.ids:
            leader[find(name)] = find(owner[one])
        owner.update(dict.fromkeys(reach.ids, name))
    owners = {id(lies): name for name, reach in reaches.items() for lies in reach.memory}
    for cluster in clusters(lies for reach in reaches.values() for lies in reach.memory):
        for lies in cluster[1:]:
            leader[find(owners[id(lies)])] = find(owners[id(cluster[0])])
    groups: dict[str, list[str]] = {}
    for name in reaches:
        groups.setdefault(find(name), []).append(name)
    return sorted(tuple(sorted(names)) for names in groups.values())
