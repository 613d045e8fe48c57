"""Modules stored by value: those of the session's folder and those made at run time.

Such a module is a second namespace: each of its globals is a variable of its own, its functions refer to
it by name. Its file is not run again, and may have changed since the import. Libraries come by import.
"""

import contextlib
import importlib.machinery
import os
import sys
import sysconfig
import types
from collections.abc import Iterator, Sequence
from typing import Any

from roost.runtime.kernel import rebuild_state
from roost.runtime.kernel.naming import BY_VALUE, HOMES, globals_of, is_module
from roost.runtime.kernel.process.base import Baseline, relative, resolved

_OWN = frozenset(
    {
        "__name__", "__loader__", "__spec__", "__package__", "__path__", "__file__", "__cached__",
        "__builtins__",
    }
)  # fmt: skip
_LIBRARIES = tuple(
    {
        os.path.realpath(path) + os.sep
        for path in (
            *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
            f"{sys.prefix}/lib",
            f"{sys.base_prefix}/lib",
        )
    }
)


def note(_shell: Any) -> dict[str, Any]:
    """Modules that no import made, as they were before the user's first cell."""
    odd = {name for name, module in list(sys.modules.items()) if _made_here(name, module)}
    return {"odd": odd, "ids": (), "root": ""}


def refresh(base: Baseline, namespace: dict[str, Any], cells: Sequence[Any]) -> None:
    """Find the modules to store by value; cheap when no module came or went."""
    noted = base.noted["modules"]
    ids = tuple(map(id, sys.modules.values()))
    loose = [value for value in list(namespace.values()) if _unlisted(value)]
    if ids != noted["ids"] or base.root != noted["root"]:
        noted["ids"], noted["root"] = ids, base.root
        noted["aliases"] = {
            name: str(globals_of(module)["__name__"])
            for name, module in list(sys.modules.items())
            if is_module(module)
            and globals_of(module).get("__name__") not in (name, "__main__")
            and name not in base.modules
            and any(f'"{name}"' in cell.code or f"'{name}'" in cell.code for cell in cells)
        }
        noted["named"] = {
            name: module
            for name, module in list(sys.modules.items())
            if name not in ("__main__", "__mp_main__")
            and (
                _local(name, module, base.root)
                or (name not in noted["odd"] and _told(name, cells) and _made_here(name, module))
            )
        }
    found = dict(noted["named"])
    for number, module in enumerate({id(m): m for m in loose}.values(), 1):
        found[f"{globals_of(module).get('__name__', '')}#{number}"] = module
    if found != BY_VALUE:
        BY_VALUE.clear()
        BY_VALUE.update(found)
        HOMES.clear()
        HOMES.update((id(globals_of(module)), key) for key, module in found.items())


def _unlisted(value: object) -> bool:
    """A module that ``sys.modules`` does not know."""
    if type(value) is not types.ModuleType:
        return False
    name = globals_of(value).get("__name__")
    return type(name) is str and sys.modules.get(name) is not value


def _local(name: str, module: Any, root: str) -> bool:
    """Whether it is Python of the session's folder."""
    if name.partition(".")[0] == "roost" or not root or not is_module(module):
        return False
    file = globals_of(module).get("__file__")
    if type(file) is not str:
        places = globals_of(module).get("__path__")
        if places is None or type(places).__name__ != "_NamespacePath":
            return False
        file = next((place + "/x.py" for place in places if type(place) is str), "")
    if not file.endswith(".py") or not _absolute(file).startswith(root.rstrip("/") + "/"):
        return False
    return "site-packages" not in file and not os.path.realpath(file).startswith(_LIBRARIES)


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100  (links are not to be followed)


def _told(name: str, cells: Sequence[Any]) -> bool:
    """Whether a cell names it: libraries make modules at run time too (Cython does)."""
    return name in rebuild_state.MODULES or any(name in cell.code for cell in cells)


def _made_here(name: str, module: Any) -> bool:
    """Whether it was made by ``types.ModuleType``, by no import."""
    if type(module) is not types.ModuleType:
        return False
    inside = globals_of(module)
    return (
        inside.get("__name__") == name
        and inside.get("__spec__") is None
        and inside.get("__loader__") is None
        and type(inside.get("__file__")) is not str
        and name not in ("__main__", "__mp_main__", "builtins")
    )


def objects(_base: Baseline) -> Iterator[tuple[str, Any]]:
    """Every global of these modules."""
    for key, module in BY_VALUE.items():
        for name, value in list(globals_of(module).items()):
            if type(name) is str and name not in _OWN:
                yield f"attribute {key}:{name}", value
        if type(module) is not types.ModuleType:
            yield f"attribute {key}:__class__", type(module)


def facts(base: Baseline, _shell: Any) -> Any:
    """What the modules are, without their contents."""
    made: dict[str, dict[str, Any]] = {}
    for key, module in BY_VALUE.items():
        inside = globals_of(module)
        places = inside.get("__path__")
        made[key] = {
            "name": inside.get("__name__"),
            "file": _shown(inside.get("__file__"), base.root),
            "package": inside.get("__package__"),
            "places": [_shown(place, base.root) for place in places]
            if places is not None
            else None,
            "listed": sys.modules.get(key) is module,
            "spec": inside.get("__spec__") is not None,
        }
    return made or None


def _shown(path: Any, root: str) -> str | None:
    return relative(_absolute(path), root) if type(path) is str else None


def set_facts(value: dict[str, dict[str, Any]], base: Baseline, _shell: Any) -> None:
    """Make the modules, still empty."""
    for key, fact in value.items():
        made = types.ModuleType(str(fact["name"]))
        inside = globals_of(made)
        file = resolved(fact["file"], base.root) if fact["file"] else None
        places = (
            [resolved(p, base.root) for p in fact["places"]] if fact["places"] is not None else None
        )
        if places is not None:
            inside["__path__"] = places
        inside["__package__"] = fact["package"]
        if file:
            inside["__file__"] = file
        if fact["spec"]:
            loader = importlib.machinery.SourceFileLoader(str(fact["name"]), file) if file else None
            spec = importlib.machinery.ModuleSpec(
                str(fact["name"]), loader, origin=file, is_package=places is not None
            )
            spec.has_location = file is not None
            if places is not None:
                spec.submodule_search_locations = places
            inside["__spec__"], inside["__loader__"] = spec, loader
            if file:
                with contextlib.suppress(NotImplementedError):
                    inside["__cached__"] = spec.cached
        if fact["listed"]:
            sys.modules[key] = made
        rebuild_state.MODULES[key] = made
        BY_VALUE[key] = made
        HOMES[id(inside)] = key


def aliases(base: Baseline, _shell: Any) -> Any:
    """Second names that cells gave to modules in ``sys.modules``."""
    return base.noted["modules"].get("aliases") or None


def set_aliases(value: dict[str, str], _base: Baseline, _shell: Any) -> None:
    """Give them."""
    for name, module in value.items():
        sys.modules[name] = rebuild_state.module(module)


def widen(touched: set[str] | None, names: dict[str, str]) -> set[str] | None:
    """The touched names, and the globals of the modules stored by value among them."""
    if touched is None or not BY_VALUE:
        return touched
    tops = {
        names[n].partition(".")[0].partition("#")[0] for n in touched if names.get(n) in BY_VALUE
    }
    if not tops:
        return touched
    more = {
        f"process: attribute {key}:{name}"
        for key, module in BY_VALUE.items()
        if key.partition(".")[0].partition("#")[0] in tops
        for name in globals_of(module)
    }
    return touched | more


def place(name: str, value: Any) -> bool:
    """Set a global of a module stored by value; whether it is one."""
    key, _, attribute = name.removeprefix("process: attribute ").partition(":")
    module = rebuild_state.MODULES.get(key)
    if module is None:
        return False
    if attribute == "__class__":
        module.__class__ = value
    else:
        globals_of(module)[attribute] = value
    return True
