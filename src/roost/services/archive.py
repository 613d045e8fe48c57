"""Arrivals per minute of the last two weeks, kept over a restart of control: what forecasts live on.

A row per service and day, written a few times an hour and overwritten after fifteen days. A minute that
nobody counted stays unknown. It decides nothing.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from roost.ports.clock import Clock
from roost.ports.errors import Conflict
from roost.ports.store import Row, Store, Stored, Table
from roost.services.observe import History

DAY_S = 86_400
DAYS = 15
"""The present day and fourteen full ones."""


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """The arrivals of a service on one UTC day."""

    id: str
    """The service and the day's place among ``DAYS``."""
    parent: str
    """The service."""
    day: int
    """Days since 1970."""
    minutes: bytes = b""
    """1,440 little-endian 32-bit floats; NaN = not known. Empty = the service is deleted."""


class Archive:
    """Reads and writes days."""

    def __init__(self, store: Store, clock: Clock, history: History) -> None:
        self._store = store
        self._clock = clock
        self._history = history
        self._table = Table(store, "arrivals", Day)
        self._stored: dict[str, Stored[Day]] = {}

    async def load(self) -> None:
        """Give the history what was kept; once, before anything is reported."""
        today = int(self._clock.now_s() // DAY_S)
        days: dict[str, dict[int, np.ndarray[tuple[int], np.dtype[np.float64]]]] = {}
        for stored in await self._table.find():
            day = stored.value
            self._stored[day.id] = stored
            if day.minutes and today - DAYS < day.day <= today:
                values = np.frombuffer(day.minutes, "<f4").astype(np.float64)
                days.setdefault(day.parent, {})[day.day] = values
        earliest = min((d for found in days.values() for d in found), default=None)
        for service_id in sorted(days, key=lambda s: min(days[s]) != earliest):
            self._history.recall(service_id, days[service_id])

    async def save(self, service_ids: Sequence[str]) -> None:
        """Write the present day, what of yesterday is not written yet, and forget deleted services."""
        today = int(self._clock.now_s() // DAY_S)
        found: list[Day] = []
        for service_id in service_ids:
            for day in (today - 1, today):
                minutes = self._history.day(service_id, day).astype("<f4").tobytes()
                if minutes and any(not math.isnan(x) for x in np.frombuffer(minutes, "<f4")):
                    place = f"{service_id}/{day % DAYS}"
                    found.append(Day(id=place, parent=service_id, day=day, minutes=minutes))
        kept = set(service_ids)
        for stored in self._stored.values():
            if stored.value.parent not in kept and stored.value.minutes:
                found.append(msgspec.structs.replace(stored.value, minutes=b""))
        await self._write([d for d in found if self._different(d)])

    def _different(self, day: Day) -> bool:
        stored = self._stored.get(day.id)
        return stored is None or stored.value != day

    async def _write(self, days: Sequence[Day]) -> None:
        rows: list[Row] = [self._table.row(d, self._stored.get(d.id)) for d in days]
        if not rows:
            return
        try:
            await self._store.commit(rows)
        except Conflict:
            self._stored = {s.value.id: s for s in await self._table.find()}
            raise
        for day, row in zip(days, rows, strict=True):
            written = msgspec.structs.replace(row, version=row.version + 1)
            self._stored[day.id] = Stored(day, written)
