"""Which hosts can be emptied: tried with the scheduler of production on a copy, taken only where it pays.

A host goes if *all* its containers fit on others that stay open, and if what it would have cost until it
emptied by itself is more than what the moves cost. It moves nothing: the caller starts each replacement
before it stops what it replaces.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from roost.placement.hosts import Hosts, Placed
from roost.placement.model import Weights
from roost.placement.place import DEFAULT, place


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What a move costs and when emptying a host is worth it."""

    move_usd: float = 0.0
    """Drain, start and lost warm state of one container, beside ``move_hours``."""
    move_hours: float = 0.25
    """The same as hours of the host it leaves: what both cost while they overlap."""
    margin: float = 1.0
    """The saving is at least so many times the cost."""
    horizon_h: float = 24.0
    """A host is not believed to stay open for longer than this."""
    below: float = 0.8
    """Only hosts of which less than this is in use, by their scarcest resource."""
    young_s: float = 300.0
    """A host younger than this (one boot) is left alone."""
    most_moves: int = 1_000
    """In one round."""
    most_tries: int = 500
    """Hosts that are tried in one round: it bounds the time a round takes."""


WORTH = Worth()


class Move(msgspec.Struct, frozen=True):
    """One container from here to there."""

    container: str
    service: str
    source: str
    target: str
    reason: str = ""


class Emptied(msgspec.Struct, frozen=True, kw_only=True):
    """A host that can go, the moves that empty it, and the sum."""

    host: str
    moves: tuple[Move, ...]
    reason: str
    saves_usd: float = 0.0
    costs_usd: float = 0.0


class Kept(msgspec.Struct, frozen=True):
    """A host that stays, and why."""

    host: str
    reason: str


class Consolidation(msgspec.Struct, frozen=True, kw_only=True):
    """What a round found."""

    emptied: tuple[Emptied, ...] = ()
    kept: tuple[Kept, ...] = ()

    @property
    def moves(self) -> tuple[Move, ...]:
        """All moves, in the order in which they were tried."""
        return tuple(move for one in self.emptied for move in one.moves)


def consolidate(
    hosts: Hosts,
    now_s: float,
    *,
    worth: Worth = WORTH,
    budgets: Mapping[str, int] | None = None,
    last_launch_s: float | None = None,
    weights: Weights = DEFAULT,
) -> Consolidation:
    """Try to empty the least used hosts, one after the other. ``hosts`` is left as it is.

    ``budgets``: of a service, how many of its replicas may move in this round; absent = any number.
    ``last_launch_s``: when a host was last launched here; None = when the youngest of these was.
    """
    calm = calm_s(hosts, now_s) if last_launch_s is None else now_s - last_launch_s
    round_ = _Round(hosts, now_s, worth, dict(budgets or {}), calm)
    priced: dict[str, tuple[float, float]] = {}
    kept: list[Kept] = []
    used = hosts.used()
    for row in sorted(hosts.rows(), key=lambda row: (used[row], row)):
        if not hosts.on[row] or not hosts.takes[row]:
            continue
        why = round_.why_not(row)
        if not why:
            if round_.hosts is hosts:  # copied only when there is something to try
                round_.hosts = hosts.copy()
            saves_costs = round_.price(row)
            found = round_.empty(row, weights)
            why = found if isinstance(found, str) else ""
        name = hosts.facts[row].id
        if why:
            kept.append(Kept(name, why))
        else:
            priced[name] = saves_costs
    return Consolidation(emptied=_net(hosts, round_.hosts, priced), kept=tuple(kept))


def _net(
    before: Hosts, after: Hosts, priced: Mapping[str, tuple[float, float]]
) -> tuple[Emptied, ...]:
    """The moves from where each is to where it ends; what was moved on in the same round moves once."""
    made = []
    for host, (saves, costs) in priced.items():
        moves = tuple(
            Move(p.id, p.ask.service, host, after.facts[after.containers[p.id].host].id)
            for p in before.on[before.row(host)].values()
        )
        reason = f"{len(moves)} moves free {host}: saves {saves:.4f} USD for {costs:.4f}"
        made.append(
            Emptied(host=host, moves=moves, reason=reason, saves_usd=saves, costs_usd=costs)
        )
    return tuple(made)


@dataclass(slots=True)
class _Round:
    """What one round of consolidation may still do, and the sums that decide."""

    hosts: Hosts
    now_s: float
    worth: Worth
    budgets: dict[str, int]
    calm_s: float
    """Since a host was last launched: about so long none will be launched again."""
    tries: int = 0
    moved: set[str] = field(default_factory=set)
    """Containers that move in this round: moving them on costs nothing more."""

    def why_not(self, row: int) -> str:
        """Why this host is not even tried; empty = it is."""
        worth, facts = self.worth, self.hosts.facts[row]
        if facts.protected:
            return "protected from disruption"
        if (age_s := self.now_s - facts.launched_s) < worth.young_s:
            return f"launched {age_s:.0f} s ago, left alone for {worth.young_s:.0f} s"
        if (used := self.hosts.used_by(row)) >= worth.below:
            return f"{used:.0%} in use, only hosts below {worth.below:.0%} are emptied"
        if fixed := [name for name, p in self.hosts.on[row].items() if not p.movable]:
            return f"{fixed[0]} must not be moved"
        new = self._new(row)
        if len(self.moved) + len(new) > worth.most_moves or self.tries == worth.most_tries:
            return f"this round has tried {self.tries} hosts and found {len(self.moved)} moves"
        for service, count in Counter(p.ask.service for p in new).items():
            if count > self.budgets.get(service, count):
                return f"{count} replicas of {service}, of which {self.budgets[service]} may move"
        saves, costs = self.price(row)
        if saves <= worth.margin * costs:
            return f"it would save {saves:.4f} USD, the moves cost {costs:.4f}"
        return ""

    def _new(self, row: int) -> list[Placed]:
        return [p for p in self.hosts.on[row].values() if p.id not in self.moved]

    def price(self, row: int) -> tuple[float, float]:
        """USD saved by emptying it now, and what the moves cost."""
        new = len(self._new(row))
        return price(self.hosts, row, self.now_s, self.calm_s, self.worth, moves=new)

    def empty(self, row: int, weights: Weights) -> tuple[Move, ...] | str:
        """Try it, and count what it takes."""
        self.tries += 1
        found = empty(self.hosts, row, weights)
        for move in found if isinstance(found, tuple) else ():
            if move.container not in self.moved:
                self.moved.add(move.container)
                if move.service in self.budgets:
                    self.budgets[move.service] -= 1
        return found


def price(
    hosts: Hosts, row: int, now_s: float, launched_s_ago: float, worth: Worth, *, moves: int
) -> tuple[float, float]:
    """USD saved by emptying a host now, and what so many moves cost. ``launched_s_ago``: the last launch.

    Without the moves it stays until the last of its containers ends; with them, until a host must be
    launched again. Both have lasted so long and are believed to last about as long again.
    """
    here, each_h = hosts.on[row].values(), float(hosts.price[row])
    ends_s = max(now_s - p.since_s if p.ends_s is None else p.ends_s - now_s for p in here)
    stays_h = min(worth.horizon_h, max(0.0, min(ends_s, launched_s_ago)) / 3600.0)
    return each_h * stays_h, (worth.move_usd + worth.move_hours * each_h) * moves


def calm_s(hosts: Hosts, now_s: float) -> float:
    """Seconds since the youngest of these hosts was launched."""
    return now_s - max((hosts.facts[row].launched_s for row in hosts.rows()), default=now_s)


def empty(
    trial: Hosts, row: int, weights: Weights, *, onto_empty: bool = False
) -> tuple[Move, ...] | str:
    """The moves that empty it, done on the trial; else why not, the trial as before.

    ``onto_empty``: its containers may go to hosts that are empty themselves, which saves none.
    """
    closed = [] if onto_empty else _empty_rows(trial)
    for r in (row, *closed):
        trial.set_takes(r, False)
    done: list[tuple[Placed, Placed]] = []
    why = ""
    for placed in sorted(trial.on[row].values(), key=lambda p: _turn(trial, p)):
        trial.take(placed.id)
        choice = place(placed.ask, trial, container=placed.id, weights=weights)
        if choice.host is None:
            _back(trial, placed)
            why = f"{placed.id} fits nowhere else: {choice.why}"
            break
        now = trial.containers[placed.id]
        now.since_s, now.movable, now.ends_s = placed.since_s, placed.movable, placed.ends_s
        done.append((placed, now))
    if why:
        for placed, _ in reversed(done):
            trial.take(placed.id)
            _back(trial, placed)
        trial.set_takes(row, True)
    for r in closed:
        trial.set_takes(r, True)
    if why:
        return why
    source = trial.facts[row].id
    return tuple(
        Move(old.id, old.ask.service, source, trial.facts[new.host].id) for old, new in done
    )


def _empty_rows(trial: Hosts) -> list[int]:
    return [row for row in trial.rows() if trial.takes[row] and not trial.on[row]]


def _back(hosts: Hosts, placed: Placed) -> None:
    hosts.put(
        placed.ask,
        placed.host,
        placed.id,
        since_s=placed.since_s,
        movable=placed.movable,
        counts=placed.counts,
        ends_s=placed.ends_s,
    )


def _turn(hosts: Hosts, placed: Placed) -> tuple[bool, float, str]:
    """Those that follow another service after it, then the biggest first."""
    ask = placed.ask
    follows = any(not r.apart and r.service != ask.service for r in ask.affinity)
    return follows, -_size(hosts, placed), placed.id


def _size(hosts: Hosts, placed: Placed) -> float:
    """Its share of the host it is on, by the resource of which it takes most."""
    row = placed.host
    shares = [
        amount / size[row] if 0.0 < size[row] < math.inf else 0.0
        for amount, size in zip(hosts.need(placed.ask), hosts.size, strict=True)
    ]
    gpus = hosts.gpu_size[row]
    return float(max(*shares, placed.ask.gpus / gpus if gpus else 0.0))
