"""Attributes of libraries and of their classes that the notebook set or deleted.

Found in two ways: what cells assign by name (``json.dumps = f``, ``setattr(math, "x", 1)``), and code or
instances of the notebook that a look at everything finds in a library.
"""

import _abc  # type: ignore[import-not-found]
import ast
import atexit
import codecs
import contextlib
import copyreg
import ctypes
import dis
import gc
import importlib
import logging
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from roost.runtime.kernel import rebuild
from roost.runtime.kernel.naming import (
    BY_VALUE,
    HEAP_TYPE,
    PATCHED,
    dict_of,
    flags_of,
    foreign,
    globals_of,
    importable_class,
    importable_function,
    is_class,
    is_module,
    module_of,
    mro_of,
)
from roost.runtime.kernel.process.base import Baseline
from roost.runtime.kernel.refusal import Refusal

_VERSION_OFFSET = 24
"""Of a dictionary's version in CPython 3.11-3.13: behind reference count, type and number of items."""
_KERNEL_OWN = frozenset({"stdout", "stderr", "stdin", "displayhook", "modules", "path", "argv"})
_TEMPORARY = frozenset({"_", "display", "get_ipython", "exit", "quit"})
_NO_LIBRARY = ("roost", "__main__", "__mp_main__", "ipykernel", "cloudpickle")
_SETTERS = {"setattr", "delattr", "object"}
"""``patch.object(json, "dumps")`` of unittest.mock is the third."""
_CONTAINERS = (dict, list, set)
_CHANGING = frozenset(
    {
        "add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "reverse",
        "setdefault", "sort", "update",
    }
)  # fmt: skip
_REGISTERING = ("add_", "install_", "register_", "remove_", "set_", "unregister_")
"""How functions of libraries begin that change something of the library."""
_WITH_OPTIONS = frozenset(
    {"matplotlib", "numpy", "pandas", "polars", "IPython", "asyncio", "warnings"}
)
"""Libraries whose options are read on their own; parts of matplotlib are named below."""
_FEW = 3
"""A function that uses more of its module's containers than this does more than to register."""
_KEPT_OTHERWISE = frozenset(
    {("matplotlib", "rcParams"), ("matplotlib.pyplot", "rcParams"), ("warnings", "filters")}
    | {("sys", name) for name in ("meta_path", "path_hooks", "path_importer_cache", "warnoptions")}
)
_NEVER = frozenset({"__abstractmethods__", "_abc_impl", "__dict__", "__weakref__", "__doc__"})


class Patches:
    """What was patched so far; lives as long as the kernel."""

    def __init__(self) -> None:
        self.targets: dict[tuple[str, str], bool] = {}
        """Module and dotted path of each patched attribute -> whether a cell names it."""
        self.deleted: set[tuple[str, str]] = set()
        self.registries: dict[tuple[str, str], type] = {}
        """Abstract classes of libraries that a cell may have registered classes with."""
        self.codecs: set[str] = set()
        self.hidden: set[str] = set()
        self.exits = atexit._ncallbacks()
        self.cells = 0
        self._versions: dict[int, int] = {}
        self._classes: dict[int, tuple[int, list[tuple[Any, str, str]]]] = {}
        """By the id of a module's globals: their version, and the attributes of the classes in them."""
        self._reads = _reader()
        for inside, _module, _path in self._dicts():
            self._versions[id(inside)] = self._version(inside)

    def _version(self, inside: Any) -> int:
        return self._reads(id(inside)) if self._reads is not None else -1

    def _dicts(self) -> Iterator[tuple[Any, str, str]]:
        """Globals of every library, and the attributes of the classes it defines."""
        for name, module in list(sys.modules.items()):
            if name in BY_VALUE or name.partition(".")[0] in _NO_LIBRARY or not is_module(module):
                continue
            inside = globals_of(module)
            yield inside, name, ""
            version, known = self._version(inside), self._classes.get(id(inside))
            if known is None or known[0] != version or version == -1:
                values = [v for v in list(inside.values()) if is_class(v) and module_of(v) == name]
                known = version, [one for value in values for one in self._class(value, name)]
                self._classes[id(inside)] = known
            yield from known[1]

    def _class(self, kind: type, name: str) -> Iterator[tuple[Any, str, str]]:
        own = _dict_behind(kind)
        if own is not None:
            yield own, name, type.__getattribute__(kind, "__qualname__")

    def scan(self) -> None:
        """Look at every dictionary that changed since the last time."""
        for inside, module, path in self._dicts():
            version = self._version(inside)
            if self._versions.get(id(inside)) == version != -1:
                continue
            self._versions[id(inside)] = version
            for name, value in list(inside.items()):
                ours = (
                    foreign(value)
                    or _mocked(value, module)
                    or (bool(path) and (_wraps(value) or _lent(value, module) or _given(value)))
                )
                if ours and type(name) is str and not _skipped(module, name):
                    self.targets.setdefault((module, f"{path}.{name}" if path else name), False)

    def read(self, source: str, namespace: dict[str, Any]) -> None:
        """Note what a cell assigns or deletes in libraries."""
        if not any(word in source for word in (".", "setattr", "delattr")):
            return
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
        scope = _Scope(tree, namespace)
        for node in ast.walk(tree):
            self._stores(scope, node)
            if isinstance(node, ast.Call):
                self.targets.update(dict.fromkeys(scope.changed(node), True))
                self._call(scope.value(node.func), node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for decorator in node.decorator_list:
                    self._call(scope.value(decorator), None)
            if isinstance(node, ast.Attribute) and node.attr == "register":
                kind = scope.value(node.value)
                if is_class(kind) and "_abc_impl" in dict_of(kind) and importable_class(kind):
                    self.registries[module_of(kind), _qualname(kind)] = kind

    def _stores(self, scope: "_Scope", node: ast.AST) -> None:
        for holder, name, gone in scope.stores(node):
            place = scope.place(holder) or scope.instance(holder)
            if place is not None and not _skipped(place[0], name):
                module, path = place
                self.targets[module, f"{path}.{name}" if path else name] = True
                if gone:
                    self.deleted.add((module, f"{path}.{name}" if path else name))

    def _call(self, function: Any, node: ast.Call | None) -> None:
        """A call whose effect the interpreter does not tell."""
        if function is None:
            return
        for module, name in _HIDDEN:
            home = sys.modules.get(module)
            if home is not None and globals_of(home).get(name) is function:
                self.hidden.add(f"{module}.{name}")
        if function is codecs.register_error and node is not None and node.args:
            word = getattr(node.args[0], "value", None)
            if type(word) is str:
                self.codecs.add(word)


_HIDDEN = (
    ("atexit", "register"), ("sys", "addaudithook"), ("codecs", "register"), ("os", "register_at_fork"),
    ("gc", "freeze"), ("faulthandler", "register"), ("threading", "settrace"), ("threading", "setprofile"),
)  # fmt: skip
"""Functions whose effect cannot be read back from the interpreter."""


def _container(value: Any) -> Any:
    """The plain kind of container that this is, or is derived from."""
    for kind in mro_of(type(value)):
        for plain in _CONTAINERS:
            if kind is plain:
                return plain
    return None


def _open(value: Any) -> bool:
    """Whether an object of a library, no class or module, keeps its attributes in a plain dictionary."""
    kind = type(value)
    if is_class(value) or is_module(value) or any(b is logging.Logger for b in mro_of(kind)):
        return False
    return any("__dict__" in dict_of(base) for base in mro_of(kind)) and type(vars(value)) is dict


def _holds(value: Any) -> bool:
    """Whether it is a container, or an instance that is there to hold something."""
    return _container(value) is not None or (not callable(value) and _open(value))


def _mocked(value: Any, module: str) -> bool:
    """Whether ``unittest.mock`` stands in here for what a library has."""
    return module_of(type(value)) == _MOCKS != module and not is_class(value)


_MOCKS = "unittest.mock"


def _lent(value: Any, module: str) -> bool:
    """Whether a method of one library was put into a class of another: ``tqdm.pandas()``."""
    if type(value) is not types.FunctionType or "<locals>" not in value.__qualname__:
        return False
    home = str(value.__module__).partition(".")[0]
    return home in _LENDERS and home != module.partition(".")[0]


_LENDERS = frozenset({"tqdm"})


def _given(value: Any) -> bool:
    """Whether a container that a class of a library got for its own holds code of the notebook:
    ``yaml.add_constructor``."""
    if type(value) is dict:
        return any(foreign(one) for one in list(value.values()))
    return type(value) in (list, set) and any(foreign(one) for one in list(value))


def _wraps(value: Any) -> bool:
    """Whether an object that a class of a library holds is made for code of the notebook."""
    if type(value) is types.FunctionType:
        cells = value.__closure__ or ()
        return any(foreign(one) for cell in cells for one in gc.get_referents(cell))
    kind = type(value)
    if not flags_of(kind) & HEAP_TYPE or is_class(value):
        return False
    below = [one for one in gc.get_referents(value) if one is not kind]
    inner = [one for held in below if type(held) is dict for one in held.values()]
    return any(foreign(one) for one in (*below, *inner))


class _Scope:
    """What names of a cell stand for, as far as that can be told without running anything."""

    def __init__(self, tree: ast.Module, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._imports: dict[str, tuple[str, str]] = {}
        self._words = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.name if alias.asname else alias.name.partition(".")[0]
                    self._imports[alias.asname or name] = (name, "")
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    self._imports[alias.asname or alias.name] = (node.module, alias.name)
            elif isinstance(node, ast.Constant) and type(node.value) is str:
                self._words.append(node.value)

    def stores(self, node: ast.AST) -> Iterator[tuple[Any, str, bool]]:
        """Where a node assigns or deletes: the holder, the attribute, whether it deletes."""
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield node.value, node.attr, isinstance(node.ctx, ast.Del)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            inner = node.value
            if isinstance(inner, ast.Attribute) and type(self.value(inner)) in (dict, list):
                yield inner.value, inner.attr, False
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called in _SETTERS and len(node.args) > 1:
                known = getattr(node.args[1], "value", None)
                for word in [known] if type(known) is str else self._words:
                    yield node.args[0], word, called == "delattr"

    def changed(self, node: ast.Call) -> list[tuple[str, str]]:
        """Containers and registries of a library that a call changes, where its name says so."""
        if isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGING:
            inner = node.func.value
            if _container(self.value(inner)) is not None:
                place = self._home(inner)
                return [place] if place is not None and place not in _KEPT_OTHERWISE else []
        return self._registered(self.value(node.func))

    def instance(self, node: ast.AST) -> tuple[str, str] | None:
        """Module and path of an object that a library holds, and whose attributes lie in a dictionary."""
        value = self.value(node)
        if value is None or foreign(value) or not _open(value):
            return None
        return self._home(node)

    def _home(self, node: ast.AST) -> tuple[str, str] | None:
        """Module and path of what a node stands for, when a library holds it."""
        if isinstance(node, ast.Attribute):
            place = self.place(node.value)
            name = node.attr
        elif isinstance(node, ast.Name) and node.id in self._imports and self._imports[node.id][1]:
            module, name = self._imports[node.id]
            place = (module, "") if module in sys.modules and module not in BY_VALUE else None
        else:
            return None
        if place is None or _skipped(place[0], name):
            return None
        return place[0], f"{place[1]}.{name}" if place[1] else name

    def _registered(self, function: Any) -> list[tuple[str, str]]:
        """The few containers that a library's function is there to change."""
        if type(function) is not types.FunctionType or not importable_function(function):
            return []
        if not function.__name__.startswith(_REGISTERING):
            return []
        inside = function.__globals__
        module = str(inside.get("__name__"))
        optional = module.partition(".")[0] in _WITH_OPTIONS
        if _skipped(module, "") or (optional and not function.__name__.startswith("register_")):
            return []
        code = function.__code__
        stored = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL"}
        names = [n for n in code.co_names if n in inside and (n in stored or _holds(inside[n]))]
        few = len(names) <= _FEW and sys.modules.get(module) is not None
        return [(module, name) for name in names] if few else []

    def value(self, node: Any) -> Any:
        """What a name or a dotted name stands for; None when that is not known."""
        if isinstance(node, ast.Name):
            if node.id in self._imports:
                module, name = self._imports[node.id]
                home: Any = sys.modules.get(module)
                return _inside(home, name) if name else home
            return self._namespace.get(node.id)
        if isinstance(node, ast.Attribute):
            inner = self.value(node.value)
            of_class = node.attr == "__class__" and inner is not None
            return type(inner) if of_class else _inside(inner, node.attr)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "type":
            inner = self.value(node.args[0]) if len(node.args) == 1 else None
            return None if inner is None else type(inner)
        return None

    def place(self, node: Any) -> tuple[str, str] | None:
        """Module and path of a library's module or class."""
        found = self.value(node)
        if found is None:
            return None
        if is_module(found):
            name = globals_of(found).get("__name__")
            known = type(name) is str and sys.modules.get(name) is found and name not in BY_VALUE
            return (str(name), "") if known and name != "__main__" else None
        if is_class(found) and flags_of(found) & HEAP_TYPE and importable_class(found):
            return module_of(found), _qualname(found)
        return None


def _inside(holder: Any, name: str) -> Any:
    if holder is None:
        return None
    if is_module(holder):
        return globals_of(holder).get(name)
    if is_class(holder):
        return next((dict_of(kind)[name] for kind in mro_of(holder) if name in dict_of(kind)), None)
    return vars(holder).get(name) if not foreign(holder) and _open(holder) else None


def _qualname(kind: type) -> str:
    return str(type.__getattribute__(kind, "__qualname__"))


def _skipped(module: str, name: str) -> bool:
    if module.partition(".")[0] in _NO_LIBRARY:
        return True
    if module == "sys":
        return name in _KERNEL_OWN or name.startswith("last_")
    if module == "builtins":
        return name in _TEMPORARY or name.startswith(("__roost", "__IPYTHON", "_roost"))
    return name in _NEVER


def _reader() -> Callable[[int], int] | None:
    """How the version of a dictionary is read; None when this Python keeps none."""

    def read(address: int) -> int:
        return int(ctypes.c_uint64.from_address(address + _VERSION_OFFSET).value)

    trial: dict[str, int] = {"a": 1}
    seen = [read(id(trial))]
    for key in ("a", "b"):
        trial[key] = 2
        seen.append(read(id(trial)))
    return read if len(set(seen)) == len(seen) and seen[-1] == read(id(trial)) else None


def _dict_behind(kind: type) -> dict[str, Any] | None:
    found = gc.get_referents(dict_of(kind))
    return found[0] if found and type(found[0]) is dict else None


# --- pieces --------------------------------------------------------------------------------------


def note(_shell: Any) -> Patches:
    """How the libraries are before the user's first cell."""
    return Patches()


def learn(base: Baseline, cells: Sequence[Any], namespace: dict[str, Any], *, full: bool) -> None:
    """Look at cells that ran since; ``full``: and at the libraries."""
    patches: Patches = base.noted["patches"]
    if len(cells) < patches.cells:
        patches.cells = 0
    for cell in cells[patches.cells :]:
        patches.read(cell.python, namespace)
    patches.cells = len(cells)
    if full:
        patches.scan()
    PATCHED.clear()
    PATCHED.update(target for target in patches.targets if "." not in target[1])


def objects(base: Baseline) -> Iterator[tuple[str, Any]]:
    """Every attribute that the notebook set, and the classes it registered."""
    patches: Patches = base.noted["patches"]
    for module, path in list(patches.targets):
        inside, name = _holder(module, path)
        if inside is not None and name in inside and not _original(inside[name], module, path):
            yield f"attribute {module}:{path}", inside[name]
    mocks: Any = sys.modules.get(_MOCKS)
    if mocks is not None and "_patch" in globals_of(mocks) and mocks._patch._active_patches:
        # Without it a patch that was started could not be stopped.
        yield f"attribute {_MOCKS}:_patch._active_patches", mocks._patch._active_patches
    for (module, path), kind in patches.registries.items():
        found = [ref() for ref in _abc._get_dump(kind)[0]]
        if own := [other for other in found if other is not None and foreign(other)]:
            yield f"registered {module}:{path}", base.steady(f"registered {module}:{path}", own)
    for word in patches.codecs:
        with contextlib.suppress(LookupError):
            yield f"codec {word}", codecs.lookup_error(word)
    own = [(k, f) for k, f in copyreg.dispatch_table.items() if foreign(k) or foreign(f)]
    if own:
        yield "copyreg", base.steady("copyreg", own)


def unknown(base: Baseline, _shell: Any) -> Any:
    """Refused by name: what cells registered where nobody can read it back."""
    patches: Patches = base.noted["patches"]
    hidden = set(patches.hidden)
    if "atexit.register" in hidden and atexit._ncallbacks() <= patches.exits:
        hidden.discard("atexit.register")
    if hidden:
        raise Refusal(f"what {', '.join(sorted(hidden))} was given", "call it again after a move")


def set_nothing(_value: Any, _base: Baseline, _shell: Any) -> None:
    """There is never a value."""


def place_codec(name: str, value: Any, base: Baseline, _shell: Any) -> None:
    """Register a handler of coding errors."""
    word = name.partition(" ")[2]
    codecs.register_error(word, value)
    base.noted["patches"].codecs.add(word)


def _holder(module: str, path: str) -> tuple[Any, str]:
    home = sys.modules.get(module)
    if home is None:
        return None, ""
    holder: Any = home
    *parts, name = path.split(".")
    for part in parts:
        holder = _inside(holder, part)
    if holder is home:
        return globals_of(home), name
    if is_class(holder):
        return dict_of(holder), name
    there = holder is not None and not foreign(holder) and _open(holder)
    return (vars(holder), name) if there else (None, "")


def _original(value: Any, module: str, path: str) -> bool:
    """Whether an import elsewhere gives just this there."""
    if is_module(value):
        return True
    if type(value) is types.FunctionType:
        same = value.__module__ == module and value.__qualname__ == path
        return same and importable_function(value)
    return is_class(value) and module_of(value) == module and _qualname(value) == path


def deleted(base: Baseline, _shell: Any) -> Any:
    """What cells deleted from libraries."""
    patches: Patches = base.noted["patches"]
    gone = []
    for module, path in patches.deleted:
        inside, name = _holder(module, path)
        if inside is not None and name not in inside:
            gone.append((module, path))
    return sorted(gone) or None


def set_deleted(value: list[tuple[str, str]], base: Baseline, _shell: Any) -> None:
    """Delete it again."""
    patches: Patches = base.noted["patches"]
    for module, path in value:
        patches.targets[module, path] = True
        patches.deleted.add((module, path))
        home: Any = importlib.import_module(module)
        *parts, name = path.split(".")
        for part in parts:
            home = _inside(home, part)
        if _inside(home, name) is not None:
            delattr(home, name)


def place(name: str, value: Any, base: Baseline, _shell: Any) -> None:
    """Set an attribute."""
    patches: Patches = base.noted["patches"]
    module, _, path = name.partition(" ")[2].partition(":")
    home = importlib.import_module(module)
    patches.targets[module, path] = True
    *parts, attribute = path.split(".")
    holder: Any = home
    for part in parts:
        holder = _inside(holder, part)
    inherited = is_class(holder) and attribute not in dict_of(holder)
    former = None if inherited else _inside(holder, attribute)
    if type(former) is type(value) and _filled(former, value):
        pass  # the library's other references to it see the change
    elif holder is home:
        if type(former) is types.BuiltinFunctionType:
            rebuild.DISPLACED.setdefault((module, attribute), former)
        setattr(home, attribute, value)
    elif not is_class(holder):
        vars(holder)[attribute] = value
    else:
        type.__setattr__(holder, attribute, value)
        accessors = _inside(holder, "_accessors")
        if type(accessors) is set and type(value).__name__.endswith("Accessor"):
            accessors.add(attribute)


def _filled(former: Any, value: Any) -> bool:
    """Whether a library's own container or registry could be given this content."""
    plain = _container(value)
    if plain is not None:
        plain.clear(former)
        (plain.extend if plain is list else plain.update)(former, value)
        return True
    if foreign(value) or not _holds(value):
        return False
    vars(former).clear()
    vars(former).update(vars(value))
    return True


def place_registered(name: str, value: Any, base: Baseline, _shell: Any) -> None:
    """Register classes with an abstract class of a library."""
    module, _, path = name.partition(" ")[2].partition(":")
    kind: Any = importlib.import_module(module)
    for part in path.split("."):
        kind = _inside(kind, part)
    base.noted["patches"].registries[module, path] = kind
    for other in value:
        kind.register(other)


def place_copyreg(_name: str, value: Any, _base: Baseline, _shell: Any) -> None:
    """Put reducers back."""
    copyreg.dispatch_table.update(value)
