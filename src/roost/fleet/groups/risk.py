"""What a loss says of the hosts beside it: pools of a region share much of their fate. Pure.

Availability of pools inside a region is correlated by 0.36 to 0.57 on the recordings, across regions by
hardly anything. The published hazard of a pool knows nothing of the last ten minutes: where a host of the
group is under notice, or a pool has just taken one, those beside it are counted as likely to go.
"""

from collections.abc import Mapping, Sequence

import msgspec

from roost.fleet.groups.model import MemberView
from roost.fleet.model import Pool
from roost.fleet.plan import place_of
from roost.market.refusals import Refusal
from roost.ports.values import Offer, PurchaseOption

SIBLING = 0.1
"""Risk within ten minutes beside a host that is taken, at least (of the nine zones 0.125, twice any
pool's 0.057)."""


def beside(
    views: Sequence[MemberView], pools: Mapping[str, Pool], now_s: float
) -> tuple[MemberView, ...]:
    """The members with what the losses of the moment add to their risk."""
    going = [_spot(view) for view in views if view.noticed]
    places = {place_of(offer) for offer in going if offer is not None}
    found = []
    for view in views:
        offer = _spot(view)
        pool = None if offer is None else pools.get(offer.key)
        taken = pool is not None and pool.reason == Refusal.INTERRUPTED
        recent = taken and pool is not None and pool.avoid_until_s > now_s
        if offer is not None and (recent or place_of(offer) in places):
            view = msgspec.structs.replace(
                view, risk=max(view.risk, SIBLING), survival=min(view.survival, 1.0 - SIBLING)
            )
        found.append(view)
    return tuple(found)


def _spot(view: MemberView) -> Offer | None:
    instance = view.claim.instance if view.claim is not None else None
    if instance is None or instance.offer.purchase_option is not PurchaseOption.SPOT:
        return None
    return instance.offer
