"""Rates, dispersion and missing values."""

import math

import numpy as np

from roost.scaling.arrivals import Minutes, bin_minutes, dispersion, rate_now


def test_missing_minutes_are_not_zero() -> None:
    y = Minutes(np.array([10.0, math.nan, 20.0]))
    assert y.mean(0, 3) == 15.0
    assert y.known(0, 3) == 2
    assert y.day_mean == 15.0


def test_dispersion_is_blind_to_ramps_and_steps_but_sees_noise() -> None:
    random = np.random.default_rng(1)
    steady = random.poisson(50, 180).astype(float)
    ramp = np.linspace(100, 2000, 180)
    step = np.repeat([100.0, 1000.0], 90)
    bursty = random.poisson(50, 180) * random.integers(0, 3, 180).astype(float)
    assert 0.7 <= dispersion(steady, 10.0, None) < 1.5
    assert dispersion(ramp, 10.0, None) == 0.7
    assert dispersion(step, 10.0, None) == 0.7
    assert dispersion(bursty, 10.0, None) > 10


def test_dispersion_of_nothing_known_stays() -> None:
    assert dispersion(np.full(180, math.nan), 10.0, 3.0) == 3.0
    assert dispersion(np.zeros(0), 10.0, None) == 1.0


def test_a_jump_counts_more_than_the_minute() -> None:
    calm = np.array([100.0] * 6)
    assert rate_now(calm, 10.0, 1.0) == (10.0, 10.0)
    jump = np.array([100.0, 100, 100, 100, 100, 400])
    found = rate_now(jump, 10.0, 1.0)
    assert found is not None
    assert found[0] > 40.0 > found[1]


def test_a_missing_newest_report_is_no_rate() -> None:
    assert rate_now(np.array([100.0, 100, math.nan]), 10.0, 1.0) is None
    assert rate_now(np.zeros(0), 10.0, 1.0) is None
    older = rate_now(np.array([math.nan, 100.0, 100.0]), 10.0, 1.0)
    assert older == (10.0, 10.0)


def test_bins_widen_with_few_requests() -> None:
    assert [bin_minutes(rate) for rate in (100, 60, 10, 3, 0.5)] == [1, 1, 5, 5, 15]
