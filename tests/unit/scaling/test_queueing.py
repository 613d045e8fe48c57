"""The queueing formula against the textbook recurrence; the search for the cheapest replicas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.scaling.queueing import Loads, cheapest, late_share, waits


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
    price=st.floats(0.003, 0.4),
    spread=st.floats(0.5, 8.0),
)
def test_cheapest_is_the_cheapest_of_all(rates: list[float], price: float, spread: float) -> None:
    column = np.array([rates])
    odds = np.full(len(rates), 1.0 / len(rates))
    mean = float(column.mean())
    one = np.ones(1)
    found = int(cheapest(column, odds, _loads(spread=spread), one * price, one * mean)[0])

    def cost(count: int) -> float:
        share = late_share(one * count, column[0], one, one * spread, one * 2.0)
        return float((share * column[0] * odds).sum() / mean + price * count / mean)

    every = [cost(count) for count in range(int(max(rates) * 2 + 60))]
    assert cost(found) <= min(every) * 1.05 + 1e-9


def test_the_dearer_replicas_are_the_fewer_are_taken() -> None:
    rates, odds, one = np.array([[40.0, 160.0]]), np.array([0.9, 0.1]), np.ones(1)
    taken = [
        int(cheapest(rates, odds, _loads(), one * price, one * 40.0)[0])
        for price in (0.001, 0.02, 0.3, 3.0)
    ]
    assert taken == sorted(taken, reverse=True)
    assert taken[0] > 160 > taken[2] > 40 > taken[3] == 0


def test_no_load_needs_nothing_and_concurrency_needs_fewer() -> None:
    one = np.ones(1)
    rates, odds = np.array([[40.0]]), np.ones(1)
    assert cheapest(np.zeros((1, 1)), odds, _loads(), one * 0.1, one)[0] == 0
    alone, shared = (
        cheapest(rates, odds, _loads(k=k), one * 0.05, one * 40.0)[0] for k in (1.0, 4.0)
    )
    assert alone > 40
    assert alone / 4 - 1 <= shared <= alone / 4 + 1
