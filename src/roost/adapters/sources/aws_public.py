"""What AWS publishes without an account: the price list by region, and the Spot Advisor's file.

Shapes: AWS Billing guide "Reading the service price list file" (five lines of metadata, then the header);
the Spot Advisor's file is undocumented, its shape is that of the copies in public tools. Never asks for an
account.
"""

import asyncio
import csv
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from roost.adapters.sources.base import chosen, dump_cursor, load_cursor, moment, number
from roost.adapters.sources.http import Web
from roost.ports.errors import Denied, Gone, Never, Retry
from roost.ports.sources import Fact, InterruptionBand, OfferPrice, Page, SavingsRate

PRICES = "https://pricing.us-east-1.amazonaws.com"
ADVISOR = "https://spot-bid-advisor.s3.amazonaws.com/spot-advisor-data.json"
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
"""Not the local and wavelength zones of the index (``us-west-2-lax-1``)."""
PREAMBLE = 5
COLUMNS = (
    "SKU",
    "OfferTermCode",
    "TermType",
    "Unit",
    "PricePerUnit",
    "Currency",
    "LeaseContractLength",
    "PurchaseOption",
    "OfferingClass",
    "Instance Type",
    "Tenancy",
    "Operating System",
    "usageType",
    "CapacityStatus",
    "Pre Installed S/W",
)
HOURS_A_YEAR = 8760.0


class _Region(msgspec.Struct):
    regionCode: str
    currentVersionUrl: str


class _Index(msgspec.Struct):
    regions: dict[str, _Region]


class _Files(msgspec.Struct):
    """Cursor: the files still to read, and what was current of each."""

    queue: dict[str, str] = {}
    total: int = 0
    etags: dict[str, str] = {}


class AwsPriceList:
    """On-demand and reserved prices of Linux machines with shared tenancy, a region a page."""

    name = "aws-price-list"
    licence = "AWS public price list; use under the AWS site terms"
    consent = False
    needs = ""
    cadence_s = 7 * 86_400.0

    def __init__(
        self, regions: Iterable[str] = (), *, base: str = PRICES, reserved: bool = True
    ) -> None:
        """``regions``: empty = all but local zones. ``reserved``: the reserved terms too."""
        self._regions = tuple(regions)
        self._base = base
        self._reserved = reserved
        self._web = Web(self.name, timeout_s=120.0)

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``: one region's file."""
        at = load_cursor(cursor, _Files)
        if not at.queue:
            queue = await self._index()
            at = _Files(queue=queue, total=len(queue), etags=at.etags)
        region, path = next(iter(at.queue.items()))
        rest = {name: url for name, url in at.queue.items() if name != region}
        facts: list[Fact] = []
        skipped: dict[str, int] = {}
        failed: tuple[str, ...] = ()
        etags = dict(at.etags)
        try:
            async with self._web.spool(self._base + path, etag=etags.get(region, "")) as file:
                if not file.unchanged and file.path is not None:
                    what = f"{self.name}: the price list of {region}"
                    facts, skipped = await asyncio.to_thread(
                        read_prices, file.path, region, what, self._reserved
                    )
                    etags[region] = file.etag
        except (Denied, Gone) as error:
            failed = (f"{region}: {error.message}",)
        return Page(
            records=tuple(facts),
            cursor=dump_cursor(_Files(queue=rest, total=at.total, etags=etags)),
            done=not rest,
            progress=f"{region}, {at.total - len(rest)} of {at.total} regions",
            skipped=skipped,
            failed=failed,
        )

    async def _index(self) -> dict[str, str]:
        url = f"{self._base}/offers/v1.0/aws/AmazonEC2/current/region_index.json"
        reply = await self._web.get(url)
        index = self._web.json(reply, _Index, "the index of regions")
        known = {
            code: entry.currentVersionUrl
            for code, entry in index.regions.items()
            if self._regions or REGION.fullmatch(code)
        }
        if not known:
            raise Never(f"{self.name}: the index names no region")
        found = {}
        for code in chosen(self._regions, known, "region of the price list"):
            path = known[code]
            if not path.startswith("/offers/") or not path.endswith("/index.json"):
                raise Never(f"{self.name}: the index has {path!r} for {code}")
            found[code] = path.removesuffix("json") + "csv"
        return found


def read_prices(
    path: Path, region: str, what: str, reserved: bool
) -> tuple[list[Fact], dict[str, int]]:
    """The facts of one region's CSV. Raises ``Never`` (other columns), ``Retry`` (ends early)."""
    skipped: dict[str, int] = {}
    on_demand: dict[str, float] = {}
    terms: dict[tuple[str, str, str, str], list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        published, rows = _rows(file, what)
        for row in rows:
            kind, price = row["Instance Type"], number(row["PricePerUnit"], what)
            if row["Currency"] != "USD":
                _count(skipped, "not in USD")
            elif row["TermType"] == "OnDemand":
                _on_demand(on_demand, kind, price, skipped)
            elif reserved and row["TermType"] == "Reserved":
                key = (
                    kind,
                    row["OfferingClass"],
                    row["LeaseContractLength"],
                    row["PurchaseOption"],
                )
                parts = terms.setdefault(key, [0.0, 0.0])
                parts[row["Unit"] == "Quantity"] = price
    if not on_demand:
        raise Never(f"{what} has no on-demand price of a Linux machine", hint="nothing was stored")
    facts: list[Fact] = [
        OfferPrice(
            source=AwsPriceList.name,
            observed_at=published,
            provider="aws",
            region=region,
            instance_type=kind,
            option="on_demand",
            usd_hour=price,
        )
        for kind, price in on_demand.items()
    ]
    facts += _savings(terms, region, published, skipped)
    return facts, skipped


def _on_demand(found: dict[str, float], kind: str, price: float, skipped: dict[str, int]) -> None:
    if price == 0.0:
        _count(skipped, "on-demand price of zero")
    elif kind in found and found[kind] != price:
        _count(skipped, "a second on-demand price of a type (the lower stays)")
        found[kind] = min(found[kind], price)
    else:
        found[kind] = price


def _savings(
    terms: dict[tuple[str, str, str, str], list[float]],
    region: str,
    published: float,
    skipped: dict[str, int],
) -> Iterator[SavingsRate]:
    for (kind, offering, lease, payment), (hourly, upfront) in terms.items():
        years = {"1yr": 1, "1 yr": 1, "3yr": 3, "3 yr": 3}.get(lease)
        if years is None or offering not in ("standard", "convertible"):
            _count(skipped, "reserved term of unknown length or class")
            continue
        yield SavingsRate(
            source=AwsPriceList.name,
            observed_at=published,
            provider="aws",
            region=region,
            instance_type=kind,
            plan=f"reserved_{offering}",
            term_years=years,
            payment=payment.lower().replace(" ", "_"),
            usd_hour=hourly + upfront / (HOURS_A_YEAR * years),
            upfront_usd=upfront,
        )


def _rows(file: Iterable[str], what: str) -> tuple[float, Iterator[dict[str, str]]]:
    """When the list was published, and the rows of Linux machines with shared tenancy."""
    reader = csv.reader(file, strict=True)
    try:
        head = [next(reader) for _ in range(PREAMBLE + 1)]
    except (StopIteration, csv.Error) as error:
        raise Retry(f"{what} ends early", after_s=60.0) from error
    names = head[PREAMBLE]
    missing = [name for name in COLUMNS if name not in names]
    told = {row[0]: row[1] for row in head[:PREAMBLE] if len(row) == 2}
    if missing or "Publication Date" not in told:
        lacking = ", ".join(missing) or "a publication date"
        raise Never(f"{what} lacks {lacking}", hint="nothing was stored; please report this")
    return moment(told["Publication Date"], what), _wanted(reader, names, what)


def _wanted(reader: Iterator[list[str]], names: list[str], what: str) -> Iterator[dict[str, str]]:
    places = {name: names.index(name) for name in (*COLUMNS, "MarketOption") if name in names}
    try:
        for number_, cells in enumerate(reader, PREAMBLE + 2):
            if len(cells) != len(names):
                said = f"row {number_} has {len(cells)} of {len(names)} cells"
                if next(reader, None) is None:
                    raise Retry(f"{what} ends early: {said}", after_s=60.0)
                raise Never(f"{what}: {said}", hint="nothing was stored")
            row = {name: cells[place] for name, place in places.items()}
            # Leaving out one of these is a known mistake: it mixes dedicated or bundled rates in.
            if (
                row["Operating System"] == "Linux"
                and row["Tenancy"] == "Shared"
                and row["Pre Installed S/W"] in ("NA", "")
                and row["CapacityStatus"] == "Used"
                and "BoxUsage" in row["usageType"]
                and row.get("MarketOption", "OnDemand") in ("OnDemand", "")
                and row["Instance Type"]
            ):
                yield row
    except csv.Error as error:
        raise Retry(f"{what} ends early: {error}", after_s=60.0) from error


def _count(skipped: dict[str, int], why: str) -> None:
    skipped[why] = skipped.get(why, 0) + 1


class _Range(msgspec.Struct):
    index: int
    label: str


class _Cell(msgspec.Struct):
    s: int
    r: int


class _Advice(msgspec.Struct):
    ranges: list[_Range]
    spot_advisor: dict[str, dict[str, dict[str, _Cell]]]


class _Tag(msgspec.Struct):
    etag: str = ""


class AwsSpotAdvisor:
    """The share of machines interrupted in the trailing month, per region and type."""

    name = "aws-spot-advisor"
    licence = "AWS public feed; use under the AWS site terms"
    consent = False
    needs = ""
    cadence_s = 6 * 3600.0

    def __init__(self, *, url: str = ADVISOR, now: Callable[[], float] = time.time) -> None:
        self._url = url
        self._now = now
        self._web = Web(self.name)

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``: the whole file, unless it is the one read before."""
        reply = await self._web.get(self._url, etag=load_cursor(cursor, _Tag).etag)
        if reply.unchanged:
            return Page(cursor=cursor, progress="unchanged")
        advice = self._web.json(reply, _Advice, "the advisor's file")
        bands = {entry.index: band(entry.label) for entry in advice.ranges}
        skipped: dict[str, int] = {}
        at = reply.modified_s or self._now()
        facts = list(self._facts(advice, bands, at, skipped))
        if not facts:
            raise Never(f"{self.name}: the file has no pool", hint="nothing was stored")
        return Page(
            records=tuple(facts),
            cursor=dump_cursor(_Tag(etag=reply.etag)),
            progress=f"{len(advice.spot_advisor)} regions",
            skipped=skipped,
        )

    def _facts(
        self,
        advice: _Advice,
        bands: dict[int, tuple[str, float, float]],
        at: float,
        skipped: dict[str, int],
    ) -> Iterator[InterruptionBand]:
        for region, systems in advice.spot_advisor.items():
            for kind, cell in systems.get("Linux", {}).items():
                if cell.r not in bands:
                    _count(skipped, "a band the file does not explain")
                    continue
                label, low, high = bands[cell.r]
                yield InterruptionBand(
                    source=self.name,
                    observed_at=at,
                    provider="aws",
                    region=region,
                    instance_type=kind,
                    scale="share_month",
                    label=label,
                    low=low,
                    high=high,
                    savings=cell.s / 100.0 if 0 <= cell.s <= 100 else None,
                )


def band(label: str) -> tuple[str, float, float]:
    """A published band as label and shares: ``<5%``, ``5-10%``, ``>20%``. Raises ``Never``."""
    text = label.replace(" ", "").removesuffix("%")
    parts = [part.removesuffix("%") for part in text.lstrip("<>").split("-")]
    if not all(part.replace(".", "", 1).isdigit() for part in parts) or len(parts) > 2:
        raise Never(f"{label!r} is no band of interruptions")
    shares = [float(part) / 100.0 for part in parts]
    if text.startswith("<"):
        return f"<{parts[0]}%", 0.0, shares[0]
    if text.startswith(">"):
        return f">{parts[0]}%", shares[0], 1.0
    if len(shares) != 2:
        raise Never(f"{label!r} is no band of interruptions")
    return f"{parts[0]}-{parts[1]}%", shares[0], shares[1]
