"""Every source over a vendor that answers as documented: what the contract runs on."""

from collections.abc import Callable
from pathlib import Path

from roost.adapters.sources.archives import SkyPilotCatalog, SpareCores, SpotLake
from roost.adapters.sources.aws_api import AwsPlacementScores, AwsSpotPrices, Budget, clients
from roost.adapters.sources.aws_plans import AwsSavingsPlans
from roost.adapters.sources.aws_public import AwsPriceList, AwsSpotAdvisor
from roost.adapters.sources.azure import AzurePlacementScores, AzureResourceGraph, AzureRetailPrices
from roost.adapters.sources.gcp import GcpCapacityAdvice, GcpCapacityHistory, GcpPrices
from roost.adapters.sources.tokens import AZURE, GOOGLE, Tokens
from roost.ports.sources import PriceSource

from . import shapes
from .conftest import Vendor

NOW = 1_780_000_000.0
AZURE_TOKENS = Tokens("token", AZURE, "AZURE_ACCESS_TOKEN")
GOOGLE_TOKENS = Tokens("token", GOOGLE, "CLOUDSDK_AUTH_ACCESS_TOKEN")
GRAPH = "/providers/Microsoft.ResourceGraph/resources"
PLANS = "/DescribeSavingsPlansOfferingRates"
PRICE_LIST = "/offers/v1.0/aws/AmazonEC2"


def now() -> float:
    return NOW


def price_list(vendor: Vendor, _: Path) -> PriceSource:
    vendor.on(f"{PRICE_LIST}/current/region_index.json", shapes.REGION_INDEX)
    for region in ("us-east-1", "eu-west-1"):
        vendor.on(f"{PRICE_LIST}/20260720220804/{region}/index.csv", shapes.price_csv({}))
    return AwsPriceList(base=vendor.url)


def advisor(vendor: Vendor, _: Path) -> PriceSource:
    vendor.on("/advisor.json", shapes.ADVISOR)
    return AwsSpotAdvisor(url=f"{vendor.url}/advisor.json", now=now)


def spot_prices(vendor: Vendor, _: Path) -> PriceSource:
    row = ("us-east-1a", "use1-az4", "m5.large", "0.0391", "2026-05-01T10:00:00.000Z")
    vendor.on("/", shapes.spot_prices_xml(row))
    regions = ("us-east-1", "eu-west-1")
    return AwsSpotPrices(clients(vendor.url), regions=regions, now=now)


def placement_scores(vendor: Vendor, folder: Path) -> PriceSource:
    vendor.on("/", shapes.scores_xml(("us-east-1", "use1-az4", 8)))
    budget = Budget(folder / "budget.json", now)
    types = ("m5.large", "m6i.large", "m7i.large")
    return AwsPlacementScores(clients(vendor.url), budget, types=types, now=now)


def savings_plans(vendor: Vendor, _: Path) -> PriceSource:
    vendor.on(PLANS, {"searchResults": [shapes.plan_rate("0.07")], "nextToken": ""})
    return AwsSavingsPlans(clients(vendor.url, "savingsplans"), now=now)


def retail_prices(vendor: Vendor, _: Path) -> PriceSource:
    vendor.on("/api/retail/prices", shapes.retail_page({}))
    return AzureRetailPrices(("koreacentral",), base=vendor.url, now=now)


def resource_graph(vendor: Vendor, _: Path) -> PriceSource:
    row = {
        "location": "koreacentral",
        "skuName": "standard_d4s_v5",
        "evictionRate": "5-10",
        "spotPrices": [{"priceUSD": 0.04, "effectiveDate": "2026-05-01T00:00:00Z"}],
    }
    vendor.on(GRAPH, shapes.graph_page(row))
    return AzureResourceGraph(AZURE_TOKENS, base=vendor.url, now=now)


def azure_scores(vendor: Vendor, _: Path) -> PriceSource:
    for place in ("koreacentral", "japaneast"):
        vendor.on(azure_score_path(place), shapes.AZURE_SCORES)
    return AzurePlacementScores(
        AZURE_TOKENS,
        "sub",
        types=("Standard_D4s_v5",),
        regions=("koreacentral", "japaneast"),
        base=vendor.url,
        now=now,
    )


def azure_score_path(place: str) -> str:
    root = "/subscriptions/sub/providers/Microsoft.Compute/locations"
    return f"{root}/{place}/placementScores/spot/generate"


def gcp_prices(vendor: Vendor, _: Path) -> PriceSource:
    core = shapes.sku("N2 Instance Core running in Iowa", 31_611_000)
    ram = shapes.sku("N2 Instance Ram running in Iowa", 4_237_000)
    vendor.on("/v1/services/6F81-5844-456A/skus", {"skus": [core, ram], "nextPageToken": ""})
    return GcpPrices("key", {"n2-standard-4": (4.0, 16.0)}, base=vendor.url, now=now)


def capacity_history(vendor: Vendor, _: Path) -> PriceSource:
    vendor.on(advice_path("capacityHistory"), shapes.CAPACITY_HISTORY)
    places = ("us-central1", "us-central1-a")
    types = ("n2-standard-4",)
    return GcpCapacityHistory(
        GOOGLE_TOKENS, "p", types=types, regions=places, base=vendor.url, now=now
    )


def capacity_advice(vendor: Vendor, _: Path) -> PriceSource:
    vendor.on(advice_path("capacity"), shapes.CAPACITY)
    types = ("n2-standard-4",)
    return GcpCapacityAdvice(
        GOOGLE_TOKENS, "p", types=types, regions=("us-central1",), base=vendor.url, now=now
    )


def advice_path(what: str, version: str = "v1") -> str:
    return f"/compute/{version}/projects/p/regions/us-central1/advice/{what}"


def skypilot(vendor: Vendor, _: Path) -> PriceSource:
    for cloud, text in shapes.SKYPILOT.items():
        vendor.on(f"/{cloud}/vms.csv", text)
    return SkyPilotCatalog(base=vendor.url, now=now)


def spotlake(vendor: Vendor, _: Path) -> PriceSource:
    vendor.on("/data/aws/2025/12/31/23-50-00.csv.gz", shapes.spotlake())
    return SpotLake(base=vendor.url)


def spare_cores(vendor: Vendor, _: Path) -> PriceSource:
    servers = [shapes.server(v, f"{v}-kind", 100.0) for v in ("aws", "azure", "gcp")]
    vendor.on("/servers", servers)
    return SpareCores(base=vendor.url, now=now)


OPENED: tuple[Callable[[Vendor, Path], PriceSource], ...] = (
    price_list,
    advisor,
    spot_prices,
    placement_scores,
    savings_plans,
    retail_prices,
    resource_graph,
    azure_scores,
    gcp_prices,
    capacity_history,
    capacity_advice,
    skypilot,
    spotlake,
    spare_cores,
)
