"""What the simulator found in fleet, each reduced to its smallest case."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from roost.adapters.clock import SystemClock
from roost.adapters.store.sqlite.store import open_store
from roost.fleet.controller import FleetController
from roost.fleet.machine import observe
from roost.fleet.model import (
    Claim,
    ClaimState,
    ClaimView,
    Instance,
    InstanceState,
    RankedOffer,
)
from roost.fleet.service import FleetService, Tables
from roost.kit.ids import SeededIds
from roost.ports.provider import InstanceState as Seen
from roost.ports.provider import Provider, ProviderInstance
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

S = InstanceState
IMAGE = Image(name="minimal", python="3.11")
OFFER = Offer(
    provider="aws",
    region="r",
    zone="z",
    instance_type="t",
    purchase_option=PurchaseOption.SPOT,
    price_usd_hour=0.1,
    on_demand_usd_hour=0.3,
    resources=Resources(vcpus=4, memory_gib=16),
)
REBALANCE = Notice(kind=NoticeKind.REBALANCE, seen_s=100.0)
INTERRUPTION = Notice(kind=NoticeKind.INTERRUPTION, seen_s=200.0, deadline_s=320.0)


def _instance(state: InstanceState, provider_id: str = "") -> Instance:
    return Instance(
        id="i-1",
        state=state,
        parent="c-1",
        owner="s-1",
        role="standby",
        offer=OFFER,
        image=IMAGE,
        launch_token="l-1",
        provider_id=provider_id,
    )


def _seen(state: Seen, ended_s: float | None = None) -> ProviderInstance:
    return ProviderInstance(
        provider_id="p-1",
        token="l-1",
        host_id="i-1",
        state=state,
        launched_s=100.0,
        ended_s=ended_s,
    )


def _report(notice: Notice | None) -> HostReport:
    return HostReport(host_id="i-1", at_s=210.0, ready=True, notice=notice)


def test_a_rebalance_recommendation_leaves_a_host_usable() -> None:
    """Seed 4: it was neither usable nor replaced."""
    claim = Claim(
        id="c-1", state=ClaimState.HELD, parent="s-1", role="standby", ask=Ask(), image=IMAGE
    )
    noticed = msgspec.structs.replace(_instance(S.READY, "p-1"), notice=REBALANCE)
    view = ClaimView(claim=claim, instance=noticed, report=_report(REBALANCE), connected=True)
    assert view.usable
    assert not view.leaving
    taken = msgspec.structs.replace(noticed, notice=INTERRUPTION)
    view = msgspec.structs.replace(view, instance=taken)
    assert view.leaving
    assert not view.usable


def test_a_deadline_replaces_a_recommendation_and_not_the_other_way_round() -> None:
    """Seed 4: an interruption after a recommendation was never seen."""
    ready = _instance(S.READY, "p-1")
    running = _seen(Seen.RUNNING)
    noticed = observe(ready, running, _report(REBALANCE), 210.0)
    assert noticed.notice == REBALANCE
    urgent = observe(noticed, running, _report(INTERRUPTION), 211.0)
    assert urgent.notice == INTERRUPTION
    assert observe(urgent, running, _report(REBALANCE), 212.0).notice == INTERRUPTION
    assert observe(urgent, running, _report(None), 213.0).notice == INTERRUPTION


def test_a_launch_that_arrives_after_the_release_is_ended_and_billed() -> None:
    """A crash between a launch and its release: the machine appears when its row already drains."""
    draining = _instance(S.DRAINING)
    assert observe(draining, None, None, 110.0) == draining, "absence proves nothing yet"
    appeared = observe(draining, _seen(Seen.RUNNING), None, 111.0)
    assert (appeared.state, appeared.provider_id) == (S.DRAINING, "p-1")
    ended = observe(appeared, _seen(Seen.TERMINATED, 130.0), None, 131.0)
    assert ended.state is S.TERMINATED
    assert [(s.started_s, s.ended_s) for s in ended.spans] == [(100.0, 130.0)]
    missed = observe(draining, _seen(Seen.TERMINATED, 130.0), None, 131.0)
    assert [(s.started_s, s.ended_s) for s in missed.spans] == [(100.0, 130.0)]


class _Cloud:
    """A cloud whose list takes a while: meanwhile a launch goes through."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._meanwhile = meanwhile
        self.listed: list[ProviderInstance] = []
        self.ended: list[str] = []

    async def instances(self) -> list[ProviderInstance]:
        await self._meanwhile()
        return list(self.listed)

    async def terminate(self, provider_id: str) -> None:
        self.ended.append(provider_id)


async def test_the_sweep_spares_what_was_launched_while_it_listed() -> None:
    """Seed 2021: rows were read before the list, so a launch in between looked like a stray."""
    store = open_store(None)
    tables = Tables(store)

    async def launch() -> None:
        if not cloud.listed:
            await store.commit([tables.instances.row(_instance(S.REQUESTED))])
            stray = msgspec.structs.replace(_seen(Seen.RUNNING), provider_id="p-2", token="l-2")
            cloud.listed = [_seen(Seen.RUNNING), stray]

    cloud = _Cloud(launch)
    one: Any = cloud
    links: Any = None
    clock = SystemClock()
    providers: dict[str, Provider] = {"aws": one, "gcp": one}
    service = FleetService(store, clock, links, providers, lambda key: None)
    controller = FleetController(
        service,
        store,
        clock,
        SeededIds(),
        links,
        providers,
        rank=_no_offers,
        link_address="",
        join_secret=b"",
        on_change=lambda owner: None,
    )
    assert await controller.sweep() == ["p-2"]
    assert cloud.ended == ["p-2"], "one cloud under two names is swept once"
    await store.close()


async def _no_offers(ask: Ask) -> Sequence[RankedOffer]:
    return ()
