"""``roost simulate scaling``, as typed."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from roost.main.simulate import app
from roost.sim.scaling.scenario import START_S, Kind, own
from roost.sim.scaling.traces import filled, read_series


def write(path: Path, counts: np.ndarray) -> Path:
    text = "count\n" + "\n".join(map(str, counts.astype(int).tolist())) + "\n"
    path.write_bytes(gzip.compress(text.encode(), compresslevel=1))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    minutes = np.arange(3 * 1440)
    rate = 60.0 + 40.0 * np.sin(minutes / 1440.0 * 2.0 * np.pi)
    return write(tmp_path / "shop.csv.gz", np.random.default_rng(1).poisson(rate))


def test_a_trace_of_ones_own_is_played_priced_and_drawn(trace: Path, tmp_path: Path) -> None:
    charts = tmp_path / "charts"
    asked = ["scaling", "--trace", str(trace), "--policy", "reactive", "--service-s", "2"]
    asked += ["--bound-s", "9", "--json", "--cache", str(tmp_path), "--charts", str(charts)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [row["policy"] for row in said["rows"]] == ["reactive"]
    for row in said["rows"]:
        assert row["met"]
        assert 1.0 < row["cost"] < 3.0
    assert said["overall"][0]["played"] == 1
    assert len(list(charts.glob("*.png"))) == 1
    assert len(list(tmp_path.glob("oracle-*.json"))) == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--trace", "monday"], "no trace monday"),
        (["--policy", "luck"], "no policy luck"),
        (["--trace", "nasa"], "no nasa_sec.csv.gz"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(asked: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["scaling", *asked])
    assert done.exit_code != 0
    assert said in done.output


def test_the_last_days_of_a_series_are_scored_and_the_rest_is_history(trace: Path) -> None:
    scenario = own(trace, Kind("", 0, 1, 1.0, 0.5, 1.0, 2.0, step_s=60))
    load = scenario.loads[0]
    first = int(START_S // 60)
    assert scenario.end_s == START_S + 86_400
    assert np.isnan(load.minutes[: first - 2880]).all()
    counts = read_series(trace.parent, "shop", 60).counts
    assert load.minutes[first - 2880 :].tolist() == counts.tolist()
    assert (load.at_s >= START_S).sum() == counts[-1440:].sum()


def test_a_series_too_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "short.csv.gz", np.ones(1440))
    done = CliRunner().invoke(app, ["scaling", "--trace", str(path)])
    assert done.exit_code != 0
    assert "1 whole days" in done.output


def test_holes_of_a_busy_recording_are_filled_with_what_was_before() -> None:
    counts = np.array([5.0, 6.0, 7.0, 0.0, 0.0, 0.0, 8.0, 0.0, 9.0])
    assert filled(counts, 3).tolist() == [5.0, 6.0, 7.0, 7.0, 6.0, 5.0, 8.0, 0.0, 9.0]
