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
    takes.
    """
    gap_s = pools.gap_s
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
    price = np.append(np.array(pools.price[first : first + ticks]), np.ones((ticks, 1)), axis=1)
    until = np.append(
        np.array(pools.down_at[first : first + ticks]), np.full((ticks, 1), 1 << 40), axis=1
    )
    for t in range(ticks - 1, -1, -1):
        asked = price[t][:, None]
        now = np.empty((zones + 1, parts + 1))
        now[:, PARTS:] = asked * gap_s + running[-1][:, : parts + 1 - PARTS]
        now[:, :PARTS] = asked * part_s * left[:PARTS]
        now[until[t] <= first + t] = inf
        best = idle.copy()
        lasts = until[t] >= first + t + restart
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
