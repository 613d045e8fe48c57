"""All replicas of this host: the set control wants, what of it runs, what is measured.

Control says the whole set each time; what is missing is started, what is not named is drained and ended. The
set is written down before it is answered, so that an agent that is killed goes on with it. It decides
nothing about services.
"""

import asyncio
import logging
from pathlib import Path

import msgspec

from roost.agent.balancer import Balancer, Member
from roost.agent.replicas.replica import Replica, ReplicaTools, image_of
from roost.ports.driver import TaskUsage
from roost.ports.errors import Gone, RoostError, StaleEpoch
from roost.ports.replicas import (
    Executed,
    HostReplicas,
    ReplicaOrder,
    ReplicaReport,
    ReplicaSpec,
    ServiceReport,
)

log = logging.getLogger(__name__)

LOOK_S = 1.0
OUTPUT_MOST = 8 << 20
OUTPUT_KEPT = 1 << 20
LOGS_MOST = 1 << 20
"""Most bytes of output in one answer."""
LEAVE_S = 5.0
"""Longest grace of a replica when its host is told to leave now."""


class ReplicaHost:
    """Replicas of this host; ``folder`` lives as long as the host."""

    def __init__(self, folder: Path, tools: ReplicaTools, balancer: Balancer) -> None:
        self._folder = folder
        self._tools = tools
        self._balancer = balancer
        self._wanted = HostReplicas(generation=0)
        self._replicas: dict[str, Replica] = {}
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._usage: dict[str, tuple[float | None, float | None]] = {}
        """CPU percent and MiB by replica, as last measured."""
        self._seen: dict[str, tuple[float, float]] = {}
        """CPU seconds, and when."""
        self._over = False

    # --- what control asks ------------------------------------------------------------------------

    async def set(self, wanted: HostReplicas) -> None:
        """Have exactly these from now on. ``StaleEpoch`` for an older set than one seen."""
        if wanted.generation < self._wanted.generation:
            raise StaleEpoch(
                f"set {wanted.generation} of replicas is over: {self._wanted.generation} is here"
            )
        if self._over:
            raise Gone("this host is leaving")
        for order in wanted.replicas:
            Replica.check_id(order.replica_id)
        self._wanted = wanted
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._folder / "set.part"
        part.write_bytes(msgspec.json.encode(wanted))
        part.replace(self._folder / "set.json")
        await self._apply()
        self._tools.beat()

    async def logs(self, replica_id: str, tail_bytes: int) -> str:
        """The newest output of a replica. ``Gone`` when it is not here."""
        replica = self._replicas.get(replica_id)
        if replica is None:
            raise Gone(f"no replica {replica_id} on this host")
        return await replica.logs(max(0, min(tail_bytes, LOGS_MOST)))

    async def execute(self, replica_id: str, argv: tuple[str, ...], timeout_s: float) -> Executed:
        """Run a command beside a replica. ``Gone`` when it is not here or does not run."""
        replica = self._replicas.get(replica_id)
        if replica is None:
            raise Gone(f"no replica {replica_id} on this host")
        return await replica.driver.execute(replica.id, argv, timeout_s=timeout_s)

    def has(self, service_id: str) -> bool:
        """Whether a service may be opened here."""
        return self._balancer.has(service_id)

    @property
    def generation(self) -> int:
        """Of the newest set taken."""
        return self._wanted.generation

    @property
    def held(self) -> tuple[str, ...]:
        """What holds replicas to their limits, for the report's ``isolation``."""
        held = self._tools.processes.held
        memory = "replica-memory" if "memory_mib" in held else "replica-memory-watched"
        return (*(("replica-cpu",) if "vcpus" in held else ()), memory)

    def reports(self) -> tuple[ReplicaReport, ...]:
        """Every replica, by id."""
        return tuple(self._report(self._replicas[name]) for name in sorted(self._replicas))

    def services(self) -> tuple[ServiceReport, ...]:
        """Every service of which something was here since the agent began."""
        return self._balancer.reports()

    # --- life -------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Go on with what an earlier agent was told; what runs gets requests again at once."""
        try:
            content = (self._folder / "set.json").read_bytes()
            self._wanted = msgspec.json.decode(content, type=HostReplicas)
        except (OSError, msgspec.DecodeError):
            return
        await self._apply(adopt=True)
        for left in sorted(self._folder.glob("*/")):
            if left.name not in self._replicas:  # it was being ended
                log.info("replica %s is in no set: it is ended", left.name)
                self._sweep(left)

    async def run(self) -> None:
        """Measure until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._balancer.run())
            group.create_task(self._keep_looking())

    async def end(self) -> None:
        """The host leaves now: end every replica."""
        self._over = True
        for removal in self._removals.values():
            removal.cancel()
        await asyncio.gather(*self._removals.values(), return_exceptions=True)
        replicas = list(self._replicas.values())
        await asyncio.gather(*(r.end(min(LEAVE_S, r.order.spec.stop_grace_s)) for r in replicas))
        self._replicas.clear()
        for service_id in {replica.order.service_id for replica in replicas}:
            self._show(service_id)

    async def close(self) -> None:
        """Let go; replicas run on."""
        for removal in self._removals.values():
            removal.cancel()
        await asyncio.gather(*self._removals.values(), return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self._replicas.values()))
        self._balancer.close()

    # --- the set ----------------------------------------------------------------------------------

    async def _apply(self, *, adopt: bool = False) -> None:
        orders = {order.replica_id: order for order in self._wanted.replicas}
        for name, replica in list(self._replicas.items()):
            order = orders.get(name)
            if name not in self._removals and (order is None or _another(order, replica.order)):
                self._removals[name] = asyncio.get_running_loop().create_task(self._remove(replica))
        for name, order in orders.items():
            known = self._replicas.get(name)
            if known is None:
                await self._add(order, adopt=adopt)
            elif name not in self._removals:
                known.update(order)

    async def _add(self, order: ReplicaOrder, *, adopt: bool) -> None:
        service_id = order.service_id
        replica = Replica(
            order,
            self._folder / order.replica_id,
            self._tools,
            changed=lambda: self._changed(service_id),
            taken=lambda port: self._holder(port, order.replica_id),
            work=lambda: self._balancer.work(service_id, order.replica_id),
        )
        self._replicas[order.replica_id] = replica
        await replica.begin(adopt=adopt)
        self._show(service_id)

    async def _remove(self, replica: Replica) -> None:
        service_id = replica.order.service_id
        try:
            await replica.remove(
                lambda: not self._balancer.load(service_id, replica.id)[0],
                lambda: self._balancer.part(service_id, replica.id),
            )
        except asyncio.CancelledError:
            self._removals.pop(replica.id, None)
            raise
        self._removals.pop(replica.id, None)
        self._replicas.pop(replica.id, None)
        self._usage.pop(replica.id, None)
        self._seen.pop(replica.id, None)
        self._changed(service_id)
        if not self._over:
            await self._apply()  # it may be wanted again by now

    def _holder(self, port: int, besides: str) -> str:
        """The replica that has a port of this host's address; empty = none."""
        for replica in self._replicas.values():
            if replica.port == port and replica.id != besides and replica.life.up:
                return replica.id
        return ""

    def _changed(self, service_id: str) -> None:
        self._show(service_id)
        self._tools.beat()

    def _show(self, service_id: str) -> None:
        """Tell the balancer what it has of a service."""
        mine = [r for r in self._replicas.values() if r.order.service_id == service_id]
        self._balancer.set(
            service_id,
            (
                Member(
                    replica_id=replica.id,
                    address=f"{self._tools.address}:{replica.port}",
                    slots=replica.order.spec.concurrency,
                    ready=replica.takes,
                )
                for replica in mine
                if replica.life.state in ("ready", "unhealthy")
            ),
        )

    def _sweep(self, folder: Path) -> None:
        """End what an earlier agent was ending."""
        image = image_of(folder)
        order = ReplicaOrder(
            replica_id=folder.name, service_id="", revision=0, spec=ReplicaSpec(image=image)
        )
        replica = Replica(order, folder, self._tools, changed=lambda: None, taken=lambda port: "")
        self._removals[folder.name] = asyncio.get_running_loop().create_task(replica.end(LEAVE_S))

    # --- measuring --------------------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            for replica in list(self._replicas.values()):
                await self._measure(replica)
                if not replica.order.spec.image:
                    replica.trim(OUTPUT_MOST, OUTPUT_KEPT)

    async def _measure(self, replica: Replica) -> None:
        """CPU and memory of one replica; more memory than allowed is its end where nobody else sees to it."""
        if not replica.life.up:
            self._usage.pop(replica.id, None)
            self._seen.pop(replica.id, None)
            return
        try:
            driver = replica.driver
            used: TaskUsage = await driver.usage(replica.id)
        except RoostError:
            return
        now_s, percent = self._tools.clock.monotonic_s(), None
        if used.cpu_s is not None:
            before = self._seen.get(replica.id)
            if before is not None and now_s > before[1] and used.cpu_s >= before[0]:
                percent = round(100.0 * (used.cpu_s - before[0]) / (now_s - before[1]), 1)
            self._seen[replica.id] = (used.cpu_s, now_s)
        self._usage[replica.id] = (percent, used.memory_mib)
        most = replica.order.spec.memory_mib
        if used.memory_mib and 0 < most < used.memory_mib and "memory_mib" not in driver.held:
            replica.condemn(f"used {used.memory_mib:.0f} MiB of memory, {most:g} are allowed")

    def _report(self, replica: Replica) -> ReplicaReport:
        percent, memory = self._usage.get(replica.id, (None, None))
        active, moved = self._balancer.load(replica.order.service_id, replica.id)
        return msgspec.structs.replace(
            replica.report(),
            cpu_percent=percent,
            memory_mib=None if memory is None else round(memory, 1),
            network_bytes=moved,
            in_flight=active,
        )


def _another(one: ReplicaOrder, other: ReplicaOrder) -> bool:
    """Whether the same id means another replica: it has to be replaced."""
    return (one.service_id, one.revision, one.spec) != (
        other.service_id,
        other.revision,
        other.spec,
    )
