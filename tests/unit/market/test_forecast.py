"""The hazard model: features that read only the past, serving as trained, and answers from nothing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.market.forecast import baselines
from roost.market.forecast.features import Cadence, PoolFeatures, names, replay
from roost.market.forecast.labels import NEVER, rows_of
from roost.market.forecast.model import Forecaster, PoolStates, prior
from roost.market.forecast.recalibrate import shifts_over
from roost.market.forecast.ridge import fit_logistic, logistic
from roost.market.forecast.train import main
from roost.market.survival import PUBLISHED
from roost.ports.errors import Invalid
from tests.unit.market.recordings import flapping, folder_of, trace_of

REGIONS = ("region-0", "region-0", "region-1")


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    gap_s=st.sampled_from([32.0, 195.24, 600.0]),
    cut=st.integers(1, 119),
)
def test_features_at_a_tick_know_nothing_of_later_ones(seed: int, gap_s: float, cut: int) -> None:
    up = np.random.default_rng(seed).random((120, 3)) < 0.7
    known = np.random.default_rng(seed + 1).random((120, 3)) < 0.9
    whole, _ = replay(up, known, REGIONS, gap_s)
    part, _ = replay(up[:cut], known[:cut], REGIONS, gap_s)
    assert np.isfinite(whole).all()
    assert np.array_equal(whole[:cut], part)


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_online_and_batch_forecasts_are_the_same(seed: int) -> None:
    trace = trace_of(flapping(80, 3, seed))
    forecaster = Forecaster.load()
    pools = forecaster.pools(trace.zones, trace.regions, trace.gap_s)
    batch = forecaster.replay(trace)
    for tick in range(trace.ticks):
        pools.observe(trace.up[tick])
        now = pools.hazards()
        np.testing.assert_allclose(now.p_loss, batch.p_loss[tick], rtol=1e-9)
        np.testing.assert_allclose(now.p_up_1h, batch.p_up_1h[tick], rtol=1e-9)


def test_probabilities_grow_with_the_horizon_and_lie_within_their_intervals() -> None:
    trace = trace_of(flapping(400, 3, seed=3))
    made = Forecaster.load().replay(trace)
    up = trace.up
    assert np.isnan(made.p_loss[~up]).all()
    p = made.p_loss[up]
    assert ((p > 0) & (p < 1)).all()
    assert (np.diff(p, axis=1) >= 0).all()
    assert (made.p_loss_low[up] <= p).all()
    assert (made.p_loss_high[up] >= p).all()
    assert ((made.p_up_1h_low <= made.p_up_1h) & (made.p_up_1h <= made.p_up_1h_high)).all()


def test_a_calm_pool_is_safer_than_a_nervous_one() -> None:
    up = np.ones((600, 2), dtype=bool)
    up[::9, 1] = False
    pools = PoolStates(("a", "b"), ("x", "y"), 300.0)
    for line in up:
        pools.observe(line)
    risk = pools.hazards().p_loss
    assert risk[0, 1] < 0.3 * risk[1, 1]


def test_nothing_seen_is_not_a_number_and_the_prior_is_the_band() -> None:
    pools = PoolStates(("a",), ("x",), 300.0)
    assert np.isnan(pools.hazards().p_loss).all()
    assert np.isnan(pools.hazards().p_up_1h).all()
    assert prior(None) is None
    told = prior(PUBLISHED[">20%"])
    assert told is not None
    expected, low, high = told
    assert (low <= expected).all()
    assert (expected <= high).all()
    assert (np.diff(expected) > 0).all()


def test_own_launches_are_looks_and_newer_than_the_state() -> None:
    pools = PoolStates(("a", "b"), ("x", "y"), 300.0)
    up, refused = np.array([True, True]), np.array([False, True])
    for _ in range(5):
        pools.observe(up)
    pools.observe(up, refused=refused)
    found = pools.hazards()
    assert np.isfinite(found.p_loss[0]).all()
    assert np.isnan(found.p_loss[1]).all()
    pools.observe(~up, launched=np.array([True, False]))
    assert np.isfinite(pools.hazards().p_loss[0]).all()


def test_the_time_between_looks_is_learnt() -> None:
    """A recorder that looks every 632 s and writes every 195.24 s, as that of the nine zones did."""
    random = np.random.default_rng(5)
    gap, between = 195.24, 632.0
    cadence = Cadence(gap, 1)
    look, last = 0, None
    for _ in range(60):
        look += int(random.integers(1, 9))
        tick = int(np.ceil(look * between / gap))
        cadence.changed(0, tick, None if last is None else tick - last)
        last = tick
    assert cadence.period[0] * gap == pytest.approx(between, rel=0.01)
    # Right after a look the next three ticks hold less than the usual number of looks.
    assert cadence.looks(tick, 1)[0] < 0.5
    assert cadence.looks(tick + 2, 1)[0] > 1.3


def test_a_recorder_without_a_rhythm_is_said_to_have_none() -> None:
    random = np.random.default_rng(6)
    cadence, tick = Cadence(60.0, 1), 0
    for _ in range(80):
        run = int(random.integers(1, 60))
        tick += run
        cadence.changed(0, tick, run)
    assert cadence.looks(tick, 10)[0] == 1.0


def test_labels_leave_out_what_was_not_watched_to_the_end() -> None:
    up = np.ones((40, 1), dtype=bool)
    up[20, 0] = False
    rows = rows_of(trace_of(up, gap_s=600.0))
    told, lost = rows.lost(1)
    assert rows.horizons == [1, 6, 36, 144]
    assert lost[told].sum() == 6
    assert not told[rows.tick > 33].any()
    assert rows.down_in[5] == 15
    assert rows.down_in[25] == NEVER
    early = rows.before(20)
    assert (early.down_in == NEVER).all()
    assert not early.lost(1)[0][14:].any()


def test_what_came_corrects_what_is_said() -> None:
    up = flapping(3000, 2, seed=4, up_h=1.0)
    said = np.where(up[:, :, None], np.array([0.01, 0.05, 0.3, 0.5]), np.nan)
    shifts = shifts_over(up, np.ones_like(up), said, 300.0)
    assert (shifts[0] == 0.0).all()
    assert (shifts[-1, :, 1] > 0.3).all()


def test_training_writes_a_model_that_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "STEPS", 10)  # a worse LSTM, sooner
    data = folder_of(trace_of(flapping(1200, 4, seed=8)), tmp_path)
    out = tmp_path / "model.json"
    assert main(["--data", str(data), "--out", str(out)]) == 0
    trace = trace_of(flapping(300, 4, seed=9))
    made = Forecaster.load(out).replay(trace)
    calm, nervous = np.nanmean(made.p_loss[100:, 0, 1]), np.nanmean(made.p_loss[100:, 1, 1])
    assert calm < nervous
    assert "wrote" in capsys.readouterr().err


def test_too_little_to_learn_from_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_of(trace_of(np.ones((50, 2), dtype=bool)), tmp_path)
    assert main(["--data", str(data), "--out", str(tmp_path / "model.json")]) == 2
    assert "too few to learn from" in capsys.readouterr().err
    assert not (tmp_path / "model.json").exists()


def test_a_model_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no model at"):
        Forecaster.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(Invalid, match="is no model"):
        Forecaster.load(tmp_path / "bad.json")


def test_state_costs_the_same_after_a_long_time() -> None:
    pools = PoolFeatures(REGIONS, 300.0)
    size = {name: np.size(value) for name, value in vars(pools).items()}
    for line in flapping(800, 3, seed=2):
        pools.observe(line)
    assert {name: np.size(value) for name, value in vars(pools).items()} == size
    assert pools.matrix().shape == (3, len(names()))


def test_logistic_regression_finds_what_made_the_data() -> None:
    random = np.random.default_rng(0)
    x = np.c_[random.normal(size=(4000, 2)), np.ones(4000)]
    y = (random.random(4000) < logistic(x @ np.array([1.0, -2.0, 0.5]))).astype(float)
    assert fit_logistic(x, y, np.full(3, 1e-3)) == pytest.approx([1.0, -2.0, 0.5], abs=0.2)
