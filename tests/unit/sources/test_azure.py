"""Azure: which meters are Linux machines, paging that stays on the host, eviction bands, throttling."""

import pytest

from roost.adapters.sources.azure import (
    AzurePlacementScores,
    AzureResourceGraph,
    AzureRetailPrices,
)
from roost.ports.errors import Denied, Invalid, Never, Retry
from roost.ports.sources import InterruptionBand, OfferPrice, PlacementScore, SavingsRate

from . import shapes
from .conftest import Answer, Vendor
from .opened import AZURE_TOKENS, GRAPH, NOW, azure_score_path, now

RETAIL = "/api/retail/prices"


async def test_meters_of_linux_machines(vendor: Vendor) -> None:
    # Rules: Azure Retail Prices documentation, karpenter-provider-azure's price types.
    consumption = shapes.retail_page(
        {"savingsPlan": [{"unitPrice": 0.15, "retailPrice": 0.15, "term": "3 Years"}]},
        {"skuName": "Standard_D4s_v5 Spot", "retailPrice": 0.045},
        {"skuName": "Standard_D4s_v5 Low Priority", "retailPrice": 0.05},
        {"productName": "Virtual Machines Dsv5 Series Windows", "retailPrice": 0.41},
        {"armSkuName": "Dsv3_Type1", "productName": "Dsv3 Dedicated Host"},
        {"armSkuName": ""},
        {"currencyCode": "EUR"},
        {"isPrimaryMeterRegion": False},
        {"retailPrice": 0.0},
    )
    reservation = shapes.retail_page(
        {"type": "Reservation", "reservationTerm": "1 Year", "retailPrice": 1168.0}
    )
    vendor.on(RETAIL, consumption, reservation)
    source = AzureRetailPrices(("koreacentral",), base=vendor.url, now=now)
    first = await source.fetch("")
    second = await source.fetch(first.cursor)
    await source.close()
    prices = {f.option: f.usd_hour for f in first.records if isinstance(f, OfferPrice)}
    assert prices == {"on_demand": 0.226, "spot": 0.045}
    assert sum(first.skipped.values()) == 7
    saved = [f for f in (*first.records, *second.records) if isinstance(f, SavingsRate)]
    assert [(f.plan, f.term_years, f.usd_hour) for f in saved] == [
        ("savings_plan", 3, 0.15),
        ("reserved_standard", 1, pytest.approx(1168 / 8760)),
    ]
    assert second.done and not first.done
    asked = [request.query["$filter"][0] for request in vendor.asked]
    assert "armRegionName eq 'koreacentral'" in asked[0]
    assert "priceType eq 'Consumption'" in asked[0] and "'Reservation'" in asked[1]


async def test_links_to_next_pages(vendor: Vendor) -> None:
    # The link names another host here: only its query may be followed.
    link = "https://prices.azure.com:443/api/retail/prices?$filter=x&$skip=1000"
    vendor.on(
        RETAIL,
        shapes.retail_page({}, link=link),
        shapes.retail_page({"armSkuName": "Standard_D8s_v5"}),
        shapes.retail_page({"type": "Reservation", "reservationTerm": "3 Years"}),
    )
    source = AzureRetailPrices(base=vendor.url, now=now)
    cursor, facts = "", 0
    for _ in range(3):
        page = await source.fetch(cursor)
        cursor, facts = page.cursor, facts + len(page.records)
    assert page.done and facts == 3
    assert vendor.asked[1].query["$skip"] == ["1000"]
    vendor.on(RETAIL, shapes.retail_page({}, link=link), shapes.retail_page({}, link=link))
    with pytest.raises(Never, match="leads nowhere"):
        await source.fetch((await source.fetch("")).cursor)
    vendor.on(RETAIL, shapes.retail_page())
    with pytest.raises(Never, match="no price at all"):
        await source.fetch("")
    with pytest.raises(Invalid, match="koreacentral"):
        AzureRetailPrices(("korea central",))
    await source.close()


async def test_eviction_rates_and_price_history(vendor: Vendor) -> None:
    # learn.microsoft.com "Use Azure Spot VMs: pricing and eviction history" (SpotResources).
    vendor.on(
        GRAPH,
        shapes.graph_page(
            {"location": "koreacentral", "skuName": "standard_d4s_v5", "evictionRate": "5-10"},
            {"location": "koreacentral", "skuName": "standard_e4s_v5", "evictionRate": "20+"},
            token="t1",
        ),
        shapes.graph_page({"location": "japaneast", "skuName": "standard_x", "evictionRate": ""}),
        shapes.graph_page(
            {
                "location": "koreacentral",
                "skuName": "standard_d4s_v5",
                "spotPrices": [
                    {"priceUSD": 0.041, "effectiveDate": "2026-05-01T00:00:00Z"},
                    {"priceUSD": 0.043, "effectiveDate": "2026-04-01T00:00:00Z"},
                    {"priceUSD": None, "effectiveDate": "2026-03-01T00:00:00Z"},
                ],
            }
        ),
    )
    source = AzureResourceGraph(
        AZURE_TOKENS, names={"standard_d4s_v5": "Standard_D4s_v5"}, base=vendor.url, now=now
    )
    pages = [await source.fetch("")]
    while not pages[-1].done:
        pages.append(await source.fetch(pages[-1].cursor))
    await source.close()
    bands = [f for f in pages[0].records if isinstance(f, InterruptionBand)]
    assert [(b.instance_type, b.label, b.low, b.high, b.scale) for b in bands] == [
        ("Standard_D4s_v5", "5-10%", 0.05, 0.10, "share_hour"),
        ("standard_e4s_v5", ">20%", 0.20, 1.0, "share_hour"),
    ]
    assert pages[1].skipped == {"no eviction rate": 1}, "unknown is never a number"
    prices = [f for f in pages[2].records if isinstance(f, OfferPrice)]
    assert [p.usd_hour for p in prices] == [0.041, 0.043]
    assert prices[0].observed_at - prices[1].observed_at == 30 * 86_400
    assert vendor.asked[1].body["options"]["$skipToken"] == "t1"
    assert vendor.asked[0].headers["authorization"] == "Bearer token"
    assert "subscriptions" not in vendor.asked[0].body, "asked at the tenant's scope"


async def test_graph_says_when_to_come_again_and_who_may_not(vendor: Vendor) -> None:
    # "Guidance for throttled requests in Azure Resource Graph".
    quota = {"x-ms-user-quota-remaining": "0", "x-ms-user-quota-resets-after": "00:00:05"}
    error = {"error": {"code": "RateLimiting", "message": "Please provide below info"}}
    vendor.on(GRAPH, Answer(shapes.dumps(error), 429, quota))
    source = AzureResourceGraph(AZURE_TOKENS, base=vendor.url)
    with pytest.raises(Retry) as retry:
        await source.fetch("")
    assert retry.value.after_s == 5.0
    vendor.on(GRAPH, Answer(b'{"error": {"code": "AuthorizationFailed"}}', 403))
    with pytest.raises(Denied, match="AuthorizationFailed") as denied:
        await source.fetch("")
    assert "AZURE_ACCESS_TOKEN" in denied.value.hint
    row = {"location": "x", "evictionRate": "5-10"}
    vendor.on(GRAPH, shapes.graph_page(row))
    with pytest.raises(Never, match="no skuName"):
        await source.fetch("")
    vendor.on(GRAPH, shapes.graph_page({**row, "skuName": "s", "evictionRate": "often"}))
    with pytest.raises(Never, match="no band"):
        await source.fetch("")
    await source.close()


async def test_placement_scores_ask_another_region_where_one_throttles(vendor: Vendor) -> None:
    message = {"error": {"message": "You have reached the maximum number of requests allowed."}}
    vendor.on(azure_score_path("japaneast"), Answer(shapes.dumps(message), 429))
    vendor.on(azure_score_path("koreacentral"), shapes.AZURE_SCORES)
    source = AzurePlacementScores(
        AZURE_TOKENS,
        "sub",
        types=[f"Standard_D{n}s_v5" for n in (2, 4, 8, 16, 32, 48)],
        regions=("koreacentral", "japaneast"),
        base=vendor.url,
        now=now,
    )
    page = await source.fetch("")
    scores = [f for f in page.records if isinstance(f, PlacementScore)]
    assert [(s.region, s.zone, s.score, s.label) for s in scores] == [
        ("koreacentral", "1", 3.0, "High"),
        ("japaneast", "2", None, "DataNotFoundOrStale, no quota"),
    ]
    assert scores[0].observed_at == NOW
    assert not page.done, "six sizes are two calls"
    assert len(vendor.asked[-1].body["desiredSizes"]) == 5
    vendor.on(azure_score_path("koreacentral"), Answer(b"", 429))
    with pytest.raises(Retry):
        await source.fetch("")
    with pytest.raises(Invalid, match="subscription"):
        AzurePlacementScores(AZURE_TOKENS, "", types=("a",), regions=("b",))
    await source.close()
