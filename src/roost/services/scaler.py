"""The loop that scales: every period an observation of all services and groups, one decision, its numbers.

The one writer of a service's planned replicas and of what services want of a group. ``plan.decide`` decides;
this file only gathers what it sees and carries out what it says. It never starts a replica.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from roost.fleet.groups.model import HostState, Protection
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Gone, RoostError
from roost.ports.link import Links
from roost.ports.replicas import ReplicaReport
from roost.ports.store import Row, Store, Stored, Table
from roost.ports.values import HostReport
from roost.services import observation as seen
from roost.services import placing
from roost.services.ledger import Ledger
from roost.services.model import Pool, Pools, Replica, ReplicaState, Service, ServiceState, Where
from roost.services.observe import History
from roost.services.service import ServiceService

log = logging.getLogger(__name__)

PERIOD_S = 10.0
LOOK_S = 1.0
"""Between looks at the hosts' reports."""
BOOTS_KEPT = 50
AT_ONCE = 50
OLD_PERIODS = 3
"""A metric that somebody sends is unknown once its last value is older than so many periods."""
R = ReplicaState
ANYWHERE = Where()
Decide = Callable[[seen.Observation], seen.Plan]
PHASES = {
    HostState.BOOTING: seen.HostPhase.BOOTING,
    HostState.READY: seen.HostPhase.READY,
    HostState.NOTICED: seen.HostPhase.NOTICED,
    HostState.DRAINING: seen.HostPhase.DRAINING,
}


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """The record of the last decision on a service or group, as ``decide`` wants it back."""

    id: str
    memory: bytes


class _Now:
    """What all services of one round are looked at with."""

    def __init__(
        self, now_s: float, memories: Mapping[str, bytes], reports: Iterable[HostReport]
    ) -> None:
        self.s = now_s
        self.memories = memories
        self.replicas: dict[str, ReplicaReport] = {}
        self.inside: dict[str, int] = {}
        """Requests inside replicas, by service."""
        self.waiting: dict[str, int] = {}
        """Requests that wait at hosts' balancers, by service."""
        for report in reports:
            for replica in report.replicas:
                self.replicas[replica.replica_id] = replica
            for one in report.services:
                id_ = one.service_id
                self.inside[id_] = self.inside.get(id_, 0) + one.in_flight
                self.waiting[id_] = self.waiting.get(id_, 0) + one.queued


class Scaler:
    """Decides, every period."""

    def __init__(
        self,
        service: ServiceService,
        ledger: Ledger,
        pools: Pools,
        store: Store,
        clock: Clock,
        links: Links,
        decide: Decide,
        *,
        period_s: float = PERIOD_S,
    ) -> None:
        self.history = History()
        self.warnings: dict[str, tuple[str, ...]] = {}
        self._service = service
        self._ledger = ledger
        self._pools = pools
        self._store = store
        self._clock = clock
        self._links = links
        self._decide = decide
        self._period_s = period_s
        self._memories = Table(store, "scaling", Remembered)
        self._remembered: dict[str, Stored[Remembered]] | None = None
        self._boots: dict[str, dict[str, float]] = {}
        self._counted: dict[str, float] = {}
        self._hosts: dict[str, int] = {}
        """What the last decision said per group."""
        self._short: set[str] = set()
        self._urged = asyncio.Event()

    # --- events ------------------------------------------------------------------------------------

    def short(self, group: str) -> None:
        """A replica found no room in a group."""
        self._short.add(group)
        self._urged.set()

    async def awaited(self, service_id: str) -> None:
        """Requests wait at the edge for a service: one replica at least, without waiting for a period."""
        stored = await self._service.table.get(service_id)
        if stored is None or stored.value.deleted:
            return
        service = stored.value
        if service.wanted() == 0 and service.person is None:
            await self._service.planned(service_id, 1, 1, "a request waits at the edge")

    def tell(self, service_id: str, values: Mapping[str, float]) -> None:
        """Metrics of the owner's own."""
        for name, value in values.items():
            self.history.tell(service_id, name, value, self._clock.now_s())

    # --- the loop ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look each second, decide each period, until cancelled."""
        due_s = self._clock.monotonic_s()
        while True:
            try:
                self.look()
                if self._clock.monotonic_s() >= due_s:
                    due_s = self._clock.monotonic_s() + self._period_s
                    await self.round()
                elif self._short:
                    await self._grow()
            except RoostError as error:  # the next round sees the same again
                log.warning("scaling: %s", error)
            except Exception:  # a defect in one decision must not end all scaling
                log.exception("scaling")
            self._urged.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._urged.wait()

    def look(self) -> None:
        """Take the newest reports of hosts."""
        self.history.hosts(list(self._links.reports().values()))

    async def round(self) -> seen.Plan:
        """One decision, carried out."""
        await self._ledger.load()
        services = [
            s for s in await self._service.list_all() if s.state is not ServiceState.DELETING
        ]
        self.history.forget(s.id for s in services)
        pools = await self._all_pools(services)
        memories = await self._all_memories()
        now_s = self._clock.now_s()
        now = _Now(now_s, memories, self._links.reports().values())
        states = []
        for service in services:
            states.append(self._state(service, now))
            if len(states) % AT_ONCE == 0:
                await asyncio.sleep(0)  # a thousand services must not keep a notice waiting
        observation = seen.Observation(
            now_s=now_s,
            period_s=self._period_s,
            services=tuple(states),
            groups=tuple(self._group(p, services, now_s, memories) for p in pools.values()),
        )
        plan = await asyncio.to_thread(self._decide, observation)
        await self._remember(plan)
        for service in services:
            await self._apply(service, plan.services.get(service.id), pools, services)
        for group, decided in plan.groups.items():
            self._hosts[group] = decided.hosts
            await self._want(pools[group], decided.reason, decided.release)
        return plan

    async def _apply(
        self,
        service: Service,
        decided: seen.ServicePlan | None,
        pools: Mapping[str, Pool],
        services: Sequence[Service],
    ) -> None:
        if decided is None:
            return
        self.warnings[service.id] = decided.warnings
        replicas, pool = decided.replicas, pools.get(service.wish.group)
        if replicas > decided.needed and service.wish.where != ANYWHERE and pool is not None:
            # Its rules may keep it off slots that are free: what only fills them is not waited for.
            there = [r for s in services for r in self._ledger.of(s.id)]
            room = placing.room(service, services, there, pool, replicas)
            replicas = max(decided.needed, room)
        with contextlib.suppress(Gone, Conflict):  # deleted meanwhile, or the next period will do
            await self._service.planned(service.id, replicas, decided.needed, decided.reason)

    async def _grow(self) -> None:
        """More hosts for replicas that found no room, between two decisions."""
        groups, self._short = self._short, set()
        for group in sorted(groups):
            with contextlib.suppress(Gone):
                await self._want(await self._pools.pool(group), "replicas wait for a place", ())

    async def _want(self, pool: Pool, reason: str, release: Sequence[str]) -> None:
        """Hosts for a group: as decided, and never fewer than its replicas need right now."""
        stay = [h for h in pool.hosts if h.state in (HostState.BOOTING, HostState.READY)]
        decided = self._hosts.get(pool.id, len(stay))
        services = [s for s in await self._service.list_all() if s.wish.group == pool.id]
        replicas = [r for s in services for r in self._ledger.of(s.id)]
        waiting = _count(replicas, R.WANTED)
        least = len(stay) + placing.missing(services, replicas, pool) if waiting else 0
        hosts = max(pool.min, min(pool.max, max(decided, least)))
        if least > decided:
            reason = f"{reason}; {waiting} replicas wait for a place, {least} hosts hold all"
        movable = {h.host_id for h in stay if h.protection is Protection.NONE}
        leaving = [host_id for host_id in release if host_id in movable]
        leaving = leaving[: max(0, len(stay) - hosts)]
        if leaving:
            starts = [self._starts_s(s.id)[1] for s in services]
            leaving, why = placing.releasable(
                services, replicas, pool, leaving,
                now_s=self._clock.now_s(), start_s=max(starts, default=0.0),
            )  # fmt: skip
            hosts = max(hosts, len(stay) - len(leaving))
            reason = f"{reason}; {why}" if why else reason
        await self._pools.want(pool.id, hosts, reason, leaving)

    # --- what is seen --------------------------------------------------------------------------------

    async def _all_pools(self, services: Sequence[Service]) -> dict[str, Pool]:
        pools: dict[str, Pool] = {}
        for group in sorted({*(s.wish.group for s in services), *self._hosts}):
            with contextlib.suppress(Gone):
                pools[group] = await self._pools.pool(group)
        return pools

    def _state(self, service: Service, now: _Now) -> seen.ServiceState:
        history, wish, id_, now_s = self.history, service.wish, service.id, now.s
        replicas = self._ledger.of(id_)
        self._note_starts(replicas)
        mean, cv = history.service_time(id_, now_s) or (wish.goal.service_s, 1.0)
        start_p50_s, start_p95_s = self._starts_s(id_)
        late, total = history.lateness(id_, now_s)
        period_s = max(1, round(self._period_s))
        return seen.ServiceState(
            id=id_,
            group=wish.group,
            min=wish.min,
            max=wish.max,
            person_desired=service.person,
            objective=seen.Objective(bound_s=wish.goal.bound_s, late=wish.goal.late),
            policies=wish.policies,
            minutes=history.minutes(id_, now_s),
            recent=history.recent(id_, now_s, period_s),
            recent_s=float(period_s),
            in_flight=now.inside.get(id_, 0),
            queued=now.waiting.get(id_, 0) + history.held(id_, now_s)[1],
            service_mean_s=mean,
            service_cv=cv,
            concurrency=wish.spec.concurrency or 1,
            ready=_count(replicas, R.READY),
            starting=_count(replicas, R.WANTED, R.STARTING, R.FAILING),
            draining=_count(replicas, R.DRAINING),
            failing=service.state is ServiceState.FAILING,
            start_p50_s=start_p50_s,
            start_p95_s=start_p95_s,
            late=late,
            total=total,
            metrics=self._metrics(service, replicas, now),
            memory=now.memories.get(id_),
        )

    def _starts_s(self, service_id: str) -> tuple[float, float]:
        """Median and 95th percentile of the seconds from a host to ready; usual ones before any was seen."""
        return self.history.starts_s(service_id) or (5.0, 20.0)

    def _metrics(
        self, service: Service, replicas: Sequence[Replica], now: _Now
    ) -> Mapping[str, seen.Floats]:
        """Measures per ready replica; what nobody reported is left out of its mean, or NaN."""
        ready = [
            now.replicas[r.id] for r in replicas if r.state is R.READY and r.id in now.replicas
        ]
        cpu = [r.cpu_percent / service.wish.spec.vcpus for r in ready if r.cpu_percent is not None]
        latency_s, waited_s = self.history.latency_s(service.id, now.s)
        # With those that wait: what replicas serve at once is bounded, and would hide an overload.
        waiting = now.waiting.get(service.id, 0) + self.history.held(service.id, now.s)[1]
        values = {
            "cpu": _mean(cpu),
            "in_flight": _mean([float(r.in_flight) for r in ready]) + waiting / max(1, len(ready)),
            "latency_s": latency_s,
            "queue_age_s": waited_s,
            **self.history.told(service.id, now.s, OLD_PERIODS * self._period_s),
        }
        for name, value in values.items():
            self.history.metric(service.id, name, value)
        return self.history.metrics(service.id)

    def _note_starts(self, replicas: Sequence[Replica]) -> None:
        for replica in replicas:
            if replica.first_ready_s is not None and replica.id not in self._counted:
                self._counted[replica.id] = replica.first_ready_s
                begun_s = replica.placed_s or replica.created_s
                self.history.started(replica.service_id, replica.first_ready_s - begun_s)
        if len(self._counted) > 20_000:
            self._counted = {k: v for k, v in self._counted.items() if self._ledger.get(k)}

    def _group(
        self,
        pool: Pool,
        services: Sequence[Service],
        now_s: float,
        memories: Mapping[str, bytes],
    ) -> seen.GroupState:
        boots = self._boots.setdefault(pool.id, {})
        for host in pool.hosts:
            if host.ready_s is not None and host.host_id:
                boots[host.host_id] = max(0.0, host.ready_s - host.created_s)
        for old in list(boots)[:-BOOTS_KEPT]:
            del boots[old]
        ordered = sorted(boots.values())
        known = len(ordered) >= 1
        return seen.GroupState(
            id=pool.id,
            slots=placing.slots([s for s in services if s.wish.group == pool.id], pool),
            hosts=tuple(
                seen.HostState(
                    id=host.host_id or host.member_id,
                    phase=PHASES[host.state],
                    used=self._ledger.used(host.host_id) if host.host_id else 0,
                    age_s=max(0.0, now_s - host.created_s),
                    survival=host.survival,
                    price_usd_hour=host.offer.price_usd_hour if host.offer else 0.0,
                )
                for host in pool.hosts
            ),
            min=pool.min,
            max=pool.max,
            person_desired=pool.person,
            boot_p50_s=ordered[len(ordered) // 2] if known else 105.0,
            boot_p95_s=ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] if known else 180.0,
            memory=memories.get(f"group/{pool.id}"),
        )

    # --- memory of decisions -----------------------------------------------------------------------

    async def _all_memories(self) -> Mapping[str, bytes]:
        if self._remembered is None:
            self._remembered = {s.value.id: s for s in await self._memories.find()}
        return {id_: stored.value.memory for id_, stored in self._remembered.items()}

    async def _remember(self, plan: seen.Plan) -> None:
        """Durable before it is acted on: after a restart decisions go on where they were."""
        assert self._remembered is not None, "memories are read before a decision"
        new = {id_: p.memory for id_, p in plan.services.items()}
        new |= {f"group/{id_}": p.memory for id_, p in plan.groups.items()}
        rows: list[Row] = []
        values: list[Remembered] = []
        for id_, memory in new.items():
            stored = self._remembered.get(id_)
            if stored is None or stored.value.memory != memory:
                values.append(Remembered(id=id_, memory=memory))
                rows.append(self._memories.row(values[-1], stored))
        if not rows:
            return
        try:
            await self._store.commit(rows)
        except Conflict:
            self._remembered = None
            raise
        for value, row in zip(values, rows, strict=True):
            written = msgspec.structs.replace(row, version=row.version + 1)
            self._remembered[value.id] = Stored(value, written)


def _count(replicas: Sequence[Replica], *states: ReplicaState) -> int:
    return sum(1 for r in replicas if r.state in states)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
