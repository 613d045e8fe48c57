"""Objects that know others in ways plain pickle does not see: caches, weak references, errors, handlers."""

import dataclasses
import enum
import functools
import gc
import random
import sys
import types
import typing
import weakref
from typing import Any

from roost.runtime.kernel import rebuild, rebuild_state, rebuild_values
from roost.runtime.kernel.naming import HEAP_TYPE, dict_of, flags_of, is_class, mro_of, ours
from roost.runtime.kernel.refusal import Handler, Storing

_LINK = "_lru_list_elem"
HITS = 2_000_000
"""A cache's count of hits is made again by asking it, up to so many times."""


# --- functions -----------------------------------------------------------------------------------


def reduce_cached(pickler: Storing, value: Any) -> Any:
    """A function under ``lru_cache``, with what it has cached."""
    if not ours(value.__module__) and value.__module__ in sys.modules:
        return NotImplemented
    options = value.cache_parameters()
    inner, attributes = value.__wrapped__, dict(value.__dict__)
    attributes.pop("cache_parameters", None)
    info = value.cache_info()
    calls = []
    if info.hits or info.misses:
        if type(inner) is types.FunctionType:
            calls = [(_call(key, options["typed"]), result) for key, result in _cached(value)]
        else:
            pickler.note("its cache starts empty")
    counts = (min(info.hits, HITS), info.misses) if type(inner) is types.FunctionType else (0, 0)
    return (
        rebuild.cached_function, (inner, options["maxsize"], options["typed"]),
        (attributes, calls, counts), None, None, rebuild_values.fill_cache,
    )  # fmt: skip


def reduce_key(_pickler: Storing, value: Any) -> Any:
    """What ``functools.cmp_to_key`` made, or an object in its order."""
    compares = next(one for one in gc.get_referents(value) if one is not type(value))
    wraps = getattr(value, "obj", None)
    made = functools.cmp_to_key(compares)
    return (functools.cmp_to_key, (compares,)) if wraps is None else (made, (wraps,))


def _cached(value: Any) -> list[tuple[Any, Any]]:
    """Keys and results, the oldest first."""
    info = value.cache_info()
    refs = gc.get_referents(value)
    tables = [r for r in refs if type(r) is dict and r is not value.__dict__]
    if not info.currsize or not tables:
        return []
    table = tables[0]
    if value.cache_parameters()["maxsize"] is None:
        return list(table.items())
    links = {id(link) for link in table.values()}
    found = [_pair(item) for item in refs if id(item) in links]
    return found or _flat(refs, info.currsize)


def _pair(link: Any) -> tuple[Any, Any]:
    key, result = [r for r in gc.get_referents(link) if r is not type(link)][:2]
    return key, result


def _flat(refs: list[Any], size: int) -> list[tuple[Any, Any]]:
    """Python 3.11 names what the links refer to in place of the links: key, result, their class."""
    for start in (0, 1):
        kinds = refs[start + 2 : start + 3 * size : 3]
        if len(kinds) == size and all(getattr(k, "__name__", "") == _LINK for k in kinds):
            end = start + 3 * size
            return list(zip(refs[start:end:3], refs[start + 1 : end : 3], strict=True))
    return []


def _call(key: Any, typed: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments a key was made of."""
    if type(key) is not tuple:
        return (key,), {}
    parts = list(key)
    mark = next((i for i, part in enumerate(parts) if type(part) is object), None)
    if mark is None:
        return tuple(parts[: len(parts) // 2] if typed else parts), {}
    rest = parts[mark + 1 :]
    if typed:  # types of arguments, then of the values of keywords
        rest = rest[: len(rest) - mark - (len(rest) - mark) // 3]
    return tuple(parts[:mark]), dict(zip(rest[::2], rest[1::2], strict=True))


def reduce_typing(_pickler: Storing, value: Any) -> Any:
    """``NewType``, ``ParamSpec`` and their like of the notebook."""
    if value.__module__ != "__main__":
        return NotImplemented
    kind = type(value).__name__
    if kind == "NewType":
        return typing.NewType, (value.__name__, value.__supertype__)
    if kind == "ParamSpec":
        return rebuild_values.parameter_spec, (
            value.__name__, value.__bound__, value.__covariant__, value.__contravariant__,
        )  # fmt: skip
    if kind == "TypeVarTuple":
        return rebuild_values.type_variables, (value.__name__,)
    return rebuild_values.type_alias, (value.__name__, value.__value__, value.__type_params__)


def reduce_proxy(_pickler: Storing, value: Any) -> Any:
    """A read-only view of a dictionary that goes on showing the same one, a class's too (``vars(C)``)."""
    shown = gc.get_referents(value)[0]
    if type(shown) is dict and "__module__" in shown and "__doc__" in shown:
        for owner in gc.get_referrers(shown):
            if is_class(owner) and any(one is shown for one in gc.get_referents(owner)):
                return vars, (owner,)
    return types.MappingProxyType, (shown,)


def reduce_constant(_pickler: Storing, value: Any) -> Any:
    """``dataclasses.MISSING`` and its like are compared by identity."""
    for name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY"):
        if getattr(dataclasses, name, None) is value:
            return rebuild.module_attribute, ("dataclasses", name)
    return NotImplemented


# --- weak references -----------------------------------------------------------------------------


def reduce_reference(_pickler: Storing, value: Any) -> Any:
    """A weak reference; its target is in the same group."""
    if value.__callback__ is None:
        return rebuild.weak_reference, (value(),)
    return rebuild_values.watched_reference, (value(), value.__callback__)


def reduce_weak_method(_pickler: Storing, value: Any) -> Any:
    """``weakref.WeakMethod``."""
    return rebuild_values.weak_method, (type(value), value())


def target_of(proxy: Any) -> Any:
    """What a ``weakref.proxy`` stands for, without a word to it. None when that is gone."""
    return rebuild_values.target_of(proxy)


def reduce_weak_proxy(_pickler: Storing, value: Any) -> Any:
    """``weakref.proxy``."""
    return rebuild_values.weak_proxy, (target_of(value),)


def reduce_weak_set(_pickler: Storing, value: Any) -> Any:
    """A weak set."""
    return (
        rebuild_values.weak_container, (type(value),), list(value), None, None,
        rebuild_values.fill_weak_set,
    )  # fmt: skip


def reduce_weak_mapping(_pickler: Storing, value: Any) -> Any:
    """A weak dictionary; keys are not hashed here, their ``__hash__`` may be the user's."""
    return (
        rebuild_values.weak_container, (type(value),), list(value.items()), None, None,
        rebuild_values.fill_weak_mapping,
    )  # fmt: skip


def reduce_finalizer(_pickler: Storing, value: "weakref.finalize[..., Any]") -> Any:
    """``weakref.finalize``: registered again."""
    held = value.peek()
    state = None if held is None else (*held, value.atexit)
    return rebuild_values.finalizer, (), state or (), None, None, rebuild_values.fill_finalizer


# --- errors --------------------------------------------------------------------------------------

_ERROR_FIELDS = (
    "errno", "strerror", "filename", "filename2", "name", "path", "obj", "code", "value", "encoding",
    "object", "start", "end", "reason", "msg", "lineno", "offset", "text", "end_lineno", "end_offset",
)  # fmt: skip


def reduce_exception(pickler: Storing, value: BaseException) -> Any:
    """An exception with cause, context and the lines of its traceback."""
    if value.__traceback__ is not None:
        pickler.note("its traceback keeps its lines, not the variables of its frames")
    kind = type(value)
    fields: dict[str, Any] = {}
    for base in mro_of(kind):
        if not flags_of(base) & HEAP_TYPE and base not in (BaseException, Exception, object):
            found = {n: getattr(value, n) for n in _ERROR_FIELDS if n in base.__dict__}
            fields.update((n, field) for n, field in found.items() if field is not None)
    state = (
        value.__dict__,
        fields,
        value.__cause__,
        value.__context__,
        value.__suppress_context__,
        value.__traceback__,
    )
    if isinstance(value, BaseExceptionGroup):
        # As it was given: a list is shown as one.
        listed = len(value.args) == 2 and type(value.args[1]) is list
        given = list(value.exceptions) if listed else value.exceptions
        made: Any = (rebuild_values.error_group, (kind, value.message, given))
    else:
        made = (rebuild.exception, (kind, value.args))
    return *made, state, None, None, rebuild_values.set_error


# --- mocks, progress bars ---------------------------------------------------------------


def reduce_mock(_pickler: Storing, value: Any) -> Any:
    """A mock: every one has a class of its own, made anew."""
    own = type(value)
    base = own.__mro__[1] if len(own.__mro__) > 1 and own.__dict__.get("__module__") else own
    mock: Any = sys.modules["unittest.mock"]
    if own.__name__ != base.__name__ or own is getattr(mock, own.__name__, None):
        base = own
    skipped = ("__module__", "__doc__", "__qualname__", "__dict__", "__weakref__")
    extras = {
        name: found
        for name, found in own.__dict__.items()
        if base is not own and name not in skipped and not isinstance(found, mock.MagicProxy)
    }
    state = (dict(object.__getattribute__(value, "__dict__")), extras)
    return rebuild_values.mock, (base,), state, None, None, rebuild_values.fill_mock


def reduce_mock_call(_pickler: Storing, value: Any) -> Any:
    """A recorded call: a tuple that answers to every name."""
    state = object.__getattribute__(value, "__dict__")
    return (
        rebuild_values.mock_call,
        (type(value), tuple(tuple.__iter__(value))),
        dict(state),
        None,
        (None),
        rebuild_values.fill_mock_call,
    )


def reduce_progress(_pickler: Storing, value: Any) -> Any:
    """A tqdm bar: its arguments, count and start."""
    left = ("fp", "sp", "_lock")
    state = {k: v for k, v in value.__dict__.items() if k not in left}
    file = getattr(value, "fp", None)
    file = getattr(file, "_wrapped", file)
    return (
        rebuild_values.progress, (type(value),), (state, file), None, None,
        rebuild_values.fill_progress,
    )  # fmt: skip


_PAYLOAD: dict[type, Any] = {
    int: int.__int__,
    str: str.__str__,
    float: float.__float__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
}
"""The plain value of an instance of a class derived from one of these."""


def reduce_member(_pickler: Storing, value: Any) -> Any:
    """A member of an enum of the notebook: its plain value and its attributes."""
    kind = type(value)
    builder = next(base for base in mro_of(kind) if not flags_of(base) & HEAP_TYPE)
    if builder is not object and builder not in _PAYLOAD:
        return NotImplemented
    arguments = () if builder is object else (_PAYLOAD[builder](value),)
    own = next(
        (dict_of(base)["__dict__"] for base in mro_of(kind) if "__dict__" in dict_of(base)), None
    )
    state = dict(own.__get__(value)) if own is not None else {}
    return (
        rebuild_values.member, (kind, builder, arguments), state, None, None,
        rebuild_values.fill_member,
    )  # fmt: skip


def reduce_super(_pickler: Storing, value: Any) -> Any:
    """What ``super()`` gave."""
    own = dict_of(super)
    kind, owner = own["__thisclass__"].__get__(value), own["__self__"].__get__(value)
    return super, (kind,) if owner is None else (kind, owner)


def reduce_random(_pickler: Storing, value: Any) -> Any:
    """A generator of ``random``; one of the notebook's classes without its ``__init__``."""
    kind = type(value)
    if kind is random.SystemRandom:
        return kind, ()
    state = (random.Random.getstate(value), dict(vars(value)))
    maker, fill = rebuild_state.generator_of, rebuild_state.fill_generator
    return maker, (kind,), state, None, None, fill


def own(ancestors: tuple[type, ...]) -> Handler | None:
    """How instances of a class of the notebook are stored that is derived from one of these."""
    if any(base is enum.Enum for base in ancestors):
        return reduce_member
    return reduce_random if any(base is random.Random for base in ancestors) else None


EXACT: dict[type, Handler] = {
    super: reduce_super,
    random.SystemRandom: reduce_random,
    functools._lru_cache_wrapper: reduce_cached,
    type(functools.cmp_to_key(min)): reduce_key,
    typing.NewType: reduce_typing,
    typing.ParamSpec: reduce_typing,
    typing.TypeVarTuple: reduce_typing,
    types.MappingProxyType: reduce_proxy,
    type(dataclasses.MISSING): reduce_constant,
    type(dataclasses.KW_ONLY): reduce_constant,
    type(getattr(dataclasses, "_HAS_DEFAULT_FACTORY", None)): reduce_constant,
    weakref.ReferenceType: reduce_reference,
    weakref.WeakMethod: reduce_weak_method,
    weakref.ProxyType: reduce_weak_proxy,
    weakref.CallableProxyType: reduce_weak_proxy,
    weakref.WeakValueDictionary: reduce_weak_mapping,
    weakref.WeakKeyDictionary: reduce_weak_mapping,
    weakref.WeakSet: reduce_weak_set,
    weakref.finalize: reduce_finalizer,
}
EXACT.pop(type(None), None)
if sys.version_info >= (3, 12):
    EXACT[typing.TypeAliasType] = reduce_typing
LATE: dict[tuple[str, str], Handler] = {
    ("unittest.mock", "NonCallableMock"): reduce_mock,
    ("unittest.mock", "_Call"): reduce_mock_call,
    ("tqdm.std", "tqdm"): reduce_progress,
}
