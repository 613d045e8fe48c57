"""Google Cloud: list prices of the billing catalogue, and what Compute Engine's advice says of spot pools.

Shapes: Cloud Billing v1 ``services.skus.list``; Compute Engine ``advice.capacityHistory`` and
``advice.capacity`` (google-cloud-compute 1.56). It never creates a resource.
"""

import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from roost.adapters.sources.base import dump_cursor, load_cursor, moment, money
from roost.adapters.sources.http import Web, decode
from roost.adapters.sources.tokens import Tokens
from roost.ports.errors import Gone, Invalid, Never
from roost.ports.sources import CapacityAdvice, Fact, OfferPrice, Page, PreemptionRate

BILLING = "https://cloudbilling.googleapis.com"
COMPUTE = "https://compute.googleapis.com"
VERSIONS = ("v1", "beta")
"""The calls are in the v1 of the client library; a project that is not let in finds them under beta."""
COMPUTE_SERVICE = "6F81-5844-456A"
PAGE = 5000
MOST_PAGES = 100
RATE = re.compile(
    r"(?:Spot Preemptible )?(?P<family>[A-Z]\w{1,3})(?: \w+)??(?: Predefined)? Instance"
    r" (?P<what>Core|Ram) running in .+"
)
COMPUTE_OPTIMIZED = re.compile(
    r"(?:Spot Preemptible )?Compute optimized (?P<what>Core|Ram) running in .+"
)
"""C2, from before families were named in descriptions."""
OTHER = ("Custom", "Sole Tenancy", "Extended", "Premium", "Reserved", "Commitment", "DWS", "Memory")
SHARED_CORES = {"e2-micro": 0.25, "e2-small": 0.5, "e2-medium": 1.0}
"""What is billed of the two visible vCPUs."""
APART = re.compile(r"^(a\d|g\d|ct|tpu|m\d|x4|f1-|g1-)|lssd|metal|-storage|-highlssd|-standardlssd")
"""Types whose GPUs, disks or premium are listed apart from cores and memory."""


class _Money(msgspec.Struct, rename="camel"):
    currency_code: str = "USD"
    units: str | int = 0
    nanos: int = 0


class _Tier(msgspec.Struct, rename="camel"):
    unit_price: _Money
    start_usage_amount: float = 0.0


class _Expression(msgspec.Struct, rename="camel"):
    tiered_rates: list[_Tier]
    usage_unit: str = ""


class _Pricing(msgspec.Struct, rename="camel"):
    pricing_expression: _Expression


class _Category(msgspec.Struct, rename="camel"):
    resource_family: str = ""
    usage_type: str = ""


class _Sku(msgspec.Struct, rename="camel"):
    description: str
    category: _Category
    service_regions: list[str] = []
    pricing_info: list[_Pricing] = []


class _Skus(msgspec.Struct, rename="camel"):
    skus: list[_Sku]
    next_page_token: str = ""


class _Empty(msgspec.Struct):
    pass


class GcpPrices:
    """On-demand and spot list prices: the family's rates per core and GiB times the type's size."""

    name = "gcp-prices"
    licence = "Google Cloud public price catalogue; use under the Google APIs terms"
    consent = False
    needs = "a Google API key (GCP_API_KEY) with the Cloud Billing API"
    cadence_s = 86_400.0

    def __init__(
        self,
        key: str,
        shapes: Mapping[str, tuple[float, float]],
        *,
        base: str = BILLING,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``shapes``: vCPUs and GiB of each machine type."""
        if not key:
            raise Invalid("gcp-prices needs an API key", hint="set GCP_API_KEY")
        self._key = key
        self._shapes = shapes
        self._base = base
        self._now = now
        self._web = Web(self.name, credentials="check GCP_API_KEY and that the Billing API is on")

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``: all pages in one; a price is the sum of two entries anywhere in them."""
        load_cursor(cursor, _Empty)
        rates: dict[tuple[str, str, str, str], float] = {}
        skipped: Counter[str] = Counter()
        token, pages = "", 0
        while pages < MOST_PAGES:
            params = {"key": self._key, "currencyCode": "USD", "pageSize": str(PAGE)}
            if token:
                params["pageToken"] = token
            url = f"{self._base}/v1/services/{COMPUTE_SERVICE}/skus"
            reply = await self._web.get(url, params=params)
            found = self._web.json(reply, _Skus, "a page of SKUs")
            pages += 1
            for sku in found.skus:
                self._rate(sku, rates, skipped)
            if not found.next_page_token:
                break
            if found.next_page_token == token:
                raise Never(f"{self.name}: page {pages} leads to itself")
            token = found.next_page_token
        facts = tuple(self._facts(rates, skipped))
        if not facts:
            raise Never(f"{self.name}: no machine type could be priced", hint="nothing was stored")
        return Page(records=facts, progress=f"{pages} pages", skipped=dict(skipped))

    def _rate(
        self, sku: _Sku, rates: dict[tuple[str, str, str, str], float], skipped: Counter[str]
    ) -> None:
        option = {"OnDemand": "on_demand", "Preemptible": "spot"}.get(sku.category.usage_type)
        if sku.category.resource_family != "Compute" or option is None:
            skipped["not an hour of a machine"] += 1
            return
        text = sku.description
        match = RATE.fullmatch(text)
        old = COMPUTE_OPTIMIZED.fullmatch(text)
        if any(word in text for word in OTHER) or not (match or old):
            skipped["not a core or GiB of a predefined family"] += 1
            return
        family = match["family"].lower() if match else "c2"
        what = match["what"] if match else old["what"] if old else ""
        tiers = sku.pricing_info[-1].pricing_expression.tiered_rates if sku.pricing_info else []
        if not tiers:
            skipped["no rate"] += 1
            return
        price = money(tiers[-1].unit_price.units, tiers[-1].unit_price.nanos)
        for region in sku.service_regions:
            rates[family, region, option, what] = price

    def _facts(
        self, rates: Mapping[tuple[str, str, str, str], float], skipped: Counter[str]
    ) -> Iterator[OfferPrice]:
        now = self._now()
        places: dict[str, set[tuple[str, str]]] = {}
        for family, region, option, _what in rates:
            places.setdefault(family, set()).add((region, option))
        for kind, (vcpus, gib) in sorted(self._shapes.items()):
            family = kind.split("-", 1)[0]
            if APART.search(kind):
                skipped["types with GPUs, disks or a premium listed apart"] += 1
                continue
            if family not in places:
                skipped["types of a family without rates"] += 1
                continue
            for region, option in sorted(places[family]):
                core = rates.get((family, region, option, "Core"))
                ram = rates.get((family, region, option, "Ram"))
                if core is None or ram is None:
                    skipped["types without one of their two rates"] += 1
                    continue
                yield OfferPrice(
                    source=self.name,
                    observed_at=now,
                    provider="gcp",
                    region=region,
                    instance_type=kind,
                    option=option,
                    usd_hour=core * SHARED_CORES.get(kind, vcpus) + ram * gib,
                )


class _Interval(msgspec.Struct, rename="camel"):
    start_time: str
    end_time: str


class _Preemption(msgspec.Struct, rename="camel"):
    interval: _Interval
    preemption_rate: float = 0.0


class _Price(msgspec.Struct, rename="camel"):
    interval: _Interval
    list_price: _Money


class _History(msgspec.Struct, rename="camel"):
    machine_type: str
    preemption_history: list[_Preemption] = []
    price_history: list[_Price] = []


class _Step(msgspec.Struct):
    number: int = 0


class _Advice(ABC):
    """What both kinds of advice share: a project, a token, and a list of calls."""

    name = ""

    def __init__(
        self,
        tokens: Tokens,
        project: str,
        *,
        types: Iterable[str],
        regions: Iterable[str],
        base: str = COMPUTE,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``regions`` may name zones (``us-central1-a``)."""
        kinds, places = sorted(set(types)), sorted(set(regions))
        if not kinds or not places or not project:
            raise Invalid(
                f"{self.name} needs machine types, regions and a project",
                hint="--type n2-standard-4 --region us-central1, and GOOGLE_CLOUD_PROJECT",
            )
        self._calls = [(kind, place) for kind in kinds for place in places]
        self._tokens = tokens
        self._roots = [f"{base}/compute/{version}/projects/{project}" for version in VERSIONS]
        self._now = now
        self._web = Web(self.name, credentials=tokens.advice)

    async def close(self) -> None:
        """See ``PriceSource``."""
        await self._web.close()

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``: one machine type in one place."""
        step = load_cursor(cursor, _Step).number % len(self._calls)
        kind, place = self._calls[step]
        failed: tuple[str, ...] = ()
        facts: tuple[Fact, ...] = ()
        try:
            facts = await self._ask(kind, place)
        except (Gone, Never) as error:
            failed = (f"{kind} in {place}: {error.message}",)  # e.g. custom types and TPUs
        last = step + 1 == len(self._calls)
        return Page(
            records=facts,
            cursor=dump_cursor(_Step(number=0 if last else step + 1)),
            done=last,
            progress=f"{kind} in {place}, {step + 1} of {len(self._calls)}",
            failed=failed,
        )

    @abstractmethod
    async def _ask(self, kind: str, place: str) -> tuple[Fact, ...]:
        """The facts of one type in one place."""

    async def _post(self, region: str, what: str, body: object) -> bytes:
        headers = await self._tokens.headers()
        try:
            url = f"{self._roots[0]}/regions/{region}/advice/{what}"
            return (await self._web.call("POST", url, headers=headers, body=body)).body
        except Gone:
            if len(self._roots) == 1:
                raise
            self._roots.pop(0)
            return await self._post(region, what, body)


def region_of(place: str) -> tuple[str, str]:
    """Region and zone of a place: a region has no zone."""
    if re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", place):
        return place.rsplit("-", 1)[0], place
    return place, ""


class GcpCapacityHistory(_Advice):
    """Daily share of spot machines preempted, and spot prices, of the last 30 days."""

    name = "gcp-capacity-history"
    licence = "Google Cloud account data; use under the Google Cloud terms"
    consent = False
    needs = "a Google token (Compute Viewer) and GOOGLE_CLOUD_PROJECT"
    cadence_s = 86_400.0

    async def _ask(self, kind: str, place: str) -> tuple[Fact, ...]:
        region, zone = region_of(place)
        body = {
            "instanceProperties": {
                "machineType": kind,
                "scheduling": {"provisioningModel": "SPOT"},
            },
            "locationPolicy": {"location": f"zones/{zone}" if zone else f"regions/{region}"},
            # Prices are told for regions only.
            "types": ["PREEMPTION"] if zone else ["PREEMPTION", "PRICE"],
        }
        content = await self._post(region, "capacityHistory", body)
        told = decode(content, _History, f"{self.name}: {kind} in {place}")
        pool = {
            "source": self.name,
            "provider": "gcp",
            "region": region,
            "zone": zone,
            "instance_type": kind,
        }
        facts: list[Fact] = []
        for entry in told.preemption_history:
            begin, end = _span(entry.interval)
            if not 0.0 <= entry.preemption_rate <= 1.0:
                raise Never(f"{self.name}: a preemption rate of {entry.preemption_rate}")
            facts.append(
                PreemptionRate(
                    **pool,
                    observed_at=end,
                    rate=entry.preemption_rate,
                    interval_s=end - begin,
                )
            )
        for price in told.price_history:
            begin, _end = _span(price.interval)
            usd = money(price.list_price.units, price.list_price.nanos)
            facts.append(OfferPrice(**pool, observed_at=begin, option="spot", usd_hour=usd))
        return tuple(facts)


def _span(interval: _Interval) -> tuple[float, float]:
    begin, end = (moment(t, "an interval") for t in (interval.start_time, interval.end_time))
    if end < begin:
        raise Never(f"an interval ends before it begins: {interval.start_time}")
    return begin, end


class _Shard(msgspec.Struct, rename="camel"):
    zone: str
    machine_type: str
    instance_count: int = 0


class _ScorePart(msgspec.Struct, rename="camel"):
    obtainability: float
    estimated_uptime: str | None = None


class _Recommendation(msgspec.Struct, rename="camel"):
    scores: _ScorePart
    shards: list[_Shard] = []


class _Capacity(msgspec.Struct, rename="camel"):
    recommendations: list[_Recommendation]


class GcpCapacityAdvice(_Advice):
    """How obtainable a spot machine is now and how long it should last: to be asked just before a launch."""

    name = "gcp-capacity-advice"
    licence = "Google Cloud account data; use under the Google Cloud terms"
    consent = False
    needs = "a Google token (Compute Viewer) and GOOGLE_CLOUD_PROJECT"
    cadence_s = 3600.0

    async def _ask(self, kind: str, place: str) -> tuple[Fact, ...]:
        region, zone = region_of(place)
        policy: dict[str, object] = {"targetShape": "ANY_SINGLE_ZONE"}
        if zone:
            policy["zones"] = [{"zone": f"zones/{zone}"}]
        body = {
            "distributionPolicy": policy,
            "instanceFlexibilityPolicy": {
                "instanceSelections": {"one": {"machineTypes": [kind], "rank": 1}}
            },
            "instanceProperties": {"scheduling": {"provisioningModel": "SPOT"}},
            "size": 1,
        }
        content = await self._post(region, "capacity", body)
        told = decode(content, _Capacity, f"{self.name}: {kind} in {place}")
        facts: list[Fact] = []
        for entry in told.recommendations:
            if not 0.0 <= entry.scores.obtainability <= 1.0:
                raise Never(f"{self.name}: an obtainability of {entry.scores.obtainability}")
            uptime = entry.scores.estimated_uptime
            for shard in entry.shards:
                facts.append(
                    CapacityAdvice(
                        source=self.name,
                        observed_at=self._now(),
                        provider="gcp",
                        region=region,
                        zone=shard.zone.rsplit("/", 1)[-1],
                        instance_type=shard.machine_type.rsplit("/", 1)[-1],
                        count=max(1, shard.instance_count),
                        obtainability=entry.scores.obtainability,
                        estimated_uptime_s=float(uptime.removesuffix("s")) if uptime else None,
                    )
                )
        return tuple(facts)
