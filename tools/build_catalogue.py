"""Builds the market snapshot of the package from a directory of source tables. Deterministic; never fetches.

    python tools/build_catalogue.py --source DIR --recordings DIR [--out src/roost/market/data]

``--source`` holds instance_types.csv, offers.csv.gz, performance.csv, boot_times.csv and
purchase_options.csv; ``--recordings`` holds the Parquet files of recorded markets. What was left out and why
is printed. ``data/README.md`` names provenance and licences; places.csv is kept by hand and is not touched.
"""

import argparse
import json
from pathlib import Path

import polars as pl

OUT = Path(__file__).resolve().parent.parent / "src" / "roost" / "market" / "data"

NOTICE_S = {"aws": 120.0, "azure": 30.0, "gcp": 30.0}
"""Warning before an interruption, as the vendors document it."""
BURST_BASELINE = 0.4
"""Share of a burstable vCPU that may be used for ever: the vendors' tables give 0.2 to 0.6."""
PRICE_OUTLIER = (0.5, 3.0)
"""On-demand prices outside this range of the type's median over regions are errors of the source."""
BURSTABLE_ON_GCP = ["e2-micro", "e2-small", "e2-medium", "f1-micro", "g1-small"]
"""The shared-core types. The source marks all of their families, full-core members included."""

UNLICENSED = "ec2instances.info dump"
"""A copy of a site's data whose licence is not stated: read by its user with ``--prices``, never shipped."""

RECORDINGS = {
    "aws-p3": {
        "provider": "aws",
        "what": "nodes lost by a group of at most 32 p3 spot instances in 11.4 hours, 2021",
        "source": "github.com/uclasystem/bamboo (Bamboo, NSDI '23)",
        "licence": "MIT",
    },
    "gcp-a100": {
        "provider": "gcp",
        "what": "losses in a group of 17 to 64 A100 spot VMs in 27 hours, 2021",
        "source": "github.com/uclasystem/bamboo (Bamboo, NSDI '23)",
        "licence": "MIT",
    },
    "gcp-lifetimes": {
        "provider": "gcp",
        "what": "lives of single preemptible VMs, at most 24 hours each, one after another, 2019",
        "source": "github.com/kadupitiya/goog-preemption-data (arXiv 1911.05160)",
        "licence": "Apache-2.0",
    },
}


def instance_types(source: Path) -> pl.DataFrame:
    """One row per type. macOS-only machines are left out: no image of ours starts there."""
    table = pl.read_csv(source / "instance_types.csv", infer_schema_length=None)
    burstable = (
        pl.when(pl.col("cloud") == "gcp")
        .then(pl.col("type").is_in(BURSTABLE_ON_GCP))
        .otherwise(pl.col("burstable") == 1)
    )
    is_gpu = pl.col("accelerator_kind") == "gpu"
    return (
        table.filter(
            pl.col("cpu_vendor").ne_missing("Apple") & ~pl.col("type").str.starts_with("mac")
        )
        .select(
            provider="cloud",
            type="type",
            category="category",
            arch="arch",
            vcpus=pl.col("vcpus").cast(pl.Float32),
            memory_gib=pl.col("memory_gib").cast(pl.Float32),
            gpus=pl.when(is_gpu).then(pl.col("gpu_count")).otherwise(0.0).cast(pl.Float32),
            burstable=burstable,
        )
        .sort("provider", "type")
    )


def offers(source: Path, types: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """One row per (provider, region, zone, type) that has a price, and what was left out."""
    table = pl.read_csv(source / "offers.csv.gz", infer_schema_length=None).rename(
        {"cloud": "provider"}
    )
    priced = table.filter(pl.col("on_demand_usd_hour").is_not_null())
    known = priced.join(types.select("provider", "type"), on=["provider", "type"], how="semi")
    ratio = pl.col("on_demand_usd_hour") / pl.col("on_demand_usd_hour").median().over(
        "provider", "type"
    )
    sane = known.filter(ratio.is_between(*PRICE_OUTLIER))
    kept = sane.select(
        "provider",
        "region",
        pl.col("zone").fill_null(""),
        "type",
        "on_demand_usd_hour",
        "spot_usd_hour",
        "interruption_bucket",
        "od_as_of",
        "spot_as_of",
        "od_basis",
        "spot_basis",
    ).sort("provider", "type", "region", "zone")
    left_out = {
        "no price": table.height - priced.height,
        "type left out": priced.height - known.height,
        "price is an outlier": known.height - sane.height,
    }
    return kept, left_out


def performance(source: Path) -> pl.DataFrame:
    """Measured speed per type: single thread, and all cores per vCPU. A score of 0 is a failed run."""
    table = pl.read_csv(source / "performance.csv", infer_schema_length=None)
    return (
        table.select(
            provider="cloud",
            type="type",
            passmark_single=pl.col("passmark_single").cast(pl.Float32),
            passmark_per_vcpu=pl.col("passmark_per_vcpu").cast(pl.Float32),
            measured_on="measured_on",
        )
        .filter((pl.col("passmark_single") > 0) & (pl.col("passmark_per_vcpu") > 0))
        .sort("provider", "type")
    )


def boot_times(source: Path) -> pl.DataFrame:
    """Measured seconds from the create call on, one row per launch."""
    table = pl.read_csv(source / "boot_times.csv", infer_schema_length=None)
    return table.rename({"cloud": "provider"}).sort("provider", "type", "day", maintain_order=True)


def purchase_options(source: Path) -> tuple[pl.DataFrame, int]:
    """What commitments and dedication cost, as far as licences permit, and how many rows were left out."""
    table = pl.read_csv(source / "purchase_options.csv", infer_schema_length=None)
    shipped = table.filter(~pl.col("source").str.starts_with(UNLICENSED))
    kept = shipped.select(
        provider="cloud",
        scope="scope",
        region="region",
        option="option",
        metric="metric",
        value=pl.col("value").cast(pl.Float64),
        low=pl.col("low").cast(pl.Float64),
        high=pl.col("high").cast(pl.Float64),
        samples=pl.col("n").cast(pl.Int32),
        basis="basis",
        source="source",
        as_of="as_of",
    ).sort("provider", "option", "scope", "region", "source")
    return kept, table.height - kept.height


def interruptions(recordings: Path) -> pl.DataFrame:
    """Seconds between loss events, and how many were lost at each, per recording."""
    events = pl.read_parquet(recordings / "bamboo_cluster_events_2021.parquet")
    losses = events.filter(pl.col("delta") < 0).group_by("t_s").agg(lost=-pl.col("delta").sum())
    counts = pl.read_parquet(recordings / "bamboo_gcp_running_counts_2021.parquet").select(
        t_s=pl.col("local_time").str.to_datetime().dt.epoch("s").cast(pl.Float64), running="running"
    )
    drops = counts.sort("t_s").with_columns(lost=-pl.col("running").diff())
    first_s = drops["t_s"].min()
    drops = drops.filter(pl.col("lost") > 0).with_columns(pl.col("t_s") - first_s)
    lives = pl.read_parquet(recordings / "gcp_preemptible_lifetimes_2019.parquet")
    lived = lives.filter(pl.col("preempted")).sort("start_utc", "name")
    parts = [
        _gaps("aws-p3", losses),
        _gaps("gcp-a100", drops),
        lived.select(
            recording=pl.lit("gcp-lifetimes"),
            number=pl.int_range(pl.len(), dtype=pl.Int32),
            gap_s=(pl.col("lifetime_h") * 3600).round(1),
            lost=pl.lit(1, dtype=pl.Int32),
        ),
    ]
    return pl.concat(parts)


def _gaps(name: str, losses: pl.DataFrame) -> pl.DataFrame:
    return losses.sort("t_s").select(
        recording=pl.lit(name),
        number=pl.int_range(pl.len(), dtype=pl.Int32),
        gap_s=pl.col("t_s").diff().fill_null(pl.col("t_s")),
        lost=pl.col("lost").cast(pl.Int32),
    )


def facts(offered: pl.DataFrame) -> dict[str, object]:
    """What the code needs to know about the tables as a whole, apart from the share-alike ones."""
    buckets = offered["interruption_bucket"].drop_nulls().value_counts().rows()
    newest = offered.group_by("provider").agg(pl.col("od_as_of").max(), pl.col("spot_as_of").max())
    return {
        "prices_as_of": {provider: max(a, b) for provider, a, b in newest.rows()},
        "bucket_counts": dict(sorted(buckets)),
        "notice_s": NOTICE_S,
        "burst_baseline": BURST_BASELINE,
        "recordings": RECORDINGS,
    }


def main() -> None:
    """Write the snapshot and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    types = instance_types(args.source)
    offered, left_out = offers(args.source, types)
    purchases, unlicensed = purchase_options(args.source)
    tables = {
        "instance_types": types,
        "offers": offered,
        "performance": performance(args.source),
        "boot_times": boot_times(args.source),
        "purchase_options": purchases,
        "interruptions": interruptions(args.recordings),
    }
    for name, table in tables.items():
        path = args.out / f"{name}.parquet"
        table.write_parquet(path, compression="zstd", compression_level=19, statistics=False)
        print(f"{name}: {table.height:,} rows, {path.stat().st_size:,} bytes")
    for reason, rows in left_out.items():
        print(f"offers left out, {reason}: {rows:,}")
    print(f"purchase options left out, no stated licence: {unlicensed:,}")
    text = json.dumps(facts(offered), indent=1, sort_keys=True)
    (args.out / "facts.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
