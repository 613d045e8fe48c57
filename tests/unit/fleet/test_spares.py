"""Spares stand by while risk is high; after a loss another region is preferred."""

from hypothesis import given
from hypothesis import strategies as st

from roost.fleet.model import RankedOffer
from roost.fleet.plan import first
from roost.fleet.spares import CALM, LINE, RISK, covering, exposed, kept, spares
from roost.ports.values import Offer, PurchaseOption, Resources

risks = st.lists(st.floats(0, 1), max_size=8)


def test_none_while_calm_one_while_trouble_is_likely() -> None:
    assert spares([RISK / 5] * 4) == 0
    assert spares([RISK / 3] * 4) == 1
    assert spares([]) == 0


def test_a_spare_stays_until_it_is_clearly_calm() -> None:
    between = RISK * (1 + CALM) / 2
    assert spares([between], standing=0) == 0
    assert spares([between], standing=1) == 1
    assert spares([RISK * CALM * 0.9], standing=1) == 0


@given(risks, st.integers(0, 3), st.integers(0, 3))
def test_more_risk_never_means_fewer_spares(found: list[float], standing: int, most: int) -> None:
    few = spares(found, standing, most=most)
    assert 0 <= few <= most
    assert few <= spares([*found, 0.5], standing, most=most)
    assert few <= spares(found, most, most=most)


def ranked(region: str, usd: float) -> RankedOffer:
    offer = Offer(
        provider="aws",
        region=region,
        zone=f"{region}a",
        instance_type="m5.large",
        purchase_option=PurchaseOption.SPOT,
        price_usd_hour=usd,
        on_demand_usd_hour=1.0,
        resources=Resources(vcpus=2, memory_gib=8),
    )
    return RankedOffer(offer=offer, reason="as ranked", usd_useful_hour=usd)


def test_after_a_loss_another_region_unless_the_same_is_clearly_better() -> None:
    lost = ranked("us-east-1", 0.1).offer
    close = [ranked("us-east-1", 0.100), ranked("us-west-2", 0.101)]
    assert first(close)[0].region == "us-east-1"
    offer, why = first(close, [lost])
    assert offer.region == "us-west-2"
    assert "away from aws/us-east-1" in why
    far = [ranked("us-east-1", 0.100), ranked("us-west-2", 0.150)]
    assert first(far, [lost])[0].region == "us-east-1"


def test_spares_stand_in_for_a_whole_pool_or_are_none() -> None:
    assert covering(0, 4, 9) == 0
    assert covering(1, 4, 5) == 1  # one in each pool
    assert covering(1, 4, 3) == 2  # two in each: one spare would not make up for two
    assert covering(1, 4, 2) == 4
    assert covering(1, 4, 1) == 0  # all in one pool: they would be lost with the others


def test_a_loss_that_the_notice_covers_needs_no_spare() -> None:
    risk = LINE / 3
    bare = [exposed(risk, 120.0, 0.0)] * 4
    assert kept(bare, 0, 4, 9) == 1
    assert kept(bare, 0, 4, 3) == 2, "two in a pool"
    assert kept([exposed(risk, 120.0, 60.0)] * 4, 0, 4, 9) == 0, "half as much"
    assert kept([exposed(1.0, 120.0, 120.0)] * 4, 0, 4, 9) == 0
    assert kept([*bare, 1.0], 0, 4, 9) == 1, "the safest four"
