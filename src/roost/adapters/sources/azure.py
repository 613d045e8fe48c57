"""Azure: retail prices (no account), eviction rates, spot price history (Resource Graph), placement scores.

Shapes: learn.microsoft.com "Azure Retail Prices", "Spot VMs: pricing and eviction history" (Resource Graph
table ``SpotResources``), "Spot placement score". It never creates a resource.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from roost.adapters.sources.aws_public import band
from roost.adapters.sources.base import dump_cursor, load_cursor, moment, number
from roost.adapters.sources.http import Web
from roost.adapters.sources.tokens import Tokens
from roost.ports.errors import Invalid, Never, Retry
from roost.ports.sources import (
    Fact,
    InterruptionBand,
    OfferPrice,
    Page,
    PlacementScore,
    SavingsRate,
)

RETAIL = "https://prices.azure.com"
MANAGEMENT = "https://management.azure.com"
RETAIL_VERSION = "2023-01-01-preview"
GRAPH_VERSION = "2024-04-01"
SCORE_VERSION = "2025-06-05"
HOST = re.compile(r"_Type\d+$")
EVICTIONS = (
    "SpotResources"
    " | where type =~ 'microsoft.compute/skuspotevictionrate/location'"
    " | project location, skuName = tostring(sku.name),"
    " evictionRate = tostring(properties.evictionRate)"
    " | order by location asc, skuName asc"
)
PRICES = (
    "SpotResources"
    " | where type =~ 'microsoft.compute/skuspotpricehistory/ostype/location'"
    " | where properties.osType =~ 'linux'"
    " | project location, skuName = tostring(sku.name), spotPrices = properties.spotPrices"
    " | order by location asc, skuName asc"
)
GRAPH_PAGE = 1000
SCORES = {"High": 3.0, "Medium": 2.0, "Low": 1.0}
LOCATIONS_A_CALL = 8
SIZES_A_CALL = 5


class _Plan(msgspec.Struct, rename="camel"):
    retail_price: float
    term: str


class _Item(msgspec.Struct, rename="camel"):
    currency_code: str
    retail_price: float
    arm_region_name: str
    product_name: str
    sku_name: str
    unit_of_measure: str
    type: str
    arm_sku_name: str
    is_primary_meter_region: bool = True
    reservation_term: str = ""
    savings_plan: list[_Plan] = []


class _Prices(msgspec.Struct):
    Items: list[_Item]
    NextPageLink: str | None = None


class _At(msgspec.Struct):
    """Cursor: the page's query, which of the two price types, and when this read began."""

    phase: int = 0
    query: dict[str, str] = {}
    started: float = 0.0
    pages: int = 0


class AzureRetailPrices:
    """On-demand, spot and committed prices of Linux sizes, a page of 1,000 meters a call."""

    name = "azure-retail-prices"
    licence = "Microsoft public price API; use under the Microsoft APIs terms"
    consent = False
    needs = ""
    cadence_s = 86_400.0

    def __init__(
        self,
        regions: Iterable[str] = (),
        *,
        base: str = RETAIL,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``regions``: empty = all (several hundred pages)."""
        self._regions = tuple(regions)
        if any(not re.fullmatch(r"[a-z0-9]+", region) for region in self._regions):
            raise Invalid(f"{', '.join(self._regions)}: not Azure regions", hint="as koreacentral")
        self._base = base
        self._now = now
        self._web = Web(self.name)

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``."""
        at = load_cursor(cursor, _At)
        if not at.query:
            at = _At(query=self._query(0), started=self._now())
        reply = await self._web.get(f"{self._base}/api/retail/prices", params=at.query)
        found = self._web.json(reply, _Prices, "a page of prices")
        if not found.Items and not at.pages:
            raise Never(f"{self.name}: no price at all", hint="check the names of the regions")
        skipped: dict[str, int] = {}
        facts = [fact for item in found.Items for fact in self._of(item, at.started, skipped)]
        step = self._after(at, found.NextPageLink)
        return Page(
            records=tuple(facts),
            cursor=dump_cursor(step),
            done=not step.query,
            progress=f"page {at.pages + 1} of {('consumption', 'reservations')[at.phase]}",
            skipped=skipped,
        )

    def _query(self, phase: int) -> dict[str, str]:
        kind = ("Consumption", "Reservation")[phase]
        terms = ["serviceName eq 'Virtual Machines'", f"priceType eq '{kind}'"]
        if self._regions:
            any_of = " or ".join(f"armRegionName eq '{region}'" for region in self._regions)
            terms.append(f"({any_of})")
        return {"api-version": RETAIL_VERSION, "$filter": " and ".join(terms)}

    def _after(self, at: _At, link: str | None) -> _At:
        if link:
            # Only the query of the link is used: a page never sends us to another host.
            query = dict(parse_qsl(urlsplit(link).query))
            if not query or query == at.query:
                raise Never(f"{self.name}: the link to the next page leads nowhere: {link[:200]}")
            return _At(phase=at.phase, query=query, started=at.started, pages=at.pages + 1)
        if at.phase == 0:
            return _At(phase=1, query=self._query(1), started=at.started, pages=at.pages + 1)
        return _At()

    def _of(self, item: _Item, at: float, skipped: dict[str, int]) -> Iterator[Fact]:
        why = _useless(item)
        if why:
            skipped[why] = skipped.get(why, 0) + 1
            return
        pool = {
            "source": self.name,
            "observed_at": at,
            "provider": "azure",
            "region": item.arm_region_name,
            "instance_type": item.arm_sku_name,
        }
        if item.type == "Reservation":
            years = _years(item.reservation_term)
            price = item.retail_price / (8760.0 * years)
            yield SavingsRate(
                **pool,  # type: ignore[arg-type]
                plan="reserved_standard",
                term_years=years,
                payment="all_upfront",
                usd_hour=price,
                upfront_usd=item.retail_price,
            )
            return
        spot = item.sku_name.endswith(" Spot")
        yield OfferPrice(
            **pool,  # type: ignore[arg-type]
            option="spot" if spot else "on_demand",
            usd_hour=item.retail_price,
        )
        for plan in () if spot else item.savings_plan:
            yield SavingsRate(
                **pool,  # type: ignore[arg-type]
                plan="savings_plan",
                term_years=_years(plan.term),
                payment="monthly",
                usd_hour=plan.retail_price,
            )


def _useless(item: _Item) -> str:
    """Why a meter is no price of a Linux machine; empty = it is one."""
    rules = (
        (item.type not in ("Consumption", "Reservation"), "another kind of price"),
        (item.sku_name.endswith(" Low Priority"), "low priority (before spot)"),
        (item.product_name.endswith(" Windows"), "Windows"),
        (not item.arm_sku_name, "no size"),
        (bool(HOST.search(item.arm_sku_name)) or "Host" in item.product_name, "a dedicated host"),
        (not item.is_primary_meter_region, "not the region's own meter"),
        (item.currency_code != "USD", "not in USD"),
        (item.type == "Consumption" and item.unit_of_measure != "1 Hour", "not by the hour"),
        (item.retail_price <= 0, "no price"),
    )
    return next((why for holds, why in rules if holds), "")


def _years(term: str) -> int:
    digits = re.match(r"(\d+) Year", term)
    if digits is None or not int(digits[1]):
        raise Never(f"azure-retail-prices: {term!r} is no term of a commitment")
    return int(digits[1])


class _Rows(msgspec.Struct):
    data: list[dict[str, Any]]
    skip_token: str | None = msgspec.field(name="$skipToken", default=None)


class _GraphAt(msgspec.Struct):
    phase: int = 0
    token: str = ""
    pages: int = 0


class AzureResourceGraph:
    """Eviction rates (percent an hour, trailing 28 days) and the spot price history of Linux sizes."""

    name = "azure-resource-graph"
    licence = "Azure account data; use under the Microsoft customer agreement"
    consent = False
    needs = "an Azure token (Reader at the tenant)"
    cadence_s = 6 * 3600.0

    def __init__(
        self,
        tokens: Tokens,
        *,
        names: Mapping[str, str] | None = None,
        base: str = MANAGEMENT,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``names``: how sizes are written, by lower case (Resource Graph may answer in lower case)."""
        self._tokens = tokens
        self._names = dict(names or {})
        self._base = base
        self._now = now
        self._web = Web(self.name, credentials=tokens.advice)

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``: a page of 1,000 rows."""
        at = load_cursor(cursor, _GraphAt)
        options: dict[str, Any] = {"resultFormat": "objectArray", "$top": GRAPH_PAGE}
        if at.token:
            options["$skipToken"] = at.token
        reply = await self._web.call(
            "POST",
            f"{self._base}/providers/Microsoft.ResourceGraph/resources",
            params={"api-version": GRAPH_VERSION},
            headers=await self._tokens.headers(),
            body={"query": (EVICTIONS, PRICES)[at.phase], "options": options},
        )
        found = self._web.json(reply, _Rows, "a page of SpotResources")
        skipped: dict[str, int] = {}
        read = (self._eviction, self._prices)[at.phase]
        now = self._now()
        facts = [fact for row in found.data for fact in read(row, now, skipped)]
        if found.skip_token:
            step = _GraphAt(phase=at.phase, token=found.skip_token, pages=at.pages + 1)
        else:
            step = _GraphAt(phase=1 - at.phase, pages=at.pages + 1)
        done = at.phase == 1 and not found.skip_token
        return Page(
            records=tuple(facts),
            cursor=dump_cursor(_GraphAt() if done else step),
            done=done,
            progress=f"page {at.pages + 1} of {('eviction rates', 'spot prices')[at.phase]}",
            skipped=skipped,
        )

    def _pool(self, row: Mapping[str, Any]) -> dict[str, Any]:
        size, place = row.get("skuName"), row.get("location")
        if not isinstance(size, str) or not isinstance(place, str) or not size or not place:
            raise Never(f"{self.name}: a row has no skuName or location: {str(row)[:200]}")
        return {
            "source": self.name,
            "provider": "azure",
            "region": place.lower().replace(" ", ""),
            "instance_type": self._names.get(size.lower(), size),
        }

    def _eviction(
        self, row: Mapping[str, Any], at: float, skipped: dict[str, int]
    ) -> Iterator[Fact]:
        rate = str(row.get("evictionRate") or "").replace("%", "").strip()
        if not rate:
            skipped["no eviction rate"] = skipped.get("no eviction rate", 0) + 1
            return
        label, low, high = band(f">{rate[:-1]}%" if rate.endswith("+") else f"{rate}%")
        yield InterruptionBand(
            **self._pool(row),
            observed_at=at,
            scale="share_hour",
            label=label,
            low=low,
            high=high,
        )

    def _prices(self, row: Mapping[str, Any], at: float, skipped: dict[str, int]) -> Iterator[Fact]:
        pool = self._pool(row)
        told = row.get("spotPrices")
        if isinstance(told, str):
            told = json.loads(told)
        if not isinstance(told, list):
            raise Never(f"{self.name}: spotPrices of {pool['instance_type']} is no list")
        for entry in told:
            if entry.get("priceUSD") is None or not entry.get("effectiveDate"):
                skipped["no price or date"] = skipped.get("no price or date", 0) + 1
                continue
            yield OfferPrice(
                **pool,
                observed_at=moment(str(entry["effectiveDate"]), self.name),
                option="spot",
                usd_hour=number(str(entry["priceUSD"]), self.name),
            )


class _Score(msgspec.Struct, rename="camel"):
    sku: str
    region: str
    score: str
    availability_zone: str | None = None
    is_quota_available: bool = True


class _Scores(msgspec.Struct, rename="camel"):
    placement_scores: list[_Score]


class _ScoreAt(msgspec.Struct):
    number: int = 0
    asked_at: int = 0


class AzurePlacementScores:
    """Spot placement scores of chosen sizes, five sizes x eight regions a call."""

    name = "azure-placement-scores"
    licence = "Azure account data; use under the Microsoft customer agreement"
    consent = False
    needs = "an Azure token (Compute Recommendations Role) and AZURE_SUBSCRIPTION_ID"
    cadence_s = 3600.0

    def __init__(
        self,
        tokens: Tokens,
        subscription: str,
        *,
        types: Iterable[str],
        regions: Iterable[str],
        capacity: int = 1,
        base: str = MANAGEMENT,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Raises ``Invalid`` when sizes, regions or the subscription are missing."""
        sizes, places = sorted(set(types)), sorted(set(regions))
        if not sizes or not places or not subscription:
            raise Invalid(
                "placement scores need sizes, regions and a subscription",
                hint="--type Standard_D4s_v5 --region koreacentral, and AZURE_SUBSCRIPTION_ID",
            )
        self._calls = [
            (sizes[i : i + SIZES_A_CALL], places[j : j + LOCATIONS_A_CALL])
            for i in range(0, len(sizes), SIZES_A_CALL)
            for j in range(0, len(places), LOCATIONS_A_CALL)
        ]
        self._places = places
        self._tokens = tokens
        self._subscription = subscription
        self._capacity = capacity
        self._base = base
        self._now = now
        self._web = Web(self.name, credentials=tokens.advice)

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``. Azure throttles per region asked: others are asked before giving up."""
        at = load_cursor(cursor, _ScoreAt)
        step = at.number % len(self._calls)
        sizes, places = self._calls[step]
        found = await self._rotate(sizes, places, at.asked_at)
        facts = tuple(self._of(score) for score in found.placement_scores)
        last = step + 1 == len(self._calls)
        after = _ScoreAt(number=0 if last else step + 1, asked_at=at.asked_at + 1)
        return Page(
            records=facts,
            cursor=dump_cursor(after),
            done=last,
            progress=f"call {step + 1} of {len(self._calls)}",
        )

    async def _rotate(self, sizes: list[str], places: list[str], first: int) -> _Scores:
        throttled: Retry | None = None
        for turn in range(len(self._places)):
            place = self._places[(first + turn) % len(self._places)]
            try:
                return await self._ask(place, sizes, places)
            except Retry as error:
                throttled = error
        if throttled is None:
            raise Invalid(f"{self.name}: no region to ask")
        raise throttled

    async def _ask(self, place: str, sizes: list[str], places: list[str]) -> _Scores:
        url = (
            f"{self._base}/subscriptions/{self._subscription}/providers/Microsoft.Compute"
            f"/locations/{place}/placementScores/spot/generate"
        )
        reply = await self._web.call(
            "POST",
            url,
            params={"api-version": SCORE_VERSION},
            headers=await self._tokens.headers(),
            body={
                "desiredLocations": places,
                "desiredSizes": [{"sku": size} for size in sizes],
                "desiredCount": self._capacity,
                "availabilityZones": True,
            },
        )
        return self._web.json(reply, _Scores, "placement scores")

    def _of(self, score: _Score) -> PlacementScore:
        quota = "" if score.is_quota_available else ", no quota"
        return PlacementScore(
            source=self.name,
            observed_at=self._now(),
            provider="azure",
            region=score.region,
            zone=score.availability_zone or "",
            instance_type=score.sku,
            scale="azure_1_3",
            score=SCORES.get(score.score),
            label=score.score + quota,
            capacity=self._capacity,
        )
