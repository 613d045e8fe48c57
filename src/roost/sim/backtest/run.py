"""Runs workloads and policies over the recordings of a folder and sums up. Never prints, never reads a
clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from roost.market.traces import Trace
from roost.ports.errors import Invalid
from roost.sim.backtest import job_policies, oracle, service_policies, session_policies
from roost.sim.backtest.job import TASKS, JobPolicy, JobRecord, Task, run_job
from roost.sim.backtest.pools import Floats, Pools, pools_of
from roost.sim.backtest.record import Record
from roost.sim.backtest.seen import Forecasts
from roost.sim.backtest.service import ServicePolicy, ServiceWorld
from roost.sim.backtest.session import SessionPolicy, SessionWorld, Timing

SESSION: Mapping[str, Callable[[Pools, Timing], SessionPolicy]] = {
    "on-demand": lambda pools, timing: session_policies.OnDemand(),
    "greedy": lambda pools, timing: session_policies.Greedy(),
    "round-robin": lambda pools, timing: session_policies.RoundRobin(),
    "ewma": lambda pools, timing: session_policies.Ewma(session_policies.availability(pools)),
    "roost": lambda pools, timing: session_policies.Roost(timing),
    "oracle-placement": lambda pools, timing: session_policies.FarthestReclaim(pools),
}
SERVICE: Mapping[str, Callable[[Pools, Timing], ServicePolicy]] = {
    "on-demand": lambda pools, timing: service_policies.OnDemandService(),
    "greedy": lambda pools, timing: service_policies.GreedyService(),
    "spothedge": lambda pools, timing: service_policies.SpotHedge(0),
    "spothedge+1": lambda pools, timing: service_policies.SpotHedge(1),
    "roost": lambda pools, timing: service_policies.RoostService(timing),
}
JOB: Mapping[str, Callable[[Pools, Timing], JobPolicy]] = {
    "on-demand": lambda pools, timing: job_policies.OnDemandJob(),
    "greedy": lambda pools, timing: job_policies.GreedyJob(),
    "uniform-progress": lambda pools, timing: job_policies.UniformProgress(),
    "ewma": lambda pools, timing: job_policies.EwmaJob(session_policies.availability(pools)),
    "roost": lambda pools, timing: job_policies.RoostJob(),
}
POLICIES: Mapping[str, Mapping[str, object]] = {"session": SESSION, "service": SERVICE, "job": JOB}
DRAWS = 500
BLOCK_S = 86_400.0
"""A block of the bootstrap: a day, so that what hangs together within a day stays together."""
STARTS = 60


class Interval(msgspec.Struct, frozen=True):
    """80 % of the resampled figures lie within."""

    low: float
    high: float


class Overall(msgspec.Struct, frozen=True, kw_only=True):
    """One policy over all data sets: means weighted by their length, sums of jobs.

    Costs are shares of the same time on demand.
    """

    policy: str
    days: float
    cost: float
    availability: float
    reclaims_per_day: float
    down_min_per_day: float
    j: float
    """cost + 10 x downtime share; of a job its cost."""
    oracle_j: float
    over_oracle_pct: float
    late: int
    runs: int
    """Of jobs; 1 otherwise."""


class Result(Overall, frozen=True, kw_only=True):
    """One policy on one data set."""

    dataset: str
    workload: str
    launches: int
    refusals: int
    intervals: dict[str, Interval] = {}
    places: list[tuple[float, float, int | None]] = []
    """(from, to, zone number, -1 on demand, None nowhere) in seconds."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is replayed."""

    workload: str
    policies: tuple[str, ...]
    timing: Timing
    replicas: int = 4
    tasks: tuple[Task, ...] = TASKS
    starts: int = STARTS
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Market:
    """A recording made ready: shared by the policies."""

    pools: Pools
    forecasts: Forecasts


def setting(workload: str, policy: str, timing: Timing, replicas: int) -> Setting:
    """The setting of a command. ``Invalid`` for names that are unknown."""
    if workload not in POLICIES:
        raise Invalid(f"no workload is called {workload}", hint=f"one of {', '.join(POLICIES)}")
    known = tuple(POLICIES[workload])
    names = known if policy == "all" else tuple(policy.split(","))
    for name in names:
        if name not in known:
            raise Invalid(
                f"no policy for a {workload} is called {name}", hint=f"all, or {', '.join(known)}"
            )
    return Setting(workload, names, timing, replicas)


def with_starts(chosen: Setting, starts: int) -> Setting:
    """The setting with this many starts a job."""
    return replace(chosen, starts=starts)


def too_short(trace: Trace, chosen: Setting) -> str:
    """Why a recording cannot be replayed; empty when it can."""
    if chosen.workload != "job":
        return "" if trace.ticks > 1 else "one tick only"
    longest_h = max(task.deadline_s for task in chosen.tasks) / 3600.0
    if trace.hours <= longest_h + trace.gap_s / 1800.0:
        return f"{trace.hours:.0f} h are recorded, the longest job needs {longest_h:.0f} h"
    return ""


def steps(chosen: Setting) -> int:
    """How many steps ``replay`` has for one recording."""
    return len(chosen.policies) + 1


def replay(
    trace: Trace,
    forecasts: Forecasts,
    chosen: Setting,
    step: Callable[[str], None] = lambda what: None,
) -> list[Result]:
    """Every policy of the setting on one recording; ``step`` is told before each part."""
    market = Market(pools_of(trace), forecasts)
    if chosen.workload == "job":
        return _jobs(market, chosen, step)
    step("oracle")
    best = (
        oracle.session_j(market.pools, chosen.timing)
        if chosen.workload == "session"
        else service_floor(market.pools, chosen.replicas)
    )
    found = []
    for name in chosen.policies:
        step(name)
        record = run_one(market, name, chosen)
        found.append(_result(market.pools, name, chosen, record, best))
    return found


def run_one(market: Market, name: str, chosen: Setting) -> Record:
    """One policy of a session or a service."""
    pools, timing = market.pools, chosen.timing
    if chosen.workload == "session":
        policy = SESSION[name](pools, timing)
        return SessionWorld(pools, policy, timing, market.forecasts).run()
    service = SERVICE[name](pools, timing)
    return ServiceWorld(pools, service, timing, market.forecasts, chosen.replicas).run()


def overall(results: Sequence[Result]) -> list[Overall]:
    """Each policy over every data set it was replayed on, in the order they came."""
    found = []
    for name in dict.fromkeys(result.policy for result in results):
        rows = [result for result in results if result.policy == name]
        days = sum(row.days for row in rows)

        def mean(field: str, rows: list[Result] = rows, days: float = days) -> float:
            return sum(float(getattr(row, field)) * row.days for row in rows) / days

        found.append(
            Overall(
                policy=name,
                days=days,
                cost=mean("cost"),
                availability=mean("availability"),
                reclaims_per_day=mean("reclaims_per_day"),
                down_min_per_day=mean("down_min_per_day"),
                j=mean("j"),
                oracle_j=mean("oracle_j"),
                over_oracle_pct=100.0 * (mean("j") / mean("oracle_j") - 1.0),
                late=sum(row.late for row in rows),
                runs=sum(row.runs for row in rows),
            )
        )
    return found


def service_floor(pools: Pools, replicas: int) -> float:
    """The least cost of N replicas always: the cheapest room in each tick, on demand for the rest."""
    total = 0.0
    for room, price in zip(pools.room, pools.price, strict=True):
        left, cost = replicas, 0.0
        for asked, free in sorted(zip(price, room, strict=True)):
            used = min(left, free) if asked < 1.0 else 0
            cost, left = cost + used * asked, left - used
        total += cost + left
    return total / (replicas * pools.ticks)


def _result(pools: Pools, name: str, chosen: Setting, record: Record, best: float) -> Result:
    weight = chosen.timing.downtime_weight
    value = record.j(weight)
    return Result(
        dataset=pools.name,
        workload=chosen.workload,
        policy=name,
        days=record.seconds / 86_400.0,
        cost=record.cost_share,
        availability=1.0 - record.down_share,
        reclaims_per_day=record.reclaims_per_day,
        down_min_per_day=record.down_min_per_day,
        j=value,
        oracle_j=best,
        over_oracle_pct=100.0 * (value / best - 1.0),
        late=0,
        runs=1,
        launches=record.launches,
        refusals=record.refusals,
        intervals=_intervals(record, weight, chosen.seed),
        places=record.places,
    )


def _intervals(record: Record, weight: float, seed: int) -> dict[str, Interval]:
    """A block bootstrap over days (moving blocks of one day, drawn with replacement)."""
    rows = record.by_tick(weight)
    length = min(len(rows), max(1, round(BLOCK_S / record.gap_s)))
    sums = np.concatenate([np.zeros((1, rows.shape[1])), rows.cumsum(axis=0)])
    blocks = (sums[length:] - sums[:-length]) / length
    drawn = np.random.default_rng(seed).integers(
        0, len(blocks), size=(DRAWS, max(1, -(-len(rows) // length)))
    )
    means = blocks[drawn].mean(axis=1)
    low, high = np.quantile(means, [0.1, 0.9], axis=0)
    names = ("cost", "down_share", "reclaims_per_day", "j")
    found = {n: Interval(float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}
    down = found.pop("down_share")
    found["availability"] = Interval(1.0 - down.high, 1.0 - down.low)
    found["down_min_per_day"] = Interval(down.low * 1440.0, down.high * 1440.0)
    return found


# --- jobs ----------------------------------------------------------------------------------------------


def starts_of(pools: Pools, chosen: Setting) -> list[int]:
    """The ticks jobs begin at: evenly over the recording, each able to reach its deadline."""
    longest = max(task.deadline_s for task in chosen.tasks)
    last = pools.ticks - int(longest / pools.gap_s) - 2
    return [int(tick) for tick in np.linspace(0, max(0, last), chosen.starts)]


def _jobs(market: Market, chosen: Setting, step: Callable[[str], None]) -> list[Result]:
    pools = market.pools
    cases = [(task, first) for task in chosen.tasks for first in starts_of(pools, chosen)]
    best = []
    for number, (task, first) in enumerate(cases):
        if number % 10 == 0:
            step(f"oracle, job {number + 1} of {len(cases)}")
        best.append(oracle.job_cost(pools, task, first) / task.work_s)
    found = []
    for name in chosen.policies:
        step(name)
        policy = JOB[name](pools, chosen.timing)  # none remembers a job once it is done
        records = [run_job(pools, policy, task, first, market.forecasts) for task, first in cases]
        found.append(_job_result(pools, name, chosen, cases, records, np.array(best)))
    return found


def _job_result(
    pools: Pools,
    name: str,
    chosen: Setting,
    cases: Sequence[tuple[Task, int]],
    records: Sequence[JobRecord],
    best: Floats,
) -> Result:
    costs = np.array([r.cost / task.work_s for r, (task, _) in zip(records, cases, strict=True)])
    busy_s = sum(r.finished_s for r in records)
    lost = sum(max(0, r.restarts - 1) for r in records)
    by_start = costs.reshape(len(chosen.tasks), -1), best.reshape(len(chosen.tasks), -1)
    return Result(
        dataset=pools.name,
        workload="job",
        policy=name,
        days=pools.end_s / 86_400.0,
        cost=float(costs.mean()),
        availability=sum(task.work_s for task, _ in cases) / busy_s,
        reclaims_per_day=lost / busy_s * 86_400.0,
        down_min_per_day=0.0,
        j=float(costs.mean()),
        oracle_j=float(best.mean()),
        over_oracle_pct=100.0 * (float(costs.mean() / best.mean()) - 1.0),
        late=sum(r.late for r in records),
        runs=len(records),
        launches=sum(r.restarts for r in records),
        refusals=sum(r.refusals for r in records),
        intervals=_job_intervals(*by_start, chosen.seed),
        places=records[0].places or [],
    )


def _job_intervals(costs: Floats, best: Floats, seed: int) -> dict[str, Interval]:
    """Neighbouring starts overlap: blocks of a sixth of the starts are drawn, all tasks of a start
    together."""
    starts = costs.shape[1]
    length = max(1, starts // 6)
    first = np.random.default_rng(seed).integers(
        0, starts - length + 1, size=(DRAWS, max(1, starts // length))
    )
    picked = (first[:, :, None] + np.arange(length)).reshape(DRAWS, -1)
    mine, least = costs[:, picked].mean(axis=(0, 2)), best[:, picked].mean(axis=(0, 2))
    found = {}
    for key, values in (("cost", mine), ("over_oracle_pct", 100.0 * (mine / least - 1.0))):
        low, high = np.quantile(values, [0.1, 0.9])
        found[key] = Interval(float(low), float(high))
    return found
