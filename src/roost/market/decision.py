"""The money rule, in one place: what an offer costs a useful hour, and when leaving one pays. Pure.

    rate = price / performance + losses per hour x cost of a loss
    cost of a loss = what an hour of being down costs x max(frozen, launch + move - notice)

Used by the advisor (ranking), by fleet (stay or move, spares) and by the backtest. Never reads a clock,
never draws at random.
"""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from math import ceil, inf, log
from typing import TypeVar

CHEAPER_TYPES = 15
"""Fewest cheaper types for a move made for the price alone (Karpenter,
designs/spot-consolidation.md)."""
SAME_REGION = 1.02
"""How much dearer a place counts in the region where a machine was just lost."""
REGION_SHARE = 1 / 3
"""Of a service, in one region at most: the pools of a region are lost together."""
ALIKE = 1.1
"""Pools are spread over evenly that cost at most so much more than the cheapest one with room."""
SURELY = 1e-4
"""No forecast is surer than this of a loss."""
HOLD_H = 1.0
"""Hours within which a planned move of a session must pay."""
REST_S = 600.0
"""Seconds that a session stays on spot at least before it moves at will."""
MARGIN = 2.0
"""What a planned move must save, as a multiple of its cost: the best forecast of many is partly the
luckiest (measured: less J than with 1 or 3 on nearly every recording)."""
Place = TypeVar("Place", bound=Hashable)


def down_s(freeze_s: float, launch_s: float, move_s: float, notice_s: float) -> float:
    """Seconds that one loss leaves the work down: what of launch and move the notice does not cover.

    Never below the time it stands still for the copy (``freeze_s``), however long the notice.
    """
    return max(freeze_s, launch_s + move_s - notice_s)


def loss_usd(down_usd_hour: float, down_seconds: float) -> float:
    """What one loss costs (USD): an hour of being down at ``down_usd_hour``."""
    return down_usd_hour * down_seconds / 3600.0


def rate(price_usd_hour: float, performance: float, hazard_hour: float, loss: float) -> float:
    """USD per useful hour: price over performance (1.0 = the median type), and losses at their cost."""
    return price_usd_hour / performance + hazard_hour * loss


def may_move_for_price(cheaper_types: int) -> bool:
    """Whether a move for the price alone is allowed: only while many cheaper types remain.

    Else each such move walks one step down the ladder, to the pool that is taken back first.
    """
    return cheaper_types >= CHEAPER_TYPES


def region_cap(replicas: int) -> int:
    """How many of a service's replicas may stand in one region: ``REGION_SHARE``, at least one."""
    return max(1, ceil(replicas * REGION_SHARE - 1e-9))


# --- stay or move ------------------------------------------------------------------------------------


def hazard_hour(p_loss: float, horizon_h: float) -> float:
    """The constant rate of losses per hour that gives ``p_loss`` within ``horizon_h`` hours."""
    return -log(max(1.0 - p_loss, SURELY)) / horizon_h


def move_usd(
    down_usd_hour: float, freeze_s: float, launch_s: float, move_s: float, price_usd_hour: float
) -> float:
    """What a planned move costs (USD): standing still for ``freeze_s``, and paying two machines
    meanwhile."""
    return (down_usd_hour * freeze_s + price_usd_hour * (launch_s + move_s)) / 3600.0


def pays_to_move(rate_now: float, rate_best: float, horizon_h: float, move: float) -> bool:
    """Stay unless what the better place saves within ``horizon_h`` is ``MARGIN`` times what the move
    costs."""
    return (rate_now - rate_best) * horizon_h > MARGIN * move


def rested(stayed_s: float, *, on_demand: bool) -> bool:
    """Whether a session may move at will again: from spot not at every turn of a forecast (less would not
    be better), from on demand at once."""
    return on_demand or stayed_s >= REST_S


def best_place(
    rates: Mapping[Place, float],
    regions: Mapping[Place, str],
    lost_region: str = "",
    refused: Collection[Place] = (),
) -> Place | None:
    """The place of the lowest rate, away from ``lost_region`` unless staying there is clearly better.

    Zones of a region share much of their fate (availability correlates 0.36-0.57 inside a region,
    0.00-0.32 across): a place in the region of the last loss counts ``SAME_REGION`` dearer.
    ``refused``: places that refused a launch lately, left out. None when no place is left. Ties go to
    the first.
    """
    found: Place | None = None
    lowest = inf
    for place, asked in rates.items():
        if place in refused:
            continue
        counted = asked * (SAME_REGION if lost_region and regions[place] == lost_region else 1.0)
        if counted < lowest:
            found, lowest = place, counted
    return found


def apart(
    rates: Mapping[Place, float],
    prices: Mapping[Place, float],
    in_pool: Mapping[Place, int],
) -> Place:
    """The place for one more of a service, of those of ``rates``: apart from the others, then by rate.

    A pool is lost as a whole: of the pools that cost about the same (``ALIKE``) the one that holds fewest
    of them (``in_pool``) goes first.
    """
    cheapest = min(prices[place] for place in rates)
    alike = (place for place in rates if prices[place] <= ALIKE * cheapest)
    return min(alike, key=lambda place: (in_pool.get(place, 0), rates[place]))


def spread_out(
    replicas: int,
    rates: Mapping[Place, float],
    prices: Mapping[Place, float],
    regions: Mapping[Place, str],
    standing: Sequence[Place] = (),
    room: Callable[[Place], int] = lambda place: 1 << 30,
) -> list[Place]:
    """Where ``replicas`` more of a service go: ``apart``, ``region_cap`` of the whole a region at most.

    ``standing``: where its replicas are now. ``room(place)``: how many more fit there. Where the cap
    leaves nothing, it is filled further rather than nothing launched; fewer than asked for when all is
    full.
    """
    cap = region_cap(replicas + len(standing))
    in_region = Counter(regions[place] for place in standing)
    in_pool = Counter(standing)
    chosen: list[Place] = []
    for _ in range(replicas):
        free = [place for place in rates if chosen.count(place) < room(place)]
        if not free:
            break
        under = [place for place in free if in_region[regions[place]] < cap]
        place = apart({p: rates[p] for p in under or free}, prices, in_pool)
        chosen.append(place)
        in_region[regions[place]] += 1
        in_pool[place] += 1
    return chosen
