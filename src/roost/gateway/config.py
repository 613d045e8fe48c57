"""The gateway's configuration file: TOML into ``policy.Gateway``, or an error that says what to change.

Files it names are relative to it. Two keys make a whole configuration: ``listen`` and ``backends``. What
the values must be is checked in ``config_checks.py``. Never opens a socket.
"""

import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import msgspec

from roost.gateway.config_checks import Key, Problem, problems
from roost.ports.errors import Invalid
from roost.proxy import policy

SHORTHAND = "default"
"""Name of the listener, route and service that ``listen`` and ``backends`` stand for."""
SHOWN = 10
"""At most this many problems are told at once."""

# What a file may name, by the key that names it: made relative to the configuration.
_PATHS: dict[type[msgspec.Struct], tuple[str, ...]] = {
    policy.Certificate: ("certificate", "key"),
    policy.Tls: ("client_ca",),
    policy.TlsOrigin: ("ca", "certificate", "key"),
    policy.CookieAuth: ("key_file",),
    policy.AccessLog: ("path",),
    policy.Acme: ("state", "ca"),
    policy.Dns: ("zone",),
}
_AT = re.compile(r" - at `(?:key(?: in)? )?(?:`? in `)?\$(?P<path>[^`]*)`")
_STEP = re.compile(r"\.([A-Za-z0-9_\-]+)|\[(\d+|\.\.\.)\]")
_HEADER = re.compile(r"""\s*(\[\[?)\s*([A-Za-z0-9_\-."' ]+?)\s*\]""")
_ASSIGNMENT = re.compile(r"""\s*([A-Za-z0-9_\-."']+?)\s*=""")


def load(path: Path) -> policy.Gateway:
    """The configuration in the file ``path``. Raises ``Invalid``."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is not UTF-8") from error
    return parse(text, path.name, path.absolute().parent)


def parse(
    text: str, shown: str = "the configuration", folder: Path | None = None
) -> policy.Gateway:
    """The configuration ``text``; errors call it ``shown``. Raises ``Invalid``."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{shown}: {error}", hint="TOML is expected: https://toml.io") from error
    try:
        gateway = msgspec.convert(_expanded(values), policy.Gateway)
    except msgspec.ValidationError as error:
        raise _told(shown, text, [_problem(str(error))]) from error
    gateway = cast("policy.Gateway", _resolved(gateway, folder or Path()))
    found = problems(gateway)
    if found:
        raise _told(shown, text, found)
    return gateway


def quick(
    listen: str,
    backends: Sequence[str],
    *,
    balance: str = "least-work",
    workers: int = 0,
    admin: str | None = None,
) -> policy.Gateway:
    """The configuration of one listener in front of interchangeable backends. Raises ``Invalid``."""
    values: dict[str, Any] = {"listen": listen, "backends": list(backends), "workers": workers}
    if admin:
        values["admin"] = admin
    expanded = _expanded(values)
    expanded["services"][0]["balance"] = balance
    try:
        gateway = msgspec.convert(expanded, policy.Gateway)
    except msgspec.ValidationError as error:
        raise _told("", "", [_problem(str(error))]) from error
    found = problems(gateway)
    if found:
        raise _told("", "", found)
    return gateway


def _expanded(values: dict[str, Any]) -> dict[str, Any]:
    """The shorthand written out: ``listen`` (one or several) and ``backends``."""
    values = dict(values)
    listen, backends = values.pop("listen", None), values.pop("backends", None)
    if listen is not None:
        addresses = listen if isinstance(listen, list) else [listen]
        made = [
            {"name": SHORTHAND if not number else f"{SHORTHAND}-{number + 1}", "address": address}
            for number, address in enumerate(addresses)
        ]
        values["listeners"] = [*made, *_list(values, "listeners")]
    if backends is not None:
        services = _list(values, "services")
        values["services"] = [{"name": SHORTHAND, "backends": backends}, *services]
        # Last, so that any other route that matches comes first.
        values["routes"] = [*_list(values, "routes"), {"name": SHORTHAND, "service": SHORTHAND}]
    return values


def _list(values: dict[str, Any], key: str) -> list[Any]:
    given = values.get(key, [])
    if not isinstance(given, list):
        raise msgspec.ValidationError(f"Expected `array`, got `object` - at `$.{key}`")
    return given


def _resolved(value: Any, folder: Path) -> Any:
    """``value`` with every path of a file made relative to ``folder``."""
    if isinstance(value, tuple):
        return tuple(_resolved(each, folder) for each in value)
    if not isinstance(value, msgspec.Struct):
        return value
    names = _PATHS.get(type(value), ())
    changes = {}
    for name in value.__struct_fields__:
        old = getattr(value, name)
        if name in names and old and old != "-":
            changes[name] = str(folder / old)
        elif isinstance(old, tuple | msgspec.Struct):
            changes[name] = _resolved(old, folder)
    return msgspec.structs.replace(value, **changes) if changes else value


# --- saying what is wrong --------------------------------------------------------------------------------


def _problem(error: str) -> Problem:
    """What msgspec says, in the words of the file."""
    at = _AT.search(error)
    what = error[: at.start()] if at is not None else error
    steps = _STEP.findall(at["path"]) if at is not None else []
    key: Key = tuple(name or (int(index) if index.isdigit() else index) for name, index in steps)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown is not None:
        known = _known_keys(key)
        close = get_close_matches(unknown[1], known, 1)
        todo = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return Problem((*key, unknown[1]), "this key is not known here", todo)
    missing = re.fullmatch(r"Object missing required field `(.*)`", what)
    if missing is not None:
        return Problem((*key, missing[1]), "this key is missing", "add it")
    for old, new in (("`object`", "a table"), ("`array`", "a list"), ("`str`", "a string")):
        what = what.replace(old, new)
    return Problem(key, what[:1].lower() + what[1:].replace("`", ""), _choices(key))


def _node(key: Key) -> msgspec.inspect.Type:
    """The type of what ``key`` names, as far as it is a table of ours."""
    node: msgspec.inspect.Type = msgspec.inspect.type_info(policy.Gateway)
    for step in key:
        if isinstance(node, msgspec.inspect.UnionType):
            tables = (msgspec.inspect.StructType, msgspec.inspect.VarTupleType)
            node = next((each for each in node.types if isinstance(each, tables)), node)
        if isinstance(node, msgspec.inspect.VarTupleType):
            node = node.item_type
            if isinstance(step, int) or step == "...":
                continue
        if isinstance(node, msgspec.inspect.StructType):
            node = next((f.type for f in node.fields if f.encode_name == step), node)
    if isinstance(node, msgspec.inspect.UnionType):
        structs = [each for each in node.types if isinstance(each, msgspec.inspect.StructType)]
        node = structs[0] if len(structs) == 1 else node
    return node


def _known_keys(key: Key) -> list[str]:
    node = _node(key)
    structs = node.types if isinstance(node, msgspec.inspect.UnionType) else (node,)
    names = {
        field.encode_name
        for each in structs
        if isinstance(each, msgspec.inspect.StructType)
        for field in each.fields
    }
    return sorted(names | ({"listen", "backends"} if not key else set()))


def _choices(key: Key) -> str:
    node = _node(key[:-1] if key[-1:] == ("kind",) else key)
    if isinstance(node, msgspec.inspect.UnionType) and key[-1:] == ("kind",):
        tags = [each.tag for each in node.types if isinstance(each, msgspec.inspect.StructType)]
        return "use " + ", ".join(str(tag) for tag in tags)
    if isinstance(node, msgspec.inspect.LiteralType):
        return "use " + ", ".join(str(each) for each in node.values)
    return ""


def _told(shown: str, text: str, found: Sequence[Problem]) -> Invalid:
    lines = _lines(text)
    told = []
    for problem in found[:SHOWN]:
        number = _line(lines, problem.key)
        place = ": ".join(
            part for part in (f"{shown}:{number}" if number else shown, _shown(problem.key)) if part
        )
        told.append((f"{place}: {problem.what}" if place else problem.what, problem.todo))
    if len(told) == 1:
        return Invalid(told[0][0], hint=told[0][1])
    rest = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return Invalid("\n".join([f"{what} ({todo})" if todo else what for what, todo in told] + rest))


def _shown(key: Key) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in key).lstrip(".")


def _lines(text: str) -> dict[Key, int]:
    """Where keys are given, as far as can be told from the tables' headers."""
    found: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header is not None:
            table = ()
            names = _names(header[2])
            for depth, name in enumerate(names):
                table = (*table, name)
                if depth == len(names) - 1 and header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                if table in counts:
                    table = (*table, counts[table])
            found.setdefault(table, number)
            continue
        assignment = _ASSIGNMENT.match(line)
        if assignment is not None:
            found.setdefault((*table, *_names(assignment[1])), number)
    return found


def _names(dotted: str) -> list[str]:
    return [name.strip().strip("\"'") for name in dotted.split(".")]


def _line(lines: dict[Key, int], key: Key) -> int | None:
    """The line of ``key``, or of what it is part of."""
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return lines[key[:length]]
    return None
