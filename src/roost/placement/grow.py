"""Which hosts are missing: what does not fit is packed onto hosts that could be launched. It launches none.

Asks go onto the hosts that are there first (booting ones included), with the scheduler of production on a
copy; for the rest hosts are added, of each kind the fewest that can be enough, until all is placed or no
kind takes what is left.
"""

import math
from collections.abc import Sequence

import msgspec

from roost.placement.hosts import Hosts
from roost.placement.model import TINY, Ask, Choice, HostFacts, Weights
from roost.placement.place import DEFAULT, place_many


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A host that could be launched."""

    facts: HostFacts
    """Its ``id`` is the name of the kind."""
    most: int = 10_000


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """What is missing."""

    launch: dict[str, int]
    """How many of each kind, by its name."""
    choices: tuple[Choice, ...]
    """Where each ask would go, in their order; ``kind/1`` names the first host of a kind to be launched."""

    @property
    def unplaced(self) -> tuple[Choice, ...]:
        """Those that fit on no host of any kind, with the reason."""
        return tuple(choice for choice in self.choices if choice.host is None)


def grow(
    asks: Sequence[Ask],
    hosts: Hosts,
    kinds: Sequence[Kind],
    *,
    containers: Sequence[str] = (),
    weights: Weights = DEFAULT,
) -> Growth:
    """The hosts to launch for these containers. ``hosts`` is left as it is."""
    trial = hosts.copy()
    names = list(containers) or [f"?{at}" for at in range(len(asks))]
    choices = place_many(asks, trial, containers=names, weights=weights)
    launch: dict[str, int] = {}
    stuck: set[str] = set()
    while left := [at for at, choice in enumerate(choices) if choice.host is None]:
        kind = _cheapest([asks[at] for at in left], kinds, stuck, launch, trial)
        if kind is None:
            break
        placed = _add(
            trial, kind, [asks[at] for at in left], [names[at] for at in left], launch, weights
        )
        if not any(choice.host for choice in placed):
            stuck.add(kind.facts.id)
        for at, choice in zip(left, placed, strict=True):
            choices[at] = choice
    return Growth(launch={name: n for name, n in launch.items() if n}, choices=tuple(choices))


def _add(
    trial: Hosts,
    kind: Kind,
    asks: list[Ask],
    names: list[str],
    launch: dict[str, int],
    weights: Weights,
) -> list[Choice]:
    """Hosts of one kind, as few as could be enough; those that stay empty are not launched."""
    name = kind.facts.id
    had = launch.get(name, 0)
    count = min(max(1, _fewest(asks, kind.facts, trial)), kind.most - had)
    new = [f"{name}/{had + at + 1}" for at in range(count)]
    for one in new:
        trial.add(msgspec.structs.replace(kind.facts, id=one))
    placed = place_many(asks, trial, containers=names, weights=weights)
    for one in reversed(new):
        if not trial.on[trial.row(one)]:
            trial.remove(one)
            count -= 1
    launch[name] = had + count
    return placed


def _share(ask: Ask, facts: HostFacts, hosts: Hosts) -> float:
    """Of a host of this kind, by the resource of which it takes most; infinite where it does not fit."""
    extra = dict(facts.extra)
    sizes = [facts.vcpus, facts.memory_mib, facts.slots]
    sizes += [extra.get(name, 0.0) for name in hosts.resources[len(sizes) :]]
    shares = [ask.gpus / facts.gpus if facts.gpus else (math.inf if ask.gpus else 0.0)]
    for amount, size in zip(hosts.need(ask), sizes, strict=True):
        shares.append(amount / size if size > 0.0 else (math.inf if amount else 0.0))
    return max(shares) if max(shares) <= 1.0 + TINY else math.inf


def _fewest(asks: list[Ask], facts: HostFacts, hosts: Hosts) -> int:
    """No fewer hosts of this kind than this could take them all."""
    extra = dict(facts.extra)
    sizes = [facts.vcpus, facts.memory_mib, facts.slots]
    sizes += [extra.get(name, 0.0) for name in hosts.resources[len(sizes) :]]
    fitting = [ask for ask in asks if _share(ask, facts, hosts) < math.inf]
    needs = [sum(column) for column in zip(*map(hosts.need, fitting), strict=True)]
    parts = [need / size for need, size in zip(needs, sizes, strict=False) if size > 0.0]
    if facts.gpus:
        parts.append(sum(ask.gpus for ask in fitting) / facts.gpus)
    return math.ceil(max(parts, default=0.0) - TINY)


def _cheapest(
    asks: list[Ask], kinds: Sequence[Kind], stuck: set[str], launch: dict[str, int], hosts: Hosts
) -> Kind | None:
    """The kind on which what is left costs least per hour; one that takes all before one that does not."""

    def cost(kind: Kind) -> tuple[int, float]:
        shares = [_share(ask, kind.facts, hosts) for ask in asks]
        misfits = sum(math.isinf(share) for share in shares)
        used = sum(share for share in shares if not math.isinf(share))
        return misfits, max(kind.facts.price_usd_hour, TINY) * max(1.0, used)

    open_ = [
        kind
        for kind in kinds
        if kind.facts.id not in stuck and launch.get(kind.facts.id, 0) < kind.most
    ]
    return min(open_, key=cost) if open_ else None
