"""A small cloud on a clock that tests move: the real store, fleet and groups over fake hosts."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from roost.adapters.store.sqlite.store import open_store
from roost.fleet.controller import FleetController
from roost.fleet.groups.controller import GroupController
from roost.fleet.groups.model import GroupHost, GroupSpec, HostUse, MemberView
from roost.fleet.groups.service import Groups
from roost.fleet.model import ClaimState, RankedOffer
from roost.fleet.service import FleetService
from roost.kit.ids import SeededIds
from roost.ports.errors import Conflict, Invalid, NoCapacity
from roost.ports.provider import Capabilities, InstanceState, Order, ProviderInstance
from roost.ports.values import (
    Ask,
    HostReport,
    Image,
    Notice,
    NoticeKind,
    Offer,
    PurchaseOption,
    Resources,
)

IMAGE = Image(name="minimal", python="3.11")
BOOT_S = 60.0
SPOT, ON_DEMAND = PurchaseOption.SPOT, PurchaseOption.ON_DEMAND


def offer(zone: str, option: PurchaseOption = SPOT, price: float = 0.1, **more: Any) -> Offer:
    """A pool of a region of two zones."""
    known = {"provider": "aws", "region": zone[:-1], "instance_type": "m", **more}
    return Offer(
        zone=zone,
        purchase_option=option,
        price_usd_hour=price,
        on_demand_usd_hour=0.3,
        resources=Resources(vcpus=4, memory_gib=16),
        **known,
    )


OFFERS = [
    *(offer(z, price=0.1 + n / 100) for n, z in enumerate(("r1a", "r1b", "r2a", "r2b"))),
    *(offer(z, ON_DEMAND, 0.3 + n / 100) for n, z in enumerate(("r1a", "r2a"))),
]


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.at_s = 1_000_000.0

    def now_s(self) -> float:
        return self.at_s

    def monotonic_s(self) -> float:
        return self.at_s


class Cloud:
    """Instances that boot in a minute. ``full``: pools that refuse."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.capabilities = Capabilities()
        self.machines: dict[str, ProviderInstance] = {}
        self.boots: dict[str, float] = {}
        self.offers: dict[str, Offer] = {}
        self.images: dict[str, Image] = {}
        self.notices: dict[str, Notice] = {}
        self.silent: set[str] = set()
        self.full: set[str] = set()
        self.broken: set[str] = set()
        """Images whose hosts never become ready."""
        self.launched = 0

    async def launch(self, order: Order) -> ProviderInstance:
        known = next((m for m in self.machines.values() if m.token == order.token), None)
        if known is not None:
            return known
        if order.offer.key in self.full:
            raise NoCapacity(f"{order.offer.key} is full", offer=order.offer.key)
        self.launched += 1
        machine = ProviderInstance(
            provider_id=order.host_id,
            token=order.token,
            host_id=order.host_id,
            state=InstanceState.RUNNING,
            launched_s=self._clock.at_s,
        )
        self.machines[order.host_id] = machine
        self.boots[order.host_id] = self._clock.at_s
        self.offers[order.host_id] = order.offer
        self.images[order.host_id] = order.image
        return machine

    def _to(self, host_id: str, state: InstanceState, reason: str = "") -> None:
        ended_s = None if state is InstanceState.RUNNING else self._clock.at_s
        self.machines[host_id] = msgspec.structs.replace(
            self.machines[host_id], state=state, ended_s=ended_s, reason=reason
        )

    async def terminate(self, provider_id: str) -> None:
        self._to(provider_id, InstanceState.TERMINATED, "terminated")

    async def stop(self, provider_id: str) -> None:
        self._to(provider_id, InstanceState.STOPPED)

    async def start(self, provider_id: str) -> None:
        self._to(provider_id, InstanceState.RUNNING)
        self.boots[provider_id] = self._clock.at_s

    async def instances(self) -> list[ProviderInstance]:
        return list(self.machines.values())

    async def kill(self, provider_id: str) -> None:
        self._to(provider_id, InstanceState.TERMINATED, "lost")

    def notice(self, host_id: str, lead_s: float | None = 120.0) -> None:
        """An interruption notice, or (None) a rebalance recommendation."""
        now_s = self._clock.at_s
        kind = NoticeKind.REBALANCE if lead_s is None else NoticeKind.INTERRUPTION
        deadline_s = None if lead_s is None else now_s + lead_s
        self.notices[host_id] = Notice(kind=kind, seen_s=now_s, deadline_s=deadline_s)

    def take_due(self) -> None:
        """Take the machines whose notice is over."""
        for host_id, notice in self.notices.items():
            due = notice.deadline_s is not None and notice.deadline_s <= self._clock.at_s
            if due and self.machines[host_id].ended_s is None:
                self._to(host_id, InstanceState.TERMINATED, "interrupted")

    def up(self, host_id: str) -> bool:
        """Whether its agent would answer."""
        machine = self.machines[host_id]
        booted = self._clock.at_s - self.boots[host_id] >= BOOT_S
        running = machine.state is InstanceState.RUNNING and host_id not in self.silent
        return running and booted and self.images[host_id].name not in self.broken

    def live(self) -> list[str]:
        """Hosts that cost money now."""
        return [h for h, m in self.machines.items() if m.state is InstanceState.RUNNING]

    # --- as the link sees them

    def connected(self, host_id: str) -> bool:
        return host_id in self.machines and self.up(host_id)

    def reports(self) -> Mapping[str, HostReport]:
        return {
            host_id: HostReport(
                host_id=host_id, at_s=self._clock.at_s, ready=True, notice=self.notices.get(host_id)
            )
            for host_id in self.machines
            if self.up(host_id)
        }


class GroupWorld:
    """The real controllers, run by hand."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = Clock()
        self.cloud = Cloud(self.clock)
        self.offers = list(OFFERS)
        self.store = open_store(None)
        self.used: dict[str, HostUse] = {}
        self.lasts: dict[str, float] = {}
        """Offer key -> probability that it lasts ten minutes."""
        self.changes: list[str] = []
        self._told = 0
        cloud: Any = self.cloud
        providers = {"aws": cloud, "gcp": cloud}
        ids = SeededIds(seed)
        self.fleet = FleetService(self.store, self.clock, cloud, providers, lambda key: None)
        self.claims = FleetController(
            self.fleet,
            self.store,
            self.clock,
            ids,
            cloud,
            providers,
            self.rank,
            "127.0.0.1:1",
            b"secret",
            lambda owner: None,
        )
        self.groups = Groups(
            self.store,
            self.clock,
            self.fleet,
            lambda name: GroupSpec(name=name, image=IMAGE, ask=Ask(vcpus=2, memory_gib=4)),
            lambda key: None,
            self.odds,
        )
        self.groups.uses = self.uses
        self.loop = GroupController(
            self.groups, self.fleet, self.store, self.clock, ids, self.rank, self.changes.append
        )

    async def rank(self, ask: Ask) -> Sequence[RankedOffer]:
        fitting = [
            o
            for o in self.offers
            if o.purchase_option in ask.purchase_options
            and o.key not in ask.avoid_pools
            and (not ask.clouds or o.provider in ask.clouds)
        ]
        if not fitting:
            raise Invalid("no pool is left")
        return [RankedOffer(offer=o, reason=f"{o.price_usd_hour} USD/h") for o in fitting]

    async def odds(self, offers: Sequence[Offer], hours: float) -> Sequence[float]:
        return [self.lasts.get(o.key, 1.0) ** (hours * 6.0) for o in offers]

    async def uses(self, host_ids: Sequence[str]) -> Mapping[str, HostUse]:
        return {h: self.used[h] for h in host_ids if h in self.used}

    async def create(self, **fields: Any) -> str:
        """A group; returns its name."""
        spec = GroupSpec(**{"name": "web", "image": IMAGE, "ask": Ask(vcpus=2), **fields})
        await self.groups.create(spec)
        return spec.name

    async def settle(self) -> None:
        """Run every controller until none has anything to do."""
        for _ in range(200):
            self.cloud.take_due()
            for key in await self.loop.keys():
                await self._handled(self.loop, key)
            for key in await self.claims.keys():
                await self._handled(self.claims, key)
            told = await self.store.story(after=self._told)
            if not told:
                return
            self._told = told[-1].seq
        raise AssertionError("the group never comes to rest")

    @staticmethod
    async def _handled(loop: FleetController | GroupController, key: str) -> None:
        for _ in range(50):
            try:
                if await loop.handle(key) != 0.0:
                    return
            except Conflict:
                return

    async def after(self, seconds: float, step_s: float = 10.0) -> None:
        """Let time go by."""
        until_s = self.clock.at_s + seconds
        await self.settle()
        while self.clock.at_s < until_s:
            self.clock.at_s = min(until_s, self.clock.at_s + step_s)
            await self.settle()

    async def hosts(self, name: str = "web") -> list[GroupHost]:
        return list(await self.groups.hosts(name))

    async def ready(self, name: str = "web") -> list[str]:
        return [h.host_id for h in await self.hosts(name) if h.state == "ready"]

    async def members(self, name: str = "web") -> Sequence[MemberView]:
        return await self.groups.views(await self.groups.get(name))

    async def told(self, object_id: str = "g-web") -> list[str]:
        """The group's story."""
        return [f"{line.event}: {line.reason}" for line in await self.store.story(object_id)]

    async def open_claims(self) -> list[str]:
        return [
            c.claim.id for c in await self.fleet.views() if c.claim.state is not ClaimState.ENDED
        ]
