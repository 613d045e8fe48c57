"""Recordings: what is read, and what is refused with which words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from roost.market.traces import (
    ADVISOR,
    UNRECORDED,
    on_demand_usd_hour,
    present,
    read_advisor,
    read_lifetimes,
    read_traces,
    region_of,
)
from roost.ports.errors import Invalid
from tests.unit.market.recordings import flapping, folder_of, frame_of, trace_of

TRACE = trace_of(flapping(60, 3, seed=1), start_tick=7)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    (found,) = read_traces(folder_of(TRACE, tmp_path))
    order = [found.zones.index(zone) for zone in TRACE.zones]
    assert np.array_equal(found.capacity[:, order], TRACE.capacity)
    assert (found.start_tick, found.gap_s, found.on_demand_usd_hour) == (7, 300.0, 3.06)
    assert found.notes == ()
    assert found.only([TRACE.zones[1]]).part(10, 20).capacity.shape == (10, 1)


def test_files_are_optional_but_one_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="holds none of"):
        present(tmp_path)
    with pytest.raises(Invalid, match="not a folder"):
        present(tmp_path / "nowhere")
    folder_of(TRACE, tmp_path)
    assert read_lifetimes(tmp_path) is None
    assert read_advisor(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop("capacity"), "no column capacity"),
        (lambda f: f.rename({"tick": "time"}), "no column tick"),
        (lambda f: f.with_columns(capacity=pl.lit("many")), "column capacity holds String"),
        (lambda f: _at(f, "gap_s", 5, float("nan")), "column gap_s, row 5: nan is missing"),
        (lambda f: _at(f, "capacity", 9, None), "column capacity, row 9: None is missing"),
        (lambda f: _at(f, "capacity", 4, -1), "column capacity, row 4: -1 is not within"),
        (lambda f: _at(f, "price", 4, -0.5), "column price, row 4: -0.5 is not within"),
        (lambda f: _at(f, "tick", 8, 9), "column tick, row 8: 9: time goes backwards"),
        (lambda f: _at(f, "gap_s", 8, 60.0), "column gap_s, row 8: 60.0"),
        (lambda f: _at(f, "tick", 59, 10**8), "spans"),
        (lambda f: f.clear(), "no rows"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], words: str
) -> None:
    change(frame_of(TRACE)).write_parquet(tmp_path / "traces.parquet")
    with pytest.raises(Invalid, match=words) as caught:
        read_traces(tmp_path)
    assert caught.value.hint
    assert "traces.parquet" in caught.value.message


def _at(frame: pl.DataFrame, column: str, row: int, value: object) -> pl.DataFrame:
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=frame.schema[column]))


def test_no_parquet_at_all(tmp_path: Path) -> None:
    (tmp_path / "traces.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(Invalid, match="not readable as Parquet"):
        read_traces(tmp_path)


def test_a_row_twice_counts_once_and_two_different_ones_are_refused(tmp_path: Path) -> None:
    frame = frame_of(TRACE)
    twice = pl.concat([frame[:4], frame[3:]])
    twice.write_parquet(tmp_path / "traces.parquet")
    (found,) = read_traces(tmp_path)
    assert "1 rows stood there twice" in found.notes[0]
    other = frame[3:4].with_columns(capacity=pl.lit(9, dtype=pl.Int16))
    pl.concat([frame[:4], other, frame[4:]]).write_parquet(tmp_path / "traces.parquet")
    with pytest.raises(Invalid, match="another row for this tick"):
        read_traces(tmp_path)


def test_ticks_left_out_are_neither_up_nor_down(tmp_path: Path) -> None:
    frame_of(TRACE).filter(~pl.col("tick").is_between(20, 24)).write_parquet(
        tmp_path / "traces.parquet"
    )
    (found,) = read_traces(tmp_path)
    assert (found.capacity[13:18] == UNRECORDED).all()
    assert not found.known[13:18].any()
    assert not found.up[13:18].any()
    assert "were not recorded" in found.notes[0]


def test_partitions_are_one_table_and_an_empty_one_is_noted(tmp_path: Path) -> None:
    frame = frame_of(TRACE)
    folder = tmp_path / "traces.parquet"
    folder.mkdir()
    for number, part in enumerate((frame[:60], frame.clear(), frame[60:])):
        part.write_parquet(folder / f"part-{number}.parquet")
    (found,) = read_traces(tmp_path)
    assert found.capacity.shape == TRACE.capacity.shape
    assert found.notes == ("part-1.parquet: empty, nothing read from it",)


def test_an_unknown_instance_has_no_price_rather_than_none(tmp_path: Path) -> None:
    frame_of(TRACE).with_columns(instance=pl.lit("quantum.1xlarge")).write_parquet(
        tmp_path / "traces.parquet"
    )
    (found,) = read_traces(tmp_path)
    assert np.isnan(found.on_demand_usd_hour)
    assert "nobody knows quantum.1xlarge" in found.notes[0]
    assert on_demand_usd_hour("v100_1") == on_demand_usd_hour("p3.2xlarge") == 3.06
    assert 0.0 < on_demand_usd_hour("m5.large") < 1.0


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-east-1a", "us-east-1"),
        ("us-central1-f", "us-central1"),
        ("use1-az4", "use1"),
        ("westeurope-1", "westeurope"),
        ("somewhere", "somewhere"),
    ],
)
def test_regions_of_zones(zone: str, region: str) -> None:
    assert region_of(zone) == region


def test_two_bands_for_one_pool_are_refused(tmp_path: Path) -> None:
    line = {
        "snapshot": "2025-06-28",
        "region": "eu-west-1",
        "os": "Linux",
        "instance_type": "m5.large",
        "cores": 2,
        "ram_gb": 8.0,
        "emr": True,
        "interruption_bucket": 1,
        "savings_pct": 70,
    }
    pl.DataFrame([line, {**line, "interruption_bucket": 3}]).write_parquet(tmp_path / ADVISOR)
    with pytest.raises(Invalid, match=r"m5\.large in eu-west-1 has two bands"):
        read_advisor(tmp_path)
