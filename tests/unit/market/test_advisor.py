"""The advisor and the survival prior, by property."""

from math import exp, isclose

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from roost.market.advisor import CLEARLY, Speed, cost, differences, loss_of, rank
from roost.market.decision import down_s, may_move_for_price, rate, region_cap
from roost.market.survival import (
    BANDS,
    HARDWARE_HAZARD,
    OPEN_END,
    PUBLISHED,
    Hazard,
    from_preemptions,
    hazard,
    hazard_of,
    on_one_scale,
    pooled,
    survival,
)
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Offer, PurchaseOption, Resources
from tests.unit.market.offers import CONTEXT, MANY, offers

ASK = Ask(near="Seoul")


def made(**changes: object) -> Offer:
    offer = Offer(
        provider="aws",
        region="here",
        zone="here-1",
        instance_type="a.small",
        purchase_option=PurchaseOption.SPOT,
        price_usd_hour=0.05,
        on_demand_usd_hour=0.2,
        resources=Resources(vcpus=2, memory_gib=8),
        notice_s=120.0,
        interruption_bucket="<5%",
    )
    return msgspec.structs.replace(offer, **changes)


@given(MANY, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(found, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    for limit in (None, 5):
        context = msgspec.structs.replace(CONTEXT, limit=limit)
        assert rank(shuffled, ASK, context) == rank(found, ASK, context)


@given(MANY, offers())
def test_another_offer_never_makes_the_best_worse(found, extra):
    assume(extra.key not in {offer.key for offer in found})  # the same pool again is no other
    before = rank(found, ASK, CONTEXT)
    after = rank([*found, extra], ASK, CONTEXT)
    if before:
        assert after[0].usd_useful_hour <= before[0].usd_useful_hour
    # And no other pair changes places because of it.
    keys = [r.offer.key for r in after if r.offer.key != extra.key]
    assert keys == [r.offer.key for r in before if r.offer.key != extra.key]


@given(MANY)
def test_ranks_are_dense_and_costs_rise(found):
    ranked = rank(found, ASK, CONTEXT)
    assert [r.rank for r in ranked] == list(range(1, len(found) + 1))
    costs = [r.usd_useful_hour for r in ranked]
    assert costs == sorted(costs)
    assert all(r.reason and "\n" not in r.reason for r in ranked)


@given(offers())
def test_the_terms_add_up_and_none_is_forgotten(offer):
    terms = cost(offer, CONTEXT)
    speed = CONTEXT.speeds.get((offer.provider, offer.instance_type))
    relative = CONTEXT.unknown_speed if speed is None else speed.relative
    assert isclose(terms.price + terms.floor + terms.speed, (terms.price + terms.floor) / relative)
    assert min(terms.floor, terms.distance, terms.losses) >= 0
    assert terms.losses > 0, "every machine may be lost"


@given(offers(), st.floats(min_value=0.1, max_value=1000))
def test_unknown_stability_is_neither_safe_nor_lost(offer, hours):
    unknown = msgspec.structs.replace(
        offer, purchase_option=PurchaseOption.SPOT, interruption_bucket=None
    )
    rate, known = hazard_of(unknown, CONTEXT.prior)
    lasts = survival(unknown, hours, CONTEXT.prior)
    assert not known
    assert not lasts.known
    assert 0.0 < lasts.low < lasts.p < lasts.high < 1.0
    assert PUBLISHED["<5%"].expected < rate.expected < PUBLISHED[">20%"].expected
    costs = {
        band: cost(msgspec.structs.replace(unknown, interruption_bucket=band), CONTEXT).total
        for band in BANDS
    }
    assert costs["<5%"] < cost(unknown, CONTEXT).total < costs[">20%"]


def test_an_unknown_pool_says_so_with_its_prior_and_interval():
    ranked = rank([made(interruption_bucket=None)], Ask(), CONTEXT)[0]
    assert not ranked.survival_known
    assert "stability unknown: pooled prior 0.99 [0.91-1.00]" in ranked.reason


@given(MANY, st.data())
def test_what_is_to_be_avoided_is_never_ranked(found, data):
    some = data.draw(st.lists(st.sampled_from(found), max_size=3)) if found else []
    ask = Ask(
        avoid_pools=tuple(o.key for o in some),
        avoid_clouds=data.draw(st.sampled_from([(), ("gcp",), ("aws", "gcp")])),
        avoid_regions=data.draw(st.sampled_from([(), ("north",), ("here",)])),
    )
    kept = {
        o.key
        for o in found
        if o.key not in ask.avoid_pools
        and o.provider not in ask.avoid_clouds
        and o.region not in ask.avoid_regions
    }
    assert {r.offer.key for r in rank(found, ask, CONTEXT)} == kept


@given(MANY, st.integers(1, 12))
def test_a_short_list_begins_with_the_best_and_spreads(found, limit):
    whole = rank(found, ASK, CONTEXT)
    short = rank(found, ASK, msgspec.structs.replace(CONTEXT, limit=limit))
    assert len(short) == min(limit, len(found))
    if not short:
        return
    assert short[0].offer == whole[0].offer
    regions = {(o.provider, o.region) for o in found}
    shown = {(r.offer.provider, r.offer.region) for r in short}
    assert len(shown) >= min(len(regions), -(-len(short) // CONTEXT.per_region))


def test_the_ladder_guard_counts_no_discount_below_the_floor():
    low, lowest = made(price_usd_hour=0.03), made(price_usd_hour=0.005, interruption_bucket=">20%")
    assert cost(low, CONTEXT).floor == 0
    assert cost(lowest, CONTEXT).floor == pytest.approx(0.025)
    lowest = msgspec.structs.replace(lowest, zone="here-2")
    first, second = rank([low, lowest], Ask(), CONTEXT)
    assert first.offer == low
    assert "price counted as 15% of on-demand" in second.reason


def test_stability_decides_between_equal_prices_and_on_demand_is_not_interruptible():
    steady, shaky = made(zone="here-2"), made(interruption_bucket=">20%")
    context = msgspec.structs.replace(CONTEXT, distances_km={})
    first, second = rank([shaky, steady], Ask(), context)
    assert first.offer == steady
    assert "losses cost more" in second.reason
    bought = made(purchase_option=PurchaseOption.ON_DEMAND, interruption_bucket=None)
    assert rank([bought], Ask(), context)[0].survival_24h.p > 0.999
    assert "not interruptible" in rank([bought], Ask(), context)[0].reason


def test_a_faster_and_a_nearer_machine_cost_less():
    fast = made(instance_type="fast")
    context = msgspec.structs.replace(CONTEXT, speeds={("aws", "fast"): Speed(relative=2.0)})
    assert cost(fast, context).total < cost(made(), context).total
    assert cost(made(), CONTEXT).total < cost(made(region="there"), CONTEXT).total
    second = rank([fast, made()], ASK, context)[1]
    assert "slower" in second.reason
    assert "speed unknown, counted 0.75x" in second.reason


def test_differences_name_what_sets_two_offers_apart():
    found = differences(cost(made(price_usd_hour=0.10), CONTEXT), cost(made(), CONTEXT))
    assert found["price"] == pytest.approx(1.0)
    assert abs(found["speed"]) < 1e-9
    assert abs(found["stability"]) < CLEARLY


def test_a_band_becomes_the_hazard_that_gives_its_share_in_a_month():
    for name, band in BANDS.items():
        assert exp(-PUBLISHED[name].expected * 730) == pytest.approx(1 - band.mid)
        assert PUBLISHED[name].low <= PUBLISHED[name].expected <= PUBLISHED[name].high
    assert hazard(0.0) == HARDWARE_HAZARD
    assert PUBLISHED[">20%"].high == pytest.approx(hazard(OPEN_END))


@given(st.dictionaries(st.sampled_from(list(BANDS)), st.integers(0, 1000)))
def test_the_prior_always_has_an_interval_around_it(counts):
    prior = pooled(counts)
    assert 0 < prior.low < prior.expected <= prior.high
    assert prior.expected < hazard(OPEN_END)


def test_a_notice_longer_than_launch_and_move_leaves_only_the_freeze():
    shaky = made(interruption_bucket=">20%")
    context = msgspec.structs.replace(CONTEXT, boot_s={"aws": 100.0}, distances_km={})
    covered = loss_of(shaky, context)
    assert covered.down_s == context.freeze_s == 3.0
    short = loss_of(msgspec.structs.replace(shaky, notice_s=30.0), context)
    assert short.down_s == 100.0 + 3.0 - 30.0
    assert short.usd == pytest.approx(50.0 * 73.0 / 3600.0)
    terms = cost(msgspec.structs.replace(shaky, notice_s=30.0), context)
    assert terms.losses == PUBLISHED[">20%"].expected * short.usd
    assert terms.total == rate(terms.price, 0.8, PUBLISHED[">20%"].expected, short.usd)


def test_a_newer_hazard_counts_instead_of_the_band():
    shaky = made(interruption_bucket=">20%")
    seen = Hazard(expected=1e-5, low=1e-6, high=1e-4, source="seen")
    context = msgspec.structs.replace(CONTEXT, hazards={shaky.key: seen})
    assert loss_of(shaky, context).hazard is seen
    assert cost(shaky, context).losses < cost(shaky, CONTEXT).losses


def test_the_bands_of_all_clouds_are_one_scale():
    prior = CONTEXT.prior
    aws = on_one_scale(0.05, 0.10, "share_month", prior, "advisor")
    assert aws.expected == pytest.approx(PUBLISHED["5-10%"].expected)
    azure = on_one_scale(0.05, 0.10, "share_hour", prior, "eviction rate")
    assert azure.expected == pytest.approx(730 * aws.expected)
    lowest = on_one_scale(0.0, 0.05, "share_hour", prior)
    assert lowest.expected == prior.expected, "it holds every band of AWS, so it says no more"
    assert lowest.high == pytest.approx(hazard(0.05, 1.0))
    most = on_one_scale(0.20, 1.0, "share_month", prior)
    assert most.expected == pytest.approx(PUBLISHED[">20%"].expected)
    for wrong in ((0.2, 0.1, "share_month"), (0.0, 1.5, "share_month"), (0.0, 0.1, "share_week")):
        with pytest.raises(Invalid):
            on_one_scale(*wrong, prior)


def test_gcp_preempted_shares_are_an_upper_estimate_and_none_stays_unknown():
    prior = CONTEXT.prior
    assert from_preemptions([], prior) is None
    seen = from_preemptions([0.1, 0.3], prior, "capacityHistory")
    assert seen is not None
    assert seen.expected == pytest.approx(hazard(0.2, 24.0))
    assert (seen.low, seen.high) == (prior.low, hazard(0.3, 24.0))
    assert seen.source == "capacityHistory"


def test_guards_of_the_money_rule():
    assert [region_cap(n) for n in (1, 2, 3, 4, 6, 7)] == [1, 1, 1, 2, 2, 3]
    assert [may_move_for_price(n) for n in (0, 14, 15, 400)] == [False, False, True, True]
    assert down_s(3, 150, 30, 120) == 60
    assert down_s(3, 60, 20, 120) == 3
