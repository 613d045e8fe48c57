"""What a worker has done, counted per route and backend, and the shared memory others read it from.

The hot path adds to plain integers of the worker's own; a timer writes them all into the worker's row of
the table. Nobody waits for anybody: a row is written to the half that is not being read, with a checksum.
Never renders anything.
"""

import logging
import mmap
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from roost.proxy.plan import Finished

if TYPE_CHECKING:
    from roost.proxy.upstream import Upstream

log = logging.getLogger(__name__)

BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Upper bounds of the latency histogram."""
HALF_BYTES = 2 << 20
"""Room for a row (some 10,000 pairs of route and backend); pages never written cost nothing."""
REASONS = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "no_route",
    405: "method",
    408: "timeout",
    413: "too_large",
    429: "rate",
    431: "too_large",
    502: "unreachable",
    503: "unavailable",
    504: "backend_timeout",
}
"""Why requests are answered here, by the status they get. Heads that broke the protocol have their own:
see ``FramingError``."""
OTHER = "other"


class Count(msgspec.Struct, array_like=True):
    """Requests of one route that ended at one backend (no backend: answered here)."""

    route: str = ""
    service: str = ""
    backend: str = ""
    statuses: list[int] = msgspec.field(default_factory=lambda: [0] * 6)
    """By first digit; 0: there was no answer."""
    cut: int = 0
    """Answers that broke off."""
    gone: int = 0
    """Clients that left first."""
    retries: int = 0
    hedges: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))

    @property
    def requests(self) -> int:
        return sum(self.statuses)

    def add(self, other: "Count") -> None:
        """Sum up."""
        self.statuses = [a + b for a, b in zip(self.statuses, other.statuses, strict=True)]
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        for name in ("cut", "gone", "retries", "hedges", "bytes_in", "bytes_out", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class BackendState(msgspec.Struct, array_like=True):
    """A backend as one worker sees it now."""

    service: str
    backend: str
    state: str
    active: int
    ewma_s: float
    failures: int
    ejections: int
    refused: int = 0
    reset: int = 0
    timed_out: int = 0
    """Of the failures: no connection, a broken one, no answer in time. The rest were answers."""


class Sheet(msgspec.Struct):
    """A worker's row: everything it has to say."""

    version: int = 0
    """Of the snapshot it serves by."""
    counts: list[Count] = []
    refused: dict[str, int] = {}
    totals: dict[str, int] = {}
    """Other things that only grow: connections, TLS handshakes, lines lost."""
    gauges: dict[str, int] = {}
    """How many there are now."""
    backends: list[BackendState] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sheet).decode


class Counters:
    """The counts of one worker: an observer of its exchanges."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Upstream | None], Count] = {}
        self._settled: dict[tuple[str, str, str], Count] = {}
        """Of backends that are gone (their objects are not kept alive for their numbers)."""
        self.refused: dict[str, int] = {}

    def done(self, record: Finished) -> None:
        """See ``Observer``."""
        upstream = record.upstream
        try:
            count = self._counts[record.route, upstream]
        except KeyError:
            count = self._counts[record.route, upstream] = _begun(record.route, upstream)
        count.statuses[record.status // 100] += 1
        seconds = record.seconds
        count.seconds += seconds
        count.buckets[bisect_left(BOUNDS_S, seconds)] += 1
        count.bytes_in += record.bytes_in
        count.bytes_out += record.bytes_out
        if record.outcome != "ok" or record.retries or record.hedged or record.refused:
            self._note(record, count)

    def tally(
        self, route: str, upstream: "Upstream", status: int, seconds: float, size: int
    ) -> None:
        """See ``plan.Tally``."""
        try:
            count = self._counts[route, upstream]
        except KeyError:
            count = self._counts[route, upstream] = _begun(route, upstream)
        count.statuses[status // 100] += 1
        count.buckets[bisect_left(BOUNDS_S, seconds)] += 1
        count.seconds += seconds
        count.bytes_out += size

    def _note(self, record: Finished, count: Count) -> None:
        """What is not the rule."""
        if record.outcome == "cut":
            count.cut += 1
        elif record.outcome == "gone":
            count.gone += 1
        count.retries += record.retries
        count.hedges += record.hedged
        if record.refused:
            reason = REASONS.get(record.status, OTHER)
            self.refused[reason] = self.refused.get(reason, 0) + 1

    def settle(self, present: Iterable["Upstream"]) -> None:
        """Fold the counts of backends that are not ``present`` (any more) into plain totals."""
        kept = set(present)
        for key, count in list(self._counts.items()):
            if key[1] is not None and key[1] not in kept and not key[1].active:
                del self._counts[key]
                add_to(self._settled, count)

    def counts(self) -> list[Count]:
        """All of them."""
        return [*self._counts.values(), *self._settled.values()]


def _begun(route: str, upstream: "Upstream | None") -> Count:
    if upstream is None:
        return Count(route=route)
    return Count(route=route, service=upstream.service, backend=upstream.address)


def add_to(sums: dict[tuple[str, str, str], Count], count: Count) -> None:
    """Add a count to the one of the same route and backend."""
    key = (count.route, count.service, count.backend)
    known = sums.get(key)
    if known is None:
        known = sums[key] = Count(*key)
    known.add(count)


class CounterTable:
    """Shared memory with one row for each worker; made before the workers are forked."""

    _HEAD = struct.Struct("<II")

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._row_bytes = 8 + 2 * (8 + HALF_BYTES)
        self._memory = mmap.mmap(-1, rows * self._row_bytes)
        self._complained = False

    def write(self, row: int, sheet: Sheet) -> None:
        """Publish a worker's counts: only that worker writes its row."""
        data = _encode(sheet)
        if len(data) > HALF_BYTES:
            if not self._complained:
                log.error("too many routes and backends for the table of counters: it stands still")
                self._complained = True
            return
        base = row * self._row_bytes
        half = 1 - self._memory[base]
        at = base + 8 + half * (8 + HALF_BYTES)
        self._HEAD.pack_into(self._memory, at, len(data), zlib.crc32(data))
        self._memory[at + 8 : at + 8 + len(data)] = data
        self._memory[base] = half

    def read(self, row: int) -> Sheet:
        """The latest whole sheet of a row; an empty one where nothing was written yet."""
        base = row * self._row_bytes
        for _ in range(10):
            at = base + 8 + self._memory[base] * (8 + HALF_BYTES)
            size, checksum = self._HEAD.unpack_from(self._memory, at)
            data = self._memory[at + 8 : at + 8 + min(size, HALF_BYTES)]
            if size == 0:
                return Sheet()
            if zlib.crc32(data) == checksum:
                return _decode(data)
        return Sheet()

    def clear(self, row: int) -> None:
        """The row gets another worker."""
        base = row * self._row_bytes
        for half in range(2):
            self._HEAD.pack_into(self._memory, base + 8 + half * (8 + HALF_BYTES), 0, 0)


class Summary:
    """The sum over all workers, those that ended included."""

    def __init__(self, table: CounterTable) -> None:
        self.table = table
        self._ended: dict[tuple[str, str, str], Count] = {}
        self._ended_refused: dict[str, int] = {}
        self._ended_totals: dict[str, int] = {}

    def retire(self, row: int) -> None:
        """The worker of a row has ended: keep what it counted, free the row."""
        sheet = self.table.read(row)
        for count in sheet.counts:
            add_to(self._ended, count)
        _add_all(self._ended_refused, sheet.refused)
        _add_all(self._ended_totals, sheet.totals)
        self.table.clear(row)

    def sheets(self) -> list[Sheet]:
        """Of the workers that run, by row."""
        return [self.table.read(row) for row in range(self.table.rows)]

    def total(self) -> Sheet:
        """Everything added up (``backends`` are left to each worker's own sheet)."""
        sums: dict[tuple[str, str, str], Count] = {}
        for count in self._ended.values():
            add_to(sums, count)
        refused, totals = dict(self._ended_refused), dict(self._ended_totals)
        gauges: dict[str, int] = {}
        for sheet in self.sheets():
            for count in sheet.counts:
                add_to(sums, count)
            _add_all(refused, sheet.refused)
            _add_all(totals, sheet.totals)
            _add_all(gauges, sheet.gauges)
        return Sheet(counts=list(sums.values()), refused=refused, totals=totals, gauges=gauges)


def _add_all(sums: dict[str, int], more: dict[str, int]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value
