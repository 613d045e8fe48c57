"""Samplers on made-up days: what comes each hour is expected each hour, what came and went is not."""

import math

import numpy as np

from roost.scaling import forecast
from roost.scaling.arrivals import Minutes

DAY = 1440


def _hourly(days: int) -> np.ndarray:
    """100 a minute, 400 in minutes 30-35 of every hour."""
    minute = np.arange(days * DAY) % 60
    return np.where((minute >= 30) & (minute < 36), 400.0, 100.0)


def test_what_comes_each_hour_is_expected_before_it_comes() -> None:
    y = Minutes(_hourly(5)[: 4 * DAY + 28])
    found = forecast.quantiles(y, y.size, (4, 15), 1)
    assert found is not None
    assert np.all(found[0, 0, 2:] > 350)
    after = Minutes(_hourly(5)[: 4 * DAY + 45])
    found = forecast.quantiles(after, after.size, (4,), 1)
    assert found is not None
    assert np.all(found[0, 0] < 150)


def test_alike_tells_the_hours_with_from_those_without() -> None:
    """Bursts each third hour: the hours in between are known to be calm."""
    minute = np.arange(14 * DAY)
    burst = (minute % 180 >= 30) & (minute % 180 < 36)
    y = np.where(burst, 400.0, 100.0)
    alike = forecast.SAMPLERS.index("alike")
    for hour, least, most in ((0, 350.0, 500.0), (1, 50.0, 150.0), (2, 50.0, 150.0)):
        end = 13 * DAY + hour * 60 + 28
        found = forecast.quantiles(Minutes(y[:end]), end, (4,), 1)
        assert found is not None
        middle = found[0, alike, 2]
        assert least < middle < most, hour
    early = forecast.quantiles(Minutes(y[: 13 * DAY + 25]), 13 * DAY + 25, (4,), 1)
    assert early is not None
    assert early[0, alike].max() < 150.0, "what begins on the minute is not expected before"


def test_the_same_hour_of_other_days_counts_most() -> None:
    """One burst a day at 09:30: expected then, although of all hours hardly one has any."""
    minute = np.arange(14 * DAY)
    y = np.where((minute % DAY >= 570) & (minute % DAY < 576), 400.0, 100.0)
    alike = forecast.SAMPLERS.index("alike")
    for hour, least, most in ((9, 350.0, 500.0), (15, 50.0, 150.0)):
        end = 13 * DAY + hour * 60 + 28
        found = forecast.quantiles(Minutes(y[:end]), end, (4,), 1)
        assert found is not None
        assert least < found[0, alike, 3] < most, hour


def test_nothing_is_said_of_an_unknown_level() -> None:
    y = np.full(3 * DAY, 100.0)
    y[-2] = math.nan
    assert forecast.quantiles(Minutes(y), 3 * DAY, (4,), 1) is None
    assert forecast.quantiles(Minutes(y[:2]), 2, (4,), 1) is None


def test_a_short_history_says_what_it_can() -> None:
    y = Minutes(np.full(90, 100.0))
    found = forecast.quantiles(y, 90, (4, 15), 1)
    assert found is not None
    days = forecast.SAMPLERS.index("days")
    np.testing.assert_allclose(found[:, days], 100.0)
    assert np.isnan(found[:, forecast.SAMPLERS.index("alike")]).all()
    best = forecast.choose(found[0], np.zeros((3, len(forecast.LEVELS))))
    np.testing.assert_allclose(best, 100.0)


def test_holes_in_the_past_are_left_out() -> None:
    y = np.full(5 * DAY, 100.0)
    y[DAY : DAY + 60] = math.nan
    found = forecast.quantiles(Minutes(y), 5 * DAY, (4,), 1)
    assert found is not None
    np.testing.assert_allclose(found[0], 100.0)


def test_truth_and_loss() -> None:
    y = Minutes(np.arange(60.0))
    assert forecast.truth(y, 50, 4, 1) == 53.0
    assert forecast.truth(y, 58, 4, 1) is None
    assert forecast.pinball(np.full(9, 10.0), 20.0).argmax() == 8


def test_the_noise_of_counting_is_taken_out() -> None:
    spread = np.linspace(5, 15, 9)
    calm = forecast.denoise(spread, 1, 1.0)
    assert np.ptp(calm) < np.ptp(spread)
    assert abs((calm * forecast.MASS).sum() - (spread * forecast.MASS).sum()) < 1e-9
