"""(c) A batch job with a deadline, replayed over a recording. Pure.

The rules of the world (those of "Can't Be Late", Wu et al., NSDI 2024, section 3):

- A launch, the first one too, does no work for ``restart_s``; what was done before is kept.
- A pool that is down at a tick ends what runs there at the tick's beginning; a launch into it is refused.
- One instance at a time, billed while it runs; waiting costs nothing. The policy is asked at every tick.
"""

from dataclasses import dataclass
from typing import Protocol

from roost.sim.backtest.pools import ON_DEMAND, Pools
from roost.sim.backtest.record import HOUR_S
from roost.sim.backtest.seen import Forecasts, Seen
from roost.sim.backtest.session import REFUSAL_MEMORY_S


@dataclass(frozen=True, slots=True)
class Task:
    """Work, time to its deadline, and what a restart costs, in seconds."""

    work_s: float
    deadline_s: float
    restart_s: float

    @property
    def name(self) -> str:
        """E.g. ``24 h by 30 h, restart 12 min``."""
        work, by = self.work_s / HOUR_S, self.deadline_s / HOUR_S
        return f"{work:g} h by {by:g} h, restart {self.restart_s / 60:g} min"


TASKS = (
    Task(24 * HOUR_S, 30 * HOUR_S, 720.0),
    Task(24 * HOUR_S, 36 * HOUR_S, 720.0),
    Task(48 * HOUR_S, 52 * HOUR_S, 720.0),
    Task(48 * HOUR_S, 70 * HOUR_S, 720.0),
    Task(24 * HOUR_S, 36 * HOUR_S, 180.0),
)
"""The five jobs of the notes."""


@dataclass(slots=True)
class Progress:
    """Where a job stands, for its policy."""

    task: Task
    elapsed_s: float
    left_s: float
    """Work left."""
    place: int | None
    restart_left_s: float
    """What is left of the restart of the present instance."""

    @property
    def time_left_s(self) -> float:
        """To the deadline."""
        return self.task.deadline_s - self.elapsed_s


class JobPolicy(Protocol):
    """Decides where a job runs in the next tick."""

    def where(self, seen: Seen, progress: Progress) -> int | None:
        """A place, ``ON_DEMAND``, or None to wait. The present place again = go on there."""


@dataclass(slots=True)
class JobRecord:
    """How one run of a job went. Money in on-demand seconds."""

    cost: float = 0.0
    finished_s: float = 0.0
    restarts: int = 0
    refusals: int = 0
    late: bool = False
    places: list[tuple[float, float, int | None]] | None = None


def run_job(
    pools: Pools, policy: JobPolicy, task: Task, first: int, forecasts: Forecasts
) -> JobRecord:
    """Play one job from tick ``first``; the recording must reach the deadline."""
    record = JobRecord(places=[])
    seen = Seen(pools.zones, pools.regions, pools.gap_s, forecasts)
    progress = Progress(task, 0.0, task.work_s, None, 0.0)
    tick = first
    while progress.left_s > 0 and tick < pools.ticks:
        seen.now_s, seen.tick = tick * pools.gap_s, tick
        seen.up, seen.price = pools.up[tick], pools.price[tick]
        place = progress.place
        if place is not None and place != ON_DEMAND and not pools.up[tick][place]:
            seen.lost[place] = seen.now_s
            progress.place, progress.restart_left_s = None, 0.0
        _go_where_it_says(pools, policy, seen, progress, record)
        _work(pools, tick, progress, record)
        tick += 1
    record.finished_s = progress.elapsed_s
    record.late = progress.left_s > 0 or progress.elapsed_s > task.deadline_s + 1e-6
    return record


def _go_where_it_says(
    pools: Pools, policy: JobPolicy, seen: Seen, progress: Progress, record: JobRecord
) -> None:
    for _ in range(len(pools.zones) + 1):
        wanted = policy.where(seen, progress)
        if wanted == progress.place:
            return
        if wanted is None or wanted == ON_DEMAND or pools.up[seen.tick][wanted]:
            progress.place = wanted
            progress.restart_left_s = 0.0 if wanted is None else progress.task.restart_s
            record.restarts += wanted is not None
            seen.place = wanted
            return
        record.refusals += 1
        seen.refused[wanted] = seen.now_s + REFUSAL_MEMORY_S


def _work(pools: Pools, tick: int, progress: Progress, record: JobRecord) -> None:
    gap_s, place = pools.gap_s, progress.place
    began_s = tick * gap_s
    if place is None:
        progress.elapsed_s += gap_s
        return
    busy_s = min(gap_s, progress.restart_left_s + progress.left_s)
    restarting_s = min(progress.restart_left_s, busy_s)
    progress.restart_left_s -= restarting_s
    progress.left_s = max(0.0, progress.left_s - (busy_s - restarting_s))
    progress.elapsed_s += busy_s
    record.cost += pools.price_at(tick, place) * busy_s
    if record.places is not None:
        record.places.append((began_s, began_s + busy_s, place))
