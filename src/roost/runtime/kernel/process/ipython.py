"""The shell: magics, aliases, events, formatters, transformers, settings, compiler flags, extensions."""

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

from roost.runtime.kernel.naming import foreign
from roost.runtime.kernel.process.base import Baseline

_HOOKS = ("input_transformers_cleanup", "input_transformers_post", "ast_transformers")
_SIMPLE = (str, int, float, bool, type(None))
_NOT_SET = frozenset(
    {
        "execution_count", "ipython_dir", "history_length", "banner1", "banner2", "parent",
        "exit_now", "display_trap",
        "rl_next_input", "sphinxify_docstring", "logstart", "logfile", "logappend", "loop_runner",
        "active_eventloop", "history_load_length", "last_execution_succeeded",
    }
)  # fmt: skip


def note(shell: Any) -> dict[str, Any]:
    """The shell before the user's first cell."""
    return {
        "magics": {kind: dict(table) for kind, table in shell.magics_manager.magics.items()},
        "events": {event: list(row) for event, row in shell.events.callbacks.items()},
        "formatters": _printers(shell),
        "hooks": {name: list(getattr(shell, name, ())) for name in _HOOKS},
        "settings": _settings(shell),
        "text": _text(shell),
        "flags": shell.compile.flags,
        "mode": shell.InteractiveTB.mode,
        "handler": getattr(shell, "CustomTB", None),
        "hidden": frozenset(shell.user_ns_hidden),
        "visited": list(shell.user_ns.get("_dh", ())),
    }


# --- with objects --------------------------------------------------------------------------------


def objects(base: Baseline, shell: Any) -> Iterator[tuple[str, Any]]:
    """What the notebook registered with the shell."""
    noted = base.noted["ipython"]
    for kind, table in shell.magics_manager.magics.items():
        known = noted["magics"].get(kind, {})
        for name, function in table.items():
            if function is not known.get(name) and foreign(function):
                yield f"magic {kind} {name}", function
    for event, row in shell.events.callbacks.items():
        before = noted["events"].get(event, [])
        added = [f for f in row if foreign(f) and not any(f is b for b in before)]
        if added:
            yield f"event {event}", base.steady(f"event {event}", added)
    for name in _HOOKS:
        added = [f for f in getattr(shell, name, ()) if foreign(f)]
        if added:
            yield f"hook {name}", base.steady(f"hook {name}", added)
    printers = [
        (mime, table, key, function)
        for mime, table, key, function in _printers(shell)
        if (foreign(function) or _of_sympy(function) or (table == "type_printers" and foreign(key)))
        and not any(function is f and key is k for _m, _t, k, f in noted["formatters"])
    ]
    if printers:
        yield "formatters", base.steady("formatters", printers)
    custom = getattr(shell, "CustomTB", None)
    if custom is not None and custom is not noted["handler"] and shell.custom_exceptions:
        cells = getattr(custom, "__closure__", None) or getattr(
            getattr(custom, "__func__", None), "__closure__", ()
        )
        found = [cell.cell_contents for cell in cells or () if foreign(cell.cell_contents)]
        if found:
            yield "errors", base.steady("errors", [tuple(shell.custom_exceptions), found[0]])


def _of_sympy(function: Any) -> bool:
    """Whether ``sympy.init_printing`` made this printer, which cannot be had by its name."""
    if type(function) is not types.FunctionType:
        return False
    return "<locals>" in function.__qualname__ and function.__module__.startswith("sympy.")


def _formatters(shell: Any) -> dict[str, Any]:
    """The formatters; none before something is shown: they take their settings when they are made."""
    found: dict[str, Any] = shell.display_formatter._trait_values.get("formatters") or {}
    return found


def _printers(shell: Any) -> list[tuple[str, str, Any, Any]]:
    found = []
    for mime, formatter in _formatters(shell).items():
        for table in ("type_printers", "deferred_printers"):
            found += [(mime, table, k, f) for k, f in getattr(formatter, table).items()]
    return found


def place(name: str, value: Any, _base: Baseline, shell: Any) -> None:
    """Register a piece again."""
    kind, *rest = name.split(" ")
    if kind == "magic":
        shell.magics_manager.magics[rest[0]][rest[1]] = value
    elif kind == "event":
        for function in value:
            shell.events.register(rest[0], function)
    elif kind == "hook":
        row = getattr(shell, rest[0])
        row.extend(function for function in value if not any(function is f for f in row))
    elif kind == "errors":
        shell.set_custom_exc(*value)
    elif kind == "formatters":
        for mime, table, key, function in value:
            getattr(shell.display_formatter.formatters[mime], table)[key] = function


# --- plain ---------------------------------------------------------------------------------------


def _settings(shell: Any) -> dict[str, Any]:
    values = getattr(shell, "_trait_values", {})
    return {k: v for k, v in values.items() if type(v) in _SIMPLE and k not in _NOT_SET}


def _text(shell: Any) -> dict[tuple[str, str], Any]:
    found: dict[Any, Any] = {}
    for mime, formatter in _formatters(shell).items():
        values = getattr(formatter, "_trait_values", {})
        found.update({(mime, k): v for k, v in values.items() if type(v) in _SIMPLE})
    return found


def _made_anew(shell: Any) -> dict[tuple[str, str], Any]:
    """What formatters would be set to that the notebook has not set up."""
    found: dict[tuple[str, str], Any] = {}
    for mime, formatter in _formatters(shell).items():
        for name, trait in formatter.traits().items():
            if name != "parent" and type(value := trait.default(formatter)) in _SIMPLE:
                found[mime, name] = value
    return found


def settings(base: Baseline, shell: Any) -> Any:
    """Settings of the shell and of its formatters, compiler flags, hidden names, folders visited."""
    noted = base.noted["ipython"]
    now = _settings(shell)
    text = _text(shell)
    if text and not noted["text"]:
        noted["text"] = _made_anew(shell)
    visited = list(shell.user_ns.get("_dh", ()))
    made = {
        "shell": {k: v for k, v in now.items() if k not in noted["settings"] or noted["settings"][k] != v},
        "text": {k: v for k, v in text.items() if noted["text"].get(k, v) != v},
        "mode": shell.InteractiveTB.mode if shell.InteractiveTB.mode != noted["mode"] else None,
        "flags": shell.compile.flags if shell.compile.flags != noted["flags"] else None,
        "hidden": sorted(
            n for n in shell.user_ns_hidden
            if n not in noted["hidden"] and type(n) is str and not n.startswith("_")
        ),
        "visited": [str(p) for p in visited] if len(visited) > 1 else [],
        "pushed": list(shell.dir_stack),
    }  # fmt: skip
    return made if any(made.values()) else None


def set_settings(value: dict[str, Any], _base: Baseline, shell: Any) -> None:
    """Put them back."""
    for name, setting in value["shell"].items():
        if shell.has_trait(name):
            with contextlib.suppress(Exception):  # a setting of another version of IPython
                setattr(shell, name, setting)
    # The precision first: setting it writes the format.
    for (mime, name), setting in sorted(
        value["text"].items(), key=lambda row: row[0][1] != "float_precision"
    ):
        formatter = shell.display_formatter.formatters.get(mime)
        if formatter is not None and formatter.has_trait(name):
            setattr(formatter, name, setting)
    if value["mode"] is not None:
        shell.InteractiveTB.set_mode(mode=value["mode"])
        if hasattr(shell.SyntaxTB, "set_mode"):  # not in every version
            shell.SyntaxTB.set_mode(mode=value["mode"])
    if value["flags"] is not None:
        shell.compile.flags = value["flags"]
    for name in value["hidden"]:
        if name in shell.user_ns:
            shell.user_ns_hidden[name] = shell.user_ns[name]
    if value["visited"] and type(shell.user_ns.get("_dh")) is list:
        shell.user_ns["_dh"][:] = value["visited"]
    shell.dir_stack[:] = value.get("pushed", ())


def aliases(base: Baseline, shell: Any) -> Any:
    """Aliases that were defined or changed; those that are gone."""
    known = base.noted["ipython"]["magics"].get("line", {})
    table = shell.magics_manager.magics["line"]
    kind: Any = getattr(sys.modules.get("IPython.core.alias"), "Alias", None)
    if kind is None:
        return None
    added = [(n, a.cmd) for n, a in table.items() if type(a) is kind and known.get(n) is not a]
    gone = [n for n, a in known.items() if type(a) is kind and n not in table]
    return (added, gone) if added or gone else None


def set_aliases(
    value: tuple[list[tuple[str, str]], list[str]], _base: Baseline, shell: Any
) -> None:
    """Define them."""
    added, gone = value
    for name, command in added:
        shell.alias_manager.define_alias(name, command)
    for name in gone:
        with contextlib.suppress(ValueError):
            shell.alias_manager.undefine_alias(name)


def magic_aliases(base: Baseline, shell: Any) -> Any:
    """Other names of magics: ``%alias_magic``."""
    kind: Any = getattr(sys.modules.get("IPython.core.magic"), "MagicAlias", None)
    if kind is None:
        return None
    found = []
    for of, table in shell.magics_manager.magics.items():
        known = base.noted["ipython"]["magics"].get(of, {})
        found += [
            (name, one.magic_name, of, one.magic_params)
            for name, one in table.items()
            if type(one) is kind and known.get(name) is not one
        ]
    return sorted(found) or None


def set_magic_aliases(
    value: list[tuple[str, str, str, str | None]], _base: Baseline, shell: Any
) -> None:
    """Define them."""
    for name, magic, kind, parameters in value:
        shell.magics_manager.register_alias(name, magic, kind, parameters)


def extensions(base: Baseline, shell: Any) -> Any:
    """IPython extensions the user loaded."""
    loaded = sorted(set(shell.extension_manager.loaded) - base.extensions - {"roost"})
    return loaded or None


def set_extensions(value: list[str], _base: Baseline, shell: Any) -> None:
    """Load them."""
    for name in value:
        shell.extension_manager.load_extension(name)


_RELOADER = ("enabled", "check_all", "autoload_obj", "_report")


def reloading(_base: Baseline, shell: Any) -> Any:
    """What ``%autoreload`` and ``%aimport`` were told."""
    reloader = _reloader(shell)
    if reloader is None:
        return None
    own = vars(reloader)
    made = {k: own[k] for k in _RELOADER if type(own.get(k)) in _SIMPLE}
    return {**made, "modules": dict(reloader.modules), "skip_modules": dict(reloader.skip_modules)}


def set_reloading(value: dict[str, Any], _base: Baseline, shell: Any) -> None:
    """Tell it again."""
    reloader = _reloader(shell)
    if reloader is not None:
        vars(reloader).update(value)


def _reloader(shell: Any) -> Any:
    magic = shell.magics_manager.magics["line"].get("autoreload")
    return getattr(getattr(magic, "__self__", None), "_reloader", None)


def log(_base: Baseline, shell: Any) -> Any:
    """``%logstart``: a log that is being written."""
    writer = getattr(shell, "logger", None)
    if writer is None or getattr(writer, "logfile", None) is None:
        return None
    return {
        "name": writer.logfname, "mode": "append", "output": writer.log_output, "raw": writer.log_raw_input,
        "stamps": writer.timestamp, "active": writer.log_active,
    }  # fmt: skip


def set_log(value: dict[str, Any], _base: Baseline, shell: Any) -> None:
    """Go on with it at its end."""
    shell.logger.logstart(
        value["name"], "", value["mode"], value["output"], value["stamps"], value["raw"]
    )
    shell.logger.log_active = value["active"]
