"""A recorded market played as if it were now, at any speed. Pure values; never reads a clock or a
recording.

The recording's seconds run ``speed`` times as fast as the clock and begin again at its end. An offer
that was not recorded is played by a recorded pool that stands in for it, always the same: offers of
one region by pools of one region, as the pools of a region share much of their fate.
"""

from bisect import bisect_right
from collections.abc import Sequence
from zlib import crc32

import msgspec

from roost.ports.errors import Invalid
from roost.ports.values import Offer, PurchaseOption


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded pool: ``changes_s`` are the times its state changed, first to up when ``begins_up``
    is False."""

    zone: str
    region: str
    begins_up: bool
    changes_s: tuple[float, ...]


class Play(msgspec.Struct, frozen=True, kw_only=True):
    """A recording being played. Implements ``ports.provider.Conditions``."""

    name: str
    began_s: float
    """When it began, UTC seconds."""
    speed: float
    length_s: float
    """Of the recording."""
    pools: tuple[Pool, ...]

    def refuses(self, offer: Offer, now_s: float) -> bool:
        """Whether the offer's pool is down now; on demand never is."""
        if offer.purchase_option is not PurchaseOption.SPOT:
            return False
        at_s = self._recorded_s(now_s) % self.length_s
        return not _up(self.pool_of(offer), at_s)

    def taken_at_s(self, offer: Offer, launched_s: float) -> float | None:
        """When an instance launched then is taken; None when its pool is up for a whole round."""
        if offer.purchase_option is not PurchaseOption.SPOT:
            return None
        pool = self.pool_of(offer)
        since_s = self._recorded_s(launched_s)
        rounds, at_s = divmod(since_s, self.length_s)
        if not _up(pool, at_s):
            return launched_s
        for number in (rounds, rounds + 1):
            began_s = number * self.length_s
            downs = pool.changes_s[(0 if pool.begins_up else 1) :: 2]
            candidates = [began_s + t for t in downs if began_s + t > since_s]
            if not pool.begins_up and began_s > since_s:
                candidates.insert(0, began_s)
            if candidates:
                return self.began_s + min(candidates) / self.speed
        return None

    def pool_of(self, offer: Offer) -> Pool:
        """The recorded pool that plays an offer: its own zone, else one of its region, else a
        stand-in."""
        own = [p for p in self.pools if p.zone == offer.zone]
        if own:
            return own[0]
        here = [p for p in self.pools if p.region == offer.region]
        if not here:
            regions = sorted({p.region for p in self.pools})
            region = regions[crc32(f"{offer.provider}/{offer.region}".encode()) % len(regions)]
            here = [p for p in self.pools if p.region == region]
        return here[crc32(offer.key.encode()) % len(here)]

    def _recorded_s(self, now_s: float) -> float:
        return max(0.0, now_s - self.began_s) * self.speed


def play(
    name: str,
    zones: Sequence[str],
    regions: Sequence[str],
    gap_s: float,
    up: Sequence[Sequence[bool]],
    *,
    began_s: float,
    speed: float,
) -> Play:
    """A recording (``up`` by tick, then zone) as it is played. ``Invalid`` without ticks or at no
    speed."""
    if not up or not zones:
        raise Invalid(f"{name} has no ticks to play", hint="choose another data set")
    if not speed > 0:
        raise Invalid(f"{speed:g} is no speed", hint="1 is real time, 60 a minute a second")
    pools = []
    for number, (zone, region) in enumerate(zip(zones, regions, strict=True)):
        states = [bool(row[number]) for row in up]
        changes = (t * gap_s for t in range(1, len(states)) if states[t] != states[t - 1])
        pools.append(Pool(zone=zone, region=region, begins_up=states[0], changes_s=tuple(changes)))
    return Play(
        name=name, began_s=began_s, speed=speed, length_s=len(up) * gap_s, pools=tuple(pools)
    )


def _up(pool: Pool, at_s: float) -> bool:
    changed = bisect_right(pool.changes_s, at_s) % 2 == 1
    return pool.begins_up != changed
