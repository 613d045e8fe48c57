"""The best that could have been done with the future known: what the policies are measured against.
Pure.

Both are dynamic programs over the ticks and the places, and lower bounds: where a tick is too coarse
for the truth they are on the cheap side. They know every loss before it comes.
"""

from math import inf

import numpy as np
from numpy.typing import NDArray

from roost.sim.backtest.job import Task
from roost.sim.backtest.pools import Pools
from roost.sim.backtest.session import Timing

PARTS = 2
"""Parts of a tick that work is counted in for the batch job."""

COARSE_S = 190.0
"""Steps of the oracle of jobs where ticks are much shorter."""

Floats = NDArray[np.float64]


def session_j(pools: Pools, timing: Timing, first: int = 0, last: int | None = None) -> float:
    """The least J of a session: it moves just before each loss when that is cheaper than being
    surprised.

    State: the place during a tick (the last one is on-demand). A planned move pays the old place for
    launch + move and stands still for the freeze; a loss costs what the notice does not cover, or the
    whole launch where the new place could not be launched before it.
    """
    last = pools.ticks if last is None else last
    gap_s, weight, zones = pools.gap_s, timing.downtime_weight, len(pools.zones)
    overlap_s = min(timing.ready_s, timing.notice_s, gap_s)
    paid = np.full(zones + 1, inf)
    alive = np.append(pools.shown[first], True)
    paid[alive] = weight * min(timing.ready_s, (last - first) * gap_s)
    for tick in range(first, last):
        price = np.append(pools.price[tick], 1.0)
        stay = np.where(alive, paid + price * gap_s, inf)
        planned = np.min(paid + price * min(timing.ready_s, gap_s)) + weight * timing.freeze_s
        end = np.where(alive, np.minimum(stay, planned + price * gap_s), inf)
        if tick + 1 == last:
            return float(end.min() / ((last - first) * gap_s))
        later = np.append(pools.shown[tick + 1], True)
        lost = float(np.min(end[~later], initial=inf))
        kept = np.where(later, end, inf)
        surprised = np.where(
            alive, weight * timing.surprise_s + overlap_s * price, weight * timing.ready_s
        )
        paid = np.where(later, np.minimum(kept, lost + surprised), inf)
        alive = later
    return inf


def job_cost(pools: Pools, task: Task, first: int) -> float:
    """The least cost of a job, in on-demand seconds; ``inf`` when even on demand cannot make it.

    State: the tick, the place, the work left in parts of a tick, rounded down; so is what a restart
    takes. Ticks much shorter than ``COARSE_S`` are taken together, a pool counting as up when it was
    at any time: then the bound holds to within such a step a launch.
    """
    together = max(1, round(COARSE_S / pools.gap_s)) if pools.gap_s < COARSE_S / 2 else 1
    gap_s = pools.gap_s * together
    part_s = gap_s / PARTS
    parts = int(task.work_s // part_s)
    ticks = int(task.deadline_s // gap_s)
    restart = int(-(-task.restart_s // gap_s))
    gained = PARTS * restart - int(task.restart_s // part_s)
    zones = len(pools.zones)
    left = np.arange(parts + 1)
    ends = np.where(left == 0, 0.0, inf)
    running = [np.tile(ends, (zones + 1, 1))]
    idle = ends
    price, until = _window(pools, first, ticks, together)
    for t in range(ticks - 1, -1, -1):
        asked = price[t][:, None]
        now = np.empty((zones + 1, parts + 1))
        now[:, PARTS:] = asked * gap_s + running[-1][:, : parts + 1 - PARTS]
        now[:, :PARTS] = asked * part_s * left[:PARTS]
        now[until[t] <= t] = inf
        best = idle.copy()
        lasts = until[t] >= t + restart
        if t + restart <= ticks and restart:
            spent = asked[lasts] * restart * gap_s
            ahead = (spent + running[-restart][lasts]).min(axis=0)
            best[gained:] = np.minimum(best[gained:], ahead[: parts + 1 - gained])
            best[:gained] = np.minimum(best[:gained], float(asked[lasts].min()) * task.restart_s)
        elif not restart:
            best = np.minimum(best, now.min(axis=0))
        best[0] = 0.0
        running = [*running[-max(restart, 1) :], np.minimum(now, best)]
        idle = best
    return float(idle[parts])


def _window(pools: Pools, first: int, ticks: int, together: int) -> tuple[Floats, Floats]:
    """[ticks, Z + 1] price, and the tick each place is next down (counted from ``first``); the last is
    on-demand."""
    last = first + ticks * together
    shape = (ticks, together, len(pools.zones))
    up = np.asarray(pools.shown[first:last].reshape(shape).any(axis=1))
    price = np.array(pools.price[first:last]).reshape(shape).min(axis=1)
    until = np.empty_like(price)
    following = np.full(shape[2], inf)
    for tick in range(ticks - 1, -1, -1):
        following = np.where(up[tick], following, tick)
        until[tick] = following
    on_demand = np.ones((ticks, 1))
    return np.append(price, on_demand, axis=1), np.append(until, on_demand * inf, axis=1)
