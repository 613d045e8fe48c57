"""What doors ask: the bill now, and whether it agrees with the providers. Reads only durable rows."""

from collections.abc import Mapping

from roost.fleet.model import Instance
from roost.metering import plan
from roost.metering.model import Bill, Difference
from roost.ports.clock import Clock
from roost.ports.provider import LedgerLine, Provider
from roost.ports.store import Store, Table


class MeteringService:
    """Bills and reconciliation. Never writes."""

    def __init__(self, store: Store, clock: Clock, providers: Mapping[str, Provider]) -> None:
        self._instances = Table(store, "instance", Instance)
        self._clock = clock
        self._providers = providers

    async def bill(self, session_id: str | None = None) -> Bill:
        """What was used until now, of everything or of one session (an id)."""
        found = await self._instances.find()
        return plan.bill([i.value for i in found], self._clock.now_s(), session_id)

    async def reconcile(self) -> list[Difference]:
        """Where our rows and the providers' ledgers disagree; ``Retry`` while a provider is away."""
        ledger: list[LedgerLine] = []
        asked: list[Provider] = []
        for provider in self._providers.values():
            # One provider may stand for several clouds (this machine plays all of them).
            if not any(provider is other for other in asked):
                asked.append(provider)
                ledger.extend(await provider.ledger())
        found = await self._instances.find()
        return plan.reconcile([i.value for i in found], ledger, self._clock.now_s())
