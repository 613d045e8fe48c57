"""The loop of services, one key per service, and one key per host that is told its whole set.

Read, observe, plan, act; may be cancelled at any await. What is decided is durable before anybody is told;
edges know of a drained replica before its host does, and of a new one after its host says that it is ready.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from roost.fleet.groups.model import HostUse
from roost.gateway.model import HostMember
from roost.gateway.service_routes import ServiceRoutes
from roost.kit.ids import Ids
from roost.placement.model import Choice
from roost.ports.clock import Clock
from roost.ports.errors import Gone, Invalid, Retry, RoostError, StaleEpoch
from roost.ports.link import Links
from roost.ports.replicas import Executed, HostReplicas, ReplicaOrder, ReplicaReport, Replicas
from roost.ports.store import Row, Store, Stored, StoryLine
from roost.ports.values import HostReport
from roost.services import machine, rollout
from roost.services.ledger import Ledger
from roost.services.model import Pool, Pools, Replica, ReplicaState, Service, ServiceState
from roost.services.placing import assign, told
from roost.services.service import ServiceService

WATCH_S = 1.0
URGENT_S = 0.2
"""While something is on its way."""
TELL_AGAIN_S = 1.0
LOGS_MOST = 512 << 10
"""Bytes of logs in one answer."""
EXECUTE_S = 600.0
"""The longest command beside a replica."""
R = ReplicaState


class ServiceController:
    """Keeps every service at its wanted replicas, and its route at those that serve."""

    def __init__(
        self,
        service: ServiceService,
        ledger: Ledger,
        pools: Pools,
        store: Store,
        clock: Clock,
        ids: Ids,
        links: Links,
        replicas: Replicas,
        routes: ServiceRoutes,
        wake_host: Callable[[str], None],
        short: Callable[[str], None],
    ) -> None:
        """``wake_host`` has a host told its set; ``short`` says that a group has no room for a replica."""
        self._service = service
        self._ledger = ledger
        self._pools = pools
        self._store = store
        self._clock = clock
        self._ids = ids
        self._links = links
        self._replicas = replicas
        self._routes = routes
        self._wake_host = wake_host
        self._short = short
        self._began_s = clock.now_s() - clock.monotonic_s()
        self._placing = asyncio.Lock()
        self._silent_since: dict[str, float] = {}
        self._pointed: dict[str, object] = {}
        self._told: dict[str, HostReplicas] = {}
        self._waits: dict[str, str] = {}
        """Why replicas have no host yet, by their id."""

    # --- keys --------------------------------------------------------------------------------------

    async def keys(self) -> list[str]:
        """All services that still need looking after."""
        return [service.id for service in await self._service.list_all()]

    async def host_keys(self) -> list[str]:
        """Hosts that have or were told of replicas."""
        await self._ledger.load()
        return sorted({*self._ledger.hosts(), *self._told})

    def concerned(self, host_id: str) -> list[str]:
        """Services that look again when something changes on a host."""
        return sorted({replica.service_id for replica in self._ledger.on(host_id)})

    async def uses(self, host_ids: Sequence[str]) -> Mapping[str, HostUse]:
        """What stands on hosts, for their groups."""
        await self._ledger.load()
        return {h: HostUse(slots_used=self._ledger.used(h)) for h in host_ids}

    # --- one service -------------------------------------------------------------------------------

    async def handle(self, service_id: str) -> float | None:
        """One round for a service; returns the seconds until the next look, None when it needs none."""
        await self._ledger.load()
        stored = await self._service.table.get(service_id)
        if stored is None or stored.value.deleted:
            self._pointed.pop(service_id, None)
            await self._routes.remove(service_id)
            return None
        pool = await self._pool(stored.value)
        snapshot = self._snapshot(stored.value, pool)
        if await self._observe(snapshot):
            return 0.0
        instructions = rollout.plan(snapshot)
        if instructions:
            await self._act(stored, instructions)
            stored = await self._service.table.get(service_id)
            assert stored is not None, "services are never deleted from the store"
        await self._place(stored.value, pool)
        await self._point(stored.value, pool)
        for host_id in self._touched(snapshot, service_id):
            self._wake_host(host_id)
        if instructions:
            return 0.0
        return self._patience(stored.value)

    async def _pool(self, service: Service) -> Pool:
        try:
            return await self._pools.pool(service.wish.group)
        except Gone:
            return Pool(id=service.wish.group, message=f"there is no group {service.wish.group}")

    def _snapshot(self, service: Service, pool: Pool) -> rollout.Snapshot:
        hosts = {host.host_id: host for host in pool.hosts if host.host_id}
        reports = self._links.reports()
        replicas = self._ledger.of(service.id)
        facts = tuple(
            rollout.Facts(
                replica=replica,
                report=_of(reports.get(replica.host_id), replica.id),
                host=hosts.get(replica.host_id),
                silent_s=self._silent_s(replica.host_id),
                waits=self._waits.get(replica.id, "") if replica.state is R.WANTED else "",
            )
            for replica in replicas
        )
        return rollout.Snapshot(
            service=service, replicas=facts, now_s=self._now_s(), wall_s=self._clock.now_s()
        )

    def _now_s(self) -> float:
        """The clock as it was at the start, and steady since."""
        return self._began_s + self._clock.monotonic_s()

    def _silent_s(self, host_id: str) -> float:
        if not host_id or self._links.connected(host_id):
            self._silent_since.pop(host_id, None)
            return 0.0
        now_s = self._clock.monotonic_s()
        return now_s - self._silent_since.setdefault(host_id, now_s)

    async def _observe(self, snapshot: rollout.Snapshot) -> bool:
        """Fold what hosts report into the replicas; whether anything is different."""
        changed, lines = [], []
        for facts in snapshot.replicas:
            if facts.report is None:
                continue
            new = machine.observe(facts.replica, facts.report, snapshot.now_s)
            if new != facts.replica:
                changed.append(new)
                lines.append(self._seen(new, facts.report))
        if changed:
            await self._ledger.commit(changed, [], lines)
        return bool(changed)

    def _seen(self, replica: Replica, report: ReplicaReport) -> StoryLine:
        event = f"Replica{str(replica.state).capitalize()}"
        after_s = self._now_s() - (replica.placed_s or replica.created_s)
        said = f": {report.detail}" if report.detail else f" after {after_s:.1f} s"
        return self._line(replica.service_id, event, f"{replica.id} on {replica.host_id}{said}")

    # --- act ---------------------------------------------------------------------------------------

    async def _act(
        self, stored: Stored[Service], instructions: Sequence[rollout.Instruction]
    ) -> None:
        """Everything of one round in one commit."""
        service, now_s = stored.value, self._now_s()
        replicas: list[Replica] = []
        lines: list[StoryLine] = []
        for instruction in instructions:
            match instruction:
                case rollout.Add(count=count, reason=reason):
                    replicas += self._new(service, count, reason)
                    event, why = "ReplicasWanted", f"{count} of {service.revision}: {reason}"
                case rollout.Drain(replica_id=id_, reason=reason):
                    replicas.append(machine.drain(self._known(id_), now_s))
                    event, why = "ReplicaDraining", f"{id_}: {reason}"
                case rollout.Remove(replica_id=id_, reason=reason):
                    replicas.append(machine.remove(self._known(id_), reason, now_s))
                    event, why = "ReplicaEnded", f"{id_}: {reason}"
                case _:
                    service, event, why = self._judged(service, instruction, now_s)
            lines.append(self._line(service.id, event, why))
        rows: list[Row] = []
        if service != stored.value:
            rows.append(self._service.table.row(service, stored))
        await self._ledger.commit(replicas, rows, lines)

    def _judged(
        self, service: Service, instruction: rollout.Instruction, now_s: float
    ) -> tuple[Service, str, str]:
        match instruction:
            case rollout.Proven():
                new = machine.proven(service)
                return new, "Serving", f"revision {new.revision}"
            case rollout.Failed(reason=reason):
                new = machine.failed(service, reason, now_s)
                event = "RolledBack" if new.state is ServiceState.ROLLING_BACK else "Failing"
                return new, event, new.message
            case _:
                return machine.end(service, now_s), "Deleted", "its last replica has ended"

    def _new(self, service: Service, count: int, reason: str) -> list[Replica]:
        now_s = self._now_s()
        return [
            Replica(
                id=self._ids.new("r"),
                service_id=service.id,
                revision=service.revision,
                state=R.WANTED,
                reason=reason,
                created_s=now_s,
                tenant=service.tenant,
            )
            for _ in range(count)
        ]

    def _known(self, replica_id: str) -> Replica:
        found = self._ledger.get(replica_id)
        assert found is not None, "the plan names replicas of its snapshot"
        return found

    async def _place(self, service: Service, pool: Pool) -> None:
        """Give replicas without a host one; say so where there is no room."""
        if not any(r.state is R.WANTED for r in self._ledger.of(service.id)):
            return
        async with self._placing:
            waiting = [r for r in self._ledger.of(service.id) if r.state is R.WANTED]
            found = await self._choose(service, waiting, pool)
            now_s = self._now_s()
            placed = [
                machine.place(r, choice.host, now_s, choice.reason)
                for r in waiting
                if (choice := found[r.id]).host is not None
            ]
            lines = [
                self._line(
                    service.id, "ReplicaPlaced", f"{r.id} on {r.host_id}: {r.reason}; {r.where}"
                )
                for r in placed
            ]
            self._waits = {k: v for k, v in self._waits.items() if self._ledger.get(k)}
            self._waits |= told(found)
            if placed:
                await self._ledger.commit(placed, [], lines)
        if len(placed) < len(waiting):
            self._short(service.wish.group)

    async def _choose(
        self, service: Service, waiting: Sequence[Replica], pool: Pool
    ) -> Mapping[str, Choice]:
        """Where each would go; what other services have on the same hosts is in the way."""
        everyone = await self._service.list_all()
        known = {s.id for s in everyone}
        services = [*everyone, *([service] if service.id not in known else [])]
        standing = [r for h in pool.hosts if h.host_id for r in self._ledger.on(h.host_id)]
        return assign(services, [*standing, *waiting], pool)

    async def _point(self, service: Service, pool: Pool) -> None:
        """Send requests to the hosts that serve; with none, hold them."""
        wish = service.wish
        members = self._members(service)
        key = (service.name, members, wish.endpoint, wish.goal.bound_s)
        if self._pointed.get(service.id) == key:
            return
        await self._routes.point(
            service.id,
            members,
            name=service.name,
            strip=wish.endpoint.strip,
            hosts=wish.endpoint.hosts,
            hold_s=wish.endpoint.hold_s,
            bound_s=wish.goal.bound_s,
        )
        self._pointed[service.id] = key

    def _members(self, service: Service) -> tuple[HostMember, ...]:
        ready: dict[str, int] = {}
        for replica in self._ledger.of(service.id):
            if replica.state in (R.READY, R.DRAINING):
                serves = 1 if replica.state is R.READY else 0
                ready[replica.host_id] = ready.get(replica.host_id, 0) + serves
        return tuple(
            HostMember(host_id=host_id, draining=count == 0)
            for host_id, count in sorted(ready.items())
        )

    def _touched(self, before: rollout.Snapshot, service_id: str) -> set[str]:
        """Hosts whose replicas of this service are others than before."""
        old = {(f.replica.host_id, f.replica.id, f.replica.state) for f in before.replicas}
        new = {(r.host_id, r.id, r.state) for r in self._ledger.of(service_id)}
        return {host_id for host_id, _, _ in old ^ new if host_id}

    def _patience(self, service: Service) -> float:
        moving = service.state is not ServiceState.RUNNING or any(
            r.state is not R.READY for r in self._ledger.of(service.id)
        )
        return URGENT_S if moving else WATCH_S

    # --- one host ----------------------------------------------------------------------------------

    async def handle_host(self, host_id: str) -> float | None:
        """Tell a host its whole set, when it is another than it has."""
        await self._ledger.load()
        report = self._links.reports().get(host_id)
        if report is None:
            return None  # it is told when it is there
        orders = await self._orders(host_id)
        told = self._told.get(host_id)
        seen = report.replicas_generation
        if told is not None and told.replicas == orders and seen >= told.generation:
            if not orders:
                del self._told[host_id]
            return None
        if told is None and seen == 0 and not orders:
            return None
        newest = max(seen, told.generation if told is not None else 0)
        if told is None or told.replicas != orders:
            told = HostReplicas(generation=newest + 1, replicas=orders)
            self._told[host_id] = told
        try:
            await self._replicas.set(host_id, told)
        except StaleEpoch:  # it has seen more than its last report says: a new number next time
            self._told.pop(host_id, None)
            return TELL_AGAIN_S
        except Retry as error:
            return error.after_s
        except RoostError:
            return TELL_AGAIN_S
        return TELL_AGAIN_S

    async def _orders(self, host_id: str) -> tuple[ReplicaOrder, ...]:
        orders = []
        for replica in self._ledger.on(host_id):
            stored = await self._service.table.get(replica.service_id)
            revision = stored.value.numbered(replica.revision) if stored is not None else None
            if revision is not None:
                orders.append(
                    ReplicaOrder(
                        replica_id=replica.id,
                        service_id=replica.service_id,
                        revision=replica.revision,
                        spec=revision.spec,
                        draining=replica.state is R.DRAINING,
                    )
                )
        return tuple(orders)

    # --- what doors ask ------------------------------------------------------------------------------

    async def facts(self, service: Service) -> list[rollout.Facts]:
        """The service's replicas with what is known of them now."""
        await self._ledger.load()
        return list(self._snapshot(service, await self._pool(service)).replicas)

    async def logs(self, service: Service, replica_id: str, tail_bytes: int) -> tuple[str, str]:
        """(replica id, its newest output): of one replica, or of the newest that has a host."""
        await self._ledger.load()
        mine = [r for r in self._ledger.of(service.id) if r.host_id]
        chosen = [r for r in mine if not replica_id or r.id == replica_id]
        if not chosen:
            what = replica_id or "any replica"
            raise Gone(
                f"service {service.name} has no logs of {what}",
                hint="`roost service show` lists its replicas",
            )
        if not 0 < tail_bytes <= LOGS_MOST:
            raise Invalid(f"logs are read up to {LOGS_MOST >> 10} KiB at once")
        replica = chosen[-1]
        text = await self._replicas.logs(replica.host_id, replica.id, tail_bytes=tail_bytes)
        return replica.id, text

    async def execute(
        self, service: Service, replica_id: str, argv: tuple[str, ...], timeout_s: float
    ) -> tuple[str, Executed]:
        """Run a command beside a replica, or beside the newest that is ready."""
        await self._ledger.load()
        mine = self._ledger.of(service.id)
        chosen = [r for r in mine if (r.id == replica_id if replica_id else r.state is R.READY)]
        if not chosen or not chosen[-1].host_id:
            raise Gone(
                f"service {service.name} has no replica {replica_id or 'that is ready'}",
                hint="`roost service show` lists its replicas",
            )
        if not argv or not 0 < timeout_s <= EXECUTE_S:
            raise Invalid(f"a command, and up to {EXECUTE_S:g} s for it, are needed")
        one = chosen[-1]
        done = await self._replicas.execute(one.host_id, one.id, argv, timeout_s=timeout_s)
        return one.id, done

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)


def _of(report: HostReport | None, replica_id: str) -> ReplicaReport | None:
    if report is None:
        return None
    return next((r for r in report.replicas if r.replica_id == replica_id), None)
