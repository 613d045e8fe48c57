"""Whether what came back looks like what was captured: kinds of values, their attributes, their lengths.

A library may pickle an object without an error and leave half of it out. What a variable looked like is noted
at the capture, a few names and numbers, and compared where it is restored: what differs is told by name. No
copy is made and nothing of the user runs for it. (A trial restore beside the kernel would run the user's own
code a second time, and open, bind or delete what the living session holds.)
"""

import collections
import functools
import types
from collections.abc import Iterator
from typing import Any

from roost.runtime.kernel.naming import dict_of, is_class, module_of, mro_of

PIECE = "shapes"
"""Name of the piece of a manifest's state that holds them, as JSON."""
ATTRIBUTES = 64
"""Attributes noted of one object."""
ELEMENTS = 16
"""Elements of a list or dictionary that are looked at too."""
Shape = list[Any]
"""Kind, public attributes, length; and the shapes of elements."""

_SIZED = {
    kind: kind.__len__ for kind in (list, dict, set, frozenset, tuple, collections.deque, bytearray)
}
_CONTAINERS = (list, tuple, dict)
_PLAIN = frozenset(
    id(kind)
    for kind in (
        int, float, complex, bool, str, bytes, bytearray, type(None), range, slice, set, frozenset,
        types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type,
    )
)  # fmt: skip
"""Kinds that are surely whole when they come back."""


def note(value: Any) -> Shape | None:
    """What a value looks like; None when there is nothing worth noting."""
    return _shape(value, 1)


def difference(noted: Shape, value: Any) -> str:
    """What is not as it was noted; empty when nothing is known to be wrong."""
    found = _shape(value, 1)
    if found is None or found[0] != noted[0]:
        return ""  # a kind of its own is put in the place of some, and says so itself
    told = _differ(noted, found, value)
    if told:
        return told
    for index, (one, other) in enumerate(zip(noted[3], found[3], strict=False)):
        element = _element(value, index)
        if one and other and one[0] == other[0] and (told := _differ(one, other, element)):
            return f"inside, {told}"
    return ""


def _differ(noted: Shape, found: Shape, value: Any) -> str:
    lost = [n for n in noted[1] if n not in found[1] and not _made_when_asked(value, n)]
    if lost:
        return f"it came back without {', '.join(lost[:4])}"
    if noted[2] is not None and found[2] is not None and noted[2] != found[2]:
        return f"it came back with {found[2]} elements, it had {noted[2]}"
    return ""


def _shape(value: Any, depth: int) -> Shape | None:
    kind = type(value)
    if id(kind) in _PLAIN:
        return None
    if any(kind is plain for plain in _CONTAINERS):
        inner = [_shape(element, depth - 1) for element in _elements(value)] if depth else []
        return ["", [], None, inner] if any(inner) else None
    ancestors = mro_of(kind)
    size = next((length(value) for base, length in _SIZED.items() if _among(base, ancestors)), None)
    own = _dict(value)
    if size is None and not own:
        return None
    names = [n for n in own if type(n) is str and not n.startswith("_")][:ATTRIBUTES]
    return [module_of(kind), sorted(names), size, []]


def _among(base: type, ancestors: tuple[type, ...]) -> bool:
    return any(base is other for other in ancestors)


def _dict(value: Any) -> dict[str, Any]:
    """The object's own attributes, without asking it; empty when that cannot be had."""
    if is_class(value):
        return {}
    for kind in mro_of(type(value)):
        descriptor = dict_of(kind).get("__dict__")
        if descriptor is not None:
            if type(descriptor) is types.GetSetDescriptorType:
                found = descriptor.__get__(value)
                return found if type(found) is dict else {}
            return {}
    return {}


def _elements(value: Any) -> Iterator[Any]:
    if type(value) is list or type(value) is tuple:
        yield from value[:ELEMENTS]
    elif type(value) is dict:
        for index, element in enumerate(value.values()):
            if index == ELEMENTS:
                return
            yield element


def _element(value: Any, index: int) -> Any:
    return next((e for i, e in enumerate(_elements(value)) if i == index), None)


def _made_when_asked(value: Any, name: str) -> bool:
    """Whether the class makes this attribute anew when it is asked for."""
    for kind in mro_of(type(value)):
        if name in dict_of(kind):
            return type(dict_of(kind)[name]) in (functools.cached_property, property)
    return False
