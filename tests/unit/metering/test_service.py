"""The service reads the rows of a real store."""

from collections.abc import Mapping

from roost.adapters.store.sqlite.store import open_store
from roost.fleet.model import Instance, InstanceState, Span
from roost.metering.service import MeteringService
from roost.ports.provider import LedgerLine, Provider
from roost.ports.store import Table
from roost.ports.values import Image, Offer, PurchaseOption, Resources


class _Clock:
    def now_s(self) -> float:
        return 1_000.0

    def monotonic_s(self) -> float:
        return 1_000.0


class _Ledger:
    """The part of a provider that metering asks."""

    def __init__(self, *lines: LedgerLine) -> None:
        self._lines = list(lines)

    async def ledger(self) -> list[LedgerLine]:
        return self._lines


async def test_bill_and_reconcile_from_rows() -> None:
    store = open_store(None)
    table = Table(store, "instance", Instance)
    offer = Offer(
        provider="gcp",
        region="us-west1",
        zone="us-west1-a",
        instance_type="n2-standard-4",
        purchase_option=PurchaseOption.SPOT,
        price_usd_hour=3.6,
        on_demand_usd_hour=7.2,
        resources=Resources(vcpus=4, memory_gib=16),
    )
    instance = Instance(
        id="i-1",
        state=InstanceState.READY,
        parent="c-1",
        owner="s-1",
        role="active",
        offer=offer,
        image=Image(name="py", python="3.11"),
        launch_token="l-1",
        spans=(Span(started_s=900.0, ended_s=None, price_usd_hour=3.6, on_demand_usd_hour=7.2),),
    )
    await store.commit([table.row(instance)])
    line = LedgerLine(
        provider_id="p-1", host_id="i-1", started_s=900.0, ended_s=None, price_usd_hour=3.6
    )
    one: Provider = _Ledger(line)  # type: ignore[assignment]
    providers: Mapping[str, Provider] = {"aws": one, "azure": one, "gcp": one}
    service = MeteringService(store, _Clock(), providers)
    made = await service.bill()
    assert (made.total.seconds, made.total.charge_nano_usd) == (100, 100_000_000)
    assert made.total.saved_nano_usd == 100_000_000
    assert (await service.bill("s-2")).total.seconds == 0
    assert await service.reconcile() == [], "one provider under three names is asked once"
    await store.close()
