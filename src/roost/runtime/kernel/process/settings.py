"""Settings in parts of the shell (``%config``) and in libraries: the difference from a fresh kernel."""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from roost.runtime.kernel.naming import globals_of
from roost.runtime.kernel.process.base import Baseline

_SIMPLE = (str, int, float, bool, type(None))
_INLINE = "InlineBackend"
_HOMES = {_INLINE: "matplotlib_inline.config"}
"""Parts that are made when they are first used: where their class is."""


def note(shell: Any) -> dict[str, Any]:
    """Arguments and parts of the shell before the user's first cell."""
    return {
        "argv": list(sys.argv),
        "parts": {name: now for name, _one, now in _parts(shell)},
        "config": _formatting(shell),
    }


# --- parts of the shell --------------------------------------------------------------------------


def _parts(shell: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The parts that ``%config`` knows, with their settings of plain values."""
    for one in list(shell.configurables):
        if one is shell:
            continue
        names = one.class_trait_names(config=True)
        values = one._trait_values
        yield type(one).__name__, one, {n: values[n] for n in names if _plain(values.get(n, one))}


def _plain(value: Any, depth: int = 0) -> bool:
    kind = type(value)
    if kind in _SIMPLE:
        return True
    if depth > 2 or not issubclass(kind, (list, tuple, set, dict)):
        return False
    items = (*value, *value.values()) if issubclass(kind, dict) else value
    return all(_plain(item, depth + 1) for item in items)


Get = Callable[[Baseline, Any], Any]


def seldom(get: Get) -> Get:
    """Read where everything is looked at; in between it is as it was."""

    def remembered(base: Baseline, shell: Any) -> Any:
        last: dict[Get, Any] = base.noted["settings"].setdefault("last", {})
        if base.touched is None or get not in last:
            last[get] = get(base, shell)
        return last[get]

    return remembered


@seldom
def parts(base: Baseline, shell: Any) -> Any:
    """What was set in parts of the shell."""
    known = base.noted["settings"]["parts"]
    made = {}
    for name, one, now in _parts(shell):
        before = known.get(name)
        if before is None:
            before = {n: one.traits()[n].default(one) for n in now}
        changed = {n: _bare(v) for n, v in now.items() if n not in before or before[n] != v}
        if changed:
            made[name] = changed
    return made or None


def _bare(value: Any) -> Any:
    """Without the classes of the configuration system."""
    kind = type(value)
    if issubclass(kind, dict):
        return {k: _bare(v) for k, v in value.items()}
    plain: Any = next((one for one in (list, tuple, set) if issubclass(kind, one)), None)
    return plain(map(_bare, value)) if plain is not None else value


def set_parts(value: dict[str, dict[str, Any]], _base: Baseline, shell: Any) -> None:
    """Set it again."""
    found = {type(one).__name__: one for one in shell.configurables}
    for name, changed in value.items():
        part = found.get(name)
        if part is None and name in _HOMES:
            part = getattr(importlib.import_module(_HOMES[name]), name).instance(parent=shell)
            part.shell = shell
            shell.configurables.append(part)
        for trait, setting in changed.items():
            if part is not None and part.has_trait(trait):
                with contextlib.suppress(Exception):  # a setting of another version of IPython
                    setattr(part, trait, setting)


def _formatting(shell: Any) -> dict[str, Any]:
    """What formatters will be told when they are made."""
    sections = dict.items(shell.display_formatter.config)
    return {k: _bare(v) for k, v in sections if k.endswith("Formatter") and _plain(v)}


def config(base: Baseline, shell: Any) -> Any:
    """Settings of formatters that a cell made."""
    now = _formatting(shell)
    return now if now != base.noted["settings"]["config"] else None


def set_config(value: dict[str, Any], _base: Baseline, shell: Any) -> None:
    """Tell them."""
    formatter = shell.display_formatter
    told = formatter.config.copy()
    for name, section in value.items():
        told[name].update(section)
    formatter.config = told


def arguments(base: Baseline, _shell: Any) -> Any:
    """``sys.argv``, where a cell set it."""
    now = list(sys.argv)
    return now if now != base.noted["settings"]["argv"] and _plain(now) else None


def set_arguments(value: list[str], _base: Baseline, _shell: Any) -> None:
    """Set it."""
    sys.argv[:] = value


# --- libraries -----------------------------------------------------------------------------------

_DIALECT = (
    "delimiter", "doublequote", "escapechar", "lineterminator", "quotechar", "quoting",
    "skipinitialspace", "strict",
)  # fmt: skip
_BUILTIN = {
    "excel": (",", True, None, "\r\n", '"', 0, False, False),
    "excel-tab": ("\t", True, None, "\r\n", '"', 0, False, False),
    "unix": (",", True, None, "\n", '"', 1, False, False),
}
_FIELD_LIMIT = 131072


def dialects(_base: Baseline, _shell: Any) -> Any:
    """Dialects of ``csv`` that were registered or are gone; its limit."""
    library: Any = sys.modules.get("csv")
    if library is None or "get_dialect" not in globals_of(library):
        return None
    now = {}
    for name in library.list_dialects():
        one = library.get_dialect(name)
        now[name] = tuple(getattr(one, option) for option in _DIALECT)
    added = {name: row for name, row in now.items() if _BUILTIN.get(name) != row}
    gone = sorted(_BUILTIN.keys() - now.keys())
    limit = library.field_size_limit()
    return (added, gone, limit) if added or gone or limit != _FIELD_LIMIT else None


def set_dialects(value: tuple[Any, list[str], int], _base: Baseline, _shell: Any) -> None:
    """Register them."""
    added, gone, limit = value
    library = importlib.import_module("csv")
    for name, row in added.items():
        library.register_dialect(name, **dict(zip(_DIALECT, row, strict=True)))
    for name in gone:
        with contextlib.suppress(library.Error):
            library.unregister_dialect(name)
    library.field_size_limit(limit)


def timeout(_base: Baseline, _shell: Any) -> Any:
    """How long new sockets wait."""
    library: Any = sys.modules.get("socket")
    return library.getdefaulttimeout() if library is not None else None


def set_timeout(value: float, _base: Baseline, _shell: Any) -> None:
    """Set it."""
    importlib.import_module("socket").setdefaulttimeout(value)


def week(_base: Baseline, _shell: Any) -> Any:
    """The day a calendar's week begins with, when it is not Monday."""
    library: Any = sys.modules.get("calendar")
    return (int(library.firstweekday()) or None) if library is not None else None


def set_week(value: int, _base: Baseline, _shell: Any) -> None:
    """Set it."""
    importlib.import_module("calendar").setfirstweekday(value)


_POLARS = {
    "set_fmt_float": "mixed", "set_float_precision": None, "set_thousands_separator": "",
    "set_decimal_separator": ".", "set_trim_decimal_zeros": False,
}  # fmt: skip


@seldom
def polars(_base: Baseline, _shell: Any) -> Any:
    """Options of polars that are not environment variables."""
    library: Any = sys.modules.get("polars")
    config = globals_of(library).get("Config") if library is not None else None
    if config is None:
        return None
    direct = json.loads(config.save(if_set=True))["direct"]
    return {k: v for k, v in direct.items() if k in _POLARS and v != _POLARS[k]} or None


def set_polars(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Set them."""
    config = importlib.import_module("polars").Config
    for name, setting in value.items():
        getattr(config, name)(setting)


@seldom
def learning(_base: Baseline, _shell: Any) -> Any:
    """What ``sklearn.set_config`` was told in the main thread."""
    library: Any = sys.modules.get("sklearn._config")
    known = globals_of(library).get("_global_config") if library is not None else None
    if type(known) is not dict:
        return None
    now = library.get_config()
    return {k: v for k, v in now.items() if _plain(v) and known.get(k) != v} or None


def set_learning(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Tell it again."""
    importlib.import_module("sklearn").set_config(**value)


@seldom
def symbols(_base: Baseline, _shell: Any) -> Any:
    """How sympy prints: in Unicode or not, in which order."""
    pretty: Any = sys.modules.get("sympy.printing.pretty.pretty_symbology")
    printer: Any = sys.modules.get("sympy.printing.printer")
    if pretty is None or printer is None or "Printer" not in globals_of(printer):
        return None
    told = dict(printer.Printer._global_settings)
    found = (bool(globals_of(pretty).get("_use_unicode")), told)
    return found if (found[0] or told) and _plain(told) else None


def set_symbols(value: tuple[bool, dict[str, Any]], _base: Baseline, _shell: Any) -> None:
    """Tell it again."""
    importlib.import_module("sympy.printing.pretty.pretty_symbology").pretty_use_unicode(value[0])
    importlib.import_module("sympy.printing.printer").Printer.set_global_settings(**value[1])


_TEMPLATES = ("DefaultContext", "BasicContext", "ExtendedContext")


@seldom
def templates(base: Baseline, _shell: Any) -> Any:
    """What new decimal contexts are made after."""
    library: Any = sys.modules.get("decimal")
    if library is None:
        return None
    known = base.noted["settings"].setdefault("decimal", _fresh_contexts(library))
    changed = {}
    for name in _TEMPLATES:
        now = _context(getattr(library, name))
        if known.get(name) not in (None, now):
            changed[name] = now
    return changed or None


def _fresh_contexts(library: Any) -> dict[str, Any]:
    traps = {
        "DefaultContext": ("InvalidOperation", "DivisionByZero", "Overflow"),
        "BasicContext": ("InvalidOperation", "DivisionByZero", "Overflow", "Underflow", "Clamped"),
        "ExtendedContext": (),
    }
    rows = {}
    for name, caught in traps.items():
        precision, rounding = (28, "ROUND_HALF_EVEN") if name == _TEMPLATES[0] else (9, "")
        rounding = rounding or ("ROUND_HALF_UP" if name == _TEMPLATES[1] else "ROUND_HALF_EVEN")
        rows[name] = (precision, rounding, 999999, -999999, 1, 0, tuple(sorted(caught)))
    return rows


def _context(one: Any) -> tuple[Any, ...]:
    caught = tuple(sorted(signal.__name__ for signal, on in one.traps.items() if on))
    return one.prec, one.rounding, one.Emax, one.Emin, one.capitals, one.clamp, caught


def set_templates(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Change them."""
    library: Any = importlib.import_module("decimal")
    for name, (precision, rounding, most, least, capitals, clamp, caught) in value.items():
        one = getattr(library, name)
        one.prec, one.rounding, one.Emax, one.Emin = precision, rounding, most, least
        one.capitals, one.clamp = capitals, clamp
        for signal in one.traps:
            one.traps[signal] = signal.__name__ in caught
