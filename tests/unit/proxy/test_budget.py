"""Retry and hedge budgets, the histogram behind the p99."""

import math
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from roost.proxy import policy
from roost.proxy.budget import WINDOW_S, Latencies, Window
from roost.proxy.upstream import Outcome, Upstreams


def test_a_quiet_service_has_the_floor_and_a_busy_one_its_share() -> None:
    window = Window()
    assert sum(window.take_retry(0.2, 10.0, 5.0) for _ in range(1000)) == 100
    window = Window()
    window.count(10_000, 5.0)
    assert sum(window.take_retry(0.2, 10.0, 5.5) for _ in range(5000)) == 2100
    assert not window.take_retry(0.2, 10.0, 6.0)
    assert window.take_retry(0.2, 10.0, 15.5)  # all of it is forgotten
    assert window.requests == 0
    assert window.retries == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.integers(0, 50), st.integers(0, 30), st.integers(0, 30)),
        max_size=60,
    )
)
def test_the_window_holds_what_happened_in_it(steps: list[tuple[float, int, int, int]]) -> None:
    window = Window()
    now_s = 100.0
    requests: list[tuple[int, int]] = []
    retries: list[int] = []
    hedges: list[int] = []
    for passed_s, count, again, copies in steps:
        now_s += passed_s
        second = int(now_s)
        window.count(count, now_s)
        requests.append((second, count))
        for _ in range(again):
            if window.take_retry(0.2, 1.0, now_s):
                retries.append(second)
        for _ in range(copies):
            if window.take_hedge(0.05, now_s):
                hedges.append(second)
        fresh = second - WINDOW_S
        assert window.requests == sum(n for at, n in requests if at > fresh)
        assert window.retries == sum(at > fresh for at in retries)
        assert window.hedges == sum(at > fresh for at in hedges)
        assert window.retries <= 0.2 * sum(n for _, n in requests) + 1.0 * WINDOW_S


def test_budgets_of_a_service() -> None:
    service = policy.Service(
        name="web",
        backends=("127.0.0.1:1", "127.0.0.1:2"),
        retries=policy.Retries(budget_share=0.1, budget_per_s=0.5),
    )
    upstreams = Upstreams(service)
    for turn in range(1000):
        chosen = upstreams.pick(turn / 200)
        assert chosen is not None
        chosen.begin()
        chosen.end(Outcome.OK, 0.01, turn / 200)
    upstreams.refresh(5.1)
    assert sum(upstreams.may_retry(5.1) for _ in range(500)) == 105
    assert sum(upstreams.may_hedge(5.1) for _ in range(500)) == 51
    assert not Upstreams(
        policy.Service(name="web", hedging=policy.Hedging(enabled=False))
    ).may_hedge(0.0)


def test_hedges_wait_for_twice_the_p99() -> None:
    upstreams = Upstreams(policy.Service(name="web", backends=("127.0.0.1:1",)))
    assert upstreams.hedge_after_s() >= 0.05
    rng = Random(1)
    for turn in range(4000):
        chosen = upstreams.pick(turn / 200)
        assert chosen is not None
        chosen.begin()
        chosen.end(Outcome.OK, 0.2 + 0.1 * rng.random(), turn / 200)
    assert 2 * 0.28 < upstreams.hedge_after_s() < 2 * 0.36


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-4, 100.0), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_quantile_is_at_most_a_quarter_too_high(samples: list[float], share: float) -> None:
    latencies = Latencies()
    latencies.add(samples, 0.0)
    exact = sorted(samples)[max(0, math.ceil(share * len(samples) - 1e-9) - 1)]
    assert exact * 0.999 <= latencies.quantile(share) <= exact * 1.26 + 1e-5


def test_old_latencies_are_forgotten() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.99) == 0.0
    latencies.add([1.0] * 100, 0.0)
    for second in range(1, 120):
        latencies.add([0.01] * 10, float(second))
    assert latencies.quantile(0.99) < 0.02
