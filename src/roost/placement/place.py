"""Which host gets the next container. Filters first, scores what is left, keeps the columns true.

``place_many`` gives the same hosts as ``place`` one after the other on the asks sorted (those that follow
others last, then biggest first): alike asks are scored once, and only the chosen host again.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from roost.placement.conditions import Condition, caps, conditions, quickly
from roost.placement.hosts import Floats, Hosts, Mask
from roost.placement.model import TINY, Ask, Choice, Weights, check
from roost.ports.errors import Conflict

DEFAULT = Weights()
_SPARE_CANDIDATES = 8


class _Fit(NamedTuple):
    """Hosts that may have it and their scores."""

    rows: NDArray[np.intp]
    scores: Floats
    relaxed: tuple[str, ...]


def place(
    ask: Ask,
    hosts: Hosts,
    *,
    container: str = "",
    now_s: float = 0.0,
    weights: Weights = DEFAULT,
) -> Choice:
    """The best host for one container; it is on it from ``now_s`` on."""
    check(ask)
    fit = _fit(hosts, ask, weights)
    if not len(fit.rows):
        return Choice(None, container=container, why=explain(hosts, ask))
    return _on_best(hosts, ask, fit, container, now_s)


def place_many(
    asks: Sequence[Ask],
    hosts: Hosts,
    *,
    containers: Sequence[str] = (),
    now_s: float = 0.0,
    weights: Weights = DEFAULT,
) -> list[Choice]:
    """A choice for each, in their order; what was placed is on its host from ``now_s`` on."""
    names = containers or [""] * len(asks)
    twice = [name for name, count in Counter(containers).items() if count > 1]
    if twice := twice or [name for name in containers if name in hosts.containers]:
        raise Conflict(f"container {twice[0]} is already placed")
    alike: dict[Ask, list[int]] = {}
    by_object: dict[int, list[int]] = {}
    for at, ask in enumerate(asks):
        known = by_object.get(id(ask))
        if known is None:
            check(ask)
            known = by_object[id(ask)] = alike.setdefault(ask, [])
        known.append(at)
    choices: list[Choice] = [Choice(None)] * len(asks)
    for ask in _biggest_first(list(alike), hosts):
        places = alike[ask]
        made = _alike(hosts, ask, [names[i] for i in places], now_s, weights)
        for i, choice in zip(places, made, strict=True):
            choices[i] = choice
    return choices


def _biggest_first(asks: list[Ask], hosts: Hosts) -> list[Ask]:
    """Those that follow another service after it; then by the largest share of a mean host."""
    n = hosts.height
    means = [float(np.mean(w[:n])) if n else 0.0 for w in hosts.weight]
    gpu = float(np.mean(hosts.gpu_weight[:n])) if n else 0.0

    def key(ask: Ask) -> tuple[bool, float]:
        follows = any(not r.apart and r.service != ask.service for r in ask.affinity)
        parts = [a * m for a, m in zip(hosts.need(ask), means, strict=True)]
        return follows, -max(*parts, ask.gpus * gpu)

    return sorted(asks, key=key)


def _fit(hosts: Hosts, ask: Ask, weights: Weights) -> _Fit:
    met: Mask = np.ones(hosts.height, np.bool_)
    wishes: list[Condition] = []
    for condition in quickly(hosts, ask):
        if condition.strict:
            met &= condition.met
        else:
            wishes.append(condition)
    if _wants_safe(hosts, ask, weights):
        safe = hosts.survival[: hosts.height] >= weights.safe
        wishes.append(Condition("too likely to go for the only replica", safe, strict=False))
    relaxed = []
    for wish in wishes:
        both = met & wish.met
        if both.any():
            met = both
        else:
            relaxed.append(wish.words)
    rows = np.flatnonzero(met)
    return _Fit(rows, _scores(hosts, ask, weights)[rows], tuple(relaxed) if len(rows) else ())


def _wants_safe(hosts: Hosts, ask: Ask, weights: Weights) -> bool:
    """Whether no replica of its service is on a host that lasts."""
    on = hosts.tally(ask.service).hosts
    return not any(hosts.survival[row] >= weights.safe for row in on)


def _scores(hosts: Hosts, ask: Ask, weights: Weights) -> Floats:
    """What each host costs this container, whether it fits or not."""
    need = hosts.need(ask)
    key = ("score", need, ask.gpus, ask.loss, weights)
    fixed = hosts.remembered(key, lambda: _fixed_score(hosts, ask, need, weights))
    idle = hosts.idle[: hosts.height]
    return fixed + (idle if weights.pack == 1.0 else weights.pack * idle)


def _fixed_score(hosts: Hosts, ask: Ask, need: tuple[float, ...], weights: Weights) -> Floats:
    """What no container changes: all but what is free now."""
    n = hosts.height
    taken = ask.gpus * hosts.gpu_weight[:n]
    for weight, amount in zip(hosts.weight, need, strict=True):
        taken += amount * weight[:n]
    lasting = weights.risk * ask.loss - weights.spare * (1.0 - ask.loss)
    score: Floats = weights.wait * hosts.wait_min[:n] - lasting * hosts.survival[:n]
    score += hosts.order[:n] - weights.pack * taken
    if not ask.gpus:
        score += weights.gpu * (hosts.gpu_size[:n] > 0.0)
    return score


def _on_best(hosts: Hosts, ask: Ask, fit: _Fit, container: str, now_s: float) -> Choice:
    placed = hosts.put(ask, int(fit.rows[fit.scores.argmin()]), container, since_s=now_s)
    return _choice(hosts, placed.host, placed.id, fit.relaxed)


def _choice(hosts: Hosts, row: int, container: str, relaxed: tuple[str, ...]) -> Choice:
    facts = hosts.facts[row]
    left = float(hosts.idle[row])
    return Choice(facts.id, row, container, "", relaxed, left, facts.ready_in_s, facts.survival)


def _alike(
    hosts: Hosts, ask: Ask, names: list[str], now_s: float, weights: Weights
) -> list[Choice]:
    """Several of the same: scored once for all, the chosen host again each time."""
    made: list[Choice] = []
    while len(made) < len(names):
        fit = _fit(hosts, ask, weights)
        if not len(fit.rows):
            why = explain(hosts, ask)
            return made + [Choice(None, container=name, why=why) for name in names[len(made) :]]
        # Where the first one changes the conditions of the next ones, it goes alone.
        if fit.relaxed or _wants_safe(hosts, ask, weights) or _first_of_own(hosts, ask):
            made.append(_on_best(hosts, ask, fit, names[len(made)], now_s))
        else:
            made += _from_best(hosts, ask, fit, names[len(made) :], now_s, weights)
    return made


def _first_of_own(hosts: Hosts, ask: Ask) -> bool:
    return not hosts.tally(ask.service).hosts and any(
        r.service == ask.service and not r.apart for r in ask.affinity
    )


def _from_best(
    hosts: Hosts, ask: Ask, fit: _Fit, names: list[str], now_s: float, weights: Weights
) -> list[Choice]:
    """As many as the best candidates take; at least one."""
    best = len(names) + _SPARE_CANDIDATES
    rows, scores = fit.rows, fit.scores
    if len(rows) > best:
        near = np.argpartition(scores, best)[:best]
        rows, scores = rows[near], scores[near]
    step, room = _per_container(hosts, ask, rows)
    steps = (step * weights.pack).tolist()
    room_left = room.tolist()
    heap = list(zip(scores.tolist(), rows.tolist(), range(len(rows)), strict=True))
    heapq.heapify(heap)
    counts = _Counts(hosts, ask)
    chosen: list[int] = []
    while heap and len(chosen) < len(names):
        score, row, at = heap[0]
        if not counts.admits(row):
            heapq.heappop(heap)
            continue
        counts.add(row)
        chosen.append(row)
        room_left[at] -= 1
        if room_left[at] > 0:
            heapq.heapreplace(heap, (score - steps[at], row, at))
        else:
            heapq.heappop(heap)
    placed = hosts.put_alike(ask, chosen, names[: len(chosen)], now_s)
    return [_choice(hosts, p.host, p.id, fit.relaxed) for p in placed]


def _per_container(hosts: Hosts, ask: Ask, rows: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Of each row: the share of the host one container takes, and how many fit."""
    step, room = np.zeros(len(rows)), np.full(len(rows), np.inf)
    for free, weight, amount in zip(hosts.free, hosts.weight, hosts.need(ask), strict=True):
        if amount:
            step += amount * weight[rows]
            room = np.minimum(room, np.floor((free[rows] + TINY) / amount))
    if ask.gpus:
        step += ask.gpus * hosts.gpu_weight[rows]
        if ask.gpus >= 1.0:
            room = np.minimum(room, hosts.gpu_whole[rows] // ask.gpus)
        else:
            shares = [
                sum((free + TINY) // ask.gpus for free in hosts.devices[row])
                for row in rows.tolist()
            ]
            room = np.minimum(room, shares)
    return step, room


class _Counts:
    """How many replicas are where while several are chosen; the hosts' own tally follows in one go."""

    def __init__(self, hosts: Hosts, ask: Ask) -> None:
        self._codes = hosts.codes
        self._limits = []
        for of, kind, cap in caps(ask):
            tally = hosts.tally(of)
            self._limits.append(
                (kind, cap, dict(tally.domains[kind] if kind >= 0 else tally.hosts))
            )

    def admits(self, row: int) -> bool:
        """Whether one more there breaks no cap."""
        for kind, cap, counts in self._limits:
            if counts.get(row if kind < 0 else self._codes[row][kind], 0) >= cap:
                return False
        return True

    def add(self, row: int) -> None:
        """One more there."""
        for kind, _, counts in self._limits:
            key = row if kind < 0 else self._codes[row][kind]
            counts[key] = counts.get(key, 0) + 1


def explain(hosts: Hosts, ask: Ask) -> str:
    """Why no host gets it: how many lack what, each counted at the first condition it fails."""
    total = len(hosts.index)
    if not total:
        return f"{ask.service}: there is no host"
    left = np.zeros(hosts.height, np.bool_)
    left[hosts.rows()] = True
    parts = []
    for condition in conditions(hosts, ask):
        if condition.strict and (lost := int(np.count_nonzero(left & ~condition.met))):
            parts.append(f"{lost} {condition.words}")
            left &= condition.met
    return f"{ask.service}: none of {total} hosts: " + (", ".join(parts) or "all would do")
