"""Placement, by property."""

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.market.offers import CONTEXT, MANY

from roost.market.advisor import rank
from roost.placement.plan import Avoid, PlacementSnapshot, Spread, StandbyHost, choose, meets
from roost.ports.values import Ask, PurchaseOption

ANY = Ask(purchase_options=(PurchaseOption.SPOT, PurchaseOption.ON_DEMAND))


def snapshot(found, **more) -> PlacementSnapshot:
    given_ = {"ask": ANY, "now_s": 100.0, "ranked": tuple(rank(found, ANY, CONTEXT)), **more}
    return PlacementSnapshot(**given_)


@given(MANY, st.data())
def test_the_order_of_what_is_given_does_not_matter(found, data):
    ranked = rank(found, ANY, CONTEXT)
    hosts = [StandbyHost(host_id=f"h{n}", offer=o) for n, o in enumerate(found[:5])]
    one = choose(snapshot(found, hosts=tuple(hosts)))
    other = choose(
        snapshot(
            found,
            ranked=tuple(data.draw(st.permutations(ranked))),
            hosts=tuple(data.draw(st.permutations(hosts))),
        )
    )
    assert one == other


@given(MANY, st.sampled_from(Spread))
def test_spread_keeps_apart_and_says_so(found, spread):
    if not found:
        return
    here = found[0]
    for choice in choose(snapshot(found, spread_from=here, spread=spread)):
        assert choice.offer.key != here.key
        if spread is Spread.REGION:
            assert (choice.offer.provider, choice.offer.region) != (here.provider, here.region)
        if spread is Spread.PROVIDER:
            assert choice.offer.provider != here.provider
            assert f"another cloud than {here.provider}" in choice.reason


@given(MANY)
def test_an_avoided_pool_comes_back_when_its_time_is_over(found):
    avoid = tuple(Avoid(pool=o.key, until_s=200.0) for o in found[:3])
    keys = {a.pool for a in avoid}
    during = choose(snapshot(found, avoid=avoid))
    after = choose(snapshot(found, avoid=avoid, now_s=200.0))
    assert {c.offer.key for c in during} == {o.key for o in found} - keys
    assert {c.offer.key for c in after} == {o.key for o in found}


@given(MANY, st.data())
def test_what_the_ask_avoids_is_never_chosen(found, data):
    ask = Ask(
        purchase_options=ANY.purchase_options,
        avoid_clouds=data.draw(st.sampled_from([(), ("aws",)])),
        avoid_regions=data.draw(st.sampled_from([(), ("south",)])),
        avoid_pools=tuple(o.key for o in found[:2]),
    )
    hosts = tuple(StandbyHost(host_id=f"h{n}", offer=o) for n, o in enumerate(found))
    for choice in choose(snapshot(found, ask=ask, hosts=hosts)):
        assert choice.offer.provider not in ask.avoid_clouds
        assert choice.offer.region not in ask.avoid_regions
        assert choice.offer.key not in ask.avoid_pools


@given(MANY)
def test_a_ready_host_comes_before_any_launch_and_launches_keep_their_rank(found):
    hosts = tuple(StandbyHost(host_id=f"h{n}", offer=o) for n, o in enumerate(found[:2]))
    choices = choose(snapshot(found, hosts=hosts))
    assert [bool(c.host_id) for c in choices[: len(hosts)]] == [True] * len(hosts)
    launches = [c.offer.key for c in choices if not c.host_id]
    assert launches == [r.offer.key for r in rank(found, ANY, CONTEXT)]


@given(MANY)
def test_a_host_that_does_not_meet_the_ask_is_left_alone(found):
    big = Ask(vcpus=64, purchase_options=ANY.purchase_options)
    hosts = tuple(StandbyHost(host_id=f"h{n}", offer=o) for n, o in enumerate(found))
    assert choose(snapshot([], ask=big, hosts=hosts)) == []
    for offer in found:
        assert meets(offer, ANY)
        assert not meets(offer, Ask(arch="arm64", purchase_options=ANY.purchase_options))
        assert not meets(offer, Ask(max_usd_hour=0.0001, purchase_options=ANY.purchase_options))
