"""Hosts from slots: how many there shall be, which go first, and who gets the slots that are paid for anyway.

It never places anything: which replica runs where is placement's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One service's claim on the slots of a group."""

    needed: int
    """What the objective asks for."""
    lasting: int
    """Of these, what hosts are launched for: the rest will have passed before they come."""
    before: int
    """What the last plan gave."""
    most: int
    """It takes no more; equal to ``needed`` where spare slots are of no use to it."""


def wanted(have: int, up: int, hold: int, slots: int, least: int, most: int) -> int:
    """Hosts there shall be: grow to what the near future needs, shrink to what the longer one does.

    Between the two nothing happens: their gap is the whole hysteresis. ``up`` and ``hold`` in slots.
    """
    n_up, n_hold = math.ceil(up / slots), math.ceil(max(up, hold) / slots)
    want = n_up if have < n_up else min(have, n_hold)
    return max(least, min(most, want))


def filled(shares: Mapping[str, Share], slots: int) -> dict[str, int]:
    """Replicas per service when spare slots are filled, with the fewest changes.

    What a service has stays, as long as others do not need it: a replica started to fill a slot is not
    stopped for another filling one. Over ``slots`` nothing is filled, and what passes soon has to do with
    the slots there are.
    """
    given = {k: max(s.needed, min(s.before, s.most)) for k, s in shares.items()}
    _take(given, {k: s.needed for k, s in shares.items()}, slots)
    _take(given, {k: s.lasting for k, s in shares.items()}, slots)
    free = slots - sum(given.values())

    def share(name: str, count: int) -> float:
        return count / max(0.25, shares[name].needed)

    poor = [(share(k, n), k) for k, n in given.items() if n < shares[k].most] if free > 0 else []
    heapify(poor)
    while free > 0 and poor:
        name = heappop(poor)[1]
        given[name] += 1
        free -= 1
        if given[name] < shares[name].most:
            heappush(poor, (share(name, given[name]), name))
    return given


def _take(given: dict[str, int], least: Mapping[str, int], slots: int) -> None:
    """Take what is over ``slots`` from those that have most for their ``least``, and leave them that."""
    over = sum(given.values()) - slots

    def share(name: str) -> float:
        return -given[name] / max(0.25, least[name])

    rich = [(share(k), k) for k, n in given.items() if n > least[k]] if over > 0 else []
    heapify(rich)
    while over > 0 and rich:
        name = heappop(rich)[1]
        given[name] -= 1
        over -= 1
        if given[name] > least[name]:
            heappush(rich, (share(name), name))
