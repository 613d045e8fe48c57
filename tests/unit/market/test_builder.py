"""The builder of the snapshot, on a small source of its own."""

import gzip
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from roost.market.catalogue import Catalogue
from roost.ports.values import Ask, PurchaseOption

BUILDER = Path(__file__).parents[3] / "tools" / "build_catalogue.py"
BOTH = (PurchaseOption.SPOT, PurchaseOption.ON_DEMAND)

TYPES = """cloud,type,category,arch,vcpus,memory_gib,accelerator_kind,gpu_count,cpu_vendor,burstable
aws,m5.xlarge,general,x86_64,4,16,,0,Intel,0
aws,t3.xlarge,general,x86_64,4,16,,0,Intel,1
aws,mac2.metal,general,arm64,8,16,,0,Apple,0
gcp,e2-standard-4,general,x86_64,4,16,,0,,1
"""
OFFERS = (
    "cloud,region,zone,type,on_demand_usd_hour,od_basis,od_as_of,"
    "spot_usd_hour,spot_basis,spot_as_of,interruption_bucket"
    """
aws,us-east-1,use1-az1,m5.xlarge,0.192,listed,2026-01-01,0.06,advisor,2025-06-28,5-10%
aws,us-east-1,use1-az2,m5.xlarge,0.192,listed,2026-01-01,,,,
aws,us-east-2,use2-az1,m5.xlarge,0.02,listed,2026-01-01,0.01,advisor,2025-06-28,<5%
aws,us-east-1,use1-az1,t3.xlarge,0.166,listed,2026-01-01,0.05,advisor,2025-06-28,<5%
aws,us-east-1,use1-az1,mac2.metal,0.65,listed,2026-01-01,,,,
gcp,us-central1,us-central1-a,e2-standard-4,0.134,listed,2026-02-01,0.04,listed,2026-02-01,
gcp,us-central1,,e2-standard-4,,,,,,,
"""
)
SCORES = """cloud,type,passmark_per_vcpu,passmark_single,measured_on
aws,m5.xlarge,1000,2000,2026-01-01
aws,t3.xlarge,1000,2000,2026-01-01
gcp,e2-standard-4,0,1600,2026-01-01
"""
BOOTS = """cloud,type,day,kernel_up_s,container_running_s
aws,m5.xlarge,2026-01-01,10,100
aws,m5.xlarge,2026-01-02,12,200
"""
PURCHASES = """cloud,scope,region,option,metric,value,low,high,n,basis,source,as_of
aws,m5,us-east-1,reserved_standard_1y_all_upfront,ratio_to_on_demand,0.59,0.58,0.6,9,computed,LeanerCloud,2023-08-30
aws,m5,us-east-1,reserved_standard_3y_all_upfront,ratio_to_on_demand,0.38,,,,computed,ec2instances.info dump in x,2019-04-05
azure,*,*,reserved_3y,best_case_discount_pct,72,,,,published,Azure reservations doc,
"""  # noqa: E501


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    tables, recorded = tmp_path / "tables", tmp_path / "recorded"
    tables.mkdir()
    recorded.mkdir()
    (tables / "instance_types.csv").write_text(TYPES)
    (tables / "performance.csv").write_text(SCORES)
    (tables / "boot_times.csv").write_text(BOOTS)
    (tables / "purchase_options.csv").write_text(PURCHASES)
    (tables / "offers.csv.gz").write_bytes(gzip.compress(OFFERS.encode()))
    pl.DataFrame({"t_s": [0.0, 60.0, 60.0, 100.0], "delta": [1, -1, -1, -1]}).write_parquet(
        recorded / "bamboo_cluster_events_2021.parquet"
    )
    times = ["2021-12-11 11:00:00", "2021-12-11 11:01:00", "2021-12-11 11:03:00"]
    pl.DataFrame({"local_time": times, "running": [5, 5, 2]}).write_parquet(
        recorded / "bamboo_gcp_running_counts_2021.parquet"
    )
    lives = {
        "name": ["b", "a", "c"],
        "start_utc": [datetime(2019, 2, day, tzinfo=UTC) for day in (2, 1, 3)],
        "lifetime_h": [2.0, 1.0, 5.0],
        "preempted": [True, True, False],
    }
    pl.DataFrame(lives).write_parquet(recorded / "gcp_preemptible_lifetimes_2019.parquet")
    return ["--source", str(tables), "--recordings", str(recorded)]


def build(sources: list[str], out: Path) -> str:
    command = [sys.executable, str(BUILDER), *sources, "--out", str(out)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_two_runs_give_the_same_bytes(tmp_path, sources):
    one, two = tmp_path / "one", tmp_path / "two"
    assert build(sources, one) == build(sources, two)
    names = sorted(f.name for f in one.iterdir())
    assert len(names) == 7
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_what_cannot_be_offered_is_left_out_and_counted(tmp_path, sources):
    out = tmp_path / "out"
    said = build(sources, out)
    assert "no price: 1" in said
    assert "type left out: 1" in said
    catalogue = Catalogue.load(out)
    found = {o.key: o for o in catalogue.candidates(Ask(purchase_options=BOTH))}
    assert "aws/use1-az2/m5.xlarge/spot" not in found
    assert "aws/use1-az2/m5.xlarge/on_demand" in found
    assert not any(o.region == "us-east-2" for o in found.values()), "an outlier is an error"
    assert found["gcp/us-central1-a/e2-standard-4/spot"].interruption_bucket is None
    assert catalogue.boot_s == {"aws": 150.0}
    assert catalogue.prices_as_of == {"aws": "2026-01-01", "gcp": "2026-02-01"}


def test_speed_is_relative_burst_counts_its_baseline_and_a_failed_score_is_unknown(
    tmp_path, sources
):
    build(sources, tmp_path / "out")
    speeds = Catalogue.load(tmp_path / "out").speeds
    assert speeds["aws", "m5.xlarge"].relative == pytest.approx(1.0)
    assert speeds["aws", "t3.xlarge"].relative == pytest.approx(0.4)
    assert speeds["aws", "t3.xlarge"].burstable
    assert ("gcp", "e2-standard-4") not in speeds


def test_recordings_keep_the_seconds_between_losses(tmp_path, sources):
    build(sources, tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out" / "interruptions.parquet").rows()
    assert rows == [
        ("aws-p3", 0, 60.0, 2),
        ("aws-p3", 1, 40.0, 1),
        ("gcp-a100", 0, 180.0, 3),
        ("gcp-lifetimes", 0, 3600.0, 1),
        ("gcp-lifetimes", 1, 7200.0, 1),
    ]


def test_purchase_options_without_a_stated_licence_are_left_out_and_counted(tmp_path, sources):
    said = build(sources, tmp_path / "out")
    assert "purchase options left out, no stated licence: 1" in said
    rows = pl.read_parquet(tmp_path / "out" / "purchase_options.parquet")
    assert rows["option"].to_list() == ["reserved_standard_1y_all_upfront", "reserved_3y"]
    assert rows["value"].to_list() == [0.59, 72.0]
