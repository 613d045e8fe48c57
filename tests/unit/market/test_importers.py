"""Importers: every format people have, and what is done about each kind of bad row."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from roost.market.history import History
from roost.market.importers import FORMATS, aws_region, azure_region, read
from roost.ports.errors import Invalid

SHARED = Path(__file__).parents[4] / "shared" / "data" / "spot"
AT = datetime(2026, 5, 1, 10, tzinfo=UTC)
# AWS CLI reference, "describe-spot-price-history", Examples; AvailabilityZoneId since API of 2025.
ROW = {
    "AvailabilityZone": "us-west-1b",
    "AvailabilityZoneId": "usw1-az1",
    "InstanceType": "zz9.odd",
    "ProductDescription": "Linux/UNIX (Amazon VPC)",
    "SpotPrice": "0.087000",
    "Timestamp": "2026-05-01T10:00:00+00:00",
}
OTHER = {**ROW, "InstanceType": "m5.large", "SpotPrice": "0.041000"}
WINDOWS = {**ROW, "ProductDescription": "Windows"}
TABLE = """\
-----------------------------------------------------------------------------------------
|                               DescribeSpotPriceHistory                                |
+---------------------------------------------------------------------------------------+
||                                  SpotPriceHistory                                   ||
|+------------------+---------------+---------------------+------------+---------------+|
|| AvailabilityZone | InstanceType  | ProductDescription  | SpotPrice  |   Timestamp   ||
|+------------------+---------------+---------------------+------------+---------------+|
||  us-west-1b      |  zz9.odd      |  Linux/UNIX         |  0.087000  |  2026-05-01T10:00:00Z ||
||  us-west-1b      |  m5.large     |  Linux/UNIX         |  0.041000  |  2026-05-01T10:00:00Z ||
|+------------------+---------------+---------------------+------------+---------------+|
"""


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("whole.json", json.dumps({"SpotPriceHistory": [ROW, OTHER, WINDOWS]}, indent=4)),
        ("list.json", json.dumps([ROW, OTHER, WINDOWS])),
        ("lines.json", "\n".join(json.dumps(row) for row in (ROW, OTHER, WINDOWS))),
        (
            "calls.json",
            "".join(
                json.dumps({"SpotPriceHistory": rows}, indent=4) + "\n"
                for rows in ([ROW], [OTHER, WINDOWS])
            ),
        ),
        (
            "text.txt",
            "".join(
                "SPOTPRICEHISTORY\t" + "\t".join(row[k] for k in sorted(row)) + "\n"
                for row in (ROW, OTHER, WINDOWS)
            )
            + "NEXTTOKEN\tabc\n",
        ),
        (
            "table.csv",
            ",".join(ROW)
            + "\n"
            + "".join(",".join(r.values()) + "\n" for r in (ROW, OTHER, WINDOWS)),
        ),
        ("boxes.txt", TABLE),
    ],
)
def test_what_aws_prints(tmp_path: Path, name: str, content: str) -> None:
    found = read(_write(tmp_path, name, content))
    assert found.format == "aws-spot-price-history"
    assert found.source == f"file-{name.split('.')[0]}"
    rows = found.tables["offer_price"]
    assert rows["usd_hour"].to_list() == [0.087, 0.041]
    assert set(rows["region"]) == {"us-west-1"} and set(rows["observed_at"]) == {AT.timestamp()}
    boxes = name == "boxes.txt"
    assert set(rows["zone"]) == {"us-west-1b" if boxes else "usw1-az1"}
    assert found.dropped == ({} if boxes else {"another system than Linux": 1})
    assert any("zz9.odd" in note for note in found.notes), "types nobody knows are told"
    history = History(tmp_path / "h")
    assert history.append_frame("offer_price", rows).new == 2
    again = read(_write(tmp_path, name, content), source="other").tables["offer_price"]
    assert history.append_frame("offer_price", again).new == 2
    assert history.latest_prices().height == 2, "one row a pool, whoever told it"


def _changes(**columns: list[Any]) -> pl.DataFrame:
    base: dict[str, list[Any]] = {
        "ts": [AT, AT.replace(hour=9), AT],
        "az": ["us-east-1a"] * 3,
        "instance_type": ["m5.large", "m5.large", "c5.large"],
        "price": [0.04, 0.05, 0.03],
    }
    return pl.DataFrame({**base, **columns})


def test_rows_out_of_order_and_twice_are_no_harm(tmp_path: Path) -> None:
    frame = _changes()
    path = tmp_path / "x.parquet"
    pl.concat([frame, frame]).write_parquet(path)
    found = read(path)
    assert found.format == "aws-price-changes" and found.rows == 6
    history = History(tmp_path / "h")
    stored = history.append_frame("offer_price", found.tables["offer_price"])
    assert (stored.new, stored.known) == (3, 3)
    assert history.series("us-east-1a", "m5.large")["value"].to_list() == [0.05, 0.04]


def test_unknown_prices_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pl.concat([_changes(), _changes(price=[None, float("nan"), 0.07])]).write_parquet(path)
    found = read(path)
    assert found.dropped == {"no price": 2} and found.tables["offer_price"].height == 4
    _changes(price=[None, None, 0.1]).write_parquet(path)
    with pytest.raises(Invalid, match="of 3 rows too few can be used \\(2 with no price\\)"):
        read(path)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (_changes(price=[0.1, -0.2, 0.3]), "row 2: price = -0.2 is below zero"),
        (_changes(price=["0.1", "cheap", "0.3"]), "row 2: price = 'cheap' is no number"),
        (
            _changes(ts=["2026-05-01", "yesterday", "2026-05-01"]),
            "row 2: ts = 'yesterday' is no time",
        ),
        (_changes(ts=[AT, None, AT]), "row 2: ts = None is no time"),
        (_changes().clear(), "has no rows"),
        (_changes().drop("price"), "no file Roost knows: its columns are ts, az, instance_type"),
    ],
)
def test_bad_values_name_their_row(tmp_path: Path, frame: pl.DataFrame, said: str) -> None:
    path = tmp_path / "x.parquet"
    frame.write_parquet(path)
    with pytest.raises(Invalid) as caught:
        read(path)
    assert said in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"   \n", "is empty"),
        (b"PAR1 not much more", "damaged Parquet"),
        (b"\x1f\x8bnot gzip", "damaged gzip"),
        (b"\xff\xfe\x00rubbish", "neither text nor Parquet"),
        (b'{"SpotPriceHistory": [{"AvailabilityZone": "a"', "no JSON from line 1"),
        (b'{"SpotPriceHistory": []}', "has no rows"),
        (b"[1, 2]", "entry 1 is no object"),
        (b"SPOTPRICEHISTORY\ta\tb\n", "line 1 is no row of a price history"),
        (b'{"weather": "fine"}', "no file Roost knows"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        read(_write(tmp_path, "x", content))
    assert said in caught.value.message
    with pytest.raises(Invalid, match="cannot be read"):
        read(tmp_path / "not there")


def test_a_format_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    _changes().write_parquet(path)
    with pytest.raises(Invalid, match="as lifetimes lacks the columns name, zone"):
        read(path, "lifetimes")
    with pytest.raises(Invalid, match="kinds are aws-spot-price-history"):
        read(path, "weather")


def test_a_type_no_longer_offered_is_no_zero(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    later = AT.replace(month=6)
    pl.DataFrame(
        {
            "ts": [AT, AT, later],
            "machine_type": ["n2-standard-4", "n2-standard-8", "n2-standard-4"],
            "region": ["us-central1"] * 3,
            "od_hour": [0.19, 0.38, None],
            "spot_hour": [0.04, None, None],
        }
    ).write_parquet(path)
    found = read(path)
    assert found.dropped == {"no spot_hour": 1}
    history = History(tmp_path / "h")
    history.append_frame("offer_price", found.tables["offer_price"])
    assert history.latest_prices()["type"].to_list() == ["n2-standard-8"]
    assert history.latest_prices(as_of=AT.timestamp()).height == 2


def test_advisor_buckets_and_grades(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    advisor = pl.DataFrame(
        {
            "snapshot": ["2025-06-28"] * 2,
            "region": ["us-east-1"] * 2,
            "os": ["Linux", "Windows"],
            "instance_type": ["m5.large"] * 2,
            "interruption_bucket": [4, 0],
            "savings_pct": [60, 10],
        }
    )
    advisor.write_parquet(path)
    row = read(path).tables["interruption_band"].row(0, named=True)
    assert (row["label"], row["low"], row["high"], row["savings"]) == (">20%", 0.2, 1.0, 0.6)
    advisor.with_columns(interruption_bucket=pl.lit(7)).write_parquet(path)
    with pytest.raises(Invalid, match="interruption_bucket = 7 is no band"):
        read(path)
    # SpotLake's open data as CSV: -1 and empty cells are unknown.
    lake = "Time,InstanceType,Region,AZ,SPS,T3,T2,IF,OndemandPrice,SpotPrice,Savings\n" + "".join(
        f"2025-12-31 23:50:00,m7i.large,us-east-1,use1-az{n},{rest}\n"
        for n, rest in ((1, "3,5,5,3.0,0.1,0.04,60"), (2, ",,,,,0.4,"), (3, "2,1,1,-1,-1,0.05,-1"))
    )
    found = read(_write(tmp_path, "lake.csv", lake))
    assert {kind: rows.height for kind, rows in found.tables.items()} == {
        "offer_price": 4,
        "interruption_band": 1,
        "placement_score": 2,
    }
    assert found.dropped == {"no OndemandPrice": 2, "no IF": 2, "no SPS": 1}


def test_places_as_the_clouds_name_them() -> None:
    assert [
        aws_region(z) for z in ("us-east-1a", "apne2-az1", "usw2-lax1-az1", "eu-central-2c")
    ] == [
        "us-east-1",
        "ap-northeast-2",
        "usw2-lax1-az1",
        "eu-central-2",
    ]
    assert [azure_region(n) for n in ("US East 2", "KR Central", "AP East", "DE West Central")] == [
        "eastus2",
        "koreacentral",
        "eastasia",
        "germanywestcentral",
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/spot is not here: files NOT tried")
def test_every_shared_file_comes_in(tmp_path: Path) -> None:
    seen = set()
    for path in sorted(SHARED.glob("*.parquet")):
        found = read(path)
        seen.add(found.format)
        rows = pl.read_parquet(path).height
        facts = sum(table.height for table in found.tables.values())
        assert facts + sum(found.dropped.values()) >= rows, path.name
        for kind, table in found.tables.items():
            assert History(tmp_path / path.stem).append_frame(kind, table.tail(2000)).new
    assert seen == set(FORMATS) - {"aws-spot-price-history"}
