"""The files of a local instance: its record, its ledger, what it says of itself. Replaced in one step.

    <state>/instances/<host id>/
        instance.json   the provider's record, the idempotency record too     kept after the end
        ledger.jsonl    charged intervals, appended                           kept after the end
        host.json       the running host process: pid, start ticks            written by the host
        end.json        when and why it ended                                 written by the host
        notice.json     the notices delivered so far                          written by the provider
        isolation.json  what holds it together, and what was not permitted    written by the host; kept
        env.json        whether the package environment is in place           written by the host
        heartbeat       touched each second                                   by the host
        home/ work/ tmp/ env/ logs/                                           its disk

It never decides anything.
"""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from roost.ports.provider import LedgerLine, Order
from roost.ports.values import Notice, NoticeKind

DISK = ("home", "work", "tmp", "logs")
"""Folders made at boot. Everything lasts over a stop and goes with the instance, except ``KEPT``."""
KEPT = frozenset(
    (
        *("instance.json", "ledger.jsonl", "host.json", "end.json", "isolation.json"),
        *("host.log", "lock"),
    )
)
"""What remains of an ended instance, for the list, the ledger and the curious."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider knows of an instance it was asked to launch."""

    order: Order
    address: str
    """Its own loopback address."""
    run_dir: str
    """Short folder for its unix sockets."""
    launched_s: float
    wanted: str = "running"
    """``running``, ``stopped`` or ``terminated``: the intent, written before the act."""
    boot: int = 1
    """Rises with each start."""
    ended_s: float | None = None
    reason: str = ""
    stopped: bool = False

    @property
    def host_id(self) -> str:
        """The id of the host; the provider's id too."""
        return self.order.host_id


class HostFile(msgspec.Struct, frozen=True, kw_only=True):
    """The running host process, as it registered itself."""

    pid: int
    started_ticks: int
    boot: int
    first_pid: int = 0
    """The instance's first process, as seen from outside; 0 until it runs."""
    first_ticks: int = 0
    up: bool = False
    cgroups: tuple[str, ...] = ()


class EndFile(msgspec.Struct, frozen=True, kw_only=True):
    """Why and when a boot ended, to be entered in the ledger by the provider."""

    boot: int
    at_s: float
    reason: str


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    """What holds the instance together (``held_by``) and what this machine refused (``missing``)."""

    held_by: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    memory_limit_bytes: int = 0
    """0 = no limit could be set."""
    memory_usage_file: str = ""
    cpu_weight: int = 0
    cgroups: tuple[str, ...] = ()


class EnvFile(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of the package environment."""

    ready: bool = False
    detail: str = ""
    seconds: float = 0.0


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the ledger."""

    event: str
    boot: int
    at_s: float
    price_usd_hour: float = 0.0
    reason: str = ""


T = TypeVar("T")
_PART = ".part"


def unfinished(path: Path) -> bool:
    """Whether this is a file of ``KEPT`` that a process is about to replace."""
    return path.suffix == _PART and any(path.name.startswith(f".{name}.") for name in KEPT)


def write(path: Path, value: object, *, durable: bool = False) -> None:
    """Replace ``path`` by ``value`` as JSON, mode 0600; ``durable`` waits for the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(value))
        if durable:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)
    if durable:
        _sync_folder(path.parent)


def read(path: Path, kind: type[T]) -> T | None:
    """The value in ``path``; None when it is missing or torn."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def notices(folder: Path) -> tuple[Notice, ...]:
    """Notices delivered to the instance, oldest first."""
    return read(folder / "notice.json", tuple[Notice, ...]) or ()


def deadline_s(folder: Path) -> float | None:
    """When the machine is taken, UTC seconds; None while nothing but recommendations was delivered."""
    deadlines = [
        notice.deadline_s
        for notice in notices(folder)
        if notice.kind is not NoticeKind.REBALANCE and notice.deadline_s is not None
    ]
    return min(deadlines, default=None)


class Ledger:
    """Charged intervals of one instance: one per boot. Appended, never rewritten; repeats do nothing."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ledger.jsonl"

    def opened(self, boot: int, at_s: float, price_usd_hour: float) -> None:
        """Boot ``boot`` is charged from ``at_s``."""
        if not any(entry.event == "start" and entry.boot == boot for entry in self._entries()):
            self._append(_Entry(event="start", boot=boot, at_s=at_s, price_usd_hour=price_usd_hour))

    def closed(self, boot: int, at_s: float, reason: str) -> None:
        """Boot ``boot`` is charged until ``at_s``."""
        if not any(entry.event == "end" and entry.boot == boot for entry in self._entries()):
            self._append(_Entry(event="end", boot=boot, at_s=at_s, reason=reason))

    def lines(self, host_id: str) -> list[LedgerLine]:
        """The intervals, in order."""
        entries = self._entries()
        ends = {entry.boot: entry.at_s for entry in entries if entry.event == "end"}
        return [
            LedgerLine(
                provider_id=host_id,
                host_id=host_id,
                started_s=entry.at_s,
                ended_s=ends.get(entry.boot),
                price_usd_hour=entry.price_usd_hour,
            )
            for entry in entries
            if entry.event == "start"
        ]

    def _entries(self) -> list[_Entry]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        # A line without its newline was torn by a crash: it was never acknowledged.
        whole = content[: content.rfind(b"\n") + 1]
        return [msgspec.json.decode(line, type=_Entry) for line in whole.splitlines() if line]

    def _append(self, entry: _Entry) -> None:
        with self._path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    self._cut(file.fileno())
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _cut(self, descriptor: int) -> None:
        content = self._path.read_bytes()
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
