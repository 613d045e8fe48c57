"""A file of services as bodies of the REST door: Roost's own keys, and a subset of compose files as they are.

Pure: decoded YAML or TOML in, bodies out. What cannot be kept is refused with a way out; what makes no
difference here is named, not hidden. It never reads a file.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from roost.client.services import RolloutBody, ServiceBody
from roost.client.where import where_in
from roost.ports.errors import Invalid
from roost.ports.replicas import Health

IGNORED = frozenset({
    "container_name", "depends_on", "expose", "hostname", "init", "labels", "logging", "networks",
    "platform", "profiles", "pull_policy", "restart", "stdin_open", "tty", "annotations",
})  # fmt: skip
"""Compose keys without a meaning here: every service has an address, is restarted and logged."""
REFUSED = {
    "build": "build the image first and name it with `image`",
    "volumes": "replicas come and go: keep data in a store, send files with `files: FOLDER`",
    "configs": "use `environment`, or `files: FOLDER`",
    "secrets": "use `environment`",
    "privileged": "replicas get no rights of their host",
    "network_mode": "each replica listens on its host's own address",
    "devices": "ask for `gpus`",
    "entrypoint": "put the whole command line into `command`",
    "user": "set the user in the image",
    "env_file": "put the variables into `environment`",
}
TOP_IGNORED = frozenset({"version", "name", "networks"})
UNITS = {"": 1.0 / (1 << 20), "b": 1.0 / (1 << 20), "k": 1.0 / 1024, "m": 1.0, "g": 1024.0}
SPANS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One service of a file."""

    name: str
    body: ServiceBody
    files: str = ""
    """A folder to send along, as it stands in the file."""
    ignored: tuple[str, ...] = ()
    """Keys without a meaning here."""


def services_of(document: Any) -> list[Found]:
    """All services of a decoded file. ``Invalid`` says where and what to do."""
    if not isinstance(document, Mapping) or not isinstance(document.get("services"), Mapping):
        raise Invalid(
            "the file has no `services`", hint="services:\n  web:\n    command: python server.py"
        )
    extra = [k for k in document if k != "services" and k not in TOP_IGNORED and not _extension(k)]
    if extra:
        raise Invalid(
            f"`{extra[0]}` at the top of the file is not known here",
            hint="`roost apply` takes `services` only",
        )
    return [_service(str(name), keys) for name, keys in document["services"].items()]


def _service(name: str, given: Any) -> Found:
    if not isinstance(given, Mapping):
        raise Invalid(f"services.{name} is no table of keys", hint="command: python server.py")
    own = given.get("x-roost", {})
    if not isinstance(own, Mapping):
        raise Invalid(f"services.{name}.x-roost is no table of keys")
    fields: dict[str, Any] = {}
    ignored = []
    for key, value in {**given, **own}.items():
        where = f"services.{name}.{key}"
        if key in KEYS:
            try:
                fields |= KEYS[key](value)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise Invalid(f"{where}: {value!r} is not understood ({error})") from error
        elif key in REFUSED:
            raise Invalid(f"{where} is not taken", hint=REFUSED[key])
        elif key in IGNORED:
            ignored.append(str(key))
        elif not _extension(key):
            raise Invalid(f"{where} is not known", hint=f"known are {', '.join(sorted(KEYS))}")
    files = str(fields.pop("files", ""))
    try:
        body = msgspec.convert(fields, type=ServiceBody)
    except msgspec.ValidationError as error:
        raise Invalid(f"services.{name}: {error}") from error
    return Found(name=name, body=body, files=files, ignored=tuple(ignored))


def _extension(key: Any) -> bool:
    return str(key).startswith("x-")


# --- values -------------------------------------------------------------------------------------------


def mebibytes(value: Any) -> float:
    """MiB of ``256`` (MiB already), ``512M``, ``1.5gb`` or ``1Gi``."""
    if isinstance(value, int | float):
        return float(value)
    found = re.fullmatch(r"\s*([0-9.]+)\s*([bkmg]?)i?b?\s*", str(value).lower())
    if found is None:
        raise ValueError("for example 256M or 1G")
    return float(found[1]) * UNITS[found[2]]


def seconds(value: Any) -> float:
    """Seconds of ``10``, ``1m30s`` or ``500ms``."""
    if isinstance(value, int | float):
        return float(value)
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", str(value))
    if not parts or "".join(n + u for n, u in parts) != str(value).strip():
        raise ValueError("for example 30s or 1m30s")
    return sum(float(number) * SPANS[unit] for number, unit in parts)


def _command(value: Any) -> dict[str, Any]:
    words = shlex.split(value) if isinstance(value, str) else [str(word) for word in value]
    return {"command": tuple(words)}


def _environment(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {"env": {str(k): "" if v is None else _scalar(v) for k, v in value.items()}}
    pairs = [str(one).partition("=") for one in value]
    bare = [name for name, equals, _ in pairs if not equals]
    if bare:
        raise ValueError(f"{bare[0]} has no value")
    return {"env": {name: text for name, _, text in pairs}}


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ports(value: Sequence[Any]) -> dict[str, Any]:
    """The replica's own port: the edge is what is published."""
    if not value:
        return {}
    first = value[0]
    target = first["target"] if isinstance(first, Mapping) else str(first).split("/")[0]
    return {"port": int(str(target).rsplit(":", 1)[-1])}


def _healthcheck(value: Mapping[str, Any]) -> dict[str, Any]:
    """Compose's own words: a command that fetches a URL becomes that path, another a TCP connect."""
    names = {"interval": "interval_s", "timeout": "timeout_s", "start_period": "start_s"}
    fields: dict[str, Any] = {
        new: seconds(value[old]) for old, new in names.items() if old in value
    }
    if "retries" in value:
        fields["unhealthy"] = int(value["retries"])
    test = value.get("test", "")
    words = shlex.split(test) if isinstance(test, str) else [str(word) for word in test]
    urls = [u for word in words for u in re.findall(r"https?://[^\s'\"|]+", word)]
    if urls:
        fields["path"] = urlsplit(urls[0]).path or "/"
    return {"health": fields}


def _health(value: Any) -> dict[str, Any]:
    given = {"path": value} if isinstance(value, str) else dict(value)
    strange = [key for key in given if key not in Health.__struct_fields__]
    if strange:
        raise ValueError(f"{strange[0]} is none of {', '.join(Health.__struct_fields__)}")
    return {"health": msgspec.to_builtins(msgspec.convert(given, type=Health))}


def _deploy(value: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "replicas" in value:
        fields |= {"min": int(value["replicas"]), "max": int(value["replicas"])}
    limits = value.get("resources", {}).get("limits", {})
    if "cpus" in limits:
        fields["vcpus"] = float(limits["cpus"])
    if "memory" in limits:
        fields["memory_mib"] = mebibytes(limits["memory"])
    update = value.get("update_config", {})
    if update:
        together = int(update.get("parallelism", 1))
        first = update.get("order", "stop-first") == "start-first"
        fields["rollout"] = {
            "max_surge": together if first else 0,
            "max_unavailable": 0 if first else together,
            "rollback": update.get("failure_action", "pause") == "rollback",
        }
    return fields


def _targets(value: Mapping[str, Any]) -> dict[str, Any]:
    made = [{"type": "target", "metric": str(k), "target": float(v)} for k, v in value.items()]
    return {"policies": made}


def _replicas(value: Any) -> dict[str, Any]:
    return {"min": int(value), "max": int(value)}


def _where(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"where": where_in(value)}


def _same(name: str, kind: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: kind(value)}


def _rollout(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"rollout": msgspec.to_builtins(msgspec.convert(value, type=RolloutBody))}


KEYS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "image": _same("image", str),
    "command": _command,
    "environment": _environment,
    "env": _environment,
    "working_dir": _same("cwd", str),
    "files": _same("files", str),
    "ports": _ports,
    "port": _same("port", int),
    "cpus": _same("vcpus", float),
    "cpu": _same("vcpus", float),
    "mem_limit": _same("memory_mib", mebibytes),
    "memory": _same("memory_mib", mebibytes),
    "gpus": _same("gpus", float),
    "concurrency": _same("concurrency", int),
    "healthcheck": _healthcheck,
    "health": _health,
    "stop_grace_period": _same("stop_grace_s", seconds),
    "deploy": _deploy,
    "scale": _replicas,
    "replicas": _replicas,
    "group": _same("group", str),
    "min": _same("min", int),
    "max": _same("max", int),
    "bound": _same("bound_s", seconds),
    "late": _same("late", float),
    "service_time": _same("service_s", seconds),
    "target": _targets,
    "policies": _same("policies", list),
    "rollout": _rollout,
    "hosts": _same("hosts", list),
    "strip": _same("strip", bool),
    "hold": _same("hold_s", seconds),
    "where": _where,
}
"""Key -> what it says of the body. The last that speaks of a field counts; ``x-roost`` comes last."""
