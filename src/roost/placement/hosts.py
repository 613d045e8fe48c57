"""Hosts as columns: one array a resource, so that a question about ten thousand hosts is a few passes.

``put`` and ``take`` keep the columns true, one container at a time, and undo each other: a trial is a few
of them. It decides nothing.
"""

import copy
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roost.placement.model import DOMAINS, TINY, Ask, By, HostFacts
from roost.ports.errors import Conflict, Gone, Invalid

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Codes = NDArray[np.int32]

LONGEST_WAIT_S = 600.0
"""A host that boots for longer is as good as one that boots for this long."""
REMEMBERED = 128
"""Columns kept that no container changes."""

RESOURCES = ("vcpus", "memory_mib", "slots")


@dataclass(slots=True)
class Placed:
    """A container where it is."""

    id: str
    ask: Ask
    host: int
    since_s: float = 0.0
    """When it began (anywhere)."""
    ends_s: float | None = None
    """When it will end; None = not known."""
    movable: bool = True
    counts: bool = True
    """False: it is leaving; it takes room, but spread and affinity no longer see it."""
    devices: tuple[int, ...] = ()


@dataclass(slots=True)
class Tally:
    """How many replicas of one service are where."""

    hosts: dict[int, int] = field(default_factory=dict)
    domains: tuple[dict[int, int], ...] = field(default_factory=lambda: tuple({} for _ in DOMAINS))

    def add(self, host: int, codes: Sequence[int], by: int) -> None:
        """One more (or less) on this host."""
        if by > 0:  # the way of every placement, therefore without a call
            self.hosts[host] = self.hosts.get(host, 0) + by
            for counts, code in zip(self.domains, codes, strict=True):
                counts[code] = counts.get(code, 0) + by
            return
        _less(self.hosts, host)
        for counts, code in zip(self.domains, codes, strict=True):
            _less(counts, code)

    def add_all(self, hosts: Mapping[int, int], domains: Sequence[Mapping[int, int]]) -> None:
        """Several more: how many on each host, and in each domain."""
        for counts, more in zip((self.hosts, *self.domains), (hosts, *domains), strict=True):
            for key, count in more.items():
                counts[key] = counts.get(key, 0) + count

    def where(self, kind: By) -> dict[int, int]:
        """Count by host, or by code of the domain."""
        return self.hosts if kind is By.HOST else self.domains[DOMAINS.index(kind)]


def _less(counts: dict[int, int], key: int) -> None:
    if counts[key] > 1:
        counts[key] -= 1
    else:
        del counts[key]


class Hosts:
    """The hosts of a decision and what is on them. Copy it to try something."""

    def __init__(self, facts: Iterable[HostFacts] = (), *, extra: Sequence[str] = ()) -> None:
        self.resources = (*RESOURCES, *extra)
        self.facts: list[HostFacts] = []
        self.index: dict[str, int] = {}
        self.on: list[dict[str, Placed]] = []
        self.devices: list[list[float]] = []
        """Free share of each GPU."""
        self.containers: dict[str, Placed] = {}
        self.names: tuple[dict[str, int], ...] = tuple({} for _ in DOMAINS)
        """The code of each domain by name, in the order of ``DOMAINS``."""
        self.codes: list[tuple[int, ...]] = []
        self._tallies: dict[str, Tally] = {}
        self._repelled: dict[str, dict[By, Tally]] = {}
        self._labels: dict[str, Mask] = {}
        self._numbered = 0
        self._free_rows: list[int] = []
        self._remembered: dict[Hashable, NDArray[Any]] = {}
        self._columns(len(rows := list(facts)))
        for row in rows:
            self.add(row)

    def _columns(self, room: int) -> None:
        room = max(room, 8)
        self.size = [np.zeros(room) for _ in self.resources]
        self.free = [np.zeros(room) for _ in self.resources]
        self.weight = [np.zeros(room) for _ in self.resources]
        """Share of the host that one unit takes: 1 / (size x resources the host has)."""
        self.gpu_weight = np.zeros(room)
        self.gpu_size = np.zeros(room)
        self.gpu_left = np.zeros(room)
        self.gpu_most = np.zeros(room)
        self.gpu_whole = np.zeros(room)
        self.idle = np.zeros(room)
        """Share of the host that is free, the mean over its resources."""
        self.takes = np.zeros(room, np.bool_)
        self.survival = np.ones(room)
        self.wait_min = np.zeros(room)
        self.price = np.zeros(room)
        self.order = np.arange(room) * TINY
        self.domain = [np.zeros(room, np.int32) for _ in DOMAINS]

    def _grow(self) -> None:
        room = 2 * len(self.takes)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, _longer(value, room))
            elif isinstance(value, list) and value and isinstance(value[0], np.ndarray):
                setattr(self, name, [_longer(column, room) for column in value])
        self._labels = {label: _longer(column, room) for label, column in self._labels.items()}
        self.order = np.arange(room) * TINY

    @property
    def height(self) -> int:
        """How many rows; a row whose host was removed takes nothing."""
        return len(self.facts)

    def add(self, facts: HostFacts) -> int:
        """A host more; its row."""
        if facts.id in self.index:
            raise Conflict(f"host {facts.id} is already here")
        if self._free_rows:
            row = self._free_rows.pop()
            self.facts[row] = facts
        else:
            row = len(self.facts)
            if row == len(self.takes):
                self._grow()
            self.facts.append(facts)
            self.devices.append([])
            self.on.append({})
            self.codes.append(())
        self.index[facts.id] = row
        self._fill(row, facts)
        return row

    def _fill(self, row: int, facts: HostFacts) -> None:
        self._remembered.clear()
        extra = dict(facts.extra)
        sizes = [facts.vcpus, facts.memory_mib, facts.slots]
        sizes += [extra.get(name, 0.0) for name in self.resources[len(RESOURCES) :]]
        known = [0.0 < size < np.inf for size in sizes]
        parts = max(1, sum(known) + (facts.gpus > 0))
        for r, size in enumerate(sizes):
            self.size[r][row] = self.free[r][row] = size
            self.weight[r][row] = 1.0 / (size * parts) if known[r] else 0.0
        self.devices[row] = [1.0] * facts.gpus
        self.gpu_size[row] = self.gpu_whole[row] = self.gpu_left[row] = facts.gpus
        self.gpu_most[row] = float(facts.gpus > 0)
        self.gpu_weight[row] = 1.0 / (facts.gpus * parts) if facts.gpus else 0.0
        self.idle[row] = 1.0
        self.takes[row] = facts.takes
        self.survival[row] = facts.survival
        self.wait_min[row] = min(facts.ready_in_s, LONGEST_WAIT_S) / 60.0
        self.price[row] = facts.price_usd_hour
        codes = []
        for names, kind, column in zip(self.names, DOMAINS, self.domain, strict=True):
            code = names.setdefault(facts.domain(kind), len(names))
            column[row] = code
            codes.append(code)
        self.codes[row] = tuple(codes)
        for label, has in self._labels.items():
            has[row] = label in facts.labels

    def remove(self, host: str) -> None:
        """A host less; it must be empty."""
        row = self.row(host)
        if self.on[row]:
            raise Conflict(f"host {host} still has {len(self.on[row])} containers")
        del self.index[host]
        self.takes[row] = False
        self._free_rows.append(row)
        self._free_rows.sort(reverse=True)

    def row(self, host: str) -> int:
        """The row of a host by id."""
        try:
            return self.index[host]
        except KeyError:
            raise Gone(f"no host {host} here") from None

    def rows(self) -> list[int]:
        """Rows that have a host, in order."""
        return sorted(self.index.values())

    def used(self) -> Floats:
        """The share in use of each host, by its scarcest resource."""
        n = self.height
        used = np.zeros(n)
        sizes, frees = (self.gpu_size, *self.size), (self.gpu_left, *self.free)
        for size, free in zip(sizes, frees, strict=True):
            known = (size[:n] > 0.0) & (size[:n] < np.inf)
            share = np.divide(free[:n], size[:n], out=np.ones(n), where=known)
            np.maximum(used, 1.0 - share, out=used)
        return used

    def used_by(self, row: int) -> float:
        """``used`` of one host."""
        used = 0.0
        for size, free in zip(self.size, self.free, strict=True):
            if 0.0 < size[row] < np.inf:
                used = max(used, 1.0 - float(free[row] / size[row]))
        if self.gpu_size[row]:
            used = max(used, 1.0 - float(self.gpu_left[row] / self.gpu_size[row]))
        return used

    def set_takes(self, row: int, takes: bool) -> None:
        """Whether it may get anything new."""
        self.takes[row] = takes

    def label(self, label: str) -> Mask:
        """Which hosts have this label."""
        column = self._labels.get(label)
        if column is None:
            column = np.zeros(len(self.takes), np.bool_)
            column[: self.height] = [label in facts.labels for facts in self.facts]
            self._labels[label] = column
        return column[: self.height]

    def need(self, ask: Ask) -> tuple[float, ...]:
        """What it takes of each resource, in the order of ``resources``."""
        basic = (ask.vcpus, ask.memory_mib, 1.0)
        if not ask.extra and len(self.resources) == len(basic):
            return basic
        extra = dict(ask.extra)
        if unknown := extra.keys() - set(self.resources[len(RESOURCES) :]):
            raise Invalid(
                f"{ask.service} asks for {', '.join(sorted(unknown))}, which no host counts",
                hint="name it in Hosts(extra=...) and in the hosts' facts",
            )
        return (*basic, *(extra.get(name, 0.0) for name in self.resources[len(RESOURCES) :]))

    def put(
        self,
        ask: Ask,
        row: int,
        container: str = "",
        *,
        since_s: float = 0.0,
        ends_s: float | None = None,
        movable: bool = True,
        counts: bool = True,
    ) -> Placed:
        """It is (or will be) there. What does not fit is counted all the same: the world is right."""
        container = container or self._name()
        if container in self.containers:
            raise Conflict(f"container {container} is already placed")
        placed = Placed(container, ask, row, since_s, ends_s, movable, counts)
        self.containers[container] = self.on[row][container] = placed
        self._account(placed, -1.0)
        return placed

    def take(self, container: str) -> Placed:
        """It is no longer there."""
        placed = self.containers.pop(container, None)
        if placed is None:
            raise Gone(f"no container {container} here")
        del self.on[placed.host][container]
        self._account(placed, 1.0)
        return placed

    def put_alike(
        self, ask: Ask, rows: Sequence[int], containers: Sequence[str], since_s: float = 0.0
    ) -> list[Placed]:
        """``put`` for several of the same at once."""
        made = []
        for row, given in zip(rows, containers, strict=True):
            name = given or self._name()
            if name in self.containers:
                raise Conflict(f"container {name} is already placed")
            placed = Placed(name, ask, row, since_s)
            self.containers[name] = self.on[row][name] = placed
            made.append(placed)
            if ask.gpus:
                placed.devices = _occupy(self.devices[row], ask.gpus)
        each = Counter(rows)
        at = np.fromiter(each, np.intp, len(each))
        counts = np.fromiter(each.values(), np.float64, len(each))
        idle = np.zeros(len(at))
        for free, weight, amount in zip(self.free, self.weight, self.need(ask), strict=True):
            if amount:
                free[at] -= counts * amount
                idle += amount * weight[at]
        if ask.gpus:
            idle += ask.gpus * self.gpu_weight[at]
            for row in each:
                self._sum_devices(row)
        self.idle[at] -= counts * idle
        domains = [Counter(codes) for codes in zip(*(self.codes[row] for row in rows), strict=True)]
        for tally in self._tallies_of(ask):
            tally.add_all(each, domains)
        return made

    def _name(self) -> str:
        self._numbered += 1
        return f"#{self._numbered}"

    def _account(self, placed: Placed, sign: float) -> None:
        ask, row = placed.ask, placed.host
        idle = 0.0
        for free, weight, amount in zip(self.free, self.weight, self.need(ask), strict=True):
            free[row] += sign * amount
            idle += amount * float(weight[row])
        if ask.gpus:
            devices = self.devices[row]
            if sign < 0:
                placed.devices = _occupy(devices, ask.gpus)
            else:
                for device in placed.devices:
                    devices[device] += min(ask.gpus, 1.0)
            self._sum_devices(row)
            idle += ask.gpus * float(self.gpu_weight[row])
        self.idle[row] += sign * idle
        self._count(placed, 1 if sign < 0 else -1)

    def _count(self, placed: Placed, by: int) -> None:
        if placed.counts:
            for tally in self._tallies_of(placed.ask):
                tally.add(placed.host, self.codes[placed.host], by)

    def _tallies_of(self, ask: Ask) -> Iterator[Tally]:
        """Those in which it is counted."""
        yield self.tally(ask.service)
        if ask.peers:
            yield self.tally(ask.peers)
        for rule in ask.affinity:
            if rule.apart and rule.strict:
                others = self._repelled.setdefault(rule.service, {})
                if rule.by not in others:
                    others[rule.by] = Tally()
                yield others[rule.by]

    def _sum_devices(self, row: int) -> None:
        free = self.devices[row]
        self.gpu_left[row] = sum(free)
        self.gpu_most[row] = max(free, default=0.0)
        self.gpu_whole[row] = sum(share >= 1.0 - TINY for share in free)

    def remembered(self, key: Hashable, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """A column that no container changes, made once until a host is added."""
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = make()
        return found

    def tally(self, name: str) -> Tally:
        """Where the replicas of a service (or of a name in ``Ask.peers``) are."""
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies[name] = Tally()
        return tally

    def repelled(self, service: str) -> list[tuple[By, Tally]]:
        """Where others are who stay apart from this service."""
        return [(by, t) for by, t in self._repelled.get(service, {}).items() if t.hosts]

    def copy(self) -> "Hosts":
        """The same, to try something on."""
        twin = Hosts.__new__(Hosts)
        for name, value in vars(self).items():
            setattr(twin, name, _copied(value))
        twin.containers = {name: copy.copy(p) for name, p in self.containers.items()}
        twin.on = [{name: twin.containers[name] for name in here} for here in self.on]
        twin._remembered = {}
        twin.devices = [list(free) for free in self.devices]
        twin._tallies = {name: _same(tally) for name, tally in self._tallies.items()}
        twin._repelled = {
            name: {by: _same(tally) for by, tally in others.items()}
            for name, others in self._repelled.items()
        }
        return twin


def _occupy(free: list[float], gpus: float) -> tuple[int, ...]:
    """Take the fullest device that has the share, or whole ones; where none has, the emptiest."""
    order = sorted(range(len(free)), key=free.__getitem__)
    if gpus >= 1.0:
        chosen = tuple(order[-int(gpus) :])
    else:
        chosen = tuple(order and [next((d for d in order if free[d] >= gpus - TINY), order[-1])])
    for device in chosen:
        free[device] -= min(gpus, 1.0)
    return chosen


def _longer(column: NDArray[Any], room: int) -> NDArray[Any]:
    longer = np.zeros((room, *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    return longer


def _copied(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return [_copied(item) if isinstance(item, np.ndarray) else item for item in value]
    if isinstance(value, tuple) and value and isinstance(value[0], dict):
        return tuple(dict(item) for item in value)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value


def _same(tally: Tally) -> Tally:
    return Tally(dict(tally.hosts), tuple(dict(counts) for counts in tally.domains))
