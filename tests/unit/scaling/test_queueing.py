"""The queueing formula against the textbook recurrence, and the search for the fewest replicas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.scaling.queueing import Loads, fewest, late_share, waits


def _erlang_c(servers: int, offered: float) -> float:
    blocked = 1.0
    for i in range(1, servers + 1):
        blocked = offered * blocked / (i + offered * blocked)
    return blocked / (1.0 - (offered / servers) * (1.0 - blocked))


@given(servers=st.integers(1, 300), use=st.floats(0.01, 0.99))
def test_erlang_c_is_the_recurrence(servers: int, use: float) -> None:
    offered = servers * use
    expected = _erlang_c(servers, offered)
    assert waits(np.array([servers]), np.array([offered]))[0] == pytest.approx(expected, rel=1e-6)


def test_what_is_overloaded_is_late() -> None:
    assert waits(np.array([4.0, 4.0, 4.0]), np.array([4.0, 9.0, 0.0])).tolist() == [1, 1, 0]


def _loads(service_s: float = 1.0, spread: float = 1.0, k: float = 1.0) -> Loads:
    one = np.ones(1)
    return Loads(
        service_s=one * service_s, spread=one * spread, slack_s=one * 2.0, concurrency=one * k
    )


@given(
    rates=st.lists(st.floats(0.01, 200.0), min_size=1, max_size=5),
    risk=st.floats(0.001, 0.5),
    spread=st.floats(0.5, 8.0),
)
def test_fewest_is_enough_and_one_less_is_not(
    rates: list[float], risk: float, spread: float
) -> None:
    column = np.array([rates])
    odds = np.full(len(rates), 1.0 / len(rates))
    found = int(fewest(column, odds, _loads(spread=spread), np.array([risk]))[0])

    def late(count: int) -> float:
        one = np.ones(1)
        share = late_share(one * count, column[0], one, one * spread, one * 2.0)
        return float((share * column[0]).sum() / column[0].sum())

    assert late(found) <= risk + 1e-9
    assert found == 0 or late(found - 1) > risk - 1e-9


def test_no_load_needs_nothing_and_concurrency_needs_fewer() -> None:
    risk = np.array([0.01])
    rates, odds = np.array([[40.0]]), np.ones(1)
    assert fewest(np.zeros((1, 1)), odds, _loads(), risk)[0] == 0
    alone, shared = (fewest(rates, odds, _loads(k=k), risk)[0] for k in (1.0, 4.0))
    assert alone > 40
    assert alone / 4 <= shared <= alone / 4 + 1
