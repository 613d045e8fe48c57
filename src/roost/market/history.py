"""The history of the market: facts in append-only Parquet partitions, kind/source/day, and Polars over them.

A file is written beside its place and renamed, so a reader sees a whole file or none. Duplicates and late
facts are harmless: a fact is its row, and readers see each once, whatever order it came in. A damaged or
empty file is skipped and told, never read as nothing. It never fetches, and never reads the clock.
"""

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import msgspec
import polars as pl
from blake3 import blake3

from roost.ports.errors import Invalid, Retry
from roost.ports.sources import FACTS, Fact

DAY_S = 86_400
FIRST_S = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
LAST_S = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
"""Moments outside are mistakes of unit (milliseconds) or of parsing."""
MERGE_AT = 16
"""Files of a partition from which on an append merges them: a recorder of many small pages stays quick."""
SOURCE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
TYPES: dict[object, pl.DataType] = {
    str: pl.String(),
    float: pl.Float64(),
    int: pl.Int64(),
    bool: pl.Boolean(),
}


class Problem(msgspec.Struct, frozen=True):
    """A file of the history that was skipped, and why."""

    path: str
    why: str


class Stored(msgspec.Struct, frozen=True):
    """What an append did: facts written, and facts that were there already."""

    new: int = 0
    known: int = 0

    def __add__(self, other: "Stored") -> "Stored":
        return Stored(self.new + other.new, self.known + other.known)


class Compacted(msgspec.Struct, frozen=True):
    """What a compaction did."""

    files_before: int
    files_after: int
    duplicates: int
    problems: tuple[Problem, ...]


def schema_of(kind: str) -> dict[str, pl.DataType]:
    """The columns of a kind's table. Raises ``Invalid`` for a kind nobody knows."""
    fact = FACTS.get(kind)
    if fact is None:
        raise Invalid(f"{kind} is no kind of fact", hint=f"kinds are {', '.join(FACTS)}")
    hints = get_type_hints(fact)
    return {name: TYPES[_plain(hints[name])] for name in fact.__struct_fields__}


def nullable(kind: str) -> set[str]:
    """The columns of a kind that may be unknown."""
    hints = get_type_hints(FACTS[kind])
    return {n for n in FACTS[kind].__struct_fields__ if NoneType in get_args(hints[n])}


def _plain(hint: object) -> object:
    known = [part for part in get_args(hint) if part is not NoneType]
    return known[0] if known else hint


def frames_of(facts: Iterable[Fact]) -> dict[str, pl.DataFrame]:
    """Facts as one table a kind."""
    by_kind: dict[str, list[Fact]] = {}
    for fact in facts:
        by_kind.setdefault(fact.KIND, []).append(fact)
    return {
        kind: pl.DataFrame(
            {name: [getattr(f, name) for f in found] for name in schema_of(kind)},
            schema=schema_of(kind),
        )
        for kind, found in by_kind.items()
    }


class History:
    """One history in the directory ``root``; several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []
        """Files that the last read skipped."""

    def append(self, facts: Iterable[Fact]) -> Stored:
        """Store facts. Raises ``Invalid`` for a fact that cannot be true, ``Retry`` when the disk is full."""
        total = Stored()
        for kind, frame in frames_of(facts).items():
            total += self.append_frame(kind, frame)
        return total

    def append_frame(self, kind: str, frame: pl.DataFrame) -> Stored:
        """Store the rows of a table with the columns of ``schema_of(kind)``; all of it is checked first."""
        checked = _checked(kind, frame)
        rows = checked.unique()
        known = checked.height - rows.height
        new = 0
        day = pl.from_epoch(pl.col("observed_at").floor().cast(pl.Int64)).dt.strftime("%Y-%m-%d")
        with self._writing():
            for (source, name), part in rows.group_by("source", day.alias("day")):
                folder = self.root / kind / str(source) / str(name)
                added = self._add(kind, folder, part.drop("day", strict=False))
                known += part.height - added
                new += added
        return Stored(new, known)

    def _add(self, kind: str, folder: Path, rows: pl.DataFrame) -> int:
        """Write the rows that a partition has not; its files are merged when they are many."""
        there = {p: f for p in _parquets(folder) if (f := self._load(kind, p)) is not None}
        fresh = rows
        if there:
            known = pl.concat(list(there.values()))
            fresh = rows.join(known, on=rows.columns, how="anti", nulls_equal=True)
        if not fresh.height:
            return 0
        if len(there) < MERGE_AT:
            self._write(folder, fresh.sort(fresh.columns))
        else:
            merged = _once(kind, pl.concat([*there.values(), fresh]))
            self._replace(there, self._write(folder, merged.sort(merged.columns)))
        return fresh.height

    def _replace(self, paths: Iterable[Path], kept: Path) -> None:
        for path in paths:
            if path != kept:
                path.unlink(missing_ok=True)

    def _write(self, folder: Path, rows: pl.DataFrame) -> Path:
        buffer = BytesIO()
        rows.write_parquet(buffer, compression="zstd", statistics=True)
        content = buffer.getvalue()
        path = folder / f"{_digest(content)}.parquet"
        part = path.with_suffix(".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise Retry(
                f"{path} cannot be written: {error.strerror}",
                after_s=60.0,
                hint="free space or choose another folder with --history; nothing is half-written",
            ) from error
        return path

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time; the lock ends with its process, however that ends."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / ".lock").open("a")
        except OSError as error:
            raise Invalid(
                f"the history {self.root} cannot be written: {error.strerror}",
                hint="choose another folder with --history",
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def compact(self) -> Compacted:
        """One file a partition, each fact once, leftovers of killed writers removed. Damaged files stay."""
        self.problems = []
        before = after = duplicates = 0
        with self._writing():
            for folder in self._folders(tuple(FACTS)):
                for left in folder.glob("*.part"):
                    left.unlink(missing_ok=True)
                paths = _parquets(folder)
                before += len(paths)
                gone = self._merge(folder, paths)
                duplicates += gone
                after += len(_parquets(folder))
        return Compacted(before, after, duplicates, tuple(self.problems))

    def _merge(self, folder: Path, paths: list[Path]) -> int:
        kind = folder.parts[-3]
        good = {p: f for p in paths if (f := self._load(kind, p)) is not None}
        if len(good) < 2:
            return 0
        rows = pl.concat(list(good.values()))
        merged = _once(kind, rows)
        self._replace(good, self._write(folder, merged.sort(merged.columns)))
        return rows.height - merged.height

    def read(
        self,
        kind: str,
        *,
        since: float | None = None,
        until: float | None = None,
        source: str | None = None,
        where: pl.Expr | None = None,
    ) -> pl.DataFrame:
        """Facts of a kind with ``since <= observed_at <= until`` (UTC seconds), each once, by time.

        Files that cannot be read are skipped and told in ``problems``.
        """
        rows = _once(kind, self._read(kind, since, until, source, where))
        return rows.sort("observed_at", *FACTS[kind].KEY, "source")

    def _read(
        self,
        kind: str,
        since: float | None = None,
        until: float | None = None,
        source: str | None = None,
        where: pl.Expr | None = None,
    ) -> pl.DataFrame:
        self.problems = []
        frames = [pl.DataFrame(schema=schema_of(kind))]
        for folder in self._folders((kind,), since, until, source):
            paths = _parquets(folder)
            if not paths:
                self.problems.append(Problem(str(folder), "the partition is empty"))
            for path in paths:
                frame = self._load(kind, path)
                if frame is not None:
                    frames.append(frame if where is None else frame.filter(where))
        rows = pl.concat(frames)
        if since is not None:
            rows = rows.filter(pl.col("observed_at") >= since)
        if until is not None:
            rows = rows.filter(pl.col("observed_at") <= until)
        return rows

    def latest(
        self,
        kind: str,
        *,
        as_of: float | None = None,
        since: float | None = None,
        where: pl.Expr | None = None,
    ) -> pl.DataFrame:
        """The newest fact of each series, whoever told it; ``as_of``: what was true at that moment."""
        key = FACTS[kind].KEY
        rows = self._read(kind, since, as_of, where=where)
        order = ["observed_at", "source", *(n for n in rows.columns if n not in key)]
        return rows.sort(list(dict.fromkeys(order)), nulls_last=False).unique(key, keep="last")

    def latest_prices(
        self, *, as_of: float | None = None, since: float | None = None
    ) -> pl.DataFrame:
        """The newest prices.

        Columns: provider, region, zone, type, on_demand_usd_hour, spot_usd_hour, source, observed_at.
        One row a pool with a spot price (its ``source`` and ``observed_at``), with the region's on-demand
        price beside it, and one with an empty zone for each region's on-demand price. Null = unknown.
        """
        rows = self.latest("offer_price", as_of=as_of, since=since)
        rows = rows.rename({"instance_type": "type"})
        rows = rows.sort("observed_at", "source", "zone", "usd_hour", nulls_last=False)
        region = ("provider", "region", "type")
        told = ("source", "observed_at")
        on_demand = (
            rows.filter(pl.col("option") == "on_demand")
            .group_by(region, maintain_order=True)
            .last()
            .select(*region, *told, on_demand_usd_hour=pl.col("usd_hour"))
        )
        spot = rows.filter(pl.col("option") == "spot", pl.col("usd_hour").is_not_null())
        pools = spot.select(*region, "zone", *told, spot_usd_hour=pl.col("usd_hour")).join(
            on_demand.drop(told), on=region, how="left"
        )
        alone = on_demand.join(pools.filter(pl.col("zone") == ""), on=region, how="anti")
        alone = alone.filter(pl.col("on_demand_usd_hour").is_not_null())
        columns = ["provider", "region", "zone", "type", "on_demand_usd_hour", "spot_usd_hour"]
        plain = alone.with_columns(zone=pl.lit(""), spot_usd_hour=pl.lit(None, dtype=pl.Float64))
        both = pl.concat([part.select(*columns, *told) for part in (pools, plain)])
        return both.sort("provider", "region", "zone", "type")

    def latest_bands(
        self, *, as_of: float | None = None, since: float | None = None
    ) -> pl.DataFrame:
        """The newest band of each pool, shares from 0 to 1 in the ``scale`` of its cloud.

        Columns: provider, region, zone, type, scale, label, low, high, savings, source, observed_at.
        """
        columns = ("provider", "region", "zone", "type", "scale", "label", "low", "high")
        rows = self.latest("interruption_band", as_of=as_of, since=since)
        rows = rows.rename({"instance_type": "type"})
        return rows.select(*columns, "savings", "source", "observed_at")

    def series(self, place: str, instance_type: str, provider: str = "aws") -> pl.DataFrame:
        """All that was told of a pool, by time: kind, observed_at, value, unit, zone, source.

        ``place`` is a zone or a region; facts of a zone's region count for the zone.
        """
        pool = (pl.col("provider") == provider) & (pl.col("instance_type") == instance_type)
        found = []
        problems: list[Problem] = []
        regions: set[str] = set()
        tables = {kind: self._of_pool(kind, pool, problems) for kind in VALUES}
        for rows in tables.values():
            regions |= set(rows.filter(pl.col("zone") == place)["region"])
        for kind, (value, unit) in VALUES.items():
            here = (pl.col("zone") == place) | (pl.col("region") == place)
            here |= (pl.col("zone") == "") & pl.col("region").is_in(list(regions))
            found.append(
                tables[kind]
                .filter(here)
                .select(
                    pl.lit(kind).alias("kind"),
                    "observed_at",
                    value.cast(pl.Float64).alias("value"),
                    unit.alias("unit"),
                    "zone",
                    "source",
                )
            )
        self.problems = problems
        return pl.concat(found).sort("observed_at", "kind", "unit", "zone", "source")

    def _of_pool(self, kind: str, pool: pl.Expr, problems: list[Problem]) -> pl.DataFrame:
        rows = self.read(kind, where=pool)
        problems += self.problems
        return rows

    def summary(self) -> pl.DataFrame:
        """What is there: kind, source, facts, first and last moment, files, bytes."""
        rows = []
        self.problems = []
        by_source: dict[tuple[str, str], list[Path]] = {}
        for folder in self._folders(tuple(FACTS)):
            kind, source = folder.parts[-3], folder.parts[-2]
            by_source.setdefault((kind, source), []).extend(_parquets(folder))
        for (kind, source), paths in sorted(by_source.items()):
            frames = [f for f in (self._load(kind, p) for p in paths) if f is not None]
            if not frames:
                continue
            told = pl.concat(frames)["observed_at"]
            size = sum(path.stat().st_size for path in paths)
            rows.append((kind, source, len(told), told.min(), told.max(), len(paths), size))
        names = ("kind", "source", "facts", "first", "last", "files", "bytes")
        return pl.DataFrame(rows, schema=list(names), orient="row")

    def _folders(
        self,
        kinds: tuple[str, ...],
        since: float | None = None,
        until: float | None = None,
        source: str | None = None,
    ) -> Iterator[Path]:
        first = "" if since is None else _day(since)
        last = "9999" if until is None else _day(until)
        for kind in kinds:
            for sources in _directories(self.root / kind):
                if source is None or sources.name == source:
                    yield from (d for d in _directories(sources) if first <= d.name <= last)

    def _load(self, kind: str, path: Path) -> pl.DataFrame | None:
        schema = schema_of(kind)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None  # a compaction took it between the listing and the reading
        except OSError as error:
            self.problems.append(Problem(str(path), f"not readable: {error.strerror}"))
            return None
        # Damaged Parquet may end the whole process inside the reader, so it never gets there.
        if path.stem != _digest(content):
            why = "empty" if not content else "damaged: its content is not what was written"
            self.problems.append(Problem(str(path), why))
            return None
        frame = pl.read_parquet(content)
        if dict(frame.schema) != schema:
            strange = sorted(set(frame.columns) ^ set(schema)) or ["types"]
            self.problems.append(Problem(str(path), f"other columns: {', '.join(strange)}"))
            return None
        if not frame.height:
            self.problems.append(Problem(str(path), "the file has no rows"))
            return None
        return frame


def _scale(name: str) -> pl.Expr:
    return pl.lit(name)


VALUES: dict[str, tuple[pl.Expr, pl.Expr]] = {
    "offer_price": (pl.col("usd_hour"), pl.lit("USD/h ") + pl.col("option")),
    "interruption_band": (
        (pl.col("low") + pl.col("high")) / 2,
        pl.col("scale") + pl.lit(" ") + pl.col("label"),
    ),
    "placement_score": (pl.col("score"), pl.col("scale")),
    "preemption_rate": (pl.col("rate"), _scale("share of stops")),
    "capacity_advice": (pl.col("obtainability"), _scale("obtainability")),
    "availability": (pl.col("capacity"), _scale("machines")),
}
"""The kinds that make a series of a pool: the number to show, and its unit."""


def _checked(kind: str, frame: pl.DataFrame) -> pl.DataFrame:
    schema = schema_of(kind)
    missing = sorted(set(schema) - set(frame.columns))
    if missing:
        raise Invalid(f"facts of kind {kind} lack {', '.join(missing)}")
    try:
        rows = frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    except pl.exceptions.PolarsError as error:
        raise Invalid(
            f"facts of kind {kind} have wrong types: {str(error).splitlines()[0]}"
        ) from error
    allowed = nullable(kind)
    for name, dtype in schema.items():
        column = rows[name]
        if name not in allowed and column.null_count():
            raise Invalid(f"{column.null_count()} facts of kind {kind} have no {name}")
        if dtype == pl.Float64() and (bad := int((~column.is_finite()).sum())):
            raise Invalid(f"{bad} facts of kind {kind} have a {name} that is no number")
        if name in ("usd_hour", "upfront_usd", "rate", "low", "high") and (column < 0).any():
            raise Invalid(f"{int((column < 0).sum())} facts of kind {kind} have a negative {name}")
    when = rows["observed_at"]
    if ((when < FIRST_S) | (when > LAST_S)).any():
        raise Invalid(
            f"facts of kind {kind} have moments outside 2000 to 2100",
            hint="observed_at is in UTC seconds",
        )
    for source in rows["source"].unique():
        if not SOURCE_NAME.fullmatch(source):
            raise Invalid(f"{source!r} cannot name a source", hint="lower case, digits and dashes")
    return rows


def _once(kind: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Each (key, moment, source) once; of two values told for one moment the larger (the dearer) stays."""
    key = [*FACTS[kind].KEY, "observed_at", "source"]
    each = rows.unique()
    if each.select(pl.struct(key).n_unique()).item() == each.height:
        return each
    return each.sort(each.columns, nulls_last=False).unique(key, keep="last", maintain_order=True)


def _digest(content: bytes) -> str:
    """The name of a file with this content."""
    return blake3(content).hexdigest()[:24]


def _parquets(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _directories(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
