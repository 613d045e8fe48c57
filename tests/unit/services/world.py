"""Hosts, a link and groups in memory around the real room ``services``, and a clock moved by hand."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import msgspec

from roost.adapters.store.sqlite.store import open_store
from roost.fleet.groups.model import GroupHost, HostState
from roost.gateway.service import GatewayService
from roost.gateway.service_routes import ServiceRoutes
from roost.kit.ids import SeededIds
from roost.ports.blobs import Blobs
from roost.ports.errors import Gone, Retry, StaleEpoch
from roost.ports.replicas import Executed, HostReplicas, ReplicaOrder, ReplicaReport, ReplicaSpec
from roost.ports.values import HostReport
from roost.ports.wire import CommandBody, EventBody, ReplyBody
from roost.services.controller import ServiceController
from roost.services.ledger import Ledger
from roost.services.model import Pool, Replica, Rollout, Service, Wish
from roost.services.observation import GroupPlan, Observation, Plan, ServicePlan
from roost.services.scaler import Scaler
from roost.services.service import ServiceService

STEP_S = 0.5
START_S = 1.5
"""From an order to ready."""


def decide(observation: Observation) -> Plan:
    """As many as the minimum or as a person says, and one spare: what is tested is what follows."""
    services = {}
    for s in observation.services:
        needed = max(s.min, min(s.max, s.person_desired or s.min))
        replicas = min(s.max, needed + 1)
        services[s.id] = ServicePlan(replicas=replicas, needed=needed, reason="test", memory=b"m")
    groups = {}
    for g in observation.groups:
        slots = sum(services[s.id].needed for s in observation.services if s.group == g.id)
        hosts = max(g.min, min(g.max, -(-slots // g.slots)))
        have = [h for h in g.hosts if h.phase in STAYING]
        leave = tuple(h.id for h in sorted(have, key=lambda h: (h.used, h.id)))
        release = leave[: max(0, len(have) - hosts)]
        groups[g.id] = GroupPlan(hosts=hosts, release=release, reason="test", memory=b"m")
    return Plan(services=services, groups=groups)


class HandClock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.at_s = 1_700_000_000.0
        self.jumped_s = 0.0
        """How far somebody has put the wall clock off."""

    def now_s(self) -> float:
        return self.at_s + self.jumped_s

    def monotonic_s(self) -> float:
        return self.at_s - 1_699_000_000.0


class SimHost:
    """A host that starts what it is told, as an agent does."""

    def __init__(self, host: GroupHost) -> None:
        self.host = host
        self.alive = True
        self.connected = True
        self.generation = 0
        self.replicas: dict[str, ReplicaReport] = {}
        self.orders: dict[str, ReplicaOrder] = {}
        self.begun: dict[str, float] = {}

    def take(self, sent: HostReplicas, now_s: float) -> None:
        if sent.generation < self.generation:
            raise StaleEpoch("older")
        self.generation = sent.generation
        self.orders = {o.replica_id: o for o in sent.replicas}
        self.replicas = {k: v for k, v in self.replicas.items() if k in self.orders}
        for order in sent.replicas:
            self.begun.setdefault(order.replica_id, now_s)

    def step(self, now_s: float, broken: set[str], missing: set[str]) -> None:
        for id_, order in self.orders.items():
            age_s = now_s - self.begun[id_]
            state, restarts, failures, detail = "starting", 0, 0, ""
            command = " ".join(order.spec.command)
            if command in missing:
                failures = int(age_s // 1.0)
                state, detail = "backing_off", f"image {command} is not here"
            elif command in broken:
                restarts = int(age_s // 1.0)
                state, detail = "backing_off", "exit code 3"
            elif age_s >= START_S:
                state = "draining" if order.draining else "ready"
            self.replicas[id_] = ReplicaReport(
                replica_id=id_,
                service_id=order.service_id,
                revision=order.revision,
                state=state,
                restarts=restarts,
                failures=failures,
                detail=detail,
            )


class World:
    """Implements ``Pools``, ``Links`` and ``Replicas``; runs the loops by hand."""

    def __init__(self, *, slots: int = 4, hosts: int = 1, boot_s: float = 3.0) -> None:
        self.clock = HandClock()
        self.store = open_store(None)
        self.ids = SeededIds(1)
        self.slots, self.boot_s = slots, boot_s
        self.hosts: dict[str, SimHost] = {}
        self.desired = hosts
        self.most = 20
        self.wants: list[tuple[int, str, tuple[str, ...]]] = []
        self.broken: set[str] = set()
        """Commands that crash."""
        self.missing: set[str] = set()
        """Commands that cannot even be started."""
        self.gateway = GatewayService(self.store)
        self.routes = ServiceRoutes(self.gateway)
        self.ledger = Ledger(self.store)
        self.woken: set[str] = set()
        self.telling: set[str] = set()
        self.service = ServiceService(
            self.store, self.clock, self.ids, cast(Blobs, None), self, self.woken.add
        )
        self.scaler = Scaler(
            self.service, self.ledger, self, self.store, self.clock, self, decide, period_s=10
        )
        self.loop = self.controller()
        self.number = 0
        self.grow(ready=True)

    def controller(self) -> ServiceController:
        """A control plane that has just been started."""
        return ServiceController(
            self.service,
            self.ledger,
            self,
            self.store,
            self.clock,
            self.ids,
            self,
            self,
            self.routes,
            self.telling.add,
            self.scaler.short,
        )

    def restart(self) -> None:
        """Control is killed and started again: only the store is left."""
        self.ledger = Ledger(self.store)
        self.scaler = Scaler(
            self.service, self.ledger, self, self.store, self.clock, self, decide, period_s=10
        )
        self.loop = self.controller()

    # --- Pools ---------------------------------------------------------------------------------------

    async def pool(self, group: str) -> Pool:
        if group != "default":
            raise Gone(f"there is no group {group}")
        listed = tuple(
            msgspec.structs.replace(h.host, connected=h.connected)
            for h in self.hosts.values()
            if h.alive
        )
        return Pool(
            id=group, slots=self.slots, min=0, max=self.most, vcpus=4, memory_mib=8192, hosts=listed
        )

    async def want(self, group: str, hosts: int, reason: str, release: Sequence[str] = ()) -> None:
        self.wants.append((hosts, reason, tuple(release)))
        self.desired = hosts
        for host_id in release:
            host = self.hosts[host_id]
            if host.host.state in (HostState.READY, HostState.BOOTING):
                host.host = msgspec.structs.replace(
                    host.host, state=HostState.DRAINING, reason=reason
                )
        self.grow()

    def grow(self, *, ready: bool = False) -> None:
        """What the group's own loop does: keep as many hosts as desired."""
        stay = [h for h in self.hosts.values() if h.alive and str(h.host.state) in STAYING]
        for _ in range(self.desired - len(stay)):
            self.number += 1
            host_id = f"i-{self.number:03d}"
            state = HostState.READY if ready else HostState.BOOTING
            made = GroupHost(
                host_id=host_id,
                offer=None,
                state=state,
                slots=self.slots,
                created_s=self.clock.at_s,
                ready_s=self.clock.at_s if ready else None,
                member_id=f"m-{self.number}",
            )
            self.hosts[host_id] = SimHost(made)

    # --- Links and Replicas --------------------------------------------------------------------------

    def reports(self) -> Mapping[str, HostReport]:
        return {
            host_id: HostReport(
                host_id=host_id,
                at_s=self.clock.at_s,
                ready=True,
                replicas=tuple(h.replicas.values()),
                replicas_generation=h.generation,
            )
            for host_id, h in self.hosts.items()
            if self.connected(host_id)
        }

    def connected(self, host_id: str) -> bool:
        host = self.hosts.get(host_id)
        return host is not None and host.alive and host.connected

    async def call(
        self, host_id: str, body: CommandBody, *, epoch: int, timeout_s: float
    ) -> ReplyBody:
        raise AssertionError("services speak through Replicas")

    def subscribe(
        self, on_event: Callable[[str, EventBody], None], on_change: Callable[[str], None]
    ) -> None:
        raise AssertionError("the test wakes keys itself")

    async def set(self, host_id: str, replicas: HostReplicas) -> None:
        if not self.connected(host_id):
            raise Retry("not connected")
        self.hosts[host_id].take(replicas, self.clock.at_s)

    async def logs(self, host_id: str, replica_id: str, *, tail_bytes: int) -> str:
        return f"{replica_id} said this"[:tail_bytes]

    async def execute(
        self, host_id: str, replica_id: str, argv: tuple[str, ...], *, timeout_s: float
    ) -> Executed:
        return Executed(exit_code=3, output=f"{replica_id}: {' '.join(argv)}")

    # --- time ----------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Half a second: hosts, then every key once."""
        self.clock.at_s += STEP_S
        for host in self.hosts.values():
            if not host.alive:
                continue
            booted = self.clock.at_s - host.host.created_s >= self.boot_s
            if host.host.state is HostState.BOOTING and booted:
                host.host = msgspec.structs.replace(
                    host.host, state=HostState.READY, ready_s=self.clock.at_s
                )
            if host.host.deadline_s is not None and host.host.deadline_s <= self.clock.at_s:
                host.alive = False
            host.step(self.clock.at_s, self.broken, self.missing)
            empty = not self.ledger.on(host.host.host_id)
            if host.host.state is HostState.DRAINING and empty:
                host.alive = False
        self.grow()
        for key in await self.loop.keys():
            for _ in range(10):
                if await self.loop.handle(key) != 0.0:
                    break
        for host_id in await self.loop.host_keys():
            await self.loop.handle_host(host_id)

    async def run(self, seconds: float, watch: Callable[[], None] = lambda: None) -> None:
        """So many seconds, with a decision every ten."""
        for number in range(int(seconds / STEP_S)):
            await self.step()
            watch()
            if number % 20 == 19:
                await self.scaler.round()

    # --- questions -----------------------------------------------------------------------------------

    def serving(self, service_id: str) -> list[Replica]:
        """Replicas that answer at this moment: ready on a living host that was not told to drain them."""
        found = []
        for replica in self.ledger.of(service_id):
            host = self.hosts.get(replica.host_id)
            report = host.replicas.get(replica.id) if host is not None and host.alive else None
            if report is not None and report.state == "ready":
                found.append(replica)
        return found

    async def now(self, service: Service) -> Service:
        return await self.service.get(service.id)

    async def events(self, service: Service) -> list[str]:
        return [line.event for line in await self.store.story(service.id)]


STAYING = ("booting", "ready")


def wish(
    command: str = "server", *, least: int = 1, most: int = 10, rollout: Rollout | None = None
) -> Wish:
    spec = ReplicaSpec(command=(command,), vcpus=0.5, memory_mib=128)
    return Wish(spec=spec, min=least, max=most, rollout=rollout or Rollout(drain_s=5))
