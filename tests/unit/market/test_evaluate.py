"""Measures against what is known of them, and a whole evaluation of a small folder."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import brier_score_loss, f1_score, log_loss, roc_auc_score
from typer.testing import CliRunner

from roost.main.cli import app
from roost.market.forecast import baselines
from roost.market.forecast.bands import fit_bands, judge_bands, worst_band
from roost.market.forecast.lifetimes import (
    fit_lifetimes,
    judge_lifetimes,
    kaplan_meier,
    survival_of,
)
from roost.market.forecast.metrics import forecast_measures, state_measures
from roost.market.traces import LIFETIMES
from tests.unit.market.recordings import flapping, folder_of, trace_of


def test_measures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    p = np.round(random.random(3000), 2)
    y = random.random(3000) < p
    block = np.repeat(np.arange(30), 100)
    time = np.where(y, 1.0, 2.0)
    found = forecast_measures(p, y, block, time, y)
    value = {name: measure.value for name, measure in found.items()}
    assert value["auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-3)
    assert value["brier"] == pytest.approx(brier_score_loss(y, p), abs=1e-4)
    assert value["log_loss"] == pytest.approx(log_loss(y, np.clip(p, 1e-6, 1 - 1e-6)), abs=1e-4)
    assert value["ece"] == pytest.approx(0.0, abs=0.05)
    # With two times only, concordance is the area under the curve.
    assert value["c_index"] == pytest.approx(roc_auc_score(y, p), abs=0.02)
    for measure in found.values():
        assert measure.low is not None
        assert measure.high is not None
        assert measure.low < measure.high
    told = state_measures(p, y, block)["macro_f1"].value
    assert told == pytest.approx(f1_score(y, p >= 0.5, average="macro"), abs=1e-4)


def test_what_cannot_be_told_is_not_a_number_made_up() -> None:
    none = np.zeros(50, dtype=bool)
    found = forecast_measures(np.full(50, 0.1), none, np.arange(50) // 5, np.ones(50), none)
    assert found["auc"].value is None
    assert found["c_index"].value is None
    assert found["brier"].value == pytest.approx(0.01)


def test_kaplan_meier_by_hand() -> None:
    hours = np.array([1.0, 2.0, 2.0, 3.0])
    lost = np.array([True, True, False, True])
    curve = kaplan_meier(hours, lost, np.array([0.5, 1.0, 2.5, 3.0]))
    assert curve == pytest.approx([1.0, 0.75, 0.5, 0.0])


def machines() -> pl.DataFrame:
    """Big machines die sooner."""
    random = np.random.default_rng(1)
    big = random.random(600) < 0.5
    life = random.exponential(np.where(big, 4.0, 16.0))
    start = datetime(2019, 3, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "name": [f"m{i}" for i in range(600)],
            "zone": random.choice(["us-east1-b", "us-west1-a"], 600),
            "machine_type": np.where(big, "n1-highcpu-32", "n1-highcpu-2"),
            "start_utc": [start + timedelta(hours=i) for i in range(600)],
            "lifetime_h": np.minimum(life, 24.0),
            "preempted": life < 20.0,
            "idle": np.zeros(600, dtype=bool),
        }
    )


def test_lifetimes_are_told_from_the_size() -> None:
    frame = machines()
    model = fit_lifetimes(frame)
    survival = survival_of(model, frame)
    big = (frame["machine_type"] == "n1-highcpu-32").to_numpy()
    assert survival[big].mean() < 0.8 * survival[~big].mean()
    judged = judge_lifetimes(frame, model)["later_launches"]
    model_c, constant_c = judged["model"]["c_index"].value, judged["constant"]["c_index"].value
    assert model_c is not None
    assert model_c > 0.6
    assert constant_c == pytest.approx(0.5)


def pools(regions: int = 10) -> pl.DataFrame:
    """A type is in the worst band mostly everywhere or nowhere, and more so in large regions."""
    random = np.random.default_rng(2)
    lines = []
    for region in range(regions):
        for kind in range(60):
            if random.random() < 0.8:
                bad = kind % 3 == 0 and random.random() < 0.85
                lines.append(
                    {
                        "snapshot": "2025-06-28",
                        "region": f"region-{region}",
                        "os": "Linux",
                        "instance_type": f"{'mcr'[kind % 3]}{kind // 12 + 2}.{2 ** (kind % 5)}xlarge",
                        "cores": 2 ** (kind % 5),
                        "ram_gb": 8.0,
                        "emr": True,
                        "interruption_bucket": 4 if bad else int(random.integers(0, 4)),
                        "savings_pct": int(random.integers(50, 90)),
                    }
                )
    return pl.DataFrame(lines).unique(["region", "instance_type"], maintain_order=True)


def test_bands_of_an_unseen_region_are_told_from_the_others() -> None:
    frame = pools()
    model = fit_bands(frame.filter(pl.col("region") != "region-3"))
    new = frame.filter(pl.col("region") == "region-3")
    told = worst_band(model, new)
    worst = (new["interruption_bucket"] == 4).to_numpy()
    assert told[worst].mean() > 2 * told[~worst].mean()
    # Its own bands are not read.
    hidden = new.with_columns(interruption_bucket=pl.lit(0))
    assert np.array_equal(worst_band(model, hidden), told)
    judged = judge_bands(frame, model, lambda _: None)
    assert set(judged) == {"shipped_on_new_regions", "regions_left_out"}
    auc = judged["regions_left_out"]["model"]["auc"].value
    assert auc is not None
    assert auc > 0.75


def test_a_folder_is_judged_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "STEPS", 10)  # a worse LSTM, sooner
    folder_of(trace_of(flapping(500, 2, seed=11)), tmp_path)
    machines().write_parquet(tmp_path / LIFETIMES)
    charts = tmp_path / "charts"
    command = ["market", "evaluate", "--data", str(tmp_path), "--json", "--charts", str(charts)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["missing"] == ["aws_spot_advisor_2021_2025.parquet"]
    (scores,) = report["traces"]
    assert scores["share_trained_on"] == 0.0
    for mode in ("shipped", "rolling_origin", "zones_left_out"):
        one = scores[mode]["1h"]
        assert set(one) == {"model", "constant", "kaplan_meier", "persistence", "lstm"}
        assert 0.0 <= one["model"]["ece"]["low"] <= one["model"]["ece"]["high"]
        assert set(scores[mode]["up_1h"]) == {"model", "persistence"}
    assert (
        report["headline"]["made-up"]["auc_1h"] == scores["shipped"]["1h"]["model"]["auc"]["value"]
    )
    assert {"later_launches", "zones_left_out"} <= set(report["lifetimes"])
    assert len(list(charts.glob("*.png"))) >= 2


def test_a_person_reads_a_table_and_what_is_wrong(tmp_path: Path) -> None:
    folder_of(trace_of(flapping(400, 2, seed=12)), tmp_path)
    done = CliRunner().invoke(app, ["market", "evaluate", "--data", str(tmp_path), "--quick"])
    assert done.exit_code == 0
    assert "kaplan_meier" in done.stdout
    assert "is not there" in done.stdout
    wrong = CliRunner().invoke(app, ["market", "evaluate", "--data", str(tmp_path / "nowhere")])
    assert wrong.exit_code == 2
    assert "not a folder" in wrong.stderr
