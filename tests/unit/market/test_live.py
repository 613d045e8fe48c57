"""Newer facts over the shipped catalogue: which count, for which offers, and how old they are."""

from datetime import UTC, datetime

import pytest

from roost.market.catalogue import Catalogue
from roost.market.history import History
from roost.market.live import newest
from roost.market.service import Market
from roost.market.survival import PUBLISHED
from roost.ports.errors import Invalid
from roost.ports.sources import Availability, InterruptionBand, OfferPrice, PreemptionRate
from roost.ports.values import Ask

NOW = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
OLD = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
AWS = {"provider": "aws", "region": "ap-northeast-2", "instance_type": "m5.xlarge"}
AZURE = {"provider": "azure", "region": "koreacentral", "instance_type": "Standard_D4s_v5"}
GCP = {
    "provider": "gcp",
    "region": "us-central1",
    "zone": "us-central1-a",
    "instance_type": "n2-standard-4",
}
KEY = "aws/apne2-az1/m5.xlarge/spot"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


def told(tmp_path, *facts):
    history = History(tmp_path / "market")
    history.append(facts)
    return history


def test_a_newer_price_counts_for_its_pool_and_an_older_one_does_not(tmp_path, catalogue):
    price = {**AWS, "source": "aws-spot-prices", "option": "spot"}
    history = told(
        tmp_path,
        OfferPrice(**price, zone="apne2-az1", usd_hour=0.05, observed_at=NOW - 7200),
        OfferPrice(**price, zone="apne2-az1", usd_hour=0.04, observed_at=NOW - 3600),
        OfferPrice(**price, zone="apne2-az2", usd_hour=0.01, observed_at=OLD),
        OfferPrice(**price, zone="apne2-az3", usd_hour=None, observed_at=NOW),
        OfferPrice(**price, zone="ap-northeast-2a", usd_hour=0.02, observed_at=NOW),
    )
    newer = newest(catalogue, history, NOW)
    assert newer.catalogue.resolve(KEY).price_usd_hour == 0.04
    other = KEY.replace("az1", "az2")
    assert newer.catalogue.resolve(other) == catalogue.resolve(other)
    gone = KEY.replace("az1", "az3")
    assert set(newer.told) == {KEY, gone}
    with pytest.raises(Invalid):
        newer.catalogue.resolve(gone)
    wanted = Ask(regions=("ap-northeast-2",), instance_types=("m5.xlarge",))
    assert gone not in {o.key for o in newer.catalogue.candidates(wanted)}
    fact = newer.told[KEY][0]
    assert (fact.what, fact.source, fact.observed_at) == ("price", "aws-spot-prices", NOW - 3600)
    assert newer.newest_s == NOW
    assert newer.unplaced == ("aws/ap-northeast-2a/m5.xlarge",)
    assert catalogue.resolve(KEY).price_usd_hour != 0.04, "the shipped one stays as it is"


def test_an_on_demand_price_counts_for_its_region_and_as_the_comparison_of_spot(
    tmp_path, catalogue
):
    fact = OfferPrice(
        **AWS, source="aws-price-list", option="on_demand", usd_hour=0.3, observed_at=NOW
    )
    newer = newest(catalogue, told(tmp_path, fact), NOW).catalogue
    assert newer.resolve("aws/apne2-az3/m5.xlarge/on_demand").price_usd_hour == 0.3
    assert newer.resolve(KEY).on_demand_usd_hour == 0.3
    assert newer.resolve(KEY).price_usd_hour == catalogue.resolve(KEY).price_usd_hour


def test_bands_of_each_cloud_become_hazards_with_their_source(tmp_path, catalogue):
    azure = "azure/koreacentral/Standard_D4s_v5/spot"
    gcp = "gcp/us-central1-a/n2-standard-4/spot"
    rate = {**GCP, "source": "gcp-capacity-history", "interval_s": 86_400.0}
    history = told(
        tmp_path,
        InterruptionBand(
            **AWS, source="aws-spot-advisor", observed_at=NOW, scale="share_month",
            label="<5%", low=0.0, high=0.05,
        ),
        InterruptionBand(
            **AZURE, source="azure-resource-graph", observed_at=NOW, scale="share_hour",
            label="5-10", low=0.05, high=0.10,
        ),
        PreemptionRate(**rate, rate=0.2, observed_at=NOW - 86_400),
        PreemptionRate(**rate, rate=0.4, observed_at=NOW),
    )  # fmt: skip
    market = Market(catalogue, newer=newest(catalogue, history, NOW))
    aws = market.why(KEY, Ask())
    assert aws.offer.interruption_bucket == "<5%"
    assert aws.loss.hazard == PUBLISHED["<5%"]
    shaky = market.why(azure, Ask())
    assert shaky.loss.known
    assert shaky.loss.hazard.expected == pytest.approx(0.078, abs=0.001)
    assert shaky.loss.hazard.source.startswith("azure-resource-graph: 5-10")
    assert shaky.told[0].what == "stability"
    preempted = market.why(gcp, Ask()).loss.hazard
    assert preempted.expected == pytest.approx(0.0149, abs=0.0001)
    assert "2 daily shares" in preempted.source
    assert not market.why("gcp/us-central1-b/n2-standard-4/spot", Ask()).loss.known


def test_a_watched_pool_has_the_hazard_of_what_was_seen_of_it(tmp_path, catalogue):
    look = {**AWS, "source": "probe", "series": "own", "interval_s": 600.0}
    steady = [
        Availability(**look, zone="apne2-az1", capacity=1, observed_at=NOW - 600 * n)
        for n in range(300)
    ]
    nervous = [
        Availability(**look, zone="apne2-az2", capacity=int(n % 4 != 1), observed_at=NOW - 600 * n)
        for n in range(300)
    ]
    down = [
        Availability(**look, zone="apne2-az3", capacity=int(n > 3), observed_at=NOW - 600 * n)
        for n in range(300)
    ]
    history = told(tmp_path, *steady, *nervous, *down)
    market = Market(catalogue, newer=newest(catalogue, history, NOW))
    one, two = (market.why(KEY.replace("az1", z), Ask()) for z in ("az1", "az2"))
    assert one.loss.known
    assert two.loss.known
    assert one.loss.hazard.expected < two.loss.hazard.expected / 3
    assert one.loss.hazard.low < one.loss.hazard.expected < one.loss.hazard.high
    assert "observed: own (probe)" in one.loss.hazard.source
    assert (one.told[0].what, one.told[0].observed_at) == ("stability", NOW)
    gone = market.why(KEY.replace("az1", "az3"), Ask())
    assert gone.loss.hazard == PUBLISHED[gone.offer.interruption_bucket], "down: nothing newer"
    later = newest(catalogue, history, NOW + 7200)
    assert later.newest_s is None, "two hours without a look say nothing of now"


def test_without_facts_the_catalogue_stands_as_shipped(tmp_path, catalogue):
    assert newest(catalogue, History(tmp_path / "nothing"), NOW).catalogue is catalogue
    assert newest(catalogue, None, NOW).newest_s is None
