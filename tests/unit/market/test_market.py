"""The market on the shipped snapshot: catalogue, service, places, recordings."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.market.advisor import rank
from roost.market.catalogue import DATA, Catalogue, read_facts
from roost.market.places import Places, Point, distance_km
from roost.market.replay import event, recorded_gaps, recording
from roost.market.service import PREFIX, Market
from roost.market.survival import Hazard
from roost.ports.errors import Invalid
from roost.ports.values import Allocation, Ask, Offer, PurchaseOption

BOTH = (PurchaseOption.SPOT, PurchaseOption.ON_DEMAND)


@pytest.fixture(scope="module")
def market() -> Market:
    return Market(Catalogue.load())


def test_the_snapshot_is_small_and_carries_its_licences():
    assert sum(f.stat().st_size for f in DATA.iterdir()) < 2_000_000
    assert "Spare Cores" in (DATA / "PERFORMANCE-LICENSE.md").read_text()
    assert "Copyright (c) 2022 UCLASystem" in (DATA / "RECORDINGS-LICENSE.md").read_text()
    for file in DATA.glob("*.parquet"):
        assert file.name in (DATA / "README.md").read_text()


def test_candidates_meet_every_constraint(market):
    ask = Ask(
        vcpus=4,
        memory_gib=16,
        clouds=("aws", "gcp"),
        max_usd_hour=0.2,
        purchase_options=BOTH,
        min_notice_s=60,
        avoid_regions=("us-east-1",),
    )
    found = market.catalogue.candidates(ask)
    assert len(found) > 1000
    for offer in found:
        assert offer.resources.vcpus >= 4
        assert offer.resources.memory_gib >= 16
        assert offer.provider in ask.clouds
        assert 0 < offer.price_usd_hour <= 0.2
        assert offer.arch == "x86_64"
        assert offer.notice_s >= 60 or offer.purchase_option is PurchaseOption.ON_DEMAND
        assert offer.region != "us-east-1"
    assert {o.purchase_option for o in found} == set(BOTH)
    assert len({o.key for o in found}) == len(found)


def test_the_notice_is_that_of_the_cloud(market):
    found = market.catalogue.candidates(Ask(max_usd_hour=0.03))
    assert {(o.provider, o.notice_s) for o in found} == {
        ("aws", 120.0),
        ("azure", 30.0),
        ("gcp", 30.0),
    }


@pytest.mark.parametrize(
    "ask",
    [
        Ask(
            vcpus=8, memory_gib=32, near="Sao Paulo", purchase_options=BOTH, clouds=("aws", "azure")
        ),
    ],
)
def test_the_short_list_is_what_weighing_every_offer_gives(market, ask):
    candidates = market.catalogue.candidates(ask)
    assert len(candidates) > PREFIX
    context = market.catalogue.context(ask, limit=20)
    assert market.rank(ask, 20) == rank(candidates, ask, context)


def test_each_rank_has_a_reason_and_unknown_is_shown_as_unknown(market):
    ranked = market.rank(Ask(near="Seoul", clouds=("gcp", "azure")), 10)
    assert [r.rank for r in ranked] == list(range(1, 11))
    for entry in ranked:
        assert not entry.survival_known
        assert 0.5 < entry.survival_24h.low < entry.survival_24h.high < 1
        assert "stability unknown: pooled prior" in entry.reason
        assert "km from Seoul" in entry.reason


def test_near_prefers_close_regions(market):
    def mean_km(ask: Ask) -> float:
        here = market.catalogue.context(Ask(near="Seoul")).distances_km
        ranked = market.rank(ask, 20)
        return sum(here[r.offer.provider, r.offer.region] for r in ranked) / len(ranked)

    assert mean_km(Ask(near="Seoul")) < mean_km(Ask()) / 2


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (Ask(max_usd_hour=0.001), "max_usd_hour=0.001 leaves nothing: the cheapest of "),
        (
            Ask(instance_types=("m5.xlarg",)),
            "m5.xlarg is not in the catalogue; did you mean m5.xlarge",
        ),
        (
            Ask(regions=("us-est-1",)),
            "us-east-1",
        ),
        (Ask(clouds=("awz",)), "did you mean aws"),
        (Ask(near="Soul"), "did you mean Seoul"),
        (Ask(vcpus=5000), "vcpus=5000 leaves nothing: the largest of "),
        (Ask(vcpus=5000, max_usd_hour=0.001), "no offer meets these together"),
        (Ask(min_notice_s=300), "the longest notice of "),
        (Ask(purchase_options=(PurchaseOption.RESERVED,)), "purchase option reserved"),
        (Ask(instance_types=("m5.large",), vcpus=16), "has 2 vCPU (aws m5.large)"),
        (Ask(avoid_clouds=("aws", "azure", "gcp")), "avoid_clouds=aws,azure,gcp leaves nothing"),
        (Ask(clouds=("aws",), regions=("westeurope",)), "clouds=aws leaves nothing"),
    ],
)
def test_an_impossible_ask_says_which_constraint_leaves_nothing(market, ask, says):
    with pytest.raises(Invalid) as caught:
        market.rank(ask)
    assert says in str(caught.value)
    assert caught.value.hint


def test_why_agrees_with_the_ranking(market):
    ask = Ask(vcpus=4, memory_gib=16, max_usd_hour=0.1, clouds=("aws",))
    everything = rank(market.catalogue.candidates(ask), ask, market.catalogue.context(ask))
    for entry in (everything[0], everything[7], everything[-1]):
        explained = market.why(entry.offer.key, ask)
        assert explained.rank == entry.rank
        assert explained.candidates == len(everything)
        assert explained.usd_useful_hour == entry.usd_useful_hour == explained.cost.total
        assert explained.winner is not None
        assert explained.winner.offer == everything[0].offer
        assert not explained.excluded_by


def test_why_names_what_excludes_an_offer(market):
    ask = Ask(vcpus=8, max_usd_hour=0.01)
    explained = market.why("aws/apne2-az1/m5.xlarge/spot", ask)
    assert explained.rank is None
    assert explained.excluded_by == ("max_usd_hour=0.01", "vcpus=8")


def test_resolve_finds_the_offer_of_a_key_and_says_what_is_wrong(market):
    catalogue = market.catalogue
    offer = catalogue.resolve("aws/apne2-az1/m5.xlarge")
    assert offer.key == "aws/apne2-az1/m5.xlarge/spot"
    assert catalogue.resolve(offer.key) == offer
    on_demand = catalogue.resolve("aws/apne2-az1/m5.xlarge/on_demand")
    assert on_demand.price_usd_hour == on_demand.on_demand_usd_hour == offer.on_demand_usd_hour
    assert offer.interruption_bucket is not None
    assert catalogue.resolve("azure/koreacentral/Standard_D4s_v5").zone == ""
    for name, hint in (
        ("m5.xlarge", "write provider/zone/type/option"),
        ("aws/apne2-az1/m5.xlrge", "m5.xlarge"),
        ("aws/apne2-az9/m5.xlarge", "apne2-az"),
        ("ibm/x/y", "clouds are aws, azure, gcp"),
    ):
        with pytest.raises(Invalid) as caught:
            catalogue.resolve(name)
        assert hint in caught.value.hint


def test_every_region_of_the_catalogue_has_a_place(market):
    offers = market.catalogue.candidates(Ask(vcpus=0, memory_gib=0, purchase_options=BOTH))
    regions = {(o.provider, o.region) for o in offers}
    assert regions <= set(market.catalogue.context(Ask(near="Seoul")).distances_km)


def test_distances_are_those_of_the_globe():
    places = Places.load()
    assert distance_km(places.find("seoul"), places.find("Busan")) == pytest.approx(325, abs=5)
    assert distance_km(places.find("São Paulo"), places.find("London")) == pytest.approx(
        9500, abs=100
    )
    assert distance_km(Point(0, 0), Point(0, 180)) == pytest.approx(20015, abs=1)
    assert distance_km(Point(37, 127), Point(37, 127)) == 0


def test_unattended_work_weighs_stability_less(market):
    key, ask = "aws/apne2-az1/m5.xlarge/spot", Ask()
    unattended = Market(market.catalogue, down_usd_hour=0)
    assert unattended.why(key, ask).cost.losses == 0
    assert market.why(key, ask).cost.losses > 0.0001


@pytest.mark.parametrize("name", ["aws-p3", "gcp-a100", "gcp-lifetimes"])
def test_recordings_name_their_source_and_licence(name):
    recorded = recording(name)
    assert recorded.licence in ("MIT", "Apache-2.0")
    assert "github.com" in recorded.source
    assert recorded_gaps(name) == list(recorded.gaps_s)
    assert min(recorded.gaps_s) > 0
    assert min(recorded.lost) >= 1
    assert len(recorded.lost) == len(recorded.gaps_s) > 30
    assert name in read_facts().recordings


def test_the_nth_event_of_a_recording_and_its_repetition():
    recorded = recording("aws-p3")
    assert event(recorded, 0).after_s == recorded.gaps_s[0]
    assert event(recorded, 3).after_s == sum(recorded.gaps_s[:4])
    count = len(recorded.gaps_s)
    again = event(recorded, count)
    assert again.gap_s == recorded.gaps_s[0]
    assert again.after_s == pytest.approx(sum(recorded.gaps_s) + recorded.gaps_s[0])
    with pytest.raises(Invalid, match="aws-p3"):
        recording("nowhere")


def test_another_snapshot_can_be_loaded(tmp_path, market):
    for file in DATA.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    other = Catalogue.load(tmp_path)
    offer: Offer = other.resolve("aws/apne2-az1/m5.xlarge/spot")
    assert msgspec.to_builtins(offer) == msgspec.to_builtins(market.catalogue.resolve(offer.key))


ASKS = st.builds(
    Ask,
    vcpus=st.sampled_from([0, 2, 8, 64]),
    memory_gib=st.sampled_from([0, 8, 256]),
    arch=st.sampled_from(["x86_64", "arm64"]),
    clouds=st.sampled_from([("aws",), ("gcp",), ("azure", "gcp")]),
    regions=st.sampled_from([("us-east-1", "us-central1", "eastus"), ("eu-west-1", "uksouth")]),
    purchase_options=st.sampled_from([BOTH, (PurchaseOption.SPOT,)]),
    max_usd_hour=st.sampled_from([None, 0.1, 1.0]),
    near=st.sampled_from(["", "Seoul"]),
    min_notice_s=st.sampled_from([0.0, 60.0]),
    avoid_clouds=st.sampled_from([(), ("gcp",)]),
    avoid_pools=st.sampled_from([(), ("aws/use1-az1/m5.large/spot", "nonsense")]),
)


@settings(max_examples=25, deadline=None)
@given(ASKS, st.sampled_from([1, 5, 20, 200]), st.integers(0, 10_000))
def test_the_ranking_over_arrays_is_the_advisors_to_the_last_bit(market, ask, limit, some):
    columns = market.catalogue.columns
    row = some * 7 % columns.height
    live = Hazard(expected=0.01, low=0.001, high=0.1, source="seen")
    newer = market.catalogue.with_columns(columns.with_live({row: live}, {row: 0.001}))
    for catalogue in (market.catalogue, newer):
        candidates = catalogue.candidates(ask)
        expected = rank(candidates, ask, catalogue.context(ask, limit=limit))
        if expected:
            assert Market(catalogue).rank(ask, limit) == expected
        else:
            with pytest.raises(Invalid):
                Market(catalogue).rank(ask, limit)


def test_offers_are_ordered_as_the_allocation_says(market: Market) -> None:
    ask = Ask(vcpus=4, memory_gib=16, clouds=("aws",))
    cheap = market.rank(msgspec.structs.replace(ask, allocation=Allocation.LOWEST_PRICE), 10)
    prices = [r.offer.price_usd_hour for r in cheap]
    assert prices == sorted(prices)
    assert prices[0] == min(o.price_usd_hour for o in market.catalogue.candidates(ask))
    lasting = market.rank(msgspec.structs.replace(ask, allocation=Allocation.CAPACITY), 10)
    odds = market.odds([r.offer for r in lasting], 24.0)
    assert odds == sorted(odds, reverse=True)
    assert odds[0] >= max(market.odds([r.offer for r in cheap], 24.0))
    types = tuple(dict.fromkeys(r.offer.instance_type for r in reversed(cheap)))[:3]
    wanted = msgspec.structs.replace(ask, instance_types=types, allocation=Allocation.PRIORITIZED)
    ranked = [r.offer.instance_type for r in market.rank(wanted, 30)]
    assert ranked[0] == types[0]
    assert ranked == sorted(ranked, key=types.index)
    assert market.odds([], 1.0) == []
