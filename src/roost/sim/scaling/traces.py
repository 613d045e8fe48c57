"""Reads the recorded load series and turns counts into arrival times.

Never invents load: seconds that the recording lost (long runs of nothing in a busy series) are filled with
the seconds before the hole, mirrored, so that a day stays a day.
"""

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roost.ports.errors import Invalid

Floats = NDArray[np.float64]
DAY_S = 86_400
HOLE_S = 120
"""So many empty seconds in a row of a busy series are a hole of the recording, not a lull."""
BUSY_PER_S = 5.0
"""A series is busy, and its holes are holes, from this mean rate on."""


@dataclass(frozen=True)
class Series:
    """Counts per step. ``offset_s`` is the time of day of the first step."""

    name: str
    step_s: int
    offset_s: int
    counts: Floats

    @property
    def days(self) -> int:
        """Whole days, from the midnight before the first step."""
        return int(self.offset_s + len(self.counts) * self.step_s) // DAY_S


STEPS = {"sec": (1, 0), "min": (60, 21 * 3600 + 30 * 60), "5min": (300, 0)}
"""Ending of a file name -> (seconds a step, time of day of the first); wc98 is the only one by minutes."""


def read_series(folder: Path, name: str, step_s: int = 0) -> Series:
    """The series ``<name>.csv.gz`` of ``folder``, holes filled; ``step_s`` 0 = as its name says."""
    path = folder / f"{name}.csv.gz"
    if not path.exists():
        raise Invalid(f"no {path.name} in {folder}", hint="give the folder of the load traces")
    known_s, offset_s = STEPS.get(name.rpartition("_")[2], (60, 0))
    step_s, offset_s = (step_s, 0) if step_s else (known_s, offset_s)
    with gzip.open(path, "rt") as file:
        try:
            counts = np.loadtxt(file, skiprows=1, ndmin=1)
        except ValueError as error:
            raise Invalid(f"{path}: {error}", hint="one header line, then a count a line") from None
    if counts.ndim > 1 or not len(counts) or counts.min() < 0:
        raise Invalid(f"{path} is no series", hint="one header line, then a count a line")
    if step_s == 1 and counts.mean() >= BUSY_PER_S:
        counts = filled(counts, HOLE_S)
    return Series(name, step_s, offset_s, counts)


def filled(counts: Floats, longest: int) -> Floats:
    """``counts`` with each run of at least ``longest`` zeros replaced by what was before, mirrored."""
    empty = np.concatenate([[0], (counts == 0).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(empty))
    found = counts.copy()
    for start, end in edges.reshape(-1, 2):
        if end - start < longest:
            continue
        before = found[max(0, 2 * start - end) : start][::-1]
        if not len(before):
            before = found[end : 2 * end - start][::-1]
        found[start:end] = np.resize(before, end - start)
    return found


def arrivals(counts: Floats, step_s: float, start_s: float, chance: np.random.Generator) -> Floats:
    """Sorted times of ``counts`` requests a step, uniform inside it; the first step begins at ``start_s``."""
    whole = counts.astype(np.int64)
    steps = np.repeat(np.arange(len(whole), dtype=np.float64), whole)
    times = start_s + (steps + chance.random(len(steps))) * step_s
    times.sort()
    return times


def read_requests(folder: Path) -> tuple[Floats, Floats]:
    """Arrival and execution seconds of the recorded image service, sorted by arrival."""
    rows = _columns(folder / "gentd26_requests.csv.gz", ("t", "exec_s"))
    order = np.argsort(rows[0], kind="stable")
    return rows[0][order], np.maximum(rows[1][order], 0.5)


def read_generation_s(folder: Path, per_token_s: float, per_context_s: float) -> Floats:
    """Seconds each recorded chat request takes at the given speeds of reading and writing tokens."""
    context, generated = _columns(folder / "azure_llm2023_conv_requests.csv.gz", ("ctx", "gen"))
    return per_context_s * context + per_token_s * generated


def _columns(path: Path, names: tuple[str, ...]) -> list[Floats]:
    if not path.exists():
        raise Invalid(f"no {path.name} in {path.parent}", hint="give the folder of the load traces")
    with gzip.open(path, "rt", newline="") as file:
        rows = csv.reader(file)
        head = next(rows)
        picked = [head.index(name) for name in names]
        values = np.array([[float(row[place]) for place in picked] for row in rows])
    return [np.ascontiguousarray(values[:, place]) for place in range(len(names))]
