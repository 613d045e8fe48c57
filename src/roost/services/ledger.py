"""The replicas that have not ended, in memory as they are stored: read once, then written through.

Control is their only writer, so memory and store say the same; a lost race raises ``Conflict`` and the
ledger reads again. It decides nothing.
"""

from collections.abc import Sequence

import msgspec

from roost.ports.errors import Conflict
from roost.ports.store import Row, Store, Stored, StoryLine, Table
from roost.services.model import LIVE, Replica, ReplicaState


class Ledger:
    """Live replicas by service and by host."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = Table(store, "replica", Replica)
        self._stored: dict[str, Stored[Replica]] = {}
        self._of: dict[str, dict[str, Replica]] = {}
        self._on: dict[str, dict[str, Replica]] = {}
        self._loaded = False

    async def load(self) -> None:
        """Read what is stored, unless that was done."""
        if not self._loaded:
            await self.reload()

    async def reload(self) -> None:
        """Read what is stored."""
        found = [s for state in LIVE for s in await self._table.find(state=state)]
        self._stored = {}
        self._of, self._on = {}, {}
        for stored in found:
            self._keep(stored)
        self._loaded = True

    def get(self, replica_id: str) -> Replica | None:
        """A replica that has not ended."""
        stored = self._stored.get(replica_id)
        return None if stored is None else stored.value

    async def ended(self, replica_id: str) -> Replica | None:
        """A replica, ended or not, as it is stored."""
        stored = await self._table.get(replica_id)
        return None if stored is None else stored.value

    def of(self, service_id: str) -> list[Replica]:
        """Those of a service, oldest first."""
        return sorted(self._of.get(service_id, {}).values(), key=lambda r: (r.created_s, r.id))

    def on(self, host_id: str) -> list[Replica]:
        """Those on a host, oldest first."""
        return sorted(self._on.get(host_id, {}).values(), key=lambda r: (r.created_s, r.id))

    def used(self, host_id: str) -> int:
        """Slots taken on a host."""
        return len(self._on.get(host_id, {}))

    def hosts(self) -> list[str]:
        """Hosts that have a replica."""
        return sorted(host for host, found in self._on.items() if found)

    async def commit(
        self, replicas: Sequence[Replica], rows: Sequence[Row], story: Sequence[StoryLine]
    ) -> None:
        """Store changed or new replicas with other rows and story lines, or nothing of it."""
        mine = [self._table.row(r, self._stored.get(r.id)) for r in replicas]
        try:
            await self._store.commit([*mine, *rows], story)
        except Conflict:
            self._loaded = False
            await self.load()
            raise
        for replica, row in zip(replicas, mine, strict=True):
            written = msgspec.structs.replace(row, version=row.version + 1)
            self._keep(Stored(replica, written))

    def _keep(self, stored: Stored[Replica]) -> None:
        new = stored.value
        old = self._stored.pop(new.id, None)
        if old is not None:
            self._of.get(old.value.service_id, {}).pop(new.id, None)
            self._on.get(old.value.host_id, {}).pop(new.id, None)
        if new.state is ReplicaState.ENDED:
            return
        self._stored[new.id] = stored
        self._of.setdefault(new.service_id, {})[new.id] = new
        if new.host_id:
            self._on.setdefault(new.host_id, {})[new.id] = new
