"""Offers made by hypothesis for the tests of the market."""

from hypothesis import strategies as st

from roost.market.advisor import RankContext, Speed
from roost.market.survival import BANDS, pooled
from roost.ports.values import Offer, PurchaseOption, Resources

REGIONS = [("aws", "here"), ("aws", "there"), ("azure", "north"), ("gcp", "south"), ("gcp", "west")]
TYPES = ["a.small", "b.large", "c.huge"]

CONTEXT = RankContext(
    prior=pooled({"<5%": 20, "5-10%": 18, "10-15%": 13, "15-20%": 12, ">20%": 37}),
    speeds={("aws", "a.small"): Speed(relative=0.8), ("gcp", "b.large"): Speed(relative=1.7)},
    distances_km={place: 1000.0 * number for number, place in enumerate(REGIONS)},
    boot_s={"aws": 159.0, "azure": 274.0, "gcp": 193.0},
)


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    provider, region = draw(st.sampled_from(REGIONS))
    on_demand = draw(st.floats(min_value=0.01, max_value=10.0))
    option = draw(st.sampled_from([PurchaseOption.SPOT, PurchaseOption.ON_DEMAND]))
    share = draw(st.floats(min_value=0.05, max_value=1.0)) if option is PurchaseOption.SPOT else 1.0
    band = draw(st.sampled_from([None, *BANDS]))
    return Offer(
        provider=provider,
        region=region,
        zone=f"{region}-{draw(st.integers(1, 2))}",
        instance_type=draw(st.sampled_from(TYPES)),
        purchase_option=option,
        price_usd_hour=on_demand * share,
        on_demand_usd_hour=on_demand,
        resources=Resources(vcpus=4, memory_gib=16),
        notice_s=draw(st.sampled_from([30.0, 120.0])),
        interruption_bucket=band if option is PurchaseOption.SPOT else None,
    )


MANY = st.lists(offers(), max_size=30, unique_by=lambda o: o.key)
