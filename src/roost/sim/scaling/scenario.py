"""The six scenarios: which recorded load, on which days, with which service times, bounds and start-up times.

All run on one axis: second 0 is 14 days before the midnight at which scoring begins, so "the same hour on
another day" is the same hour of the recording. Never decides anything.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from roost.ports.errors import Invalid
from roost.sim.scaling.traces import (
    DAY_S,
    Floats,
    Series,
    arrivals,
    read_generation_s,
    read_requests,
    read_series,
)

HISTORY_DAYS = 14
START_S = float(HISTORY_DAYS * DAY_S)
"""Scoring begins here, on the axis of every scenario."""
WARM_S = 7200.0
"""The simulation begins so long before: policies settle, nothing is scored."""
MINUTE_S = 60.0


@dataclass(frozen=True)
class Load:
    """One service and all its requests; ``minutes`` has history and future, NaN = unknown."""

    name: str
    mean_s: float
    """Declared mean service time; policies that need one before they measured it may read it."""
    bound_s: float
    concurrency: int
    min_replicas: int
    max_replicas: int
    at_s: Floats
    takes_s: Floats
    minutes: Floats
    """Arrivals in each minute of the axis."""
    peak_before: float = 0.0
    """Highest minute rate of the history, requests a second: what "fixed at the peak" may know."""


@dataclass(frozen=True)
class Machines:
    """How hosts and containers come to be; all times are drawn uniformly between their bounds."""

    slots: int = 4
    boot_s: tuple[float, float] = (30.0, 180.0)
    start_s: tuple[float, float] = (1.0, 20.0)
    min_hosts: int = 0
    max_hosts: int = 500


@dataclass(frozen=True)
class Scenario:
    """What one run plays. ``end_s - START_S`` is scored."""

    name: str
    loads: tuple[Load, ...]
    end_s: float
    seed: int
    machines: Machines = field(default_factory=Machines)

    @property
    def days(self) -> float:
        """Scored days."""
        return (self.end_s - START_S) / DAY_S


@dataclass(frozen=True)
class Kind:
    """A service to be: where its load comes from and what a request costs."""

    series: str
    first_day: int
    """Day of the series at which scoring begins."""
    days: int
    scale: float
    mean_s: float
    cv: float
    """Of the service time (gamma); 0 = as recorded."""
    bound_s: float
    concurrency: int = 1
    min_replicas: int = 1
    step_s: int = 0
    """Of the series; 0 = as its name says."""


TWITTER = Kind("twitter_sec", 9, 3, 1.0, 0.4, 1.0, 1.8)
NASA = Kind("nasa_sec", 21, 5, 1.0, 4.0, 0.8, 18.0)
LLM = Kind("servegen_mlarge_sec", 5, 3, 1.0, 4.7, 0.0, 21.0, concurrency=4)
WORLD_CUP = Kind("wc98_min", 42, 3, 0.05, 0.5, 1.0, 2.25)
IMAGE = Kind("gentd26_requests", 7, 7, 1.0, 26.4, 0.0, 120.0, min_replicas=0)
MIX = (
    Kind("twitter_sec", 9, 3, 0.3, 0.4, 1.0, 1.8),
    Kind("nasa_sec", 21, 3, 1.0, 4.0, 0.8, 18.0),
    Kind("servegen_msmall_sec", 5, 3, 0.5, 4.7, 0.0, 21.0, concurrency=4),
    Kind("wc98_min", 42, 3, 0.03, 0.5, 1.0, 2.25),
)
SCENARIOS: dict[str, tuple[Kind, ...]] = {
    "twitter": (TWITTER,),
    "nasa": (NASA,),
    "llm": (LLM,),
    "wc98": (WORLD_CUP,),
    "image": (IMAGE,),
    "mix": MIX,
}
MAX_REPLICAS = 1000


def build(name: str, folder: Path, seed: int = 1, days: float | None = None) -> Scenario:
    """The scenario ``name`` from the traces of ``folder``; ``days`` cuts it short."""
    if name not in SCENARIOS:
        raise Invalid(f"no scenario {name}", hint=f"one of {', '.join(SCENARIOS)}")
    return of(name, SCENARIOS[name], folder, seed, days)


def own(path: Path, kind: Kind, seed: int = 1) -> Scenario:
    """A scenario from anyone's series of counts: its last ``kind.days`` are scored, the rest is history."""
    name = path.name.removesuffix(".csv.gz")
    series = read_series(path.parent, name, kind.step_s)
    if series.days < kind.days + 1:
        raise Invalid(
            f"{path.name} has {series.days} whole days",
            hint=f"{kind.days} are scored and one more is needed before",
        )
    kind = replace(kind, series=name, first_day=series.days - kind.days)
    return of(name, (kind,), path.parent, seed, None)


def of(name: str, kinds: tuple[Kind, ...], folder: Path, seed: int, days: float | None) -> Scenario:
    """The scenario of ``kinds``."""
    end_s = START_S + DAY_S * min(
        kinds[0].days if days is None else days, min(kind.days for kind in kinds)
    )
    loads = [
        _load(kind, folder, end_s, np.random.default_rng([seed, number]))
        for number, kind in enumerate(kinds)
    ]
    return Scenario(name, tuple(loads), end_s, seed)


def _load(kind: Kind, folder: Path, end_s: float, chance: np.random.Generator) -> Load:
    made = _recorded if kind.series == "gentd26_requests" else _counted
    at_s, takes_s, minutes = made(kind, folder, end_s, chance)
    before = minutes[: int(START_S / MINUTE_S)]
    return Load(
        name=kind.series.rpartition("_")[0] or kind.series,
        mean_s=kind.mean_s,
        bound_s=kind.bound_s,
        concurrency=kind.concurrency,
        min_replicas=kind.min_replicas,
        max_replicas=MAX_REPLICAS,
        at_s=at_s,
        takes_s=takes_s,
        minutes=minutes,
        peak_before=float(np.nanmax(before)) / MINUTE_S,
    )


Made = tuple[Floats, Floats, Floats]


def _recorded(kind: Kind, folder: Path, end_s: float, chance: np.random.Generator) -> Made:
    at_s, takes_s = read_requests(folder)
    # Recorded to the second: spread inside it, or requests of one second would arrive as one.
    at_s = at_s + chance.random(len(at_s)) + START_S - kind.first_day * DAY_S
    order = np.argsort(at_s, kind="stable")
    at_s, takes_s = at_s[order], takes_s[order]
    minutes = _minutes(at_s, end_s)
    minutes[: int((START_S - kind.first_day * DAY_S) / MINUTE_S)] = np.nan
    played = (at_s >= START_S - WARM_S) & (at_s < end_s)
    return at_s[played], takes_s[played], minutes


def _counted(kind: Kind, folder: Path, end_s: float, chance: np.random.Generator) -> Made:
    series = read_series(folder, kind.series, kind.step_s)
    begin_s = START_S - kind.first_day * DAY_S + series.offset_s
    counts = series.counts
    if kind.scale != 1.0:
        counts = chance.binomial(counts.astype(np.int64), kind.scale).astype(np.float64)
    first, last = _steps(series, begin_s, START_S - WARM_S), _steps(series, begin_s, end_s)
    at_s = arrivals(counts[first:last], series.step_s, begin_s + first * series.step_s, chance)
    takes_s = _service_times(kind, folder, len(at_s), chance)
    return at_s, takes_s, _history(counts, series.step_s, begin_s, at_s, end_s)


def _steps(series: Series, begin_s: float, until_s: float) -> int:
    return round((until_s - begin_s) / series.step_s)


def _service_times(kind: Kind, folder: Path, size: int, chance: np.random.Generator) -> Floats:
    if kind.cv == 0.0:
        recorded = read_generation_s(folder, per_token_s=0.02, per_context_s=0.0004)
        return np.asarray(chance.choice(recorded, size), dtype=np.float64)
    shape = 1.0 / kind.cv**2
    return np.asarray(chance.gamma(shape, kind.mean_s / shape, size), dtype=np.float64)


def _history(counts: Floats, step_s: float, begin_s: float, at_s: Floats, end_s: float) -> Floats:
    """Arrivals by minute of the axis: what was recorded, then, from where requests are played, those."""
    minutes = np.full(int(end_s / MINUTE_S), np.nan)
    per_minute = int(MINUTE_S / step_s)
    whole = counts[: len(counts) // per_minute * per_minute].reshape(-1, per_minute).sum(axis=1)
    place = int(begin_s // MINUTE_S)
    skip = max(0, -place)
    part = whole[skip : skip + len(minutes) - max(place, 0)]
    minutes[max(place, 0) : max(place, 0) + len(part)] = part
    played = int((START_S - WARM_S) / MINUTE_S)
    minutes[played:] = _minutes(at_s, end_s)[played:]
    return minutes


def _minutes(at_s: Floats, end_s: float) -> Floats:
    inside = at_s[(at_s >= 0) & (at_s < end_s)]
    size = int(end_s / MINUTE_S)
    return np.bincount((inside // MINUTE_S).astype(np.int64), minlength=size).astype(np.float64)
