"""What others collect and publish: SkyPilot's hosted catalogue, SpotLake's open data, Spare Cores' scores.

Shapes: skypilot-org/skypilot-catalog ``catalogs/v8/*/vms.csv``; ddps-lab/spotlake-open-data README;
SpareCores/sc-keeper ``GET /servers`` and its tests. Each has a licence of its own, shown to the person;
nothing of them ships with Roost.
"""

import csv
import gzip
import io
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from roost.adapters.sources.base import chosen, dump_cursor, load_cursor, moment, number
from roost.adapters.sources.http import UNREACHABLE_S, Web
from roost.ports.errors import Gone, Invalid, Never, Retry
from roost.ports.sources import (
    Fact,
    InterruptionBand,
    OfferPrice,
    Page,
    PerformanceScore,
    PlacementScore,
)

SKYPILOT = "https://raw.githubusercontent.com/skypilot-org/skypilot-catalog/master/catalogs/v8"
SPOTLAKE = "https://spotlake-open-data.s3.us-west-2.amazonaws.com"
SPARE_CORES = "https://keeper.sparecores.net"


def table(
    content: bytes, columns: Iterable[str], what: str, *, spare: int = 0
) -> Iterator[dict[str, str]]:
    """The rows of a CSV with a header that names ``columns``; ``spare`` cells more are let pass.

    Raises ``Retry`` (ends early) and ``Never`` (other columns).
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Never(f"{what} is not text: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(reader, [])
        missing = [name for name in columns if name not in names]
        if missing:
            raise Never(f"{what} lacks {', '.join(missing)}", hint="nothing was stored")
        for line, cells in enumerate(reader, 2):
            if not len(names) <= len(cells) <= len(names) + spare:
                said = f"row {line} has {len(cells)} of {len(names)} cells"
                if next(reader, None) is None:
                    raise Retry(f"{what} ends early: {said}", after_s=UNREACHABLE_S)
                raise Never(f"{what}: {said}", hint="nothing was stored")
            yield dict(zip(names, cells, strict=False))
    except csv.Error as error:
        raise Retry(f"{what} ends early: {error}", after_s=UNREACHABLE_S) from error


class _Clouds(msgspec.Struct):
    queue: list[str] = []
    etags: dict[str, str] = {}


class SkyPilotCatalog:
    """On-demand and spot prices per zone of three clouds, a cloud a page."""

    name = "skypilot"
    licence = "skypilot-org/skypilot-catalog: no licence stated; prices are the clouds' own facts"
    consent = False
    needs = ""
    cadence_s = 12 * 3600.0
    CLOUDS = ("aws", "azure", "gcp")

    def __init__(
        self,
        clouds: Iterable[str] = (),
        *,
        base: str = SKYPILOT,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``clouds``: empty = all three."""
        self._clouds = chosen(clouds, self.CLOUDS, "cloud")
        self._base = base
        self._now = now
        self._web = Web(self.name)

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``."""
        at = load_cursor(cursor, _Clouds)
        cloud, *rest = at.queue or self._clouds
        reply = await self._web.get(f"{self._base}/{cloud}/vms.csv", etag=at.etags.get(cloud, ""))
        skipped: Counter[str] = Counter()
        facts: tuple[Fact, ...] = ()
        etags = dict(at.etags)
        if not reply.unchanged:
            facts = tuple(self._facts(cloud, reply.body, skipped))
            if not facts:
                raise Never(f"{self.name}: {cloud} has no price", hint="nothing was stored")
            etags[cloud] = reply.etag
        return Page(
            records=facts,
            cursor=dump_cursor(_Clouds(queue=rest, etags=etags)),
            done=not rest,
            progress=f"{cloud}{', unchanged' if reply.unchanged else ''}",
            skipped=dict(skipped),
        )

    def _facts(self, cloud: str, content: bytes, skipped: Counter[str]) -> Iterator[OfferPrice]:
        at = self._now()
        what = f"{self.name}: {cloud}/vms.csv"
        columns = ["InstanceType", "Price", "SpotPrice", "Region"]
        columns += [] if cloud == "azure" else ["AvailabilityZone"]
        told: set[tuple[str, str]] = set()
        for row in table(content, columns, what, spare=1):
            kind, region = row["InstanceType"], row["Region"]
            if not kind or not region:
                skipped["no machine type (an accelerator alone)"] += 1
                continue
            if cloud == "gcp" and kind.startswith(("a2-", "a3-", "a4", "g2-", "g4-")):
                skipped["types whose GPU price stands in another row"] += 1
                continue
            pool = {
                "source": self.name,
                "observed_at": at,
                "provider": cloud,
                "region": region,
                "instance_type": kind,
            }
            if row["Price"] and (region, kind) not in told:
                told.add((region, kind))
                yield OfferPrice(
                    **pool,  # type: ignore[arg-type]
                    option="on_demand",
                    usd_hour=number(row["Price"], what),
                )
            if row["SpotPrice"]:
                yield OfferPrice(
                    **pool,  # type: ignore[arg-type]
                    zone=row.get("AvailabilityZone", ""),
                    option="spot",
                    usd_hour=number(row["SpotPrice"], what),
                )
            else:
                skipped["no spot price"] += 1


class _Slot(msgspec.Struct):
    next: str = ""


class SpotLake:
    """Snapshots of AWS pools every ten minutes of 2025: prices, advisor band, placement score."""

    name = "spotlake"
    licence = "CC BY-NC 4.0 (not for commercial use), DDPS Lab, Hanyang University; cite IISWC 2022"
    consent = True
    needs = ""
    cadence_s = 30 * 86_400.0
    FIRST = datetime(2025, 1, 1, tzinfo=UTC)
    LAST = datetime(2025, 12, 31, 23, 50, tzinfo=UTC)
    SLOT_S = 600.0
    COLUMNS = (
        "Time", "InstanceType", "Region", "AZ", "SPS", "T3", "IF", "OndemandPrice", "SpotPrice"
    )  # fmt: skip
    GRADES: Mapping[float, tuple[str, float, float]] = {
        3.0: ("<5%", 0.0, 0.05),
        2.5: ("5-10%", 0.05, 0.10),
        2.0: ("10-15%", 0.10, 0.15),
        1.5: ("15-20%", 0.15, 0.20),
        1.0: (">20%", 0.20, 1.0),
    }

    def __init__(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        every_s: float = 3600.0,
        base: str = SPOTLAKE,
    ) -> None:
        """Snapshots from ``since`` to ``until``, one each ``every_s``; by default the last one only."""
        self._until = min(until or self.LAST, self.LAST)
        self._since = max(since or self._until, self.FIRST)
        if self._since > self._until:
            raise Invalid("SpotLake's open data is of 2025", hint="--since 2025-06-01")
        self._every = timedelta(seconds=max(self.SLOT_S, every_s - every_s % self.SLOT_S))
        self._base = base
        self._web = Web(self.name)

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``: one snapshot of about 38,000 pools. Missing slots are told, not errors."""
        text = load_cursor(cursor, _Slot).next
        at = datetime.fromisoformat(text) if text else self._since
        slot = at - timedelta(seconds=at.timestamp() % self.SLOT_S)
        skipped: Counter[str] = Counter()
        facts: tuple[Fact, ...] = ()
        name = slot.strftime("data/aws/%Y/%m/%d/%H-%M-%S.csv.gz")
        try:
            reply = await self._web.get(f"{self._base}/{name}")
            facts = tuple(self._facts(unpack(reply.body, f"{self.name}: {name}"), name, skipped))
        except Gone:
            skipped["snapshots that the archive lacks"] += 1
        after = slot + self._every
        done = after > self._until
        return Page(
            records=facts,
            cursor=dump_cursor(_Slot(next="" if done else after.isoformat())),
            done=done,
            progress=f"{slot:%Y-%m-%d %H:%M}",
            skipped=dict(skipped),
        )

    def _facts(self, content: bytes, name: str, skipped: Counter[str]) -> Iterator[Fact]:
        what = f"{self.name}: {name}"
        for row in table(content, self.COLUMNS, what):
            pool = {
                "source": self.name,
                "observed_at": moment(row["Time"], what),
                "provider": "aws",
                "region": row["Region"],
                "instance_type": row["InstanceType"],
            }
            zone = row["AZ"]
            for column, option, place in (
                ("OndemandPrice", "on_demand", ""),
                ("SpotPrice", "spot", zone),
            ):
                if not row[column]:
                    skipped[f"no {column}"] += 1
                    continue
                price = number(row[column], what)
                yield OfferPrice(**pool, zone=place, option=option, usd_hour=price)  # type: ignore[arg-type]
            if row["IF"] and (band := self.GRADES.get(number(row["IF"], what))):
                label, low, high = band
                yield InterruptionBand(
                    **pool,  # type: ignore[arg-type]
                    scale="share_month",
                    label=label,
                    low=low,
                    high=high,
                )
            for column, scale in (("SPS", "aws_1_10"), ("T3", "spotlake_t3")):
                if row[column]:
                    score = number(row[column], what)
                    yield PlacementScore(**pool, zone=zone, scale=scale, score=score)  # type: ignore[arg-type]


def unpack(content: bytes, what: str) -> bytes:
    """The content of a gzip file, or as it is where the server unpacked it. Raises ``Retry``, ``Never``."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise Retry(f"{what} ends early", after_s=UNREACHABLE_S) from error
    except (OSError, zlib.error) as error:
        raise Never(f"{what} is damaged: {error}", hint="nothing was stored") from error


class _Server(msgspec.Struct):
    vendor_id: str
    api_reference: str
    selected_benchmark_score: float | None = None


class _Number(msgspec.Struct):
    vendor: int = 0
    page: int = 1


class SpareCores:
    """The best all-core score of machine types (stress-ng), pages of 100 of one cloud."""

    name = "sparecores"
    licence = 'CC BY-SA 4.0: credit "Spare Cores", share alike'
    consent = False
    needs = ""
    cadence_s = 7 * 86_400.0
    VENDORS = ("aws", "azure", "gcp")
    BENCHMARK = "stress_ng:bestn"
    LIMIT = 100

    def __init__(self, *, base: str = SPARE_CORES, now: Callable[[], float] = time.time) -> None:
        """The API allows 60 credits a minute; a page costs 3."""
        self._base = base
        self._now = now
        self._web = Web(self.name)

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``. Credits that run out are a ``Retry`` of the vendor's seconds."""
        at = load_cursor(cursor, _Number)
        vendor, page = self.VENDORS[at.vendor % len(self.VENDORS)], at.page
        params = {
            "vendor": vendor,
            "benchmark_id": self.BENCHMARK,
            "limit": str(self.LIMIT),
            "page": str(page),
            "order_by": "server_id",
            "order_dir": "asc",
            "add_total_count_header": "true",
        }
        reply = await self._web.get(f"{self._base}/servers", params=params)
        servers = self._web.json(reply, list[_Server], "a page of servers")
        skipped: Counter[str] = Counter()
        facts = []
        for server in servers:
            if server.vendor_id != vendor or not server.selected_benchmark_score:
                skipped["no score"] += 1
                continue
            facts.append(
                PerformanceScore(
                    source=self.name,
                    observed_at=self._now(),
                    provider=server.vendor_id,
                    instance_type=server.api_reference,
                    benchmark=self.BENCHMARK,
                    score=server.selected_benchmark_score,
                )
            )
        total = reply.headers.get("x-total-count", "")
        last = len(servers) < self.LIMIT
        pages = f" of {-(-int(total) // self.LIMIT)}" if total.isdigit() else ""
        done = last and vendor == self.VENDORS[-1]
        step = _Number(vendor=at.vendor, page=page + 1)
        if last:
            step = _Number() if done else _Number(vendor=at.vendor + 1)
        return Page(
            records=tuple(facts),
            cursor=dump_cursor(step),
            done=done,
            progress=f"{vendor}, page {page}{pages}",
            skipped=dict(skipped),
        )
