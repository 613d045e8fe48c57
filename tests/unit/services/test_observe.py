"""What decisions see: counters that begin anew, edges that are silent, bounded memory."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.ports.errors import Invalid
from roost.ports.replicas import ServiceReport
from roost.ports.seen import Seen, ServiceSeen
from roost.ports.values import HostReport
from roost.services.observe import History
from roost.services.series import Series

T = 1_700_000_040.0  # a full minute


def said(at_s: float, arrived: int, *, edge: int = 0, began_s: float = 1.0, late: int = 0) -> Seen:
    service = ServiceSeen(service_id="s", arrived=arrived, finished=arrived, late=late)
    return Seen(edge=edge, began_s=began_s, at_s=at_s, services=(service,))


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 10)), max_size=60),
    st.integers(1, 200),
)
def test_a_series_is_a_bounded_dictionary(adds: list[tuple[int, float]], kept: int) -> None:
    series, model = Series(kept), dict[int, float]()
    for index, value in adds:
        series.add(index, value)
        begins = series.begins
        if begins is not None and index >= begins:
            model[index] = model.get(index, 0.0) + value
    if not adds:
        assert not len(series.view(10, 5))
        return
    end = max(index for index, _ in adds) + 1
    view = series.view(end, kept)
    expected = [model.get(i, 0.0) for i in range(end - len(view), end)]
    assert np.allclose(view, expected)
    assert len(series._buffer) <= max(256, 2 * kept)


def test_arrivals_are_differences_and_an_edge_that_begins_anew_starts_from_nothing() -> None:
    history = History()
    history.seen(said(T, 100))  # met for the first time: nobody knows when these came
    history.seen(said(T + 1, 103))
    history.seen(said(T + 2, 110))
    history.seen(said(T + 3, 4, began_s=T + 2.5))
    history.seen(said(T + 3, 5, edge=1))
    history.seen(said(T + 4, 9, edge=1))
    for second in range(5, 60):
        history.seen(Seen(edge=0, began_s=T + 2.5, at_s=T + second))
    assert history.minutes("s", T + 60).tolist() == [3 + 7 + 4 + 4]
    recent = history.recent("s", T + 60, 10)
    assert recent.sum() == 18
    assert recent[0] == 18


def test_a_time_nobody_spoke_of_is_unknown_not_zero() -> None:
    history = History()
    for second in range(60):
        history.seen(said(T + second, second))
    for second in range(120, 180):  # a minute of silence between
        history.seen(said(T + second, second))
    minutes = history.minutes("s", T + 180)
    assert minutes[0] == 59
    assert math.isnan(minutes[1])
    assert 59 <= minutes[2] <= 61, "what came meanwhile is no burst of the second it is told"
    assert np.isnan(history.recent("s", T + 180, 10)[-12:-6]).all()
    assert not len(history.minutes("other", T + 180))


def test_service_time_is_measured_inside_replicas_once_enough_have_finished() -> None:
    history = History()

    def report(n: int, busy_s: float, busy_s2: float, began_s: float = 1.0) -> HostReport:
        service = ServiceReport(
            service_id="s", began_s=began_s, requests=n, busy_s=busy_s, busy_s2=busy_s2, waited_s=n
        )
        return HostReport(host_id="i-1", at_s=T + 1, services=(service,))

    history.hosts([report(40, 4.0, 0.8)])
    assert history.service_time("s", T + 2) is None
    history.hosts([report(100, 10.0, 2.0)])
    found = history.service_time("s", T + 2)
    assert found is not None
    assert np.allclose(found, (0.1, 1.0))
    history.hosts([report(10, 1.0, 0.2, began_s=2.0)])
    again = history.service_time("s", T + 2)
    assert again is not None
    assert np.allclose(again, (0.1, 1.0)), "a host that began anew counts from nothing"
    assert np.allclose(history.latency_s("s", T + 2), (1.1, 1.0))


def test_metrics_of_the_owners_own_grow_old() -> None:
    history = History()
    history.tell("s", "jobs", 7.0, T)
    assert history.told("s", T + 30, 30) == {"jobs": 7.0}
    assert math.isnan(history.told("s", T + 31, 30)["jobs"])
    with pytest.raises(Invalid, match="measured here"):
        history.tell("s", "cpu", 7.0, T)


def test_lateness_has_the_length_of_the_minutes() -> None:
    history = History()
    for second in range(0, 240, 20):
        history.seen(said(T + second, second, late=second // 20))
    late, total = history.lateness("s", T + 240)
    assert len(late) == len(total) == len(history.minutes("s", T + 240))
    assert late.sum() == 11
    history.forget([])
    assert not len(history.minutes("s", T + 240))
