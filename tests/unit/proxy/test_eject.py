"""Who is taken out by what requests meet, and how it comes back. The simulation's robust properties."""

from collections import Counter

import pytest

from bench.gateway.balance_sim import ALGORITHMS, Simulation, simulate
from roost.proxy import policy
from roost.proxy.upstream import Outcome, Upstream, Upstreams

ADDRESSES = tuple(f"127.0.0.1:{8001 + n}" for n in range(10))


def service(n: int, **more: object) -> Upstreams:
    return Upstreams(policy.Service(name="web", backends=ADDRESSES[:n], **more))  # type: ignore[arg-type]


def request(
    upstreams: Upstreams, now_s: float, sick: Counter[str] | None = None, **more: object
) -> Upstream:
    """One request at once over; ``sick`` backends fail and are counted."""
    chosen = upstreams.pick(now_s, **more)  # type: ignore[arg-type]
    assert chosen is not None
    chosen.begin()
    bad = sick is not None and chosen.address in sick
    if sick is not None and bad:
        sick[chosen.address] += 1
    chosen.end(Outcome.FAILED if bad else Outcome.OK, 0.01, now_s)
    return chosen


def hit(upstreams: Upstreams, index: int, outcome: Outcome, now_s: float, times: int = 1) -> None:
    """Requests at one backend, as if it had been picked."""
    for _ in range(times):
        upstreams.members[index].begin()
        upstreams.members[index].end(outcome, 0.01, now_s)


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.RESET])
def test_a_lost_connection_ejects_at_once_and_each_time_for_longer(outcome: Outcome) -> None:
    upstreams = service(4)
    sick = upstreams.members[0]
    now_s = 1.0
    for seconds in (0.5, 1.0, 2.0, 4.0, 8.0, 8.0):
        hit(upstreams, 0, outcome, now_s)
        assert sick.state == "ejected"
        assert sick.out_for_s == seconds
        for step in range(10):
            assert request(upstreams, now_s + seconds * step / 10) is not sick
        now_s += seconds
        assert upstreams.pick(now_s, idempotent=False) is not sick
        assert sick.state == "half-open"


def test_failures_are_counted_by_kind() -> None:
    upstreams = service(2)
    kinds = (Outcome.REFUSED, Outcome.RESET, Outcome.RESET, Outcome.TIMED_OUT, Outcome.FAILED)
    for outcome in (*kinds, Outcome.CANCELLED, Outcome.OK):
        hit(upstreams, 0, outcome, 1.0)
    one = upstreams.members[0]
    assert (one.failures, one.refused, one.resets, one.timeouts) == (5, 1, 2, 1)


def test_what_fails_together_is_one_ejection() -> None:
    upstreams = service(4)
    hit(upstreams, 0, Outcome.RESET, 1.0, times=10)
    assert upstreams.members[0].out_for_s == 0.5


def test_errors_in_a_row_and_a_share_of_errors() -> None:
    upstreams = service(4)
    hit(upstreams, 0, Outcome.FAILED, 1.0, times=4)
    assert upstreams.members[0].state == "ready"
    hit(upstreams, 0, Outcome.OK, 1.0)
    hit(upstreams, 0, Outcome.TIMED_OUT, 1.0, times=5)
    assert upstreams.members[0].state == "ejected"
    for _ in range(10):  # two of three fail, but never five in a row
        hit(upstreams, 1, Outcome.FAILED, 1.0, times=2)
        hit(upstreams, 1, Outcome.OK, 1.0)
    assert upstreams.members[1].state == "ejected"


def test_what_our_side_gave_up_says_nothing_and_a_lost_race_does() -> None:
    upstreams = service(4)
    hit(upstreams, 0, Outcome.CANCELLED, 1.0, times=50)
    assert upstreams.members[0].state == "ready"
    hit(upstreams, 0, Outcome.OUTRUN, 1.0, times=2)
    hit(upstreams, 0, Outcome.OK, 1.0)
    hit(upstreams, 0, Outcome.OUTRUN, 1.0, times=2)
    assert upstreams.members[0].state == "ready"
    hit(upstreams, 0, Outcome.OUTRUN, 1.0)
    assert upstreams.members[0].state == "ejected"


def test_one_idempotent_trial_at_a_time_brings_it_back() -> None:
    upstreams = service(3)
    sick = upstreams.members[0]
    hit(upstreams, 0, Outcome.REFUSED, 1.0)
    for turn in range(20):
        assert upstreams.pick(1.6 + turn / 1000, idempotent=False) is not sick
    assert upstreams.pick(1.7, tried=[upstreams.members[1]]) is not sick  # a retry is no trial
    trial = upstreams.pick(1.7)
    assert trial is sick
    trial.begin()
    for turn in range(20):
        assert request(upstreams, 1.71 + turn / 1000) is not sick
    trial.end(Outcome.OK, 0.01, 1.8)
    assert sick.state == "ready"
    assert sick in {request(upstreams, 1.9 + turn / 1000) for turn in range(6)}


def test_a_trial_given_up_is_followed_by_another() -> None:
    upstreams = service(3)
    sick = upstreams.members[0]
    hit(upstreams, 0, Outcome.REFUSED, 1.0)
    for now_s in (1.6, 1.7):
        assert upstreams.pick(now_s) is sick
        sick.begin()
        sick.end(Outcome.CANCELLED, 0.01, now_s)


def test_without_idempotent_requests_it_comes_back_by_itself() -> None:
    upstreams = service(3)
    hit(upstreams, 0, Outcome.REFUSED, 1.0)
    assert upstreams.pick(1.6, idempotent=False) is not None
    assert upstreams.members[0].state == "half-open"
    assert upstreams.pick(2.6, idempotent=False) is not None
    assert upstreams.members[0].state == "ready"


def test_forgiven_after_a_while() -> None:
    upstreams = service(3)
    for now_s in (1.0, 2.0):
        hit(upstreams, 0, Outcome.REFUSED, now_s)
        while upstreams.members[0].state != "ready":
            now_s += 0.1
            request(upstreams, now_s)
    assert upstreams.members[0].ejections == 2
    hit(upstreams, 0, Outcome.REFUSED, 60.0)
    assert upstreams.members[0].out_for_s == 0.5


@pytest.mark.parametrize(
    ("n", "share", "most"), [(2, 0.5, 1), (3, 0.5, 1), (10, 0.3, 3), (1, 0.5, 0)]
)
def test_only_a_share_may_be_out(n: int, share: float, most: int) -> None:
    upstreams = service(n, outlier=policy.PassiveHealth(max_ejected_share=share))
    for index in range(n):
        hit(upstreams, index, Outcome.REFUSED, 1.0)
    assert sum(m.state == "ejected" for m in upstreams.members) == most
    assert upstreams.pick(1.0) is not None


def test_those_found_down_by_probes_count_as_out() -> None:
    upstreams = service(4)
    upstreams.set_health({ADDRESSES[0]: False, ADDRESSES[1]: False}, 1.0)
    hit(upstreams, 2, Outcome.REFUSED, 1.0)
    assert upstreams.members[2].state == "ready"
    assert {request(upstreams, 1.1 + n / 100).address for n in range(10)} <= set(ADDRESSES[2:4])


def test_when_nobody_is_left_all_are_used() -> None:
    upstreams = service(3)
    upstreams.set_health(dict.fromkeys(ADDRESSES[:3], False), 1.0)
    assert {request(upstreams, 1.1 + n / 100) for n in range(9)} == set(upstreams.members)
    upstreams.set_health({ADDRESSES[1]: True}, 2.0)
    assert {request(upstreams, 2.1 + n / 100) for n in range(9)} == {upstreams.members[1]}


def test_one_that_is_out_is_tried_before_giving_up() -> None:
    upstreams = service(2)
    hit(upstreams, 0, Outcome.REFUSED, 1.0)
    well, out = upstreams.members[1], upstreams.members[0]
    assert upstreams.pick(1.0, tried=[well]) is out


def test_failures_of_all_eject_nobody() -> None:
    upstreams = service(4)
    for _ in range(30):
        for index in range(4):
            hit(upstreams, index, Outcome.FAILED, 1.0)
    assert sum(m.state == "ejected" for m in upstreams.members) <= 1


def test_latency_outliers_where_asked_for() -> None:
    def run(factor: float) -> str:
        upstreams = service(3, outlier=policy.PassiveHealth(latency_factor=factor))
        for _ in range(40):
            for member in upstreams.members:
                member.begin()
                member.end(Outcome.OK, 0.1 if member is upstreams.members[0] else 0.01, 1.0)
        upstreams.pick(2.0)
        upstreams.pick(2.0)
        return upstreams.members[0].state

    assert run(0.0) == "ready"
    assert run(3.0) == "ejected"
    assert run(20.0) == "ready"


@pytest.mark.parametrize("balance", ALGORITHMS)
def test_a_backend_that_fails_fast_draws_nothing(balance: policy.Balance) -> None:
    """Without a single retry: 500s at once, from one of five, at 100 requests a second."""
    upstreams = service(5, balance=balance)
    sick = Counter({ADDRESSES[0]: 0})
    total = 20_000
    for turn in range(total):
        request(upstreams, 1.0 + turn / 100, sick)
    assert sick[ADDRESSES[0]] <= 10 + total * 0.002  # about one trial every eight seconds
    well = [m.served for m in upstreams.members[1:]]
    assert min(well) > total / 4 * 0.8


@pytest.mark.parametrize("balance", ALGORITHMS)
def test_a_failing_backend_costs_clients_nothing_with_retries(balance: policy.Balance) -> None:
    result = simulate("failing", balance, seconds=12.0)
    assert len(result.failed) <= 10 + 0.001 * len(result.latencies)


@pytest.mark.parametrize("balance", ["least-work", "p2c-ewma"])
def test_a_slow_backend_gets_little_and_never_nothing(balance: policy.Balance) -> None:
    result = simulate("degrade", balance, seconds=16.0)
    slow = result.shares(5, 6.0, 12.0)[0]
    assert 0.0 < slow < 1 / 5 / 3
    after = result.shares(5, 14.0, 16.0)
    assert min(after) > 1 / 5 / 3


@pytest.mark.parametrize("balance", ALGORITHMS)
def test_equals_get_equal_shares(balance: policy.Balance) -> None:
    shares = simulate("equal", balance, seconds=6.0).shares(5, 0.0, 6.0)
    assert all(0.16 < share < 0.24 for share in shares)


@pytest.mark.parametrize("scenario", ["crash", "churn"])
def test_crashes_are_not_seen_by_clients(scenario: str) -> None:
    result = simulate(scenario, "least-work", seconds=16.0)
    assert not result.failed


def test_a_frozen_backend_is_not_seen_by_clients() -> None:
    result = simulate("hang", "least-work", seconds=16.0, hedging=True)
    assert not result.failed
    assert result.quantile(0.999) < 0.5
    assert result.hedges < 0.05 * len(result.latencies) + 2
    assert result.shares(5, 5.0, 13.0)[0] < 0.02


def test_least_work_stands_degraded_backends_better_than_least_requests() -> None:
    work = simulate("degrade", "least-work", seconds=16.0, seed=3)
    least = simulate("degrade", "least-requests", seconds=16.0, seed=3)
    assert work.quantile(0.99) < least.quantile(0.99)


def test_many_single_slot_backends_are_used_without_sampling() -> None:
    """Load 0.8 on a hundred backends with one slot: nearly nobody waits."""

    def late(balance: policy.Balance) -> float:
        simulation = Simulation(
            policy.Service(
                name="models",
                backends=tuple(f"127.0.0.1:{8001 + n}" for n in range(100)),
                balance=balance,
            ),
            slots=1,
            rate=0.8 * 100 / 0.01,
        )
        return simulation.run(1.0).quantile(0.99)

    assert late("least-work") < 0.08
    assert late("least-work") < 0.75 * late("p2c-ewma")
