"""Which objects are known by a name: importable functions and classes, and the globals of libraries.

Such objects are referred to, never copied. Asks user objects nothing: no ``hasattr``, no ``==``.
"""

import functools
import importlib
import sys
import types
from pathlib import Path
from typing import Any

_FLAGS = type.__dict__["__flags__"].__get__
_MRO = type.__dict__["__mro__"].__get__
_DICT = type.__dict__["__dict__"].__get__
_NAME = type.__dict__["__qualname__"].__get__
_MODULE_DICT = vars(types.ModuleType)["__dict__"].__get__

BY_VALUE: dict[str, types.ModuleType] = {}
"""Modules that are stored by value, attribute by attribute: those of the session's folder and those made
at run time. By their name in ``sys.modules``; one that is not in there has a number behind its name."""
HOMES: dict[int, str] = {}
"""The same by the ids of their globals."""
PATCHED: set[tuple[str, str]] = set()
"""Globals of libraries that hold something of the notebook: no name for it in another process."""

IN_C = frozenset(
    {"decimal_context", "parent_header", "shell_parent", "shell_parent_ident", "shell_id"}
)
"""Names of context variables of the kernel that no module holds as a global."""

HEAP_TYPE = 1 << 9
EXCEPTION = 1 << 30
CLASS = 1 << 31


def flags_of(kind: type) -> int:
    """``tp_flags``, without asking the metaclass."""
    return int(_FLAGS(kind))


def mro_of(kind: type) -> tuple[type, ...]:
    """The method resolution order, without asking the metaclass."""
    return _MRO(kind) or ()


def dict_of(kind: type) -> types.MappingProxyType[str, Any]:
    """The class's own attributes, without asking the metaclass."""
    found: types.MappingProxyType[str, Any] = _DICT(kind)
    return found


def is_class(value: object) -> bool:
    """Whether the value is a class, without asking it."""
    return bool(flags_of(type(value)) & CLASS)


def globals_of(module: types.ModuleType) -> dict[str, Any]:
    """A module's globals, without asking a module that answers attributes itself."""
    found: dict[str, Any] = _MODULE_DICT(module)
    return found


def module_of(kind: type) -> str:
    """The name of the module that says it defines the class."""
    if not flags_of(kind) & HEAP_TYPE:
        # C types carry the module in their name.
        found = type.__getattribute__(kind, "__module__")
    else:
        found = dict_of(kind).get("__module__")
    return found if type(found) is str else ""


def importable(module: object, qualname: object, value: object) -> bool:
    """Whether importing ``module`` and walking ``qualname`` gives this very object elsewhere too."""
    if type(module) is not str or type(qualname) is not str or module == "__main__":
        return False
    if module in BY_VALUE:
        return False
    home = sys.modules.get(module) or _late(module)
    if home is None or not is_module(home) or not real_module(home):
        return False
    found: Any = None
    inside: Any = globals_of(home)
    for part in qualname.split("."):
        if part == "<locals>" or part not in inside:
            return False
        found = inside[part]
        inside = dict_of(found) if is_class(found) else {}
    return found is value


def _late(module: str) -> types.ModuleType | None:
    """A part of a loaded library that says where its classes live, and is not loaded yet itself."""
    parent = module.rpartition(".")[0]
    if parent not in sys.modules or parent == "__main__" or parent in BY_VALUE:
        return None
    try:
        return importlib.import_module(module)
    except Exception:  # no such part after all
        return None


def importable_class(kind: type) -> bool:
    """Whether a class is found by its name in another process."""
    return importable(module_of(kind), _NAME(kind), kind)


def importable_function(function: types.FunctionType) -> bool:
    """Whether a function is found by its name in another process."""
    if function.__globals__ is sys.modules["__main__"].__dict__:
        return False  # ``functools.wraps`` may have given it the name of a library's
    return importable(function.__module__, function.__qualname__, function)


def place_of(namespace: dict[str, Any], inside: dict[str, Any]) -> str | dict[str, Any] | None:
    """Globals as reference: None is the namespace, a word a module, else a dictionary of its own."""
    if inside is namespace:
        return None
    if (key := HOMES.get(id(inside))) is not None:
        return key
    name = inside.get("__name__")
    home = sys.modules.get(name) if type(name) is str else None
    if home is not None and is_module(home) and globals_of(home) is inside and real_module(home):
        return str(name)
    return inside


def foreign(value: Any) -> bool:
    """Whether it is code of the notebook (or of a module stored by value), or an instance of its classes."""
    kind = type(value)
    if kind is types.FunctionType:
        inside = value.__globals__
        if inside is sys.modules["__main__"].__dict__ or id(inside) in HOMES:
            return True
        return "__wrapped__" in value.__dict__ and foreign(value.__dict__["__wrapped__"])
    if kind is types.MethodType:
        return foreign(value.__func__) or foreign(value.__self__)
    if kind in (staticmethod, classmethod):
        return foreign(value.__func__)
    if kind is property:
        return any(foreign(part) for part in (value.fget, value.fset) if part is not None)
    if kind is functools.partial:
        return foreign(value.func)
    cls = value if flags_of(kind) & CLASS else kind
    if not flags_of(cls) & HEAP_TYPE:
        return False
    return ours(module_of(cls))


def ours(module: str) -> bool:
    """Whether a module of this name is the notebook, or stored by value."""
    if module == "__main__" or module in BY_VALUE:
        return True
    return any(key.startswith(f"{module}#") for key in BY_VALUE if "#" in key)


def is_module(value: object) -> bool:
    """Whether it is a module (lazy modules are subclasses)."""
    kind = type(value)
    if kind is types.ModuleType:
        return True
    if not flags_of(kind) & HEAP_TYPE:
        return False  # no subclass of it is made in C
    return any(base is types.ModuleType for base in mro_of(kind))


def real_module(module: types.ModuleType) -> bool:
    """Whether importing its name elsewhere gives this module: it came from an import."""
    inside = globals_of(module)
    name = inside.get("__name__")
    if type(name) is not str or sys.modules.get(name) is not module:
        return False
    return name == "__main__" or inside.get("__spec__") is not None or name == "builtins"


_PLAIN: frozenset[int] = frozenset(
    id(kind)
    for kind in (
        type(None), bool, int, float, complex, str, bytes, bytearray, list, dict, tuple, set, frozenset,
        type(Ellipsis), type(NotImplemented), types.FunctionType, types.BuiltinFunctionType,
        types.ModuleType, types.MethodType, types.GenericAlias, types.UnionType, property, classmethod,
        staticmethod, types.CodeType, types.MethodDescriptorType, types.WrapperDescriptorType,
        types.GetSetDescriptorType, types.MemberDescriptorType, types.MappingProxyType, range, slice,
    )
)  # fmt: skip


class Singletons:
    """Objects that libraries hold as globals: the global random generator, ``os.environ``, loggers.

    Modules are looked at once, when they are new: what a library binds later may be a user's object.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[str, str]] = {}
        self._seen: set[str] = {"__main__", "sys", "builtins"}
        self._count = 0

    def update(self, root: str, namespace: dict[str, Any]) -> None:
        """Look at modules imported since; those under ``root`` are the user's, not a library's.

        ``namespace`` may be a module under a second name (``__mp_main__``).
        """
        if len(sys.modules) == self._count:
            return
        self._count = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if name in self._seen or not is_module(module):
                continue
            self._seen.add(name)
            inside = globals_of(module)
            if id(inside) in HOMES:
                continue
            if inside is not namespace and not _under(inside.get("__file__"), root):
                self._add(name, inside)

    def where(self, value: object) -> tuple[str, str] | None:
        """Module and attribute of this very object."""
        found = self._found.get(id(value))
        if found is None:
            return None
        module = sys.modules.get(found[0])
        if module is None or globals_of(module).get(found[1]) is not value:
            return None
        return None if found in PATCHED else found

    def _add(self, name: str, inside: dict[str, Any]) -> None:
        for attribute, value in list(inside.items()):
            kind = type(value)
            if id(kind) in _PLAIN or attribute.startswith("__") or flags_of(kind) & CLASS:
                continue
            self._found.setdefault(id(value), (name, attribute))


def _under(file: object, root: str) -> bool:
    return type(file) is str and bool(root) and Path(file).is_relative_to(root)
