"""Which host gets a replica, which hosts can be given back: services in the words of ``placement``. Pure.

Replicas that wait go where they fit: slots, CPU, memory and GPUs of the host, the service's own wishes, not
too many of one revision on one host or in one pool. A host is given back only where what is on it and still
wanted fits elsewhere, tried with the same scheduler on a copy.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from roost.fleet.groups.model import GroupHost, HostState, Protection
from roost.placement.consolidate import Worth
from roost.placement.grow import Kind, grow
from roost.placement.hosts import Hosts
from roost.placement.leaving import release
from roost.placement.model import Affinity, Ask, By, Choice, HostFacts, Spread
from roost.placement.place import place_many
from roost.services.model import Pool, Replica, ReplicaState, Service

R = ReplicaState

SPREAD = (
    Spread(by=By.HOST, share=0.5, strict=False),
    Spread(by=By.POOL, share=0.5, strict=False),
)
"""Of a service that says nothing else: half of its replicas at most die with one host or one pool."""


def assign(
    services: Sequence[Service], replicas: Iterable[Replica], pool: Pool
) -> dict[str, Choice]:
    """A choice for each replica that waits, by its id; those of the group that have a host are in the way.

    ``services``: all of the group; ``replicas``: all of theirs.
    """
    known = {s.id: s for s in services}
    live = [r for r in replicas if r.service_id in known]
    hosts = standing(services, live, pool)
    waiting = [r for r in live if r.state is R.WANTED]
    asks = _asks(services, waiting)
    made = place_many(asks, hosts, containers=[r.id for r in waiting])
    return {choice.container: choice for choice in made}


def releasable(
    services: Sequence[Service],
    replicas: Iterable[Replica],
    pool: Pool,
    leaving: Sequence[str],
    *,
    now_s: float = 0.0,
    start_s: float = 0.0,
) -> tuple[list[str], str]:
    """Which of these hosts can go, and why others cannot.

    What is no longer wanted goes with its host, the rest must fit on hosts that stay, and moving it must
    cost less than the host would until one is launched again. ``start_s``: how long a replica takes to
    start, while both its hosts are paid for.
    """
    hosts = standing(services, replicas, pool)
    for service in services:
        here = [p for p in hosts.containers.values() if p.ask.service == service.id and p.counts]
        over = max(0, len(here) - service.wanted())
        doomed = [p for p in here if hosts.facts[p.host].id in leaving]
        for placed in (doomed + [p for p in here if p not in doomed])[:over]:
            hosts.take(placed.id)
    for name in leaving:
        for placed in [p for p in hosts.on[hosts.row(name)].values() if not p.counts]:
            hosts.take(placed.id)  # drained already
    worth = Worth(move_hours=start_s / 3600.0)
    found = release(hosts, len(leaving), among=leaving, now_s=now_s, worth=worth)
    gone = {one.host for one in found.hosts}
    why = "; ".join(f"{one.host} stays: {one.reason}" for one in found.kept[:3])
    return [name for name in leaving if name in gone], why


def missing(services: Sequence[Service], replicas: Iterable[Replica], pool: Pool) -> int:
    """How many more hosts it takes until there is room for every replica that waits, on booting ones too.

    Where a new host will stand is not for services to say: rules of zones, regions and pools ask for none.
    """
    live = list(replicas)
    waiting: list[Replica] = []
    hosts = standing(services, live, pool, booting=True)
    for service in services:
        mine = [r for r in live if r.service_id == service.id]
        there = sum(hosts.tally(service.id).hosts.values())
        updating = any(r.revision != service.revision for r in mine)
        surge = service.wish.rollout.max_surge if updating else 0
        # What only fills slots that are free anyway is no reason for another host.
        short = service.wanted(only_needed=True) + surge - there
        waiting += [r for r in mine if r.state is R.WANTED][: max(0, short)]
    asks = [_anywhere(ask) for ask in _asks(services, waiting)]
    return sum(grow(asks, hosts, [Kind(facts=_template(pool))]).launch.values())


def _anywhere(ask: Ask) -> Ask:
    return msgspec.structs.replace(
        ask,
        spread=tuple(r for r in ask.spread if r.by is By.HOST),
        affinity=tuple(r for r in ask.affinity if r.by is By.HOST and r.apart),
        regions=(),
        zones=(),
        pools=(),
        min_survival=0.0,
    )


def room(
    service: Service,
    services: Sequence[Service],
    replicas: Iterable[Replica],
    pool: Pool,
    count: int,
) -> int:
    """How many of ``count`` replicas of a service have a place or find one now, on booting hosts too."""
    hosts = standing(services, replicas, pool, booting=True)
    there = sum(hosts.tally(service.id).hosts.values())
    ask = ask_of(service, service.revision, services)
    more = place_many([ask] * max(0, count - there), hosts)
    return there + sum(choice.host is not None for choice in more)


def slots(services: Sequence[Service], pool: Pool) -> int:
    """Replicas a host really takes: fewer than its slots where they are large."""
    specs = [s.current.spec for s in services if s.wanted() > 0]
    limits = ((pool.vcpus, "vcpus"), (pool.memory_mib, "memory_mib"), (pool.gpus, "gpus"))
    largest = {name: max((getattr(s, name) for s in specs), default=0.0) for _, name in limits}
    if all(not pool.vcpus or pool.slots * largest[name] <= have for have, name in limits):
        return pool.slots
    asks = [ask_of(s, s.revision) for s in services for _ in range(max(0, s.wanted()))]
    found = grow([_anywhere(ask) for ask in asks], Hosts(), [Kind(facts=_template(pool))])
    placed = len(asks) - len(found.unplaced)
    count = sum(found.launch.values())
    return max(1, min(pool.slots, placed // count)) if count else pool.slots


def standing(
    services: Sequence[Service],
    replicas: Iterable[Replica],
    pool: Pool,
    *,
    booting: bool = False,
) -> Hosts:
    """The hosts of a group with what is on them; with ``booting``, those that come take replicas too."""
    known = {s.id: s for s in services}
    asks: dict[tuple[str, int], Ask] = {}
    listed = {h.host_id or h.member_id: h for h in pool.hosts}
    hosts = Hosts(_facts(h, pool, booting) for name, h in listed.items() if name)
    for replica in replicas:
        service = known.get(replica.service_id)
        row = hosts.index.get(replica.host_id)
        if service is None or row is None:
            continue
        key = (service.id, replica.revision)
        if key not in asks:
            asks[key] = ask_of(service, replica.revision, known.values())
        stays = replica.state is not R.DRAINING and not hosts.facts[row].why_not
        since_s = replica.placed_s or replica.created_s
        hosts.put(asks[key], row, replica.id, since_s=since_s, counts=stays)
    return hosts


def ask_of(service: Service, revision: int, services: Iterable[Service] = ()) -> Ask:
    """One replica of a revision. Companions are named by their service's name, and counted by its id."""
    spec = (service.numbered(revision) or service.current).spec
    where = service.wish.where
    ids = {s.name: s.id for s in services}
    return Ask(
        service=service.id,
        peers=f"{service.id} revision {revision}",
        vcpus=spec.vcpus,
        memory_mib=spec.memory_mib,
        gpus=spec.gpus,
        wanted=max(1, service.wanted()),
        spread=where.spread or SPREAD,
        affinity=tuple(
            Affinity(
                service=ids.get(rule.service, rule.service),
                by=rule.by,
                apart=rule.apart,
                strict=rule.strict,
            )
            for rule in where.affinity
        ),
        regions=where.regions,
        zones=where.zones,
        pools=where.pools,
        min_survival=where.min_survival,
        loss=where.loss,
    )


def _asks(services: Sequence[Service], waiting: Sequence[Replica]) -> list[Ask]:
    known = {s.id: s for s in services}
    made: dict[tuple[str, int], Ask] = {}
    for replica in waiting:
        key = (replica.service_id, replica.revision)
        if key not in made:
            made[key] = ask_of(known[replica.service_id], replica.revision, services)
    return [made[r.service_id, r.revision] for r in waiting]


def _facts(host: GroupHost, pool: Pool, booting: bool) -> HostFacts:
    offer, ready = host.offer, host.state is HostState.READY and host.connected
    leaves = host.state in (HostState.NOTICED, HostState.DRAINING)
    comes = booting and host.state is HostState.BOOTING
    has = _template(pool)
    if offer is not None:
        size = offer.resources
        has = msgspec.structs.replace(
            has,
            vcpus=size.vcpus,
            memory_mib=size.memory_gib * 1024,
            gpus=int(size.gpus),
            provider=offer.provider,
            region=offer.region,
            zone=offer.zone or offer.region,
            pool=offer.key,
            price_usd_hour=offer.price_usd_hour,
        )
    return msgspec.structs.replace(
        has,
        id=host.host_id or host.member_id,
        slots=host.slots,
        takes=ready or comes,
        why_not=(host.reason or str(host.state)) if leaves else "",
        survival=host.survival,
        launched_s=host.created_s,
        protected=host.protection is not Protection.NONE,
    )


def _template(pool: Pool) -> HostFacts:
    """A host of the group as it comes; what the group does not say is no bound."""
    return HostFacts(
        id="new",
        vcpus=pool.vcpus or float("inf"),
        memory_mib=pool.memory_mib or float("inf"),
        gpus=int(pool.gpus),
        slots=pool.slots,
        group=pool.id,
    )


def told(choices: Mapping[str, Choice]) -> dict[str, str]:
    """Why each of those without a host waits, by replica id."""
    return {id_: c.reason for id_, c in choices.items() if c.host is None}
