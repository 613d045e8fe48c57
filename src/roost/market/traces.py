"""Reads recordings of spot pools from a directory into validated arrays. Never guesses what is not said.

Files (each optional; the formats are those of docs/market-sources.md):

    traces.parquet                          dataset, zone, instance, gap_s, tick, capacity, price
    gcp_preemptible_lifetimes_2019.parquet  name, zone, machine_type, start_utc, lifetime_h, preempted, idle
    aws_spot_advisor_2021_2025.parquet      snapshot, region, os, instance_type, cores, ram_gb, emr,
                                            interruption_bucket, savings_pct

A name may also be a folder of partitions (``traces.parquet/part-0.parquet`` ...).
What is done about bad data:

    wrong or missing columns, wrong types   ``Invalid``, naming the columns
    null or NaN in any column but ``price`` ``Invalid``, naming the row (an unknown price stays NaN)
    values outside their range              ``Invalid``, naming the row
    time going backwards inside a pool      ``Invalid``, naming the row
    the same row twice                      the copy is left out and counted in ``Trace.notes``
    two different rows for one tick         ``Invalid``, naming the row
    ticks that are left out                 capacity ``UNRECORDED``, neither up nor down
    a file without rows                     ``Invalid``; one empty partition of several is only noted
    an instance nobody knows                on-demand price NaN, said in ``Trace.notes``
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from roost.ports.errors import Invalid

TRACES = "traces.parquet"
LIFETIMES = "gcp_preemptible_lifetimes_2019.parquet"
ADVISOR = "aws_spot_advisor_2021_2025.parquet"
UNRECORDED = -1
"""Capacity of a tick nobody recorded."""
OFFERS = Path(__file__).parent / "data" / "offers.parquet"
RECORDED_AS: Mapping[str, tuple[str, float]] = {
    # How the recordings call AWS types, and their Linux price on demand in us-east-1 and us-west-2, USD/h
    # (p2 and most of p3 have left the catalogue).
    "k80_1": ("p2.xlarge", 0.90),
    "k80_8": ("p2.8xlarge", 7.20),
    "k80_16": ("p2.16xlarge", 14.40),
    "v100_1": ("p3.2xlarge", 3.06),
    "v100_4": ("p3.8xlarge", 12.24),
    "v100_8": ("p3.16xlarge", 24.48),
    "intel_64": ("r5.16xlarge", 4.032),
}

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Counts = NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What one recording saw of one instance type in several zones, tick by tick.

    ``capacity`` [T, Z]: instances that could run (0 = none), ``UNRECORDED`` where nobody looked.
    ``price`` [T, Z]: USD per hour, NaN where not recorded.
    """

    name: str
    """The data set; followed by ``/instance`` where it has several instances."""
    zones: tuple[str, ...]
    instance: str
    gap_s: float
    capacity: Counts
    price: Floats
    on_demand_usd_hour: float
    """NaN when nobody knows the instance."""
    start_tick: int
    notes: tuple[str, ...] = ()
    """What was left out or is unknown, in words."""

    @property
    def ticks(self) -> int:
        """How many ticks there are."""
        return int(self.capacity.shape[0])

    @property
    def hours(self) -> float:
        """The time the recording spans."""
        return self.ticks * self.gap_s / 3600.0

    @property
    def up(self) -> Bools:
        """[T, Z] whether an instance could run; False where nobody looked."""
        return np.asarray(self.capacity > 0)

    @property
    def known(self) -> Bools:
        """[T, Z] whether anybody looked."""
        return np.asarray(self.capacity != UNRECORDED)

    @property
    def regions(self) -> tuple[str, ...]:
        """The region of each zone."""
        return tuple(region_of(zone) for zone in self.zones)

    def part(self, start: int, stop: int) -> "Trace":
        """The ticks from ``start`` to before ``stop`` (positions, not tick numbers)."""
        return self._with(self.capacity[start:stop], self.price[start:stop], self.zones, start)

    def only(self, zones: Iterable[str]) -> "Trace":
        """The same with these zones only, in the recording's order."""
        wanted = set(zones)
        keep = [i for i, zone in enumerate(self.zones) if zone in wanted]
        names = tuple(self.zones[i] for i in keep)
        return self._with(self.capacity[:, keep], self.price[:, keep], names, 0)

    def _with(self, capacity: Counts, price: Floats, zones: tuple[str, ...], start: int) -> "Trace":
        return Trace(
            name=self.name,
            zones=zones,
            instance=self.instance,
            gap_s=self.gap_s,
            capacity=capacity,
            price=price,
            on_demand_usd_hour=self.on_demand_usd_hour,
            start_tick=self.start_tick + start,
            notes=self.notes,
        )


def region_of(zone: str) -> str:
    """The region of a zone's name: ``us-east-1a``, ``us-central1-f``, ``use1-az4``, ``westeurope-1``.

    A name of another form is a region of its own: nothing is known to share its fate.
    """
    for pattern in (r"(.+\d)[a-z]", r"(.+\d)-[a-z]", r"(.+)-az\d+", r"(.+[a-z])-\d"):
        found = re.fullmatch(pattern, zone)
        if found:
            return found[1]
    return zone


@lru_cache(maxsize=64)
def on_demand_usd_hour(instance: str) -> float:
    """On-demand price of a recorded instance name or an instance type, USD per hour; NaN when unknown.

    From the catalogue it is the lowest over regions, as recordings do not tell what was paid.
    """
    known = {**RECORDED_AS, **{kind: (kind, usd) for kind, usd in RECORDED_AS.values()}}
    if instance in known:
        return known[instance][1]
    offers = pl.scan_parquet(OFFERS).filter(pl.col("type") == instance)
    lowest = offers.select(pl.col("on_demand_usd_hour").min()).collect().item()
    return float("nan") if lowest is None else float(lowest)


@dataclass(frozen=True, slots=True)
class Column:
    """What a column must hold: its kind, its range, and whether it may be unknown."""

    kind: str
    low: float | None = None
    high: float | None = None
    unknown: bool = False

    def fits(self, dtype: pl.DataType) -> bool:
        """Whether a column of this type can be read as this kind."""
        return {
            "text": dtype in (pl.String, pl.Categorical, pl.Enum),
            "number": dtype.is_numeric(),
            "whole": dtype.is_integer(),
            "truth": dtype == pl.Boolean,
            "time": isinstance(dtype, pl.Datetime),
        }[self.kind]


FORMATS: Mapping[str, Mapping[str, Column]] = {
    TRACES: {
        "dataset": Column("text"),
        "zone": Column("text"),
        "instance": Column("text"),
        "gap_s": Column("number", low=1.0, high=86_400.0),
        "tick": Column("whole"),
        "capacity": Column("whole", low=0.0, high=32_767.0),
        "price": Column("number", low=0.0, unknown=True),
    },
    LIFETIMES: {
        "name": Column("text"),
        "zone": Column("text"),
        "machine_type": Column("text"),
        "start_utc": Column("time"),
        "lifetime_h": Column("number", low=0.0),
        "preempted": Column("truth"),
        "idle": Column("truth"),
    },
    ADVISOR: {
        "snapshot": Column("text"),
        "region": Column("text"),
        "os": Column("text"),
        "instance_type": Column("text"),
        "cores": Column("number", low=0.0),
        "ram_gb": Column("number", low=0.0),
        "emr": Column("truth"),
        "interruption_bucket": Column("whole", low=0.0, high=4.0),
        "savings_pct": Column("number", low=-100.0, high=100.0),
    },
}


def present(directory: Path) -> tuple[list[str], list[str]]:
    """Which of the files are there and which are not. Raises ``Invalid`` for no folder or no file at all."""
    if not directory.is_dir():
        raise Invalid(f"{directory} is not a folder", hint="name the folder with traces.parquet")
    found = [name for name in FORMATS if (directory / name).exists()]
    if not found:
        raise Invalid(f"{directory} holds none of {', '.join(FORMATS)}", hint="name another folder")
    return found, [name for name in FORMATS if name not in found]


def read_table(path: Path, columns: Mapping[str, Column]) -> tuple[pl.DataFrame, list[str]]:
    """The rows of a Parquet file or a folder of partitions, checked, and notes. Raises ``Invalid``.

    Rows are counted from 0 in the messages, as data-frame libraries do.
    """
    parts = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    frames: list[pl.DataFrame] = []
    notes: list[str] = []
    for part in parts:
        frame = _checked(part, columns)
        if frame.height:
            frames.append(frame)
        else:
            notes.append(f"{part.name}: empty, nothing read from it")
    if not frames:
        raise Invalid(f"{path.name}: no rows", hint="leave the file out, or record something first")
    return pl.concat(frames, how="vertical_relaxed"), notes


def _checked(part: Path, columns: Mapping[str, Column]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(part, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise Invalid(
            f"{part.name}: not readable as Parquet: {first}", hint="fetch it again"
        ) from None
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise Invalid(
            f"{part.name}: no column {', '.join(missing)} (it has {', '.join(frame.columns)})",
            hint=f"the columns must be {', '.join(columns)}",
        )
    casts = []
    for name, column in columns.items():
        dtype = frame.schema[name]
        if dtype == pl.Null and column.unknown:
            casts.append(pl.col(name).cast(pl.Float64))
        elif not column.fits(dtype):
            raise Invalid(
                f"{part.name}: column {name} holds {dtype}, not {column.kind}",
                hint=f"write it as {column.kind}",
            )
        elif column.kind == "text":
            casts.append(pl.col(name).cast(pl.String))
        elif column.kind == "number":
            casts.append(pl.col(name).cast(pl.Float64))
    frame = frame.select(*columns).with_columns(casts)
    for name, column in columns.items():
        _check_values(part.name, frame, name, column)
    return frame


def _check_values(file: str, frame: pl.DataFrame, name: str, column: Column) -> None:
    values = pl.col(name)
    numeric = column.kind in ("number", "whole")
    unknown = values.is_null() | values.is_nan() if column.kind == "number" else values.is_null()
    if not column.unknown:
        _refuse(file, frame, name, unknown, "is missing", "leave the row out if it is not known")
    if numeric and (column.low is not None or column.high is not None):
        low = -np.inf if column.low is None else column.low
        high = np.inf if column.high is None else column.high
        bad = ~unknown & ((values < low) | (values > high) | values.is_infinite())
        _refuse(
            file, frame, name, bad, f"is not within {low:g} to {high:g}", "correct or leave out"
        )


def _refuse(file: str, frame: pl.DataFrame, name: str, bad: pl.Expr, what: str, hint: str) -> None:
    rows = frame.select(bad.arg_true()).to_series()
    if rows.len():
        row = int(rows[0])
        more = f" and {rows.len() - 1} more rows" if rows.len() > 1 else ""
        raise Invalid(
            f"{file}: column {name}, row {row}{more}: {frame[name][row]} {what}", hint=hint
        )


def read_traces(directory: Path) -> list[Trace]:
    """The traces of a folder, in the file's order; empty when it has no ``traces.parquet``.

    Raises ``Invalid`` with the file, the column, the row and what to do.
    """
    path = directory / TRACES
    if not path.exists():
        present(directory)
        return []
    frame, notes = read_table(path, FORMATS[TRACES])
    frame = frame.with_row_index("row")
    made: list[Trace] = []
    for dataset in frame["dataset"].unique(maintain_order=True):
        of_set = frame.filter(pl.col("dataset") == dataset)
        instances = of_set["instance"].unique(maintain_order=True).to_list()
        for instance in instances:
            name = dataset if len(instances) == 1 else f"{dataset}/{instance}"
            rows = of_set.filter(pl.col("instance") == instance)
            made.append(_trace(path.name, name, instance, rows, notes))
    return made


def _trace(file: str, name: str, instance: str, rows: pl.DataFrame, notes: list[str]) -> Trace:
    said = list(notes)
    pool = ["zone", "tick"]
    first_gap = float(rows["gap_s"][0])
    _stop(file, "gap_s", rows, pl.col("gap_s") != first_gap, f"{name} began with {first_gap:g}")
    behind = pl.col("tick") < pl.col("tick").shift(1).over("zone")
    _stop(file, "tick", rows, behind.fill_null(False), "time goes backwards in its zone")
    once = rows.unique(subset=[*pool, "capacity", "price"], keep="first", maintain_order=True)
    if once.height < rows.height:
        said.append(f"{name}: {rows.height - once.height} rows stood there twice, counted once")
    again = pl.struct(pool).is_duplicated() & ~pl.struct(pool).is_first_distinct()
    _stop(file, "tick", once, again, "its zone has another row for this tick")
    zones = tuple(once["zone"].unique(maintain_order=True).to_list())
    start = int(rows["tick"].min())  # type: ignore[arg-type]  # a whole number, as checked
    length = int(rows["tick"].max()) - start + 1  # type: ignore[arg-type]
    if length > 20 * once.height + 1000:
        raise Invalid(
            f"{file}: column tick: {name} spans {length:,} ticks but has {once.height:,} rows",
            hint="ticks count the gaps of gap_s since the start of the recording",
        )
    numbers = {zone: i for i, zone in enumerate(zones)}
    column = once["zone"].replace_strict(numbers, return_dtype=pl.Int64).to_numpy()
    row = once["tick"].cast(pl.Int64).to_numpy() - start
    capacity = np.full((length, len(zones)), UNRECORDED, dtype=np.int16)
    price = np.full((length, len(zones)), np.nan)
    capacity[row, column] = once["capacity"].cast(pl.Int16).to_numpy()
    price[row, column] = once["price"].fill_null(float("nan")).to_numpy()
    usd = on_demand_usd_hour(instance)
    if np.isnan(usd):
        said.append(f"{name}: nobody knows {instance}, so its on-demand price is unknown")
    left_out = int((capacity == UNRECORDED).sum())
    if left_out:
        said.append(f"{name}: {left_out} of {capacity.size} ticks were not recorded")
    return Trace(
        name=name,
        zones=zones,
        instance=instance,
        gap_s=round(first_gap, 3),
        capacity=capacity,
        price=price,
        on_demand_usd_hour=usd,
        start_tick=start,
        notes=tuple(said),
    )


def _stop(file: str, column: str, rows: pl.DataFrame, bad: pl.Expr, what: str) -> None:
    found = rows.filter(bad)
    if found.height:
        raise Invalid(
            f"{file}: column {column}, row {found['row'][0]}: {found[column][0]}: {what}",
            hint="sort each pool by tick and leave one row a tick",
        )


def read_lifetimes(directory: Path) -> pl.DataFrame | None:
    """One row a machine (the columns of ``LIFETIMES``); None without the file. Raises ``Invalid``."""
    return _optional(directory, LIFETIMES)


def read_advisor(directory: Path) -> pl.DataFrame | None:
    """Published interruption bands (the columns of ``ADVISOR``); None without the file. Raises ``Invalid``.

    A pool that is listed twice with different bands is refused.
    """
    frame = _optional(directory, ADVISOR)
    if frame is None:
        return None
    pool = ["snapshot", "region", "os", "instance_type"]
    frame = frame.with_row_index("row").unique(
        subset=[*pool, "interruption_bucket"], keep="first", maintain_order=True
    )
    again = pl.struct(pool).is_duplicated() & ~pl.struct(pool).is_first_distinct()
    found = frame.filter(again)
    if found.height:
        line: dict[str, Any] = found.row(0, named=True)
        raise Invalid(
            f"{ADVISOR}: column interruption_bucket, row {line['row']}: {line['instance_type']} in "
            f"{line['region']} has two bands in snapshot {line['snapshot']}",
            hint="leave one row a pool and snapshot",
        )
    return frame.drop("row")


def _optional(directory: Path, name: str) -> pl.DataFrame | None:
    path = directory / name
    return read_table(path, FORMATS[name])[0] if path.exists() else None
