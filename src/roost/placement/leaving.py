"""Hosts that go: which first, and how their containers leave without breaking a service's minimum.

Everything is tried on a copy with the scheduler of production. It stops nothing: ``Step.at_once`` says
which container may stop before its replacement is ready, all others wait for it.
"""

from collections.abc import Iterable, Mapping

import msgspec

from roost.placement.consolidate import Emptied, Kept, Move, empty
from roost.placement.hosts import Hosts
from roost.placement.model import Weights
from roost.placement.place import DEFAULT, place


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts to give back, and those that cannot go although asked for."""

    hosts: tuple[Emptied, ...] = ()
    kept: tuple[Kept, ...] = ()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one container of a host that goes."""

    container: str
    service: str
    target: str | None
    """Where its replacement starts; None = nowhere yet, a host must come first."""
    at_once: bool
    """It may stop now: its service keeps its minimum without it."""
    reason: str


def order(hosts: Hosts, among: Iterable[str] = ()) -> list[str]:
    """Hosts in the order in which one gives them back; protected ones are not among them.

    Booting and empty first, then empty, then those least used and least likely to last; of equals the
    dearest, then the youngest.
    """
    rows = [hosts.row(name) for name in among] or hosts.rows()

    def key(row: int) -> tuple[bool, float, float, float, float, int]:
        facts, used = hosts.facts[row], 1.0 - float(hosts.idle[row])
        busy = bool(hosts.on[row])
        price = -facts.price_usd_hour
        staying = used + facts.survival if busy else facts.survival
        return busy, 0.0 if busy else -facts.ready_in_s, staying, price, -facts.launched_s, row

    return [hosts.facts[row].id for row in sorted(rows, key=key) if not hosts.facts[row].protected]


def release(
    hosts: Hosts,
    count: int,
    *,
    among: Iterable[str] = (),
    weights: Weights = DEFAULT,
) -> Release:
    """Up to ``count`` hosts whose containers all fit elsewhere. ``hosts`` is left as it is."""
    trial = hosts.copy()
    found: list[Emptied] = []
    kept: list[Kept] = []
    for name in order(trial, among):
        if len(found) == count:
            break
        row = trial.row(name)
        if fixed := [p.id for p in trial.on[row].values() if not p.movable]:
            kept.append(Kept(name, f"{fixed[0]} must not be moved"))
            continue
        moves = empty(trial, row, weights, onto_empty=True)
        if isinstance(moves, str):
            kept.append(Kept(name, moves))
            continue
        trial.set_takes(row, False)
        found.append(Emptied(host=name, moves=moves, reason=_why(trial, row, moves)))
    return Release(hosts=tuple(found), kept=tuple(kept))


def _why(hosts: Hosts, row: int, moves: tuple[Move, ...]) -> str:
    facts = hosts.facts[row]
    if moves:
        return f"asked for; its {len(moves)} containers fit elsewhere"
    return "asked for; still booting" if facts.ready_in_s else "asked for; it is empty"


def evacuate(
    host: str,
    hosts: Hosts,
    *,
    ready: Mapping[str, int],
    minimum: Mapping[str, int],
    weights: Weights = DEFAULT,
) -> tuple[Step, ...]:
    """How the containers of a host under notice leave it; those that can least be missed first.

    ``ready``: replicas of each service that serve now, those on this host included. ``hosts`` is left as
    it is.
    """
    trial = hosts.copy()
    row = trial.row(host)
    trial.set_takes(row, False)
    slack = {name: ready.get(name, 0) - minimum.get(name, 0) for name in _services(trial, row)}
    steps = []
    here = sorted(trial.on[row].values(), key=lambda p: (slack[p.ask.service], p.id))
    for placed in here:
        service = placed.ask.service
        trial.take(placed.id)
        choice = place(placed.ask, trial, container=placed.id, weights=weights)
        spare = slack[service] > 0
        if spare:
            slack[service] -= 1
        have, least = ready.get(service, 0), minimum.get(service, 0)
        rest = f"{service} has {have} ready, its minimum is {least}"
        where = f"replaced on {choice.host}" if choice.host else choice.why
        steps.append(
            Step(
                container=placed.id,
                service=service,
                target=choice.host,
                at_once=spare,
                reason=f"{rest}: {'stops at once' if spare else 'stays until replaced'}; {where}",
            )
        )
    return tuple(steps)


def _services(hosts: Hosts, row: int) -> set[str]:
    return {placed.ask.service for placed in hosts.on[row].values()}


def moves(steps: Iterable[Step], host: str) -> tuple[Move, ...]:
    """The steps that have a target, as moves."""
    return tuple(
        Move(step.container, step.service, host, step.target, step.reason)
        for step in steps
        if step.target is not None
    )
