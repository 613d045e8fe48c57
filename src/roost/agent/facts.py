"""What the machine below the agent says of the instance: files its host process writes.

``env.json`` (whether the package environment is in place) and ``isolation.json`` (what holds the
instance together). Where they are missing nothing is claimed: no environment, no isolation.
"""

from pathlib import Path
from typing import TypeVar

import msgspec

from roost.agent.model import HostFacts

MIB = 1 << 20


class _Env(msgspec.Struct, frozen=True):
    ready: bool = False
    detail: str = ""


class _Isolation(msgspec.Struct, frozen=True):
    held_by: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    memory_limit_bytes: int = 0
    memory_usage_file: str = ""


T = TypeVar("T")


def read_facts(instance: str) -> HostFacts:
    """The facts as they are now."""
    env = _read(Path(instance, "env.json"), _Env()) or _Env(detail="preparing the environment")
    isolation = _read(Path(instance, "isolation.json"), _Isolation()) or _Isolation()
    used = 0.0
    if isolation.memory_usage_file:
        try:
            used = int(Path(isolation.memory_usage_file).read_text()) / MIB
        except (OSError, ValueError):
            used = 0.0
    return HostFacts(
        ready=env.ready,
        detail="" if env.ready else env.detail,
        isolation=isolation.held_by,
        memory_limit_mib=isolation.memory_limit_bytes / MIB,
        memory_used_mib=used,
    )


def _read(path: Path, kind: T) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type(kind))
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None
