"""Hosts that go: which first, and which can; tried on a copy with the scheduler of production."""

from collections.abc import Iterable

import msgspec

from roost.placement.consolidate import Emptied, Kept, Move, Worth, calm_s, empty, price
from roost.placement.hosts import Hosts
from roost.placement.model import Weights
from roost.placement.place import DEFAULT


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts to give back, and those that cannot go although asked for."""

    hosts: tuple[Emptied, ...] = ()
    kept: tuple[Kept, ...] = ()


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
    now_s: float = 0.0,
    worth: Worth | None = None,
) -> Release:
    """Up to ``count`` hosts whose containers all fit elsewhere. ``hosts`` is left as it is.

    ``worth``: what a move costs at ``now_s``; a host stays while its moves cost more than they save. None:
    moves cost nothing, and so they do on hosts without a price.
    """
    trial = hosts.copy()
    calm = calm_s(hosts, now_s)
    found: list[Emptied] = []
    kept: list[Kept] = []
    for name in order(trial, among):
        if len(found) == count:
            break
        row = trial.row(name)
        if fixed := [p.id for p in trial.on[row].values() if not p.movable]:
            kept.append(Kept(name, f"{fixed[0]} must not be moved"))
            continue
        if worth is not None and (why := _dear(trial, row, now_s, calm, worth)):
            kept.append(Kept(name, why))
            continue
        moves = empty(trial, row, weights, onto_empty=True)
        if isinstance(moves, str):
            kept.append(Kept(name, moves))
            continue
        trial.set_takes(row, False)
        found.append(Emptied(host=name, moves=moves, reason=_why(trial, row, moves)))
    return Release(hosts=tuple(found), kept=tuple(kept))


def _dear(hosts: Hosts, row: int, now_s: float, calm: float, worth: Worth) -> str:
    """Why emptying it does not pay yet; empty = it does."""
    if not hosts.on[row]:
        return ""
    saves, costs = price(hosts, row, now_s, calm, worth, moves=len(hosts.on[row]))
    if saves >= worth.margin * costs:
        return ""
    return f"to move its {len(hosts.on[row])} containers costs {costs:.4f} USD, it saves {saves:.4f} so far"


def _why(hosts: Hosts, row: int, moves: tuple[Move, ...]) -> str:
    facts = hosts.facts[row]
    if moves:
        return f"asked for; its {len(moves)} containers fit elsewhere"
    return "asked for; still booting" if facts.ready_in_s else "asked for; it is empty"
