"""What a host must meet to get a container: each condition as a column of yes and no, with its name in words.

The order is the order in which a refusal is told: what can never change first, what the next minute may
change last.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from roost.placement.hosts import LONGEST_WAIT_S, Hosts, Mask, Tally
from roost.placement.model import DOMAINS, TINY, Ask, By


class Condition(NamedTuple):
    """One condition over all hosts."""

    words: str
    """What a host that fails it is told to lack."""
    met: Mask
    strict: bool = True


def conditions(hosts: Hosts, ask: Ask) -> Iterator[Condition]:
    """All conditions this container puts, one after the other."""
    yield Condition("not taking new containers", hosts.takes[: hosts.height])
    yield from _fixed(hosts, ask)
    yield from _changing(hosts, ask)


def quickly(hosts: Hosts, ask: Ask) -> Iterator[Condition]:
    """The same conditions, those of ``_fixed`` as one that is remembered."""
    yield Condition("", hosts.takes[: hosts.height])
    places = (ask.groups, ask.regions, ask.zones, ask.pools, ask.labels)
    if any(places) or ask.min_survival or ask.max_wait_s < LONGEST_WAIT_S:
        key = ("fixed", *places, ask.min_survival, ask.max_wait_s)
        yield Condition("", hosts.remembered(key, lambda: _all(_fixed(hosts, ask))))
    yield from _changing(hosts, ask)


def _all(found: Iterator[Condition]) -> Mask:
    met: Mask = np.logical_and.reduce([condition.met for condition in found])
    return met


def _fixed(hosts: Hosts, ask: Ask) -> Iterator[Condition]:
    """What no container changes."""
    yield from _allowed(hosts, ask)
    yield from _lasting(hosts, ask)


def _changing(hosts: Hosts, ask: Ask) -> Iterator[Condition]:
    """What is different after each ``put``."""
    yield from _room(hosts, ask)
    yield from _company(hosts, ask)
    yield from _spread(hosts, ask)


def _allowed(hosts: Hosts, ask: Ask) -> Iterator[Condition]:
    for kind, names in (
        (By.GROUP, ask.groups),
        (By.REGION, ask.regions),
        (By.ZONE, ask.zones),
        (By.POOL, ask.pools),
    ):
        if names:
            known = hosts.names[DOMAINS.index(kind)]
            inside = {known[name] for name in names if name in known}
            yield Condition(f"not of {kind} {', '.join(names)}", _in_domains(hosts, kind, inside))
    for label in ask.labels:
        yield Condition(f"without the label {label}", hosts.label(label))


def _lasting(hosts: Hosts, ask: Ask) -> Iterator[Condition]:
    if ask.min_survival > 0.0:
        met = hosts.survival[: hosts.height] >= ask.min_survival
        yield Condition(f"likely to go (asked: {ask.min_survival:g} for the next hour)", met)
    if ask.max_wait_s < LONGEST_WAIT_S:
        met = hosts.wait_min[: hosts.height] <= ask.max_wait_s / 60.0
        yield Condition(f"not ready within {ask.max_wait_s:g} s", met)


def _room(hosts: Hosts, ask: Ask) -> Iterator[Condition]:
    n = hosts.height
    for name, free, amount in zip(hosts.resources, hosts.free, hosts.need(ask), strict=True):
        if amount:
            yield Condition(
                f"too little {name} free (asked: {amount:g})", free[:n] >= amount - TINY
            )
    if ask.gpus >= 1.0:
        yield Condition(
            f"fewer than {ask.gpus:g} GPUs entirely free", hosts.gpu_whole[:n] >= ask.gpus
        )
    elif ask.gpus:
        met = hosts.gpu_most[:n] >= ask.gpus - TINY
        yield Condition(f"no GPU with {ask.gpus:g} of it free", met)


def _company(hosts: Hosts, ask: Ask) -> Iterator[Condition]:
    for rule in ask.affinity:
        there = hosts.tally(rule.service)
        if rule.apart:
            met = _without(hosts, rule.by, there, 1)
            yield Condition(f"in the same {rule.by} as {rule.service}", met, rule.strict)
        elif there.hosts or rule.service != ask.service:
            # The first replica of a service that stays with itself may go anywhere.
            met = ~_without(hosts, rule.by, there, 1)
            yield Condition(f"not in a {rule.by} with {rule.service}", met, rule.strict)
    for by, tally in hosts.repelled(ask.service):
        met = _without(hosts, by, tally, 1)
        yield Condition(f"in a {by} with a service that stays apart from {ask.service}", met)


def _spread(hosts: Hosts, ask: Ask) -> Iterator[Condition]:
    there = hosts.tally(ask.counted_as)
    for rule in ask.spread:
        cap = rule.cap(ask.wanted)
        met = _without(hosts, rule.by, there, cap)
        yield Condition(f"in a {rule.by} that has its {cap} of {ask.wanted}", met, rule.strict)


def caps(ask: Ask) -> list[tuple[str, int, int]]:
    """What one more of the same could break: (whose tally, place in ``DOMAINS`` or -1 for the host, cap)."""
    limits = [(ask.counted_as, r.by, r.cap(ask.wanted)) for r in ask.spread]
    limits += [(ask.service, r.by, 1) for r in ask.affinity if r.apart and r.service == ask.service]
    return [(of, -1 if by is By.HOST else DOMAINS.index(by), cap) for of, by, cap in limits]


def _without(hosts: Hosts, by: By, tally: Tally, cap: int) -> Mask:
    """Hosts in domains with fewer than ``cap`` of these."""
    there = tally.where(by)
    full = list(there) if cap == 1 else [key for key, count in there.items() if count >= cap]
    if by is By.HOST:
        met = np.ones(hosts.height, np.bool_)
        if full:
            met[np.fromiter(full, np.intp, len(full))] = False
        return met
    return ~_in_domains(hosts, by, set(full)) if full else np.ones(hosts.height, np.bool_)


def _in_domains(hosts: Hosts, by: By, inside: set[int]) -> Mask:
    place = DOMAINS.index(by)
    column = hosts.domain[place][: hosts.height]
    if len(inside) == 1:
        met: Mask = column == next(iter(inside))
        return met
    table = np.zeros(len(hosts.names[place]), np.bool_)
    table[list(inside)] = True
    within: Mask = table[column]
    return within
