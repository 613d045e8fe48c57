"""Target tracking, steps, schedules, idle limits, hosts and risk."""

import math
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.scaling import hosts, idle, risk, schedule, tracking
from roost.scaling.arrivals import Minutes
from roost.scaling.policies import Scheduled, Step, StepRule, TargetTracking

CPU = TargetTracking(metric="cpu", target=50.0)


def test_target_tracking_is_the_ratio_rule() -> None:
    assert tracking.track(CPU, 100.0, 4, 4) == 8
    assert tracking.track(CPU, 20.0, 4, 4) == 2
    assert tracking.track(CPU, 52.0, 4, 4) == 4
    assert (
        tracking.track(TargetTracking(metric="cpu", target=50.0, scale_in=False), 20.0, 4, 4) == 4
    )


def test_what_is_missing_says_nothing() -> None:
    assert tracking.newest(None) is None
    assert tracking.newest(np.array([70.0, math.nan, math.nan, math.nan])) is None
    assert tracking.newest(np.array([math.nan, 70.0, math.nan])) == 70.0
    assert tracking.track(CPU, None, 4, 4) is None
    assert tracking.track(CPU, 90.0, 0, 0) is None
    assert tracking.step(Step(metric="x", steps=()), None, 3) is None


def test_the_highest_step_reached_applies() -> None:
    policy = Step(metric="q", steps=(StepRule(above=10, add=1), StepRule(above=100, add=5)))
    assert tracking.step(policy, 5.0, 3) is None
    assert tracking.step(policy, 10.0, 3) == 4
    assert tracking.step(policy, 500.0, 3) == 8
    percent = Step(metric="q", steps=(StepRule(above=0, add=-50),), percent=True)
    assert tracking.step(percent, 1.0, 3) == 1


def _utc(*when: int, zone: str = "UTC") -> float:
    return datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type]


def test_the_schedule_that_came_last_holds() -> None:
    day = Scheduled(cron="0 8 * * 1-5", timezone="Europe/Zurich", min=10)
    night = Scheduled(cron="0 20 * * *", timezone="Europe/Zurich", min=1)
    noon = _utc(2026, 3, 30, 12, zone="Europe/Zurich")  # the Monday after the clocks changed
    assert schedule.holding([day, night], noon) is day
    assert schedule.holding([day, night], noon - 5 * 3600) is night
    assert schedule.holding([day], _utc(2026, 3, 30, 8, zone="Europe/Zurich")) is day
    short = Scheduled(cron="0 8 * * *", lasts_s=3600, min=5)
    assert schedule.holding([short], _utc(2026, 3, 30, 8, 59)) is short
    assert schedule.holding([short], _utc(2026, 3, 30, 9)) is None


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        (Scheduled(cron="8 o'clock"), "five fields"),
        (Scheduled(cron="0 8 * * *", timezone="Mars/Olympus"), "time zone"),
        (Scheduled(cron="0 8 * * *", min=5, max=2), "below"),
    ],
)
def test_a_bad_schedule_says_what_to_write(policy: Scheduled, word: str) -> None:
    found = schedule.problem(policy)
    assert found is not None
    assert word in found
    assert schedule.holding([policy], 1e9) is None or policy.max is not None


def test_idle_limits_are_learned_from_gaps() -> None:
    random = np.random.default_rng(2)
    minutes = np.zeros(10 * 1440)
    minutes[np.cumsum(random.choice([1, 2, 3, 240], 600, p=[0.5, 0.3, 0.19, 0.01]))] = 1
    found = idle.limits_s(Minutes(minutes), 5.0, 100.0, 0.02)
    assert all(120 <= limit <= 900 for limit in found)
    assert idle.limits_s(Minutes(np.zeros(1440)), 5.0, 100.0, 0.02) == (idle.UNKNOWN_S,) * 3


def test_a_missing_report_is_no_idle_time() -> None:
    assert idle.since_s(np.array([0.0, 5.0, 0.0, 0.0]), 10.0) == 20.0
    assert idle.since_s(np.array([0.0, 5.0, 0.0, math.nan]), 10.0) == 0.0


def test_hosts_between_the_horizons_stay() -> None:
    assert hosts.wanted(3, 16, 20, 4, 0, 99) == 4
    assert hosts.wanted(5, 16, 20, 4, 0, 99) == 5
    assert hosts.wanted(7, 16, 20, 4, 0, 99) == 5
    assert hosts.wanted(7, 16, 20, 4, 0, 4) == 4
    assert hosts.wanted(0, 0, 0, 4, 2, 4) == 2


shares = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(
        lambda n, passing, before, more: hosts.Share(
            needed=n, lasting=max(0, n - passing), before=before, most=n + more
        ),
        st.integers(0, 20),
        st.integers(0, 5),
        st.integers(0, 40),
        st.integers(0, 30),
    ),
    min_size=1,
)


@given(asked=shares, slots=st.integers(0, 120))
def test_filling_keeps_needs_and_limits(asked: dict[str, hosts.Share], slots: int) -> None:
    given_ = hosts.filled(asked, slots)
    assert all(asked[k].lasting <= n <= asked[k].most for k, n in given_.items())
    if sum(s.needed for s in asked.values()) <= slots:
        assert all(asked[k].needed <= n for k, n in given_.items())
    assert sum(given_.values()) <= max(slots, sum(s.lasting for s in asked.values()))


def test_filling_does_not_move_what_fills() -> None:
    a = hosts.Share(needed=3, lasting=3, before=6, most=99)
    b = hosts.Share(needed=4, lasting=4, before=4, most=99)
    assert hosts.filled({"a": a, "b": b}, 10) == {"a": 6, "b": 4}
    pressed = hosts.Share(needed=5, lasting=5, before=4, most=99)
    assert hosts.filled({"a": a, "b": pressed}, 10) == {"a": 5, "b": 5}


def test_what_passes_soon_has_to_do_with_the_slots_there_are() -> None:
    calm = hosts.Share(needed=3, lasting=3, before=6, most=99)
    surging = hosts.Share(needed=9, lasting=5, before=5, most=99)
    assert hosts.filled({"a": calm, "b": surging}, 10) == {"a": 3, "b": 7}
    assert hosts.filled({"a": calm, "b": surging}, 6) == {"a": 3, "b": 5}


def test_late_requests_make_careful_and_their_absence_careless() -> None:
    minutes = np.full(60, 100.0)
    usual = risk.gain(9 * 86400.0, 0.0)
    worse = risk.corrected(0.5, minutes * 0.1, minutes, 100.0, 0.008, usual)
    better = risk.corrected(0.5, minutes * 0.0, minutes, 100.0, 0.008, usual)
    unknown = risk.corrected(0.5, minutes * math.nan, minutes, 100.0, 0.008, usual)
    assert risk.corrected(0.5, minutes * 0.0, minutes, 100.0, 0.008, 2.0 * usual) < better
    assert worse > 0.5 > better >= 0.0
    assert unknown == 0.5
    assert risk.price(1.0) < risk.price(0.5) < 1.0


def test_a_new_service_learns_faster_and_most_where_surges_are_harmless() -> None:
    old, bursty, steady = risk.gain(9 * 86400.0, 0.0), risk.gain(60.0, 1.0), risk.gain(60.0, 0.0)
    assert old < bursty < risk.gain(60.0, 0.5) < steady
    assert risk.gain(9 * 86400.0, 1.0) == old
    assert risk.started(1.0) == 1.0 < risk.started(0.0)
