"""SkyPilot's catalogue, SpotLake's open data, Spare Cores: rows, missing parts, licences."""

from datetime import UTC, datetime

import pytest

from roost.adapters.sources.archives import SkyPilotCatalog, SpareCores, SpotLake
from roost.ports.errors import Invalid, Never, Retry
from roost.ports.sources import InterruptionBand, OfferPrice, PerformanceScore, PlacementScore

from . import shapes
from .conftest import Answer, Vendor
from .opened import now


async def test_skypilot_rows_of_three_clouds(vendor: Vendor) -> None:
    for cloud, text in shapes.SKYPILOT.items():
        vendor.on(f"/{cloud}/vms.csv", Answer(text.encode(), etag=f'"{cloud}"'))
    source = SkyPilotCatalog(base=vendor.url, now=now)
    pages = [await source.fetch("")]
    while not pages[-1].done:
        pages.append(await source.fetch(pages[-1].cursor))
    found = [
        (f.provider, f.zone or f.region, f.instance_type, f.option, f.usd_hour)
        for page in pages
        for f in page.records
        if isinstance(f, OfferPrice)
    ]
    assert found == [
        ("aws", "us-east-1", "m5.large", "on_demand", 0.096),
        ("aws", "use1-az1", "m5.large", "spot", 0.0391),
        ("aws", "use1-az2", "m5.large", "spot", 0.0402),
        ("aws", "us-east-1", "m7g.large", "on_demand", 0.0816),
        ("azure", "eastus", "Standard_D4s_v5", "on_demand", 0.192),
        ("azure", "eastus", "Standard_D4s_v5", "spot", 0.0384),
        ("azure", "eastus", "Standard_NC4as_T4_v3", "on_demand", 0.526),
        ("azure", "eastus", "Standard_NC4as_T4_v3", "spot", 0.0526),
        ("gcp", "us-central1", "n2-standard-4", "on_demand", 0.194236),
        ("gcp", "us-central1-a", "n2-standard-4", "spot", 0.046),
    ], "a row with one cell more (Azure) is read; accelerators alone are not machines"
    assert pages[0].skipped == {"no spot price": 1}, "never a zero"
    assert sum(pages[2].skipped.values()) == 2
    again = await source.fetch(pages[-1].cursor)
    assert not again.records and "unchanged" in again.progress
    vendor.on("/aws/vms.csv", "InstanceType,Price,Region\nm5.large,0.1,us-east-1\n")
    with pytest.raises(Never, match="lacks SpotPrice, AvailabilityZone"):
        await source.fetch("")
    vendor.on("/aws/vms.csv", shapes.SKYPILOT["aws"].replace("0.0391", "nan"))
    with pytest.raises(Never, match="'nan'"):
        await source.fetch("")
    vendor.on("/aws/vms.csv", shapes.SKYPILOT["aws"][:-25])
    with pytest.raises(Retry, match="ends early"):
        await source.fetch("")
    vendor.on("/aws/vms.csv", shapes.SKYPILOT["aws"].replace("0.0391,us-east-1,", "0.0391,"))
    with pytest.raises(Never, match="row 2 has 10 of 11 cells"):
        await source.fetch("")
    await source.close()
    with pytest.raises(Invalid, match="no such cloud"):
        SkyPilotCatalog(("oracle",))


async def test_spotlake_snapshots_and_gaps(vendor: Vendor) -> None:
    vendor.on("/data/aws/2025/12/31/23-50-00.csv.gz", shapes.spotlake())
    source = SpotLake(base=vendor.url)
    assert source.consent and "NC" in source.licence, "a person must accept it"
    page = await source.fetch("")
    assert page.done, "the last snapshot by default"
    prices = {
        (f.instance_type, f.option): f.usd_hour for f in page.records if isinstance(f, OfferPrice)
    }
    assert prices["m7i.large", "spot"] == 0.0412 and prices["x2iezn.2xlarge", "spot"] == 0.4
    assert ("x2iezn.2xlarge", "on_demand") not in prices, "an empty cell is unknown"
    bands = {f.instance_type: f.label for f in page.records if isinstance(f, InterruptionBand)}
    assert bands == {"m7i.large": "<5%", "p5.48xlarge": ">20%"}
    scores = {
        (f.instance_type, f.scale): f.score for f in page.records if isinstance(f, PlacementScore)
    }
    assert scores["p5.48xlarge", "aws_1_10"] == 9.0 and scores["m7i.large", "spotlake_t3"] == 50.0
    assert {f.observed_at for f in page.records} == {1767225000.0}
    await source.close()
    days = SpotLake(
        datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 6, 1, 2, tzinfo=UTC), base=vendor.url
    )
    vendor.on("/data/aws/2025/06/01/01-00-00.csv.gz", shapes.spotlake())
    pages = [await days.fetch("")]
    while not pages[-1].done:
        pages.append(await days.fetch(pages[-1].cursor))
    assert [len(p.records) > 0 for p in pages] == [False, True, False]
    assert pages[0].skipped == {"snapshots that the archive lacks": 1}
    vendor.on("/data/aws/2025/06/01/00-00-00.csv.gz", shapes.spotlake()[:-20])
    with pytest.raises(Retry, match="ends early"):
        await days.fetch("")
    broken = bytearray(shapes.spotlake())
    broken[20] ^= 0xFF
    vendor.on("/data/aws/2025/06/01/00-00-00.csv.gz", bytes(broken))
    with pytest.raises((Never, Retry)):
        await days.fetch("")
    await days.close()
    with pytest.raises(Invalid, match="2025"):
        SpotLake(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 2, tzinfo=UTC))


async def test_spare_cores_pages_and_credits(vendor: Vendor) -> None:
    full = [shapes.server("aws", f"m{n}.large", 1000.0 + n) for n in range(100)]
    vendor.on(
        "/servers",
        Answer(shapes.dumps(full), headers={"X-Total-Count": "101"}),
        [shapes.server("aws", "odd.large", None)],
        [shapes.server("azure", "Standard_D4s_v5", 4000.0)],
        [shapes.server("gcp", "n2-standard-4", 4100.0)],
    )
    source = SpareCores(base=vendor.url, now=now)
    pages = [await source.fetch("")]
    while not pages[-1].done:
        pages.append(await source.fetch(pages[-1].cursor))
    facts = [f for p in pages for f in p.records if isinstance(f, PerformanceScore)]
    assert len(facts) == 102 and facts[-1].instance_type == "n2-standard-4"
    assert pages[0].progress == "aws, page 1 of 2" and pages[1].skipped == {"no score": 1}
    assert [r.query["vendor"][0] for r in vendor.asked] == ["aws", "aws", "azure", "gcp"]
    limits = {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "0", "Retry-After": "42"}
    vendor.on("/servers", Answer(b'{"detail": "Rate limit exceeded"}', 429, limits))
    with pytest.raises(Retry, match="Rate limit exceeded") as caught:
        await source.fetch("")
    assert caught.value.after_s == 42.0
    vendor.on("/servers", [{"vendor_id": "aws"}])
    with pytest.raises(Never, match="api_reference"):
        await source.fetch("")
    await source.close()
