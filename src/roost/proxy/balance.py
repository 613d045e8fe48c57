"""Whom a request goes to, among backends that may have it: scan, sample, turns, ring. Pure.

Every algorithm that compares backends uses one score, ``active * slope + floor``: ``Upstreams`` puts
weight, latency, failures and the load others cause into the two numbers a few times a second, so that a
pick is a short loop. ``tried`` backends and full ones are never chosen.
"""

import hashlib
import heapq
import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roost.proxy.upstream import Upstream

SCAN_LIMIT = 64
"""Up to this many backends are all looked at; of more, a sample."""
SAMPLE = 4
LOAD_BOUND = 1.25
"""Bounded-load hashing: at most this many times the mean load on one backend."""
LOAD_FLOOR = 4
"""... but fewer requests than this are no load, so that a quiet service keeps its keys in place."""
RING_POINTS = 160
"""Points of a backend of mean weight on the ring."""
ORDERS = 256
"""Orders of the same backends a scan goes through in turn, at most (or one a backend)."""
KEPT_KEYS = 4096
KEPT_KEY_BYTES = 256

_INFINITE = math.inf


def scan(members: Sequence["Upstream"], tried: Collection["Upstream"] = ()) -> "Upstream | None":
    """The one with the lowest score."""
    best = None
    low = _INFINITE
    for member in members:
        active = member.active
        if active < member.room:
            score = active * member.slope + member.floor
            if score < low and member not in tried:
                low = score
                best = member
    return best


def sample(
    members: Sequence["Upstream"],
    n: int,
    rng: Random,
    tried: Collection["Upstream"] = (),
    best: "Upstream | None" = None,
) -> "Upstream | None":
    """The best of ``n`` at random (and ``best``); a scan where none of them can have it."""
    size = len(members)
    if size <= n:
        return scan(members, tried)
    low = _INFINITE if best is None else best.active * best.slope + best.floor
    random = rng.random
    last = -1
    for _ in range(n):
        at = int(random() * size)
        if at == last:  # two different ones
            at = (at + 1) % size
        last = at
        member = members[at]
        if member.active < member.room:
            score = member.active * member.slope + member.floor
            if score < low and member not in tried:
                low = score
                best = member
    return best or scan(members, tried)


def _phase(index: int, size: int) -> float:
    """Where in its step a backend begins: each elsewhere, so that rare turns do not come together."""
    return (index + 0.5) / size


class Turns:
    """Smooth weighted round robin, as the earliest due time first: a turn costs O(log n)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Upstream]] = []
        self._due: dict[Upstream, float] = {}
        self._now = 0.0

    def rebuild(self, members: Sequence["Upstream"]) -> None:
        """Other members: those who stay keep their place, new ones begin somewhere in their step."""
        due = {member: at for at, _, member in self._heap}
        self._heap = []
        for index, member in enumerate(members):
            at = due.get(member)
            if at is None or at > self._now + member.step:
                at = self._now + member.step * _phase(index, len(members))
            self._heap.append((at, index, member))
        heapq.heapify(self._heap)

    def next(self, tried: Collection["Upstream"] = ()) -> "Upstream | None":
        """Whose turn it is. Who cannot have it loses the turn."""
        heap = self._heap
        passed: list[tuple[float, int, Upstream]] = []
        chosen = None
        while heap:
            at, index, member = heap[0]
            if member.active < member.room and member not in tried:
                heapq.heapreplace(heap, (at + member.step, index, member))
                self._now = at
                chosen = member
                break
            passed.append((at + member.step, index, member))
            heapq.heappop(heap)
        for item in passed:
            heapq.heappush(heap, item)
        return chosen


def orders(members: Sequence["Upstream"]) -> list[tuple["Upstream", ...]]:
    """The same members in several orders, each beginning with another one, as often as its weight says.

    A scan takes the first of several that are equally good: with these orders in turn, idle backends
    are used evenly. The others come behind the first in different orders too: what one of them does
    not get goes to all the others, not to its neighbour.
    """
    if not members:
        return [()]
    size = len(members)
    length = size * max(1, min(size - 1, ORDERS // size))
    if len({member.step for member in members}) > 1:
        length = max(ORDERS, size)
    heap = [(m.step * _phase(index, size), index) for index, m in enumerate(members)]
    heapq.heapify(heap)
    found = []
    times = [0] * size
    for _ in range(length):
        at, index = heap[0]
        heapq.heapreplace(heap, (at + members[index].step, index))
        others = (*members[index + 1 :], *members[:index])
        cut = times[index] % size
        times[index] += 1
        found.append((members[index], *others[cut:], *others[:cut]))
    return found


class Idle:
    """Who is idle, in a service with too many backends to look at all of them. Kept up to date lazily."""

    LOOK = 4

    def __init__(self, members: Sequence["Upstream"]) -> None:
        self._line = [member for member in members if member.active == 0]
        self._listed = set(self._line)
        self._members = frozenset(members)
        self._at = 0

    def put(self, member: "Upstream") -> None:
        """It has become idle."""
        if member not in self._listed and member in self._members:
            self._listed.add(member)
            self._line.append(member)

    def take(self, tried: Collection["Upstream"]) -> "Upstream | None":
        """The best of the next few idle ones, in turn."""
        line = self._line
        best = None
        looked = 0
        while line and looked < self.LOOK:
            self._at = (self._at + 1) % len(line)
            member = line[self._at]
            if member.active:
                line[self._at] = line[-1]
                line.pop()
                self._listed.discard(member)
                continue
            looked += 1
            if member.room <= 0 or member in tried:
                continue
            if best is None or member.floor < best.floor:
                best = member
        return best


def _points(name: str, count: int) -> list[int]:
    points: list[int] = []
    for block in range((count + 7) // 8):
        digest = hashlib.blake2b(f"{name}#{block}".encode()).digest()
        points += [int.from_bytes(digest[i : i + 8], "big") for i in range(0, 64, 8)]
    return points[:count]


class Ring:
    """Consistent hashing with bounded loads: a backend that leaves moves only its own keys."""

    def __init__(self, members: Sequence["Upstream"]) -> None:
        mean = sum(member.spec.weight for member in members) / max(1, len(members)) or 1.0
        placed = []
        for member in members:
            count = max(1, min(16 * RING_POINTS, round(RING_POINTS * member.spec.weight / mean)))
            placed += [(point, member.address, member) for point in _points(member.address, count)]
        placed.sort(key=lambda item: item[:2])
        self._points = [point for point, _, _ in placed]
        self._owners = [member for _, _, member in placed]
        self._at: dict[bytes, int] = {}
        """Places of keys seen lately."""

    def owner(self, key: bytes) -> "Upstream | None":
        """Whose key it is when all are well."""
        return self._owners[self._index(key)] if self._owners else None

    def _index(self, key: bytes) -> int:
        at = self._at.get(key)
        if at is None:
            point = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
            at = bisect_right(self._points, point) % len(self._points)
            if len(self._at) >= KEPT_KEYS:
                self._at.clear()
            if len(key) <= KEPT_KEY_BYTES:
                self._at[key] = at
        return at

    def choose(
        self, key: bytes, usable: Collection["Upstream"], tried: Collection["Upstream"] = ()
    ) -> "Upstream | None":
        """The first usable one from the key's place on with room below the bound."""
        owners = self._owners
        if not owners:
            return None
        at = self._index(key)
        size = len(owners)
        per_weight = 0.0
        seen: set[Upstream] = set()
        for offset in range(size):
            member = owners[(at + offset) % size]
            if member in seen:
                continue
            seen.add(member)
            active = member.active
            if member not in usable or member in tried or active >= member.room:
                continue
            if active < LOAD_FLOOR:
                return member
            if not per_weight:
                weight = sum([m.spec.weight for m in usable]) or 1.0
                per_weight = LOAD_BOUND * (sum([m.active for m in usable]) + 1) / weight
            if active < math.ceil(per_weight * member.spec.weight):
                return member
        return None
