"""How many replicas and hosts there shall be. Pure: an ``Observation`` in, a ``Plan`` with reasons out.

It never reads a clock and keeps nothing between two calls: its memory is a record the caller carries. What
one service needs is ``services/need.py``; here all services of a decision are computed together.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from roost.scaling import forecast, hosts, learn, memory, risk
from roost.scaling.arrivals import Floats
from roost.scaling.memory import Memory
from roost.scaling.queueing import Loads, cheapest
from roost.services import need
from roost.services.need import Need, Rate
from roost.services.observation import (
    GroupPlan,
    GroupState,
    HostPhase,
    HostState,
    Observation,
    Plan,
    ServicePlan,
    ServiceState,
)

REFRESHES = 170
"""Services whose forecast is made anew in one decision: in a minute's six, all of 1,000."""
TESTS = 64
"""Past moments at which samplers are tried in one decision, shared by the services it refreshes."""
SURGES = 12
"""Services that learn in one decision what of their surges lasts, from all of their history."""


def decide(observation: Observation) -> Plan:
    """Replicas per service and hosts per group. Bad input gets a plan and a warning, never an exception."""
    services = observation.services
    groups = {group.id: group for group in observation.groups}
    memories = [need.recall(s, observation) for s in services]
    _refresh(observation, groups, memories)
    rates = [need.present(s, m) for s, m in zip(services, memories, strict=True)]
    now = _now(services, memories, [None if rate is None else rate.now for rate in rates])
    needs = {
        s.id: need.of(s, m, rate, counts, observation)
        for s, m, rate, counts in zip(
            services, memories, rates, _later(services, memories, rates, now), strict=True
        )
    }
    plans: dict[str, ServicePlan] = {}
    group_plans: dict[str, GroupPlan] = {}
    for group in observation.groups:
        mine = [s for s in services if s.group == group.id]
        group_plans[group.id] = _group(group, mine, needs, plans)
    for s in services:
        if s.group not in groups:
            warning = f"group {s.group!r} is not there: create it or choose another"
            plans[s.id] = _service(s, needs[s.id], needs[s.id].up, (warning,))
    return Plan(services=plans, groups=group_plans)


def _refresh(
    observation: Observation, groups: Mapping[str, GroupState], memories: Sequence[Memory]
) -> None:
    """New forecasts for those who have a new minute, the longest waiting first."""
    due = [
        (m.minute_s, place)
        for place, (s, m) in enumerate(zip(observation.services, memories, strict=True))
        if need.end_s(s, observation) > m.minute_s
    ]
    due = sorted(due)[:REFRESHES]
    if not due:
        return
    tests = TESTS // len(due)
    surging = _surging([place for _, place in due], memories, observation.now_s)
    made = []
    for _, place in due:
        s, m = observation.services[place], memories[place]
        group = groups.get(s.group) or GroupState()
        found = learn.refresh(m, need.usage(s, group, observation), tests, place in surging)
        if found is None:
            m.up = m.hold = max(m.up, m.needed)
        else:
            made.append((place, found))
    if not made:
        return
    at = [place for place, _ in made]
    chosen = [memories[place] for place in at]
    states = [observation.services[place] for place in at]
    prices, means = _prices(chosen)
    ups, holds = np.array([f.up for _, f in made]), np.array([f.hold for _, f in made])
    up = _worth(ups, forecast.MASS, states, chosen, prices, means)
    hold = cheapest(holds, forecast.MASS, _loads(states, chosen), prices, means)
    for m, high, low in zip(chosen, up.tolist(), hold.tolist(), strict=True):
        m.up, m.hold = high, low


def _surging(due: Sequence[int], memories: Sequence[Memory], now_s: float) -> set[int]:
    """Those of ``due`` that learn of all their surges anew, the longest waiting first."""
    waiting = [(memories[at].lasting_until_s, at) for at in due]
    return {at for until_s, at in sorted(waiting)[:SURGES] if until_s <= now_s}


def _prices(memories: Sequence[Memory]) -> tuple[Floats, Floats]:
    """(what carefulness is worth, usual rate per second) of each service."""
    prices = np.array([risk.price(m.z) for m in memories])
    return prices, np.array([m.day_mean / 60.0 for m in memories])


def _now(
    services: Sequence[ServiceState], memories: Sequence[Memory], rates: Sequence[float | None]
) -> list[int]:
    """Replicas for the present rates; 0 where a rate is not known."""
    if not services:
        return []
    known = np.array([[rate or 0.0] for rate in rates])
    prices, means = _prices(memories)
    prices = np.minimum(prices, risk.NOW)
    # Without history the present is what is usual.
    means = np.where(means > 0, means, known[:, 0])
    counts: list[int] = _worth(known, np.ones(1), services, memories, prices, means).tolist()
    return counts


def _later(
    services: Sequence[ServiceState],
    memories: Sequence[Memory],
    rates: Sequence[Rate | None],
    now: Sequence[int],
) -> list[tuple[int, int]]:
    """(replicas for the present rate, for what of it will last) of each service."""
    found = [(count, count) for count in now]
    passing = [at for at, rate in enumerate(rates) if rate is not None and rate.lasting < rate.now]
    counts = _now(
        [services[at] for at in passing],
        [memories[at] for at in passing],
        [rate.lasting for rate in rates if rate is not None and rate.lasting < rate.now],
    )
    for at, count in zip(passing, counts, strict=True):
        found[at] = (now[at], count)
    return found


def _worth(
    rates: Floats,
    odds: Floats,
    services: Sequence[ServiceState],
    memories: Sequence[Memory],
    prices: Floats,
    means: Floats,
) -> NDArray[np.int64]:
    """The cheapest replicas of each service; those it does not have yet must be worth their start as well."""
    loads = _loads(services, memories)
    found = cheapest(rates, odds, loads, prices, means)
    have = np.array([m.replicas for m in memories], np.int64)
    more = np.flatnonzero(found > have)
    if len(more):
        dear = np.array([risk.started(memories[at].sudden) for at in more.tolist()]) * prices[more]
        started = cheapest(rates[more], odds, loads.only(more), dear, means[more])
        found[more] = np.maximum(have[more], started)
    return found


def _loads(services: Sequence[ServiceState], memories: Sequence[Memory]) -> Loads:
    def column(values: list[float]) -> Floats:
        return np.array(values, float)

    return Loads.of(
        service_s=column([m.service_s for m in memories]),
        cv=column([m.cv for m in memories]),
        dispersion=column([m.dispersion for m in memories]),
        bound_s=column([s.objective.bound_s for s in services]),
        concurrency=column([max(1, s.concurrency) for s in services]),
    )


def _group(
    group: GroupState,
    services: Sequence[ServiceState],
    needs: Mapping[str, Need],
    plans: dict[str, ServicePlan],
) -> GroupPlan:
    have = [h for h in group.hosts if h.phase in (HostPhase.READY, HostPhase.BOOTING)]
    up = sum(needs[s.id].lasting for s in services)
    hold = sum(needs[s.id].hold for s in services)
    slots = max(1, group.slots)
    blind = [s.id for s in services if needs[s.id].blind]
    if blind:
        hold = max(hold, len(have) * slots)
    least = group.min if group.person_desired is None else group.person_desired
    most = group.max if group.person_desired is None else group.person_desired
    least, most = max(group.min, min(group.max, least)), max(group.min, min(group.max, most))
    want = hosts.wanted(len(have), up, hold, slots, least, most)
    shares = {
        s.id: hosts.Share(
            needed=needs[s.id].up,
            lasting=needs[s.id].lasting,
            before=needs[s.id].memory.replicas,
            most=needs[s.id].most,
        )
        for s in services
    }
    given = hosts.filled(shares, want * slots)
    for s in services:
        plans[s.id] = _service(s, needs[s.id], given[s.id], ())
    return GroupPlan(
        hosts=want,
        release=_release(have, len(have) - want),
        reason=_why(group, len(have), want, up, hold, blind),
        memory=b"",
    )


def _release(have: Sequence[HostState], count: int) -> tuple[str, ...]:
    """Booting ones first, then the emptiest and those that are likely to be taken."""
    if count <= 0:
        return ()
    order = sorted(
        have,
        key=lambda h: (
            h.phase is HostPhase.READY,
            h.used,
            h.survival,
            h.age_s,
        ),
    )
    return tuple(h.id for h in order[:count])


def _why(group: GroupState, have: int, want: int, up: int, hold: int, blind: Sequence[str]) -> str:
    facts = f"{up} slots needed, {max(up, hold)} to hold, {group.slots} a host"
    if group.person_desired is not None:
        return f"{want} hosts: a person's number; {facts}"
    if want * group.slots < up:
        return f"{want} hosts: the group's maximum; {facts}"
    if want == group.min and want * group.slots >= max(up, hold) + group.slots:
        return f"{want} hosts: the group's minimum; {facts}"
    if blind:
        facts += f"; nothing is known of {', '.join(blind[:3])}: none is released"
    word = "more" if want > have else "fewer" if want < have else "no change"
    return f"{want} hosts, {word}: {facts}"


def _service(s: ServiceState, what: Need, replicas: int, more: tuple[str, ...]) -> ServicePlan:
    m = what.memory
    m.needed, m.replicas = min(what.up, replicas), replicas
    reason = what.reason
    if replicas > what.up:
        reason += f"; {replicas - what.up} more fill slots that are paid for"
    if replicas < what.up:
        reason += f"; {replicas} have slots, the surge will pass before a host comes"
    return ServicePlan(
        replicas=replicas,
        needed=m.needed,
        reason=reason,
        memory=memory.dump(m),
        warnings=what.warnings + more,
    )
