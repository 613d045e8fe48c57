"""AWS: the price list's five filters, paging, throttling, closed regions, the budget of scores."""

from pathlib import Path

import pytest

from roost.adapters.sources.aws_api import AwsPlacementScores, AwsSpotPrices, Budget, clients
from roost.adapters.sources.aws_plans import AwsSavingsPlans
from roost.adapters.sources.aws_public import AwsPriceList, AwsSpotAdvisor, band
from roost.ports.errors import Denied, Invalid, Never, Retry
from roost.ports.sources import Fact, InterruptionBand, OfferPrice, Page, SavingsRate

from . import shapes
from .conftest import Answer, Vendor
from .opened import NOW, PLANS, PRICE_LIST, now

FILE = f"{PRICE_LIST}/20260720220804/us-east-1/index.csv"
INDEX = f"{PRICE_LIST}/current/region_index.json"
PUBLISHED = 1784585284.0  # 2026-07-20T22:08:04Z


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


async def _price_list(vendor: Vendor, *rows: dict[str, str]) -> Page:
    vendor.on(INDEX, shapes.REGION_INDEX)
    vendor.on(FILE, Answer(shapes.price_csv(*rows), etag='"1"'))
    source = AwsPriceList(("us-east-1",), base=vendor.url)
    try:
        return await source.fetch("")
    finally:
        await source.close()


async def test_price_list_keeps_shared_linux_only(vendor: Vendor) -> None:
    reserved = {
        "TermType": "Reserved",
        "LeaseContractLength": "1yr",
        "PurchaseOption": "Partial Upfront",
        "OfferingClass": "standard",
    }
    page = await _price_list(
        vendor,
        {},
        {"Operating System": "Windows", "PricePerUnit": "0.188"},
        {"Tenancy": "Dedicated", "usageType": "DedicatedUsage:m5.large", "PricePerUnit": "0.1018"},
        {"Pre Installed S/W": "SQL Web", "PricePerUnit": "0.163"},
        {"CapacityStatus": "UnusedCapacityReservation", "usageType": "UnusedBox:m5.large"},
        {"MarketOption": "CapacityBlock", "PricePerUnit": "9"},
        {"Instance Type": "c5.large", "usageType": "APN1-BoxUsage:c5.large", "Pre Installed S/W": "NA",
         "PricePerUnit": "0.107"},
        {"Instance Type": "r5.large", "PricePerUnit": "0.0000000000"},
        {**reserved, "Unit": "Hrs", "PricePerUnit": "0.0288"},
        {**reserved, "Unit": "Quantity", "PricePerUnit": "252"},
    )  # fmt: skip
    prices = {f.instance_type: f for f in page.records if isinstance(f, OfferPrice)}
    assert {kind: fact.usd_hour for kind, fact in prices.items()} == {
        "m5.large": 0.096,
        "c5.large": 0.107,
    }
    assert prices["m5.large"].observed_at == PUBLISHED
    assert page.skipped == {"on-demand price of zero": 1}
    (saving,) = [f for f in page.records if isinstance(f, SavingsRate)]
    assert (saving.plan, saving.term_years, saving.payment) == (
        "reserved_standard",
        1,
        "partial_upfront",
    )
    assert saving.usd_hour == pytest.approx(0.0288 + 252 / 8760)


async def test_price_list_pages_by_region_and_sends_etags(vendor: Vendor) -> None:
    vendor.on(INDEX, shapes.REGION_INDEX)
    for region in ("us-east-1", "eu-west-1"):
        path = FILE.replace("us-east-1", region)
        vendor.on(path, Answer(shapes.price_csv({}), etag=f'"{region}"'))
    source = AwsPriceList(base=vendor.url)
    first = await source.fetch("")
    second = await source.fetch(first.cursor)
    assert not first.done and second.done, "local zones are left out"
    assert {f.region for f in (*first.records, *second.records) if isinstance(f, OfferPrice)} == {
        "us-east-1",
        "eu-west-1",
    }
    again = await source.fetch(second.cursor)
    assert not again.records and not again.failed, "nothing changed"
    vendor.on(FILE.replace("us-east-1", "eu-west-1"), Answer(status=403, body=b"AccessDenied"))
    denied = await source.fetch("")
    assert denied.failed and "eu-west-1" in denied.failed[0] and not denied.done
    await source.close()


async def test_price_list_that_is_cut_or_changed_is_refused(vendor: Vendor) -> None:
    whole = shapes.price_csv({}, {"Instance Type": "c5.large"})
    names = [name for name in shapes.PRICE_COLUMNS if name != "Tenancy"]
    vendor.on(INDEX, shapes.REGION_INDEX)
    source = AwsPriceList(("us-east-1",), base=vendor.url)
    for body, kind, said in (
        (whole[:-40], Retry, "ends early"),
        (shapes.price_csv({}, columns=names), Never, "lacks Tenancy"),
        (shapes.price_csv({"Operating System": "SUSE"}), Never, "no on-demand price"),
        (shapes.price_csv({"PricePerUnit": "free"}), Never, "'free' where a number"),
        (shapes.price_csv({"PricePerUnit": "NaN"}), Never, "'NaN' where a price"),
        (b"", Retry, "ends early"),
    ):
        vendor.on(FILE, body)
        with pytest.raises(kind, match=said):
            await source.fetch("")
    with pytest.raises(Invalid, match="mars-east-1"):
        await AwsPriceList(("mars-east-1",), base=vendor.url).fetch("")
    await source.close()


async def test_advisor_bands_and_what_nobody_explains(vendor: Vendor) -> None:
    modified = {"Last-Modified": "Sat, 28 Jun 2025 10:00:00 GMT"}
    vendor.on("/a", Answer(shapes.dumps(shapes.ADVISOR), headers=modified))
    source = AwsSpotAdvisor(url=f"{vendor.url}/a", now=now)
    page = await source.fetch("")
    await source.close()
    bands = {
        (f.region, f.instance_type): f for f in page.records if isinstance(f, InterruptionBand)
    }
    assert len(bands) == 3, "Linux only"
    one = bands["us-east-1", "m5.large"]
    assert (one.label, one.low, one.high, one.savings, one.scale) == (
        "5-10%", 0.05, 0.10, 0.61, "share_month",
    )  # fmt: skip
    assert one.observed_at == 1751104800.0
    assert bands["us-east-1", "c5.large"].high == 1.0
    assert page.skipped == {"a band the file does not explain": 1}, "never a number"
    with pytest.raises(Never):
        band("often")


async def _pages(source: AwsSpotPrices, most: int = 20) -> tuple[list[Fact], list[Page]]:
    pages: list[Page] = []
    cursor = ""
    while len(pages) < most:
        pages.append(await source.fetch(cursor))
        cursor = pages[-1].cursor
        if pages[-1].done:
            break
    return [fact for page in pages for fact in page.records], pages


async def test_spot_prices_follow_tokens_and_go_on_from_the_last(vendor: Vendor) -> None:
    first = ("us-east-1a", "use1-az4", "m5.large", "0.0391", "2026-05-01T10:00:00.000Z")
    second = ("us-east-1b", "", "m5.large", "0.0402", "2026-05-01T11:00:00.000Z")
    vendor.on(
        "/",
        shapes.spot_prices_xml(first, token="next"),
        shapes.spot_prices_xml(second),
        shapes.zones_xml(("us-east-1b", "use1-az6")),
        shapes.spot_prices_xml(second),
    )
    source = AwsSpotPrices(
        clients(vendor.url), regions=("us-east-1",), types=("m5.large",), days=2, now=now
    )
    facts, pages = await _pages(source)
    assert [(f.zone, f.usd_hour) for f in facts if isinstance(f, OfferPrice)] == [
        ("use1-az4", 0.0391),
        ("use1-az6", 0.0402),
    ], "an account's name of a zone becomes the zone's id"
    assert "NextToken=next" in vendor.asked[1].body
    assert "MaxResults=1000" in vendor.asked[0].body
    assert "ProductDescription.1=Linux%2FUNIX" in vendor.asked[0].body
    await source.fetch(pages[-1].cursor)
    began, later = (_start(vendor.asked[i].body) for i in (0, 3))
    assert began < later, "the first read takes two days, the next goes on from there"
    with pytest.raises(Invalid, match="90 days"):
        AwsSpotPrices(clients(vendor.url), days=91)


def _start(body: str) -> str:
    return next(part for part in body.split("&") if part.startswith("StartTime="))


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        # "Error codes for the Amazon EC2 API"
        ("RequestLimitExceeded", 503, Retry),
        ("Unavailable", 503, Retry),
        ("UnauthorizedOperation", 403, Denied),
        ("ExpiredToken", 400, Denied),
        ("AuthFailure", 401, Denied),
        ("InvalidParameterCombination", 400, Never),
    ],
)
async def test_errors_of_ec2(vendor: Vendor, code: str, status: int, kind: type) -> None:
    vendor.on("/", Answer(shapes.aws_error(code), status))
    source = AwsSpotPrices(clients(vendor.url), regions=("us-east-1",), now=now)
    with pytest.raises(kind, match=code):
        await source.fetch("")


async def test_a_closed_region_and_an_old_token_do_not_stop_the_others(vendor: Vendor) -> None:
    row = ("eu-west-1a", "euw1-az1", "m5.large", "0.04", "2026-05-01T10:00:00.000Z")
    vendor.on(
        "/",
        Answer(shapes.aws_error("AuthFailure"), 401),
        shapes.spot_prices_xml(row, token="old"),
        Answer(shapes.aws_error("InvalidNextToken", "The token has expired"), 400),
        shapes.spot_prices_xml(row),
    )
    source = AwsSpotPrices(clients(vendor.url), regions=("ap-east-1", "eu-west-1"), now=now)
    facts, pages = await _pages(source)
    assert pages[0].failed and "ap-east-1" in pages[0].failed[0]
    assert len(facts) == 2 and pages[-1].done, "the region is read from its start again"


async def test_broken_answers_of_ec2_are_refused(vendor: Vendor) -> None:
    good = shapes.spot_prices_xml(("a", "b", "m5.large", "0.04", "2026-05-01T10:00:00.000Z"))
    bad = shapes.spot_prices_xml(("a", "b", "m5.large", "cheap", "2026-05-01T10:00:00.000Z"))
    source = AwsSpotPrices(clients(vendor.url), regions=("us-east-1",), now=now)
    for answer, kind in (
        (Answer(good, cut=60), Retry),
        (Answer(good[:-30]), Retry),
        (Answer(bad), Never),
    ):
        vendor.on("/", answer)
        with pytest.raises(kind):
            await source.fetch("")


async def test_missing_credentials_say_what_to_do(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    source = AwsSpotPrices(clients(vendor.url), regions=("us-east-1",), now=now)
    with pytest.raises(Denied) as caught:
        await source.fetch("")
    assert "AWS_PROFILE" in caught.value.hint
    assert not vendor.asked


async def test_fifty_placement_configurations_a_day_survive_a_restart(
    vendor: Vendor, tmp_path: Path
) -> None:
    vendor.on("/", shapes.scores_xml(("us-east-1", "use1-az4", 8), ("us-east-1", "use1-az6", 3)))
    path = tmp_path / "budget.json"
    at = [NOW]
    ec2 = clients(vendor.url)

    def scores(kind: str) -> AwsPlacementScores:
        budget = Budget(path, lambda: at[0])  # a new process each time
        return AwsPlacementScores(ec2, budget, types=(kind,), now=now)

    for number in range(50):
        at[0] += 60.0
        page = await scores(f"m{number}.large").fetch("")
        assert len(page.records) == 2 and not page.failed
    refused = await scores("m50.large").fetch("")
    assert not refused.records and "50 configurations" in refused.failed[0]
    assert len(vendor.asked) == 50, "nothing beyond the budget is asked"
    assert (await scores("m7.large").fetch("")).records, "a repeat is free"
    at[0] = NOW + 60.0 + 86_400.0
    assert (await scores("m51.large").fetch("")).records, "the oldest is a day ago"
    path.write_text("{")
    with pytest.raises(Invalid, match="cannot be read"):
        await scores("m52.large").fetch("")


async def test_aws_may_know_of_more_configurations_than_we_do(
    vendor: Vendor, tmp_path: Path
) -> None:
    vendor.on("/", Answer(shapes.aws_error("MaxConfigLimitExceeded"), 400))
    budget = Budget(tmp_path / "b.json", now)
    regions = [f"us-east-{number}" for number in range(1, 13)]
    source = AwsPlacementScores(
        clients(vendor.url), budget, types=("m5.large",), regions=regions, now=now
    )
    page = await source.fetch("")
    assert "MaxConfigLimitExceeded" in page.failed[0] and not page.done, "12 regions are two calls"
    assert (await source.fetch(page.cursor)).done
    with pytest.raises(Invalid, match="--type"):
        AwsPlacementScores(clients(vendor.url), budget, types=())


async def test_rates_of_savings_plans(vendor: Vendor) -> None:
    three = {**shapes.plan_rate("")["savingsPlanOffering"], "durationSeconds": 94_608_000}
    first = [
        shapes.plan_rate("0.07"),
        shapes.plan_rate("0.048", savingsPlanOffering={**three, "paymentOption": "All Upfront"}),
        shapes.plan_rate("0.09", usageType="UnusedBox:m5.large"),
        shapes.plan_rate("0.3", unit="Request"),
    ]
    second = [shapes.plan_rate("0.071")]
    vendor.on(
        PLANS,
        {"searchResults": first, "nextToken": "n"},
        {"searchResults": second, "nextToken": ""},
    )
    source = AwsSavingsPlans(
        clients(vendor.url, "savingsplans"), regions=("us-east-1",), types=("m5.large",), now=now
    )
    page = await source.fetch("")
    rates = [f for f in page.records if isinstance(f, SavingsRate)]
    assert [(r.term_years, r.payment, r.usd_hour) for r in rates] == [
        (1, "no_upfront", 0.07),
        (3, "all_upfront", 0.048),
    ]
    assert sum(page.skipped.values()) == 2 and not page.done
    last = await source.fetch(page.cursor)
    assert last.done and last.records[0].observed_at == NOW
    assert vendor.asked[1].body["nextToken"] == "n"
    assert {f["name"] for f in vendor.asked[0].body["filters"]} == {
        "productDescription", "tenancy", "region", "instanceType",
    }  # fmt: skip
    vendor.on(PLANS, Answer(b'{"message": "Rate exceeded"}', 429))
    with pytest.raises(Retry):
        await source.fetch("")
    vendor.on(PLANS, {"searchResults": []})
    with pytest.raises(Never, match="no rate at all"):
        await source.fetch("")
    vendor.on(PLANS, {"searchResults": [shapes.plan_rate("0.07", properties=[])]})
    with pytest.raises(Never, match="lacks its region"):
        await source.fetch("")
