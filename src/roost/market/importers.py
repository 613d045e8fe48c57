"""Files people have of the market, into facts: recognised by their columns, checked, dropped rows counted.

What is done about bad rows:

    other columns, no rows, not a table     ``Invalid``, saying what was found and what is known
    a value of the wrong type               ``Invalid``, naming the column and the first row
    a price that is null, NaN or infinite   the row's price is dropped and counted
    a price below zero                      ``Invalid``, naming the row
    a time that cannot be read              ``Invalid``, naming the row
    the same row twice                      stored once, counted as known
    rows out of order                       no harm: facts are kept by their own time (traces: ``Invalid``)
    types the catalogue does not know       stored, counted in the notes
    more than half of the rows dropped      ``Invalid``: it is another kind of file

It never stores anything: ``read`` gives tables for ``History.append_frame``.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import polars as pl

from roost.market.history import schema_of
from roost.market.tables import load
from roost.market.traces import TRACES, UNRECORDED, read_traces
from roost.ports.errors import Invalid

OFFERS = Path(__file__).parent / "data" / "offers.parquet"
MOST_DROPPED = 0.5
DIRECTIONS = {
    "n": "north",
    "s": "south",
    "e": "east",
    "w": "west",
    "c": "central",
    "ne": "northeast",
    "nw": "northwest",
    "se": "southeast",
    "sw": "southwest",
}
AZURE_FIRST = {
    "AE": "uae",
    "AU": "australia",
    "BR": "brazil",
    "CA": "canada",
    "CH": "switzerland",
    "DE": "germany",
    "FR": "france",
    "JA": "japan",
    "KR": "korea",
    "NO": "norway",
    "QA": "qatar",
    "SE": "sweden",
    "UK": "uk",
    "ZA": "southafrica",
}
AZURE_LAST = {"AP": "asia", "EU": "europe", "IN": "india", "US": "us"}
"""How SpotLake wrote Azure's regions in 2022: ``US East 2`` is ``eastus2``."""
GRADES = {
    3.0: ("<5%", 0.0, 0.05),
    2.5: ("5-10%", 0.05, 0.10),
    2.0: ("10-15%", 0.10, 0.15),
    1.5: ("15-20%", 0.15, 0.20),
    1.0: (">20%", 0.20, 1.0),
}
"""SpotLake's grades of the Spot Advisor's bands."""
STARTS = {"aws-2023-02-15-avail": datetime(2023, 2, 15, 22, 10, tzinfo=UTC)}
"""Recordings whose hour is known; of others only the day, in their name."""
BAMBOO = datetime(2021, 12, 11, tzinfo=UTC)
"""The cluster recordings of Bamboo tell seconds only; the day is that of its paper's other recording."""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held. ``tables`` hold facts, by kind."""

    format: str
    source: str
    rows: int
    tables: dict[str, pl.DataFrame]
    dropped: dict[str, int]
    notes: tuple[str, ...]


class _Draft:
    """A file on its way to facts."""

    def __init__(self, path: Path, frame: pl.DataFrame, source: str) -> None:
        self.path = path
        self.frame = frame
        self.source = source
        self.dropped: dict[str, int] = {}
        self.notes: list[str] = []
        self.tables: dict[str, list[pl.DataFrame]] = {}

    def drop(self, why: str, count: int) -> None:
        """Count rows that were left out."""
        if count:
            self.dropped[why] = self.dropped.get(why, 0) + count

    def put(self, kind: str, **columns: pl.Expr | str | float | int | None) -> None:
        """Add facts: a column for each field of the kind, expressions over the file's rows."""
        schema = schema_of(kind)
        made = self.frame.select(
            (value if isinstance(value, pl.Expr) else pl.lit(value)).cast(schema[name]).alias(name)
            for name, value in {"source": self.source, **columns}.items()
        )
        self.tables.setdefault(kind, []).append(made)

    def prices(self, column: str, option: str, **pool: pl.Expr | str) -> None:
        """Add prices of a column; rows without one are dropped and counted."""
        self.refuse(column, pl.col(column) < 0, "is below zero")
        known = pl.col(column).is_not_null() & pl.col(column).is_finite()
        whole = self.frame
        self.frame = whole.filter(known)
        self.drop(f"no {column}", whole.height - self.frame.height)
        self.put("offer_price", option=option, usd_hour=pl.col(column), **pool)
        self.frame = whole

    def refuse(self, column: str, bad: pl.Expr, what: str) -> None:
        """Raise ``Invalid`` naming the first row where ``bad`` holds."""
        rows = self.frame.with_row_index("row_of_file").filter(bad.fill_null(False))
        if rows.height:
            row, value = rows["row_of_file"][0] + 1, rows[column][0]
            raise Invalid(
                f"{self.path}: row {row}: {column} = {value!r} {what} ({rows.height} such rows)",
                hint="correct or remove these rows; nothing was stored",
            )

    def times(self, column: str) -> pl.Expr:
        """UTC seconds of a column of texts or times; a text without a zone is UTC. Raises ``Invalid``."""
        series = self.frame[column]
        if series.dtype == pl.Datetime:
            zoned = series if series.dtype.time_zone else series.dt.replace_time_zone("UTC")  # type: ignore[attr-defined]
            made = zoned.dt.epoch("us").cast(pl.Float64) / 1e6
        else:
            texts = series.cast(pl.String)
            known = {text: _moment(text) for text in texts.unique() if text is not None}
            made = texts.replace_strict(known, default=None, return_dtype=pl.Float64)
        self.frame = self.frame.with_columns(made.alias("_at"))
        self.refuse(column, pl.col("_at").is_null(), "is no time")
        return pl.col("_at")


def _moment(text: str) -> float | None:
    try:
        made = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


def aws_region(zone: str) -> str:
    """The region of an AWS zone: ``us-east-1a``, ``use1-az4``, ``us-west-2-lax-1a``."""
    by_id = re.fullmatch(r"([a-z]{2})([a-z]{1,2})(\d)-az\d+", zone)
    if by_id and by_id[2] in DIRECTIONS:
        return f"{by_id[1]}-{DIRECTIONS[by_id[2]]}-{by_id[3]}"
    named = re.match(r"[a-z]{2}(?:-[a-z]+)+-\d", zone)
    return named[0] if named else zone


def azure_region(name: str) -> str:
    """The name Azure gives a region that SpotLake wrote in 2022."""
    first, *rest = name.split()
    if first in AZURE_FIRST:
        return AZURE_FIRST[first] + "".join(rest).lower()
    if first in AZURE_LAST and rest:
        number = rest.pop() if rest[-1].isdigit() else ""
        return "".join(rest).lower() + AZURE_LAST[first] + number
    return name.replace(" ", "").lower()


def _mapped(draft: _Draft, column: str, change: Callable[[str], str]) -> pl.Expr:
    names = {name: change(str(name)) for name in draft.frame[column].cast(pl.String).unique()}
    text = pl.col(column).cast(pl.String)
    return text.replace_strict(names, default=None, return_dtype=pl.String)


def _aws_price_history(draft: _Draft) -> None:
    frame = draft.frame
    if "ProductDescription" in frame.columns:
        linux = pl.col("ProductDescription").is_in(["Linux/UNIX", "Linux/UNIX (Amazon VPC)"])
        draft.frame = frame.filter(linux)
        draft.drop("another system than Linux", frame.height - draft.frame.height)
    zone = "AvailabilityZone"
    if "AvailabilityZoneId" in frame.columns and not draft.frame["AvailabilityZoneId"].null_count():
        zone = "AvailabilityZoneId"
    else:
        draft.notes.append("zones are the account's names (no AvailabilityZoneId in the file)")
    _aws_prices(draft, zone, "InstanceType", "SpotPrice", "Timestamp")


def _aws_changes(draft: _Draft) -> None:
    _aws_prices(draft, "az", "instance_type", "price", "ts")


def _aws_changes_by_id(draft: _Draft) -> None:
    _aws_prices(draft, "az_id", "instance_type", "price", "ts")


def _aws_prices(draft: _Draft, zone: str, kind: str, price: str, when: str) -> None:
    draft.frame = draft.frame.with_columns(_number(draft, price))
    draft.prices(
        price,
        "spot",
        observed_at=draft.times(when),
        provider="aws",
        region=_mapped(draft, zone, aws_region),
        zone=pl.col(zone),
        instance_type=pl.col(kind),
    )


def _number(draft: _Draft, column: str) -> pl.Series:
    series = draft.frame[column]
    if series.dtype.is_numeric():
        return series.cast(pl.Float64)
    made = series.cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)
    bad = made.is_null() & series.is_not_null()
    if bad.any():
        row = bad.arg_max() or 0
        raise Invalid(
            f"{draft.path}: row {row + 1}: {column} = {series[row]!r} is no number",
            hint="correct or remove these rows; nothing was stored",
        )
    return made.alias(column)


def _gcp_changes(draft: _Draft) -> None:
    at = draft.times("ts")
    whole = draft.frame
    told = {c: pl.col(c).is_not_null() & pl.col(c).is_finite() for c in ("od_hour", "spot_hour")}
    gone = ~told["od_hour"] & ~told["spot_hour"]
    for column, option in (("od_hour", "on_demand"), ("spot_hour", "spot")):
        draft.frame = whole
        draft.refuse(column, pl.col(column) < 0, "is below zero")
        draft.frame = whole.filter(told[column] | gone)
        draft.drop(f"no {column}", whole.height - draft.frame.height)
        draft.put(
            "offer_price",
            observed_at=at,
            provider="gcp",
            region=pl.col("region"),
            zone="",
            instance_type=pl.col("machine_type"),
            option=option,
            usd_hour=pl.when(pl.col(column).is_finite()).then(pl.col(column)),
        )
    ended = whole.filter(gone).height
    draft.notes.append(f"{ended:,} rows without any price: the type is no longer offered there")


def _advisor(draft: _Draft) -> None:
    labels = {0: "<5%", 1: "5-10%", 2: "10-15%", 3: "15-20%", 4: ">20%"}
    bands = {label: (low, high) for label, low, high in GRADES.values()}
    bucket = pl.col("interruption_bucket")
    draft.refuse(
        "interruption_bucket",
        bucket.is_null() | ~bucket.is_in(list(labels)),
        "is no band (0 to 4)",
    )
    whole = draft.frame
    draft.frame = whole.filter(pl.col("os") == "Linux")
    draft.drop("another system than Linux", whole.height - draft.frame.height)
    label = bucket.replace_strict(labels, return_dtype=pl.String)
    saved = pl.col("savings_pct").cast(pl.Float64) / 100.0
    draft.put(
        "interruption_band",
        observed_at=draft.times("snapshot"),
        provider="aws",
        region=pl.col("region"),
        zone="",
        instance_type=pl.col("instance_type"),
        scale="share_month",
        label=label,
        low=label.replace_strict({k: v[0] for k, v in bands.items()}, return_dtype=pl.Float64),
        high=label.replace_strict({k: v[1] for k, v in bands.items()}, return_dtype=pl.Float64),
        savings=saved,
    )


def _spotlake(draft: _Draft) -> None:
    when = "Time" if "Time" in draft.frame.columns else "time"
    for column in ("SpotPrice", "OndemandPrice", "IF", "SPS"):
        if column in draft.frame.columns:
            number = _number(draft, column)
            # Older files write -1 where nothing is known.
            unknown = number.set(number == -1.0, None)
            draft.frame = draft.frame.with_columns(unknown)
    at = draft.times(when)
    pool: dict[str, pl.Expr | str] = {
        "observed_at": at,
        "provider": "aws",
        "region": pl.col("Region"),
        "instance_type": pl.col("InstanceType"),
    }
    draft.prices("SpotPrice", "spot", zone=pl.col("AZ"), **pool)
    if "OndemandPrice" in draft.frame.columns:
        draft.prices("OndemandPrice", "on_demand", zone=pl.lit(""), **pool)
    whole = draft.frame
    draft.refuse(
        "IF", pl.col("IF").is_not_null() & ~pl.col("IF").is_in(list(GRADES)), "is no grade"
    )
    draft.frame = whole.filter(pl.col("IF").is_not_null())
    draft.drop("no IF", whole.height - draft.frame.height)
    band = [pl.col("IF").replace_strict({g: v[i] for g, v in GRADES.items()}) for i in range(3)]
    draft.put(
        "interruption_band",
        zone="",
        scale="share_month",
        label=band[0],
        low=band[1],
        high=band[2],
        savings=None,
        **pool,
    )
    draft.frame = whole.filter(pl.col("SPS").is_not_null())
    draft.drop("no SPS", whole.height - draft.frame.height)
    draft.put(
        "placement_score",
        zone=pl.col("AZ"),
        scale="aws_1_10",
        score=pl.col("SPS"),
        label="",
        capacity=1,
        **pool,
    )
    draft.frame = whole


def _azure(draft: _Draft) -> None:
    whole = draft.frame
    draft.frame = whole.filter(pl.col("InstanceType").str.len_chars() > 0)
    draft.drop("no size", whole.height - draft.frame.height)
    size = pl.concat_str("InstanceTier", pl.lit("_"), "InstanceType").str.replace_all(" ", "_")
    _both(draft, "azure", size, _mapped(draft, "Region", azure_region), "SpotPrice")


def _gcp_snapshot(draft: _Draft) -> None:
    _both(draft, "gcp", pl.col("InstanceType"), pl.col("Region"), "PreemptiblePrice")


def _both(draft: _Draft, cloud: str, kind: pl.Expr, region: pl.Expr, spot: str) -> None:
    pool: dict[str, pl.Expr | str] = {
        "observed_at": draft.times("Date"),
        "provider": cloud,
        "region": region,
        "zone": pl.lit(""),
        "instance_type": kind,
    }
    draft.prices("OndemandPrice", "on_demand", **pool)
    draft.prices(spot, "spot", **pool)


def _traces(draft: _Draft) -> None:
    with tempfile.TemporaryDirectory(prefix="roost-import-") as folder:
        (Path(folder) / TRACES).symlink_to(draft.path.absolute())
        traces = read_traces(Path(folder))
    for trace in traces:
        dataset = trace.name.split("/", 1)[0]
        day = re.search(r"\d{4}-\d{2}-\d{2}", dataset)
        if day is None:
            raise Invalid(
                f"{draft.path}: the data set {dataset} has no date in its name",
                hint="facts need a time: name it like aws-2023-02-15-avail",
            )
        start = STARTS.get(dataset, datetime.fromisoformat(day[0]).replace(tzinfo=UTC))
        if dataset not in STARTS:
            draft.notes.append(f"{trace.name}: the hour of its start is unknown, midnight is taken")
        draft.notes += trace.notes
        for place, zone in enumerate(trace.zones):
            capacity, price = trace.capacity[:, place], trace.price[:, place]
            ticks = pl.int_range(0, trace.ticks, eager=True) + trace.start_tick
            rows = pl.DataFrame({"tick": ticks, "capacity": capacity, "price": price})
            draft.frame = rows.filter(pl.col("capacity") != UNRECORDED)
            draft.drop("ticks nobody recorded", rows.height - draft.frame.height)
            draft.put(
                "availability",
                observed_at=start.timestamp() + pl.col("tick") * trace.gap_s,
                provider="aws",
                region=aws_region(zone),
                zone=zone,
                instance_type=trace.instance,
                series=trace.name,
                capacity=pl.col("capacity"),
                interval_s=trace.gap_s,
                usd_hour=pl.col("price").fill_nan(None),
            )


def _lifetimes(draft: _Draft) -> None:
    draft.refuse(
        "lifetime_h",
        ~(pl.col("lifetime_h") >= 0) | ~pl.col("lifetime_h").is_finite(),
        "is no duration",
    )
    zone = pl.col("zone").cast(pl.String)
    draft.put(
        "lifetime",
        observed_at=draft.times("start_utc"),
        provider="gcp",
        region=zone.str.replace(r"-[a-z]$", ""),
        zone=zone,
        instance_type=pl.col("machine_type"),
        name=pl.col("name"),
        lifetime_s=pl.col("lifetime_h") * 3600.0,
        preempted=pl.col("preempted"),
        idle=pl.col("idle") if "idle" in draft.frame.columns else None,
    )


def _cluster_events(draft: _Draft) -> None:
    draft.refuse("delta", ~pl.col("delta").is_in([-1, 1]), "is neither +1 nor -1")
    draft.refuse("t_s", ~(pl.col("t_s") >= 0), "is no time")
    draft.notes.append("the day of the recording is not stated; 2021-12-11 is taken")
    draft.put(
        "node_event",
        observed_at=BAMBOO.timestamp() + pl.col("t_s"),
        provider=pl.col("cluster").cast(pl.String).str.split("-").list.first(),
        cluster=pl.col("cluster"),
        node=pl.col("node"),
        delta=pl.col("delta"),
    )


def _running_counts(draft: _Draft) -> None:
    draft.notes.append("local times are taken as UTC: the zone is not stated")
    draft.refuse("running", ~(pl.col("running") >= 0), "is no count")
    at = draft.times("local_time")
    parts = pl.col("cluster").cast(pl.String).str.extract_groups(r"^([a-z]+)-(.+?)x\d+-(.+)$")
    zone = parts.struct.field("3")
    gap = at.shift(-1) - at
    draft.put(
        "availability",
        observed_at=at,
        provider=parts.struct.field("1"),
        region=zone.str.replace(r"-[a-z]$", ""),
        zone=zone,
        instance_type=parts.struct.field("2"),
        series=pl.col("cluster"),
        capacity=pl.col("running"),
        interval_s=gap.fill_null(gap.median()).clip(lower_bound=0.0),
        usd_hour=None,
    )


class Format(msgspec.Struct, frozen=True):
    """A kind of file: the columns that tell it, and how it becomes facts."""

    columns: tuple[str, ...]
    read: Callable[[_Draft], None]
    about: str


FORMATS: Mapping[str, Format] = {
    "aws-spot-price-history": Format(
        ("AvailabilityZone", "InstanceType", "SpotPrice", "Timestamp"),
        _aws_price_history,
        "aws ec2 describe-spot-price-history (JSON, JSON lines, text or table output)",
    ),
    "aws-price-changes": Format(
        ("ts", "az", "instance_type", "price"), _aws_changes, "AWS spot price changes, zone names"
    ),
    "aws-price-changes-by-id": Format(
        ("ts", "az_id", "instance_type", "price"),
        _aws_changes_by_id,
        "AWS spot price changes, zone ids",
    ),
    "gcp-price-changes": Format(
        ("ts", "machine_type", "region", "od_hour", "spot_hour"),
        _gcp_changes,
        "Google Cloud list prices at their changes",
    ),
    "aws-spot-advisor": Format(
        ("snapshot", "region", "os", "instance_type", "interruption_bucket", "savings_pct"),
        _advisor,
        "snapshots of the AWS Spot Advisor",
    ),
    "spotlake": Format(
        ("InstanceType", "Region", "AZ", "SPS", "IF", "SpotPrice"),
        _spotlake,
        "SpotLake snapshots (their open data too)",
    ),
    "azure-prices": Format(
        ("InstanceTier", "InstanceType", "Region", "OndemandPrice", "SpotPrice", "Date"),
        _azure,
        "Azure prices as SpotLake wrote them",
    ),
    "gcp-prices": Format(
        ("InstanceType", "Region", "OndemandPrice", "PreemptiblePrice", "Date"),
        _gcp_snapshot,
        "Google Cloud prices as SpotLake wrote them",
    ),
    "traces": Format(
        ("dataset", "zone", "instance", "gap_s", "tick", "capacity", "price"),
        _traces,
        "availability of spot pools, tick by tick",
    ),
    "lifetimes": Format(
        ("name", "zone", "machine_type", "start_utc", "lifetime_h", "preempted"),
        _lifetimes,
        "lives of single machines",
    ),
    "cluster-events": Format(
        ("cluster", "t_s", "delta", "node"), _cluster_events, "machines joining and leaving"
    ),
    "running-counts": Format(
        ("cluster", "local_time", "running"), _running_counts, "running machines of a cluster"
    ),
}


def read(path: Path, kind: str = "", source: str = "") -> Imported:
    """The facts of a file; ``kind`` names its format, else its columns do. Raises ``Invalid``."""
    frame = load(path)
    name = kind or _recognised(path, frame)
    if name not in FORMATS:
        raise Invalid(f"{name} is no kind of file", hint=f"kinds are {', '.join(FORMATS)}")
    missing = [column for column in FORMATS[name].columns if column not in frame.columns]
    if missing:
        raise Invalid(
            f"{path} as {name} lacks the columns {', '.join(missing)}",
            hint=f"it has {', '.join(frame.columns)}",
        )
    if not frame.height:
        raise Invalid(f"{path} has no rows", hint="was it written whole?")
    stem = re.sub(r"[^a-z0-9]+", "-", path.name.split(".")[0].lower()).strip("-")
    draft = _Draft(path, frame, source or f"file-{stem}"[:63].rstrip("-"))
    try:
        FORMATS[name].read(draft)
    except pl.exceptions.PolarsError as error:
        raise Invalid(
            f"{path} as {name}: {str(error).splitlines()[0]}",
            hint="a column has values of another type; nothing was stored",
        ) from error
    tables = {kind: pl.concat(parts) for kind, parts in draft.tables.items()}
    _enough(path, frame.height, draft, sum(table.height for table in tables.values()))
    _unknown_types(draft, tables)
    return Imported(
        format=name,
        source=draft.source,
        rows=frame.height,
        tables=tables,
        dropped=draft.dropped,
        notes=tuple(dict.fromkeys(draft.notes)),
    )


def _recognised(path: Path, frame: pl.DataFrame) -> str:
    fits = [n for n, form in FORMATS.items() if set(form.columns) <= set(frame.columns)]
    if not fits:
        known = "; ".join(f"{n}: {', '.join(form.columns)}" for n, form in FORMATS.items())
        raise Invalid(
            f"{path} is no file Roost knows: its columns are {', '.join(frame.columns)}",
            hint=f"known are {known}",
        )
    return max(fits, key=lambda name: len(FORMATS[name].columns))


def _enough(path: Path, rows: int, draft: _Draft, facts: int) -> None:
    lost = sum(draft.dropped.values())
    if not facts or lost > MOST_DROPPED * (lost + facts):
        said = ", ".join(f"{count:,} with {why}" for why, count in draft.dropped.items())
        raise Invalid(
            f"{path}: of {rows:,} rows too few can be used ({said or 'none'})",
            hint="is it the kind of file you think? --as names another",
        )


def _unknown_types(draft: _Draft, tables: Mapping[str, pl.DataFrame]) -> None:
    known = set(pl.read_parquet(OFFERS, columns=["type"])["type"].unique())
    named: set[str] = set()
    for table in tables.values():
        if "instance_type" in table.columns:
            named |= set(table["instance_type"].unique())
    strange = sorted(named - known)
    if strange:
        some = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        draft.notes.append(f"{len(strange)} of {len(named)} types are not in the catalogue: {some}")
