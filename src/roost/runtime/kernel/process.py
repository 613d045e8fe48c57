"""State of the process that is no variable: folder, paths, environment, options, random states.

Each piece is read and put back on its own, so that one failure costs no other. What the kernel
itself set up is not carried: only the difference to the baseline noted when the engine was loaded.
"""

import decimal
import importlib
import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roost.runtime.kernel.naming import globals_of, is_module

IMPORT_DEPTH = 2
"""``sklearn.linear_model`` is recorded, what lies deeper comes with it."""


class Baseline:
    """How the process was before the user did anything."""

    def __init__(self, shell: Any) -> None:
        self.env: dict[str, str] = {}
        self.sys_path: list[str] = []
        self.root = ""
        self.modules = frozenset(sys.modules)
        self.extensions = frozenset(shell.extension_manager.loaded)
        self.filters = list(warnings.filters)
        self.note()

    def note(self) -> None:
        """Take folder, paths and environment as they are now for the baseline."""
        self.env = dict(os.environ)
        self.sys_path = list(sys.path)
        self.root = str(Path.cwd())


# --- paths ---------------------------------------------------------------------------------------


def relative(path: str, root: str) -> str:
    """A path relative to the session's folder where it lies in it, with a mark that says so."""
    if path == root:
        return "@"
    return f"@/{path[len(root) + 1 :]}" if path.startswith(f"{root}/") else path


def resolved(path: str, root: str) -> str:
    """The reverse of ``relative``, for the folder as it is here."""
    return f"{root}{path[1:]}" if path == "@" or path.startswith("@/") else path


# --- pieces --------------------------------------------------------------------------------------


def folder(base: Baseline, _shell: Any) -> Any:
    """Working directory."""
    return relative(str(Path.cwd()), base.root)


def set_folder(value: str, base: Baseline, _shell: Any) -> None:
    """Back into the working directory."""
    os.chdir(resolved(value, base.root))


def paths(base: Baseline, _shell: Any) -> Any:
    """Additions to and removals from ``sys.path``."""
    known = set(base.sys_path)
    current = [p for p in sys.path if isinstance(p, str)]
    front: list[str] = []
    back: list[str] = []
    met = False
    for path in current:
        if path in known:
            met = True
        else:
            (back if met else front).append(relative(path, base.root))
    removed = [relative(p, base.root) for p in base.sys_path if p not in current]
    return {"front": front, "back": back, "removed": removed} if front or back or removed else None


def set_paths(value: dict[str, list[str]], base: Baseline, _shell: Any) -> None:
    """Repeat the changes on this machine's own ``sys.path``."""
    removed = {resolved(p, base.root) for p in value["removed"]}
    sys.path[:] = [
        *(resolved(p, base.root) for p in value["front"]),
        *(p for p in sys.path if p not in removed),
        *(resolved(p, base.root) for p in value["back"]),
    ]


def environment(base: Baseline, _shell: Any) -> Any:
    """Changes to the environment."""
    now = dict(os.environ)
    changed = {k: v for k, v in now.items() if base.env.get(k) != v}
    gone = [k for k in base.env if k not in now]
    return {"set": changed, "unset": gone} if changed or gone else None


def set_environment(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Repeat the changes."""
    os.environ.update(value["set"])
    for name in value["unset"]:
        os.environ.pop(name, None)


def limits(_base: Baseline, _shell: Any) -> Any:
    """Recursion limit."""
    return sys.getrecursionlimit()


def set_limits(value: int, _base: Baseline, _shell: Any) -> None:
    """Put it back."""
    sys.setrecursionlimit(value)


def decimals(_base: Baseline, _shell: Any) -> Any:
    """The decimal context."""
    return decimal.getcontext()


def set_decimals(value: decimal.Context, _base: Baseline, _shell: Any) -> None:
    """Put it back."""
    decimal.setcontext(value)


def extensions(base: Baseline, shell: Any) -> Any:
    """IPython extensions the user loaded."""
    loaded = sorted(set(shell.extension_manager.loaded) - base.extensions - {"roost"})
    return loaded or None


def set_extensions(value: list[str], _base: Baseline, shell: Any) -> None:
    """Load them."""
    for name in value:
        shell.extension_manager.load_extension(name)


def filters(base: Baseline, _shell: Any) -> Any:
    """Warnings filters."""
    return list(warnings.filters) if list(warnings.filters) != base.filters else None


def set_filters(value: list[Any], _base: Baseline, _shell: Any) -> None:
    """Put the list back as a whole."""
    warnings.filters[:] = value  # type: ignore[index]
    refresh = getattr(warnings, "_filters_mutated", None) or getattr(
        warnings, "_filters_mutated_lock_held", None
    )
    if refresh is not None:
        refresh()


def randomness(_base: Baseline, _shell: Any) -> Any:
    """Global random generators."""
    states: dict[str, Any] = {"random": random.getstate()}
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        states["numpy"] = numpy.get_state(legacy=False)
    return states


def set_randomness(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Go on with the same sequence."""
    random.setstate(value["random"])
    if "numpy" in value:
        importlib.import_module("numpy.random").set_state(value["numpy"])


def numpy_options(_base: Baseline, _shell: Any) -> Any:
    """Print options and the treatment of floating point errors."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or "geterr" not in globals_of(numpy):
        return None
    options = {k: v for k, v in numpy.get_printoptions().items() if k != "override_repr"}
    return {"print": options, "errors": numpy.geterr()}


def set_numpy_options(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Put them back."""
    numpy: Any = importlib.import_module("numpy")
    numpy.set_printoptions(**value["print"])
    numpy.seterr(**value["errors"])


def pandas_options(_base: Baseline, _shell: Any) -> Any:
    """Options that are not at their default."""
    config: Any = sys.modules.get("pandas._config.config")
    if config is None:
        return None
    changed = {}
    for key, option in config._registered_options.items():
        if key not in config._deprecated_options:
            value = config.get_option(key)
            if value is not option.defval and value != option.defval:
                changed[key] = value
    return changed or None


def set_pandas_options(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Set them."""
    pandas = importlib.import_module("pandas")
    for key, option in value.items():
        pandas.set_option(key, option)


def plot_options(_base: Baseline, _shell: Any) -> Any:
    """matplotlib's ``rcParams`` that are not at their default."""
    library: Any = sys.modules.get("matplotlib")
    if library is None or "rcParamsDefault" not in globals_of(library):
        return None
    default = dict(dict.items(library.rcParamsDefault))
    changed = {
        key: value
        for key, value in dict.items(library.rcParams)
        if not key.startswith("backend") and value != default.get(key)
    }
    return changed or None


def set_plot_options(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Set them."""
    importlib.import_module("matplotlib").rcParams.update(value)


Get = Callable[[Baseline, Any], Any]
Set = Callable[[Any, Baseline, Any], None]

BEFORE: dict[str, tuple[Get, Set]] = {
    "environment": (environment, set_environment),
    "sys.path": (paths, set_paths),
    "working directory": (folder, set_folder),
    "limits": (limits, set_limits),
}
"""Put back before anything is imported or opened."""

AFTER: dict[str, tuple[Get, Set]] = {
    "extensions": (extensions, set_extensions),
    "decimal context": (decimals, set_decimals),
    "numpy options": (numpy_options, set_numpy_options),
    "pandas options": (pandas_options, set_pandas_options),
    "matplotlib options": (plot_options, set_plot_options),
    "warnings filters": (filters, set_filters),
    "random": (randomness, set_randomness),
}
"""Put back after the variables, in this order: whatever ran before may have drawn random numbers."""

IN_CONTEXT: dict[str, Set] = {
    "decimal context": set_decimals,
    "numpy options": set_numpy_options,
}
"""Pieces that live in context variables: to be set again from inside the next cell's context."""


def imports(base: Baseline) -> tuple[str, ...]:
    """Modules imported since the baseline that a standby kernel can import too, sorted."""
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
    return tuple(sorted(names))


def bring_in(name: str) -> str:
    """Import a module; the reason when that fails."""
    try:
        importlib.import_module(name)
    except BaseException as error:  # a library may do anything at import
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:300]
    return ""
