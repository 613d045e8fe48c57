"""Surges: those that pass are told from those that last, and what was never seen is taken to last."""

import math

import numpy as np
import pytest

from roost.scaling import surges
from roost.scaling.arrivals import DAY, Minutes

USUAL = 600.0


def _surging(minutes: int) -> np.ndarray:
    """Three days of 600 a minute; each second hour begins with so many minutes of 1,500."""
    return np.where(np.arange(3 * DAY) % 120 < minutes, 1500.0, USUAL)


def _part(parts: tuple[float, ...], rate: float = 1500.0) -> float:
    return surges.part(rate, USUAL, USUAL, parts)


def test_minutes_that_stand_alone_leave_nothing_to_a_new_host() -> None:
    assert _part(surges.lasting(Minutes(_surging(1)), 2)) < 0.2
    assert _part(surges.lasting(Minutes(_surging(20)), 2)) > 0.7


def test_sizes_are_told_apart() -> None:
    y = _surging(20)
    y[np.isin(np.arange(len(y)) % 120, (50, 65, 80, 95))] = 800.0
    parts = surges.lasting(Minutes(y), 2)
    assert _part(parts, 800.0) < 0.4 < 0.7 < _part(parts)


def test_what_is_not_known_lasts() -> None:
    assert _part(surges.lasting(Minutes(np.full(3 * DAY, USUAL)), 2)) == 1.0
    assert surges.lasting(Minutes(np.full(5, USUAL)), 2) == ()
    holes = _surging(1)
    holes[3::120] = math.nan
    assert _part(surges.lasting(Minutes(holes), 2)) == 1.0
    assert surges.left(9.0, 10.0, 0.0) == 9.0


def test_only_what_comes_faster_than_hosts_is_a_danger() -> None:
    ramps = USUAL * (1.0 + np.abs(np.arange(3 * DAY) % 240 - 120) / 60.0)
    assert surges.sudden(Minutes(ramps), 4, 1.0) == 0.0
    bursts = Minutes(_surging(6))
    # Six minutes of 1,500 in 120; five of them are not yet in the level a host was asked for at.
    late = 5 * (1500 - 1.6 * 600 - 3 * math.sqrt(600))
    assert surges.sudden(bursts, 4, 1.0) == pytest.approx(late / (114 * 600 + 6 * 1500), rel=0.05)
    assert surges.sudden(bursts, 4, 30.0) < surges.sudden(bursts, 4, 1.0)
    assert surges.sudden(Minutes(_surging(6)[:1000]), 4, 1.0) == 1.0, "too little is known"


@pytest.mark.parametrize(("lasts", "least", "most"), [(1, -0.01, 0.35), (30, 0.9, 1.01)])
def test_jumps_of_seconds(lasts: int, least: float, most: float) -> None:
    recent = np.where(np.arange(180) % 60 < lasts, 400.0, 100.0)
    seen, kept = surges.jumps(recent, 10.0, 1.0, USUAL, 180)
    parts = surges.parts(10.0 * seen, 10.0 * kept)
    assert least <= surges.part(2400.0, 900.0, USUAL, parts) <= most
    nothing, _ = surges.jumps(np.full(180, math.nan), 10.0, 1.0, USUAL, 6)
    assert not nothing.any()
