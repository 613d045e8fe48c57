"""Policies for a session: the baselines from their papers, and Roost's. Pure; each sees only ``Seen``.

    on-demand         one machine on demand
    greedy            the first pool of the list that gives an instance, else on demand, back when one
                      does (the failover of SkyPilot's managed jobs with on-demand at its end;
                      sky/jobs/recovery_strategy.py)
    round-robin       the next pool of the list after the one just lost (EAGER_NEXT_REGION there), else
                      on demand
    ewma              the up pool with the highest availability over the last 24 h, else on demand
                      (probed)
    oracle-placement  knows the future, moves only after a loss: the pool whose next loss is farthest
                      away
    roost             the money rule of ``market/decision.py`` over the forecasts of ``market/forecast``

"Probed" policies see which pools gave instances at the newest tick; the others find out by launching.
"""

from collections.abc import Sequence

from roost.market import decision
from roost.sim.backtest.pools import ON_DEMAND, Pools
from roost.sim.backtest.seen import HORIZONS_H, Seen
from roost.sim.backtest.session import Timing

EWMA_H = 24.0


class OnDemand:
    """Never leaves on-demand."""

    def place(self, seen: Seen) -> int:
        return ON_DEMAND

    def better(self, seen: Seen) -> int | None:
        return None


class Greedy:
    """The first of the list that is not known to refuse."""

    def place(self, seen: Seen) -> int:
        return next((z for z in self._order(seen) if seen.open(z)), ON_DEMAND)

    def better(self, seen: Seen) -> int | None:
        if seen.place != ON_DEMAND:
            return None
        place = self.place(seen)
        return None if place == ON_DEMAND else place

    def _order(self, seen: Seen) -> Sequence[int]:
        return range(len(seen.zones))


class RoundRobin(Greedy):
    """The list goes on where it stopped."""

    def __init__(self) -> None:
        self._last = -1

    def place(self, seen: Seen) -> int:
        place = super().place(seen)
        if place != ON_DEMAND:
            self._last = place
        return place

    def _order(self, seen: Seen) -> Sequence[int]:
        count = len(seen.zones)
        return [(self._last + 1 + i) % count for i in range(count)]


class Ewma(Greedy):
    """The highest availability so far, fading with ``EWMA_H``."""

    def __init__(self, past: Sequence[Sequence[float]]) -> None:
        """``past``: as ``availability`` makes it."""
        self._past = past

    def _order(self, seen: Seen) -> Sequence[int]:
        share = self._past[seen.tick]
        return sorted((z for z in range(len(seen.zones)) if seen.up[z]), key=lambda z: -share[z])


def availability(pools: Pools) -> list[list[float]]:
    """[T][Z] the share of time each pool was up, fading with ``EWMA_H``; row t is made of ticks 0 to t."""
    weight = min(1.0, pools.gap_s / 3600.0 / EWMA_H)
    share = [0.0] * len(pools.zones)
    rows = []
    for row in pools.up:
        share = [s + weight * (u - s) for s, u in zip(share, row, strict=True)]
        rows.append(share)
    return rows


class FarthestReclaim(Greedy):
    """Perfect placement: it is given the recording."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def _order(self, seen: Seen) -> Sequence[int]:
        down_at = self._pools.down_at[seen.tick]
        lasting = [z for z in range(len(seen.zones)) if seen.up[z] and down_at[z] > seen.tick + 1]
        return sorted(lasting, key=lambda z: -down_at[z])


class Roost:
    """The lowest rate, on-demand being the pool without hazard; moves when that pays.

    Prices and costs in hours of the machine on demand.
    """

    HORIZON = HORIZONS_H.index(decision.HOLD_H)
    """Number of the horizon that rates are made of, and within which a move must pay."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        down_s = decision.down_s(timing.freeze_s, timing.launch_s, timing.move_s, timing.notice_s)
        self._loss = decision.loss_usd(timing.downtime_weight, down_s)

    def place(self, seen: Seen) -> int:
        leaving = seen.leaving
        lost = seen.regions[leaving] if leaving is not None and leaving != ON_DEMAND else ""
        regions = {**dict(enumerate(seen.regions)), ON_DEMAND: "on demand"}
        best = decision.best_place(self.rates(seen), regions, lost)
        return ON_DEMAND if best is None else best

    def better(self, seen: Seen) -> int | None:
        stayed_s = seen.now_s - seen.since_s
        if not decision.rested(stayed_s, on_demand=seen.place == ON_DEMAND):
            return None
        rates = self.rates(seen)
        best = min(rates, key=lambda z: rates[z])
        if seen.place is None or seen.place not in rates or best == seen.place:
            return None
        timing = self._timing
        move = decision.move_usd(
            timing.downtime_weight,
            timing.freeze_s,
            timing.launch_s,
            timing.move_s,
            1.0 if best == ON_DEMAND else seen.price[best],
        )
        pays = decision.pays_to_move(rates[seen.place], rates[best], decision.HOLD_H, move)
        return best if pays else None

    def rates(self, seen: Seen) -> dict[int, float]:
        """The rate of every place that can be had."""
        losses = seen.forecasts.p_loss(seen.tick, self.HORIZON)
        hours = HORIZONS_H[self.HORIZON]
        found = {
            z: decision.rate(seen.price[z], 1.0, decision.hazard_hour(losses[z], hours), self._loss)
            for z in range(len(seen.zones))
            if seen.up[z] and seen.open(z)
        }
        found[ON_DEMAND] = decision.rate(1.0, 1.0, 0.0, self._loss)
        return found
