"""State of the process that is no variable: folder, loggers, handlers, magics, patches, random states.

Each piece is read and put back on its own, so that one failure costs no other. What the kernel itself set
up is not carried: only the difference to the baseline noted when the engine was loaded. Plain pieces are
pickled by themselves; pieces with objects of the user are groups like variables, named ``process: ...``.
"""

import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from roost.runtime.kernel import widgets
from roost.runtime.kernel.naming import globals_of, is_module
from roost.runtime.kernel.process import base as common
from roost.runtime.kernel.process import (
    context,
    hooks,
    ipython,
    leftovers,
    libraries,
    logs,
    modules,
    patches,
    pytorch,
    settings,
    system,
)
from roost.runtime.kernel.process.base import PREFIX

IMPORT_DEPTH = 2
"""``sklearn.linear_model`` is recorded, what lies deeper comes with it."""

__all__ = ["PREFIX", "Baseline", "bring_in", "imports", "objects", "pieces", "place", "widen"]


class Baseline(common.Baseline):
    """How the process was before the user did anything."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        notes: dict[str, Callable[[Any], Any]] = {
            "system": system.note,
            "hooks": hooks.note,
            "logs": logs.note,
            "context": context.note,
            "modules": modules.note,
            "patches": patches.note,
            "ipython": ipython.note,
            "leftovers": leftovers.note,
            "settings": settings.note,
        }
        for family, take in notes.items():
            self.noted[family] = take(shell)


Get = Callable[[common.Baseline, Any], Any]
Set = Callable[[Any, common.Baseline, Any], None]

BEFORE: dict[str, tuple[Get, Set]] = {
    "environment": (system.environment, system.set_environment),
    "sys.path": (system.paths, system.set_paths),
    "working directory": (system.folder, system.set_folder),
    "limits": (system.limits, system.set_limits),
    "sys.argv": (settings.arguments, settings.set_arguments),
    "temporary files": (leftovers.files, leftovers.set_files),
    "modules": (modules.facts, modules.set_facts),
    "module names": (modules.aliases, modules.set_aliases),
    "matplotlib backend": (libraries.backend, libraries.set_backend),
}
"""Put back before anything is imported or opened."""

AFTER: dict[str, tuple[Get, Set]] = {
    "extensions": (ipython.extensions, ipython.set_extensions),
    "autoreload": (ipython.reloading, ipython.set_reloading),
    "aliases": (ipython.aliases, ipython.set_aliases),
    "names of magics": (ipython.magic_aliases, ipython.set_magic_aliases),
    "settings of formatters": (settings.config, settings.set_config),
    "shell settings": (ipython.settings, ipython.set_settings),
    "parts of the shell": (settings.parts, settings.set_parts),
    "shell log": (ipython.log, ipython.set_log),
    "logging": (logs.settings, logs.set_settings),
    "deleted attributes": (patches.deleted, patches.set_deleted),
    "what cannot be read back": (patches.unknown, patches.set_nothing),
    "umask": (system.umask, system.set_umask),
    "time zone": (system.zone, system.set_zone),
    "locale": (system.locales, system.set_locales),
    "resource limits": (system.resources, system.set_resources),
    "interpreter settings": (system.switching, system.set_switching),
    "garbage collector": (system.collector, system.set_collector),
    "decimal templates": (settings.templates, settings.set_templates),
    "csv": (settings.dialects, settings.set_dialects),
    "socket timeout": (settings.timeout, settings.set_timeout),
    "calendar": (settings.week, settings.set_week),
    "polars options": (settings.polars, settings.set_polars),
    "sklearn options": (settings.learning, settings.set_learning),
    "sympy options": (settings.symbols, settings.set_symbols),
    "numpy options": (libraries.numpy_options, libraries.set_numpy_options),
    "pandas options": (libraries.pandas_options, libraries.set_pandas_options),
    "matplotlib colormaps": (libraries.colormaps, libraries.set_colormaps),
    "matplotlib styles": (libraries.styles, libraries.set_styles),
    "matplotlib options": (libraries.plot_options, libraries.set_plot_options),
    "matplotlib figures": (libraries.figures, libraries.set_figures),
    "torch options": (pytorch.options, pytorch.set_options),
    "warnings filters": (system.filters, system.set_filters),
    "timers": (system.timers, system.set_timers),
    "random": (libraries.randomness, libraries.set_randomness),
}
"""Put back after the variables, in this order: whatever ran before may have drawn random numbers."""


def set_context(value: Any, base: common.Baseline, shell: Any) -> None:
    """Values of context variables."""
    context.place("contextvars", value, base, shell)


CONTEXT = f"{PREFIX}contextvars"
IN_CONTEXT: dict[str, Set] = {
    f"{PREFIX}decimal context": system.set_decimals,
    "numpy options": libraries.set_numpy_options,
    CONTEXT: set_context,
    f"{PREFIX}numpy errcall": libraries.set_call,
}
"""Pieces that live in context variables: to be set again from inside the next cell's context."""

_PLACES: dict[str, Callable[[str, Any, common.Baseline, Any], None]] = {
    "signal": hooks.place,
    "trace": hooks.place,
    "profile": hooks.place,
    "finders": hooks.place,
    "overloads": hooks.place,
    "stream": hooks.place,
    "error": hooks.place,
    "warnings": hooks.place,
    "loop": hooks.place_loop,
    "numpy": lambda _name, value, base, shell: libraries.set_call(value, base, shell),
    "decimal": lambda _name, value, base, shell: system.set_decimals(value, base, shell),
    "codec": patches.place_codec,
    "logger": logs.place,
    "contextvars": context.place,
    "attribute": patches.place,
    "registered": patches.place_registered,
    "copyreg": patches.place_copyreg,
    "magic": ipython.place,
    "event": ipython.place,
    "hook": ipython.place,
    "formatters": ipython.place,
    "errors": ipython.place,
    "widget": widgets.place,
    "comm": widgets.place,
    "target": widgets.place,
    "descriptor": lambda *_: None,
    "finalizer": lambda *_: None,
}


def prepare(
    base: common.Baseline, shell: Any, cells: Sequence[Any], names: set[str] | None
) -> None:
    """Before a look at the kernel: which modules are the user's, what was patched."""
    base.touched = names
    modules.refresh(base, shell.user_ns, cells)
    patches.learn(base, cells, shell.user_ns, full=names is None)


widen = modules.widen
names_files = leftovers.names_files
_MOVING = frozenset({"timers", "temporary files", "shell log", "autoreload"})
_STILL = (f"{PREFIX}logger ", f"{PREFIX}error", f"{PREFIX}decimal context")


def still(state: Collection[str], objects: Collection[tuple[str, Any]]) -> bool:
    """Whether a process that looks like this stays so while calm cells run: nothing of the notebook's runs
    with them (events, formatters, signals), no clock is on its way, no file is looked after."""
    return _MOVING.isdisjoint(state) and all(name.startswith(_STILL) for name, _value in objects)


def objects(base: common.Baseline, shell: Any) -> Iterator[tuple[str, Any]]:
    """Pieces that hold objects of the user."""
    for family in (modules, patches, hooks, logs, context):
        for name, value in family.objects(base):
            yield PREFIX + name, value
    if (call := libraries.call()) is not None:
        yield f"{PREFIX}numpy errcall", call
    if (numbers := system.decimals(base)) is not None:
        yield f"{PREFIX}decimal context", numbers
    for name, value in leftovers.objects(base, shell):
        yield PREFIX + name, value
    for name, value in ipython.objects(base, shell):
        yield PREFIX + name, value
    for name, value in widgets.roots():
        yield PREFIX + name, value


def place_module(name: str, value: Any) -> bool:
    """Put a global of a module stored by value back at once; whether it is one."""
    return name.startswith(f"{PREFIX}attribute ") and modules.place(name, value)


def place(name: str, value: Any, base: common.Baseline, shell: Any) -> None:
    """Put a piece with objects back. Raises whatever that raises."""
    short = name.removeprefix(PREFIX)
    _PLACES[short.partition(" ")[0]](short, value, base, shell)


def pieces(base: common.Baseline, shell: Any) -> Iterator[tuple[str, Any, Exception | None]]:
    """Every plain piece that differs from the baseline; an error where one cannot be read."""
    for name, (get, _set) in (*BEFORE.items(), *AFTER.items()):
        try:
            value = get(base, shell)
        except Exception as error:  # one piece never costs the others
            yield name, None, error
            continue
        if value is not None:
            yield name, value, None


def stored(base: common.Baseline, name: str, value: Any, dump: Callable[[Any], bytes]) -> bytes:
    """The pickle of a plain piece; the last one when it is the same value."""
    known = base.stored.get(name)
    if known is not None and name in _COMPARED and known[0] == value:
        return known[1]
    content = dump(value)
    base.stored[name] = (value, content)
    return content


_COMPARED = frozenset(
    {
        "environment", "sys.path", "working directory", "limits", "modules", "umask", "time zone", "locale",
        "garbage collector", "random", "aliases", "shell settings", "extensions", "numpy options",
        "logging", "temporary files",
        "interpreter settings", "resource limits", "matplotlib backend", "matplotlib figures",
        "sys.argv", "parts of the shell", "settings of formatters", "decimal templates", "csv",
        "socket timeout", "calendar", "polars options", "sklearn options", "sympy options", "names of magics",
        "torch options",
    }
)  # fmt: skip
"""Pieces of plain values of our own making, which can be compared."""


def imports(base: common.Baseline) -> tuple[str, ...]:
    """Modules imported since the baseline that a standby kernel can import too, sorted."""
    known = base.noted.get("imports")
    ids = base.noted["modules"]["ids"]
    if known is not None and known[0] == (ids, base.root):
        found: tuple[str, ...] = known[1]
        return found
    names = []
    for name, module in list(sys.modules.items()):
        if name in base.modules or name.count(".") >= IMPORT_DEPTH or "._" in f".{name}":
            continue
        if name == "roost" or name.startswith("roost.") or not is_module(module):
            continue
        inside = globals_of(module)
        file = inside.get("__file__")
        local = isinstance(file, str) and Path(file).is_relative_to(base.root)
        if inside.get("__spec__") is not None and inside.get("__name__") == name and not local:
            names.append(name)
    made = tuple(sorted(names))
    base.noted["imports"] = ((ids, base.root), made)
    return made


def bring_in(name: str) -> str:
    """Import a module; the reason when that fails."""
    try:
        importlib.import_module(name)
    except BaseException as error:  # a library may do anything at import
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:300]
    return ""
