"""A simulated cloud: instances by token, boots that take a while, pools without capacity, a ledger.

Implements ``ports.provider.Provider``. Its calls are exact; what goes wrong with a call on its way is
``World.call``. It never knows who asks.
"""

import asyncio
from collections.abc import Callable

from roost.ports.errors import Gone, NoCapacity
from roost.ports.provider import (
    Capabilities,
    Conditions,
    InstanceState,
    LedgerLine,
    Order,
    ProviderInstance,
)
from roost.ports.values import Notice, NoticeKind, Offer
from roost.sim.world import World

FORGET_S = 3_600.0
"""How long an ended instance stays listed, as clouds do."""
REFUSAL_WINDOW_S = 600.0


class Machine:
    """One instance of a simulated cloud: the truth that nobody sees directly."""

    def __init__(self, provider_id: str, order: Order, now_s: float) -> None:
        self.provider_id = provider_id
        self.order = order
        self.state = InstanceState.PENDING
        self.launched_s = now_s
        self.ended_s: float | None = None
        self.reason = ""
        self.boots = 0
        self.notice: Notice | None = None
        self.runs: list[tuple[float, float | None]] = [(now_s, None)]

    @property
    def live(self) -> bool:
        """Whether it exists (a stopped one does)."""
        return self.state is not InstanceState.TERMINATED

    def close_run(self, now_s: float) -> None:
        """Billing stops."""
        started_s, ended_s = self.runs[-1]
        if ended_s is None:
            self.runs[-1] = (started_s, now_s)

    def seen(self) -> ProviderInstance:
        """As the provider lists it."""
        stopped = self.state is InstanceState.STOPPED
        return ProviderInstance(
            provider_id=self.provider_id,
            token=self.order.token,
            host_id=self.order.host_id,
            state=self.state,
            launched_s=self.runs[-1][0],
            ended_s=self.runs[-1][1] if stopped else self.ended_s,
            reason=self.reason,
        )


class SimProvider:
    """One simulated cloud."""

    def __init__(
        self,
        world: World,
        name: str,
        on_boot: Callable[[Machine], None],
        on_end: Callable[[Machine], None],
    ) -> None:
        self._world = world
        self._name = name
        self._on_boot = on_boot
        self._on_end = on_end
        self.machines: dict[str, Machine] = {}
        self._by_token: dict[str, Machine] = {}
        self._full: dict[tuple[str, int], float] = {}
        self.conditions: Conditions | None = None
        """A recorded market, as the local provider plays one."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(can_stop=True, billing_step_s=1)

    async def launch(self, order: Order) -> ProviderInstance:
        known = self._by_token.get(order.token)
        if known is not None:
            return known.seen()
        self._need_capacity(order.offer)
        machine = Machine(f"{self._name}-{len(self.machines):05d}", order, self._world.now_s())
        self.machines[machine.provider_id] = machine
        self._by_token[order.token] = machine
        self._world.tally["launches"] += 1
        self._boot(machine)
        return machine.seen()

    async def terminate(self, provider_id: str) -> None:
        self._end(self._known(provider_id), "terminated")

    async def stop(self, provider_id: str) -> None:
        machine = self._known(provider_id)
        if machine.state in (InstanceState.PENDING, InstanceState.RUNNING):
            machine.state = InstanceState.STOPPED
            machine.boots += 1
            machine.close_run(self._world.now_s())
            self._on_end(machine)

    async def start(self, provider_id: str) -> None:
        machine = self._known(provider_id)
        if machine.state is InstanceState.STOPPED:
            self._need_capacity(machine.order.offer)
            machine.state = InstanceState.PENDING
            machine.runs.append((self._world.now_s(), None))
            self._boot(machine)

    async def instances(self) -> list[ProviderInstance]:
        oldest_s = self._world.now_s() - FORGET_S
        return [
            machine.seen()
            for machine in self.machines.values()
            if machine.ended_s is None or machine.ended_s >= oldest_s
        ]

    async def ledger(self) -> list[LedgerLine]:
        return [
            LedgerLine(
                provider_id=machine.provider_id,
                host_id=machine.order.host_id,
                started_s=started_s,
                ended_s=ended_s,
                price_usd_hour=machine.order.offer.price_usd_hour,
            )
            for machine in self.machines.values()
            for started_s, ended_s in machine.runs
        ]

    async def interrupt(self, provider_id: str, notice: Notice) -> None:
        machine = self._known(provider_id)
        machine.notice = notice
        if notice.deadline_s is not None:
            self._world.spawn(self._take(machine, notice.deadline_s), f"take {provider_id}")

    async def kill(self, provider_id: str) -> None:
        self._end(self._known(provider_id), "lost")

    # --- the world's hand --------------------------------------------------------------------------

    def live(self) -> list[Machine]:
        """Machines that exist now, in order of launch."""
        return [machine for machine in self.machines.values() if machine.live]

    def _known(self, provider_id: str) -> Machine:
        machine = self.machines.get(provider_id)
        if machine is None:
            raise Gone(f"{self._name} knows no instance {provider_id!r}")
        return machine

    def _need_capacity(self, offer: Offer) -> None:
        pool = offer.key
        if self.conditions is not None and self.conditions.refuses(offer, self._world.now_s()):
            raise NoCapacity(f"{pool} is down in the recording", offer=pool)
        # Drawn per pool and window, not per call: who asks again soon is refused again.
        drawn = (pool, int(self._world.now_s() // REFUSAL_WINDOW_S))
        if drawn not in self._full:
            self._full[drawn] = self._world.stream(f"capacity/{pool}").random()
        if self._full[drawn] < self._world.swarm.refuse:
            self._world.tally["refusals"] += 1
            raise NoCapacity(f"{pool} has no capacity now", offer=pool)

    def _boot(self, machine: Machine) -> None:
        machine.boots += 1
        rng = self._world.stream(f"boot/{self._name}")
        seconds, never = (
            rng.uniform(5.0, self._world.swarm.boot_s),
            rng.random() < self._world.swarm.slow_boot,
        )
        if never:
            self._world.tally["boots that hang"] += 1
        else:
            self._world.spawn(self._up(machine, machine.boots, seconds), "boot")

    async def _up(self, machine: Machine, boot: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if machine.state is InstanceState.PENDING and machine.boots == boot:
            machine.state = InstanceState.RUNNING
            self._on_boot(machine)
            self._foresee(machine)

    def _foresee(self, machine: Machine) -> None:
        offer = machine.order.offer
        taken_s = self.conditions.taken_at_s(offer, machine.launched_s) if self.conditions else None
        if taken_s is not None:
            self._world.spawn(self._warn(machine, taken_s), f"warn {machine.provider_id}")

    async def _warn(self, machine: Machine, taken_s: float) -> None:
        """The recording takes it: a notice, then its end."""
        offer = machine.order.offer
        await asyncio.sleep(max(0.0, taken_s - offer.notice_s - self._world.now_s()))
        if machine.state is InstanceState.RUNNING:
            self._world.tally["notices"] += 1
            notice = Notice(
                kind=NoticeKind.INTERRUPTION,
                seen_s=self._world.now_s(),
                deadline_s=taken_s,
                source=f"{offer.provider} metadata",
            )
            await self.interrupt(machine.provider_id, notice)

    async def _take(self, machine: Machine, deadline_s: float) -> None:
        await asyncio.sleep(max(0.0, deadline_s - self._world.now_s()))
        self._end(machine, "interrupted")

    def _end(self, machine: Machine, reason: str) -> None:
        if not machine.live:
            return
        now_s = self._world.now_s()
        machine.close_run(now_s)
        machine.state = InstanceState.TERMINATED
        machine.ended_s = now_s
        machine.reason = reason
        self._on_end(machine)
