"""The queue of the scaling simulator against one that is written to be obvious."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.sim.scaling.queue import Queue
from roost.sim.scaling.scenario import Load

PERIOD_S = 10.0


def load(at_s: list[float], takes_s: list[float], bound_s: float = 4.0, wide: int = 1) -> Load:
    return Load(
        name="web",
        mean_s=1.0,
        bound_s=bound_s,
        concurrency=wide,
        min_replicas=1,
        max_replicas=100,
        at_s=np.array(at_s),
        takes_s=np.array(takes_s),
        minutes=np.zeros(100),
    )


def responses(at_s: list[float], takes_s: list[float], opens_s: list[float]) -> list[float]:
    """First come first served, by looking at every slot for every request."""
    free = list(opens_s)
    found = []
    for at, takes in zip(at_s, takes_s, strict=True):
        best = min(range(len(free)), key=lambda one: free[one])
        start = max(at, free[best])
        free[best] = start + takes
        found.append(start + takes - at)
    return found


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    requests=st.integers(1, 400),
    slots=st.integers(1, 12),
    opening=st.lists(st.floats(0.0, 200.0), max_size=6),
    wide=st.integers(1, 3),
    load_per_slot=st.floats(0.2, 2.0),
)
def test_each_response_time_is_that_of_the_obvious_queue(
    seed: int, requests: int, slots: int, opening: list[float], wide: int, load_per_slot: float
) -> None:
    random = np.random.default_rng(seed)
    gaps = random.exponential(1.0 / (load_per_slot * slots * wide), requests)
    at_s, takes_s = np.cumsum(gaps), random.gamma(1.0, 1.0, requests)
    queue = Queue(load(at_s.tolist(), takes_s.tolist(), wide=wide))
    queue.slots, queue.opening = slots * wide, list(opening)
    now_s = busy_s = 0.0
    while queue.head < requests or queue.busy.size:
        busy_s += queue.advance(now_s, now_s + PERIOD_S).busy_s
        now_s += PERIOD_S
    opens = [0.0] * (slots * wide) + [at for at in opening for _ in range(wide)]
    wanted = np.array(responses(at_s.tolist(), takes_s.tolist(), opens))
    assert queue.response_s == pytest.approx(wanted)
    assert busy_s == pytest.approx(takes_s.sum())
    assert queue.late.sum() == ((wanted > 4.0) & (takes_s <= 4.0)).sum()


def test_slots_taken_away_are_idle_ones_first_and_what_is_in_flight_ends() -> None:
    queue = Queue(load([0.0, 1.0, 12.0], [15.0, 30.0, 1.0]))
    queue.slots = 3
    queue.advance(0.0, 10.0)
    assert queue.shrink(10.0, 1).size == 0
    assert queue.shrink(10.0, 1).tolist() == [15.0]
    assert queue.slots == 1
    queue.advance(10.0, 20.0)
    assert queue.queued == 1
    queue.advance(20.0, 40.0)
    assert queue.response_s[2] == 20.0


def test_a_request_longer_than_the_bound_by_itself_counts_for_nobody() -> None:
    queue = Queue(load([0.0, 1.0], [5.0, 1.0], bound_s=4.0))
    queue.slots = 1
    queue.advance(0.0, 20.0)
    assert queue.total.sum() == 1
    assert queue.late.sum() == 1  # the second waited 4 s


def test_late_for_want_of_anything_awake_is_told_apart() -> None:
    queue = Queue(load([1.0, 2.0, 31.0, 32.0, 33.0], [1.0] * 5, bound_s=1.5))
    queue.opening = [30.0]
    queue.advance(0.0, 10.0)
    queue.advance(10.0, 40.0)
    assert queue.late.sum() == 5
    assert queue.spoilt.sum() == 2
