"""Google Cloud: prices as sums of two rates, advice of pools, and what cannot be priced is counted."""

import pytest

from roost.adapters.sources.gcp import (
    GcpCapacityAdvice,
    GcpCapacityHistory,
    GcpPrices,
    region_of,
)
from roost.ports.errors import Invalid, Never
from roost.ports.sources import CapacityAdvice, OfferPrice, PreemptionRate

from . import shapes
from .conftest import Answer, Vendor
from .opened import GOOGLE_TOKENS, advice_path, now

SKUS = "/v1/services/6F81-5844-456A/skus"


async def test_prices_are_cores_and_gib_of_the_family(vendor: Vendor) -> None:
    # Descriptions as in the billing catalogue of 2026 ("N2D AMD Instance Core running in Americas" ...).
    sku = shapes.sku
    vendor.on(
        SKUS,
        {
            "skus": [
                sku("N2 Instance Core running in Americas", 31_611_000),
                sku("N2D AMD Instance Core running in Americas", 27_502_000),
                sku(
                    "Spot Preemptible N2 Instance Core running in Americas",
                    9_000_000,
                    "Preemptible",
                ),
                sku("N2 Custom Instance Core running in Americas", 33_191_000),
                sku("N1 Predefined Instance Core running in Americas", 31_611_000),
                sku("Commitment v1: N2 Cpu in Americas for 1 Year", 19_915_000, "Commit1Yr"),
                sku("Storage PD Capacity", 40_000_000, family="Storage"),
            ],
            "nextPageToken": "more",
        },
        {
            "skus": [
                sku("N2 Instance Ram running in Americas", 4_237_000),
                sku("N2D AMD Instance Ram running in Americas", 3_686_000),
                sku(
                    "Spot Preemptible N2 Instance Ram running in Americas", 1_000_000, "Preemptible"
                ),
                sku("N2 Instance Sole Tenancy Core running in Americas", 1),
                sku("Compute optimized Core running in Americas", 33_980_000),
                sku("Compute optimized Ram running in Americas", 4_550_000),
                sku("E2 Instance Core running in Americas", 21_811_590),
                sku("E2 Instance Ram running in Americas", 2_923_530),
            ],
            "nextPageToken": "",
        },
    )
    shapes_of = {
        "n2-standard-4": (4.0, 16.0),
        "n2d-standard-2": (2.0, 8.0),
        "c2-standard-4": (4.0, 16.0),
        "e2-medium": (2.0, 4.0),
        "a2-highgpu-1g": (12.0, 85.0),
        "n1-standard-1": (1.0, 3.75),
        "t2a-standard-1": (1.0, 4.0),
    }
    source = GcpPrices("key", shapes_of, base=vendor.url, now=now)
    page = await source.fetch("")
    prices = {
        (f.instance_type, f.option): f.usd_hour for f in page.records if isinstance(f, OfferPrice)
    }
    assert prices == {
        ("n2-standard-4", "on_demand"): pytest.approx(0.194236),  # the vendor's own list price
        ("n2-standard-4", "spot"): pytest.approx(4 * 0.009 + 16 * 0.001),
        ("n2d-standard-2", "on_demand"): pytest.approx(2 * 0.027502 + 8 * 0.003686),
        ("c2-standard-4", "on_demand"): pytest.approx(4 * 0.03398 + 16 * 0.00455),
        ("e2-medium", "on_demand"): pytest.approx(0.02181159 + 4 * 0.00292353),
    }
    assert page.skipped["types with GPUs, disks or a premium listed apart"] == 1
    assert page.skipped["types without one of their two rates"] == 1, "N1 lacks its GiB here"
    assert page.skipped["types of a family without rates"] == 1
    assert vendor.asked[1].query["pageToken"] == ["more"] and vendor.asked[0].query["key"] == [
        "key"
    ]
    vendor.on(SKUS, {"skus": [], "nextPageToken": "same"})
    with pytest.raises(Never, match="leads to itself"):
        await source.fetch("")
    vendor.on(SKUS, {"skus": [], "nextPageToken": ""})
    with pytest.raises(Never, match="no machine type could be priced"):
        await source.fetch("")
    vendor.on(SKUS, Answer(b'{"error": {"message": "API key not valid."}}', 400))
    with pytest.raises(Never, match="API key not valid") as caught:
        await source.fetch("")
    assert "key=key" not in str(caught.value)
    await source.close()
    with pytest.raises(Invalid, match="API key"):
        GcpPrices("", {})


async def test_capacity_history(vendor: Vendor) -> None:
    vendor.on(advice_path("capacityHistory"), shapes.CAPACITY_HISTORY)
    places = ("us-central1", "us-central1-a")
    source = GcpCapacityHistory(
        GOOGLE_TOKENS, "p", types=("n2-standard-4",), regions=places, base=vendor.url
    )
    page = await source.fetch("")
    rates = [f for f in page.records if isinstance(f, PreemptionRate)]
    assert [(r.rate, r.interval_s) for r in rates] == [(0.081, 86_400.0), (0.0, 86_400.0)]
    (price,) = [f for f in page.records if isinstance(f, OfferPrice)]
    assert price.usd_hour == pytest.approx(0.046)
    asked = vendor.asked[0].body
    assert asked["instanceProperties"]["scheduling"] == {"provisioningModel": "SPOT"}
    assert asked["types"] == ["PREEMPTION", "PRICE"]
    zone = await source.fetch(page.cursor)
    assert vendor.asked[1].body["types"] == ["PREEMPTION"], "prices are told for regions only"
    assert zone.done and {f.zone for f in zone.records if isinstance(f, PreemptionRate)} == {
        "us-central1-a"
    }
    error = {"error": {"code": 400, "message": "Machine type not supported."}}
    vendor.on(advice_path("capacityHistory"), Answer(shapes.dumps(error), 400))
    unsupported = await source.fetch("")
    assert "not supported" in unsupported.failed[0] and not unsupported.done, "the others go on"
    wrong = {**shapes.CAPACITY_HISTORY, "preemptionHistory": [
        {"interval": {"startTime": "2026-07-02T07:00:00Z", "endTime": "2026-07-01T07:00:00Z"}}
    ]}  # fmt: skip
    vendor.on(advice_path("capacityHistory"), wrong)
    assert "ends before it begins" in (await source.fetch("")).failed[0]
    await source.close()
    with pytest.raises(Invalid, match="GOOGLE_CLOUD_PROJECT"):
        GcpCapacityHistory(GOOGLE_TOKENS, "", types=("a",), regions=("b",))


async def test_capacity_advice(vendor: Vendor) -> None:
    vendor.on(advice_path("capacity", "beta"), shapes.CAPACITY)
    source = GcpCapacityAdvice(
        GOOGLE_TOKENS,
        "p",
        types=("n2-standard-4",),
        regions=("us-central1-a",),
        base=vendor.url,
        now=now,
    )
    (fact,) = (await source.fetch("")).records
    assert isinstance(fact, CapacityAdvice)
    assert (fact.zone, fact.obtainability, fact.estimated_uptime_s) == (
        "us-central1-a",
        0.7,
        86400.0,
    )
    assert [request.path.split("/")[2] for request in vendor.asked] == ["v1", "beta"]
    assert vendor.asked[1].body["distributionPolicy"]["zones"] == [{"zone": "zones/us-central1-a"}]
    await source.close()
    assert region_of("europe-west1-b") == ("europe-west1", "europe-west1-b")
    assert region_of("europe-west1") == ("europe-west1", "")
