"""Picks, slots, sets of backends and changes of the policy: the real ``Upstreams``, virtual time."""

import asyncio
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.proxy import policy
from roost.proxy.upstream import Outcome, Upstream, Upstreams, upstreams_of

ADDRESSES = tuple(f"127.0.0.1:{8001 + n}" for n in range(8))
SCANNED: tuple[policy.Balance, ...] = ("least-work", "least-requests")
ALL: tuple[policy.Balance, ...] = (
    "least-work",
    "round-robin",
    "weighted",
    "least-requests",
    "p2c-ewma",
    "hash",
    "sticky",
)


def service(
    n: int = 4, *, balance: policy.Balance = "least-work", **more: object
) -> policy.Service:
    backends = more.pop("backends", ADDRESSES[:n])
    return policy.Service(name="web", backends=backends, balance=balance, **more)  # type: ignore[arg-type]


def spec(n: int, **more: object) -> policy.BackendSpec:
    return policy.BackendSpec(address=ADDRESSES[n], **more)  # type: ignore[arg-type]


def begun(upstreams: Upstreams, now_s: float = 0.0, **more: object) -> Upstream:
    chosen = upstreams.pick(now_s, **more)  # type: ignore[arg-type]
    assert chosen is not None
    chosen.begin()
    return chosen


def one_by_one(upstreams: Upstreams, n: int, now_s: float = 0.0, **more: object) -> Counter[str]:
    """Requests that never overlap."""
    found: Counter[str] = Counter()
    for turn in range(n):
        chosen = begun(upstreams, now_s + turn * 0.001, **more)
        found[chosen.address] += 1
        chosen.end(Outcome.OK, 0.01, now_s + turn * 0.001)
    return found


def together(upstreams: Upstreams, n: int, now_s: float = 0.0) -> Counter[str]:
    """Requests that all run at once."""
    chosen = [begun(upstreams, now_s) for _ in range(n)]
    for upstream in chosen:
        upstream.end(Outcome.OK, 0.01, now_s)
    return Counter(upstream.address for upstream in chosen)


@pytest.mark.parametrize("balance", ALL)
def test_idle_equals_are_used_evenly(balance: policy.Balance) -> None:
    upstreams = Upstreams(service(balance=balance))
    found = one_by_one(upstreams, 400)
    assert set(found) == set(ADDRESSES[:4])
    tolerance = 60 if balance == "p2c-ewma" else 2
    assert all(abs(n - 100) <= tolerance for n in found.values())


@pytest.mark.parametrize("balance", ["least-work", "least-requests", "weighted"])
def test_weights_are_respected_by_requests_one_by_one_and_at_once(balance: policy.Balance) -> None:
    backends = (spec(0, weight=5.0), spec(1, weight=2.0), spec(2, weight=1.0))
    upstreams = Upstreams(service(balance=balance, backends=backends))
    one = one_by_one(upstreams, 800)
    assert [round(one[a] / 100) for a in ADDRESSES[:3]] == [5, 2, 1]
    at_once = together(upstreams, 80, 1.0)
    assert [round(at_once[a] / 10) for a in ADDRESSES[:3]] == [5, 2, 1]


def test_round_robin_ignores_weights_and_weighted_turns_are_smooth() -> None:
    backends = (spec(0, weight=5.0), spec(1), spec(2))
    upstreams = Upstreams(service(balance="round-robin", backends=backends))
    assert set(one_by_one(upstreams, 30).values()) == {10}
    upstreams = Upstreams(service(balance="weighted", backends=backends))
    turns = [begun(upstreams).address for _ in range(70)]
    for start in range(0, 70, 7):
        assert Counter(turns[start : start + 7]) == {
            ADDRESSES[0]: 5,
            ADDRESSES[1]: 1,
            ADDRESSES[2]: 1,
        }
    # Smooth: the rare ones do not come together, nor the frequent one all at once.
    runs = "".join("a" if t == ADDRESSES[0] else "b" for t in turns)
    assert "bb" not in runs
    assert "a" * 5 not in runs


def test_least_work_prefers_fewer_in_flight_and_leaves_a_slow_backend() -> None:
    upstreams = Upstreams(service(4))
    now_s = 0.0
    open_: list[tuple[float, float, Upstream]] = []
    counts: Counter[str] = Counter()
    rng = Random(1)
    slow = upstreams.members[0]
    for _ in range(4000):
        now_s += rng.expovariate(400)
        for entry in [e for e in open_ if e[0] <= now_s]:
            open_.remove(entry)
            entry[2].end(Outcome.OK, entry[0] - entry[1], entry[0])
        chosen = begun(upstreams, now_s)
        if now_s > 2.0:
            counts[chosen.address] += 1
        took_s = 0.08 if chosen is slow else 0.01
        open_.append((now_s + took_s, now_s, chosen))
    assert 0 < counts[slow.address] < sum(counts.values()) / 4 / 3
    fair = sum(counts.values()) / 4
    assert all(counts[a] > fair * 0.8 for a in ADDRESSES[1:4])


def test_a_slow_idle_backend_gets_another_chance() -> None:
    upstreams = Upstreams(service(2))
    slow = upstreams.members[0]
    for turn in range(60):
        chosen = begun(upstreams, turn * 0.1)
        chosen.end(Outcome.OK, 0.5 if chosen is slow else 0.01, turn * 0.1)
    before = slow.served
    one_by_one(upstreams, 40_000, 6.0)  # forty seconds in which it is well again
    assert slow.served > before + 5_000


@pytest.mark.parametrize("balance", ["least-work", "least-requests"])
def test_load_of_other_workers_counts_while_it_is_fresh(balance: policy.Balance) -> None:
    upstreams = Upstreams(service(2, balance=balance))
    one_by_one(upstreams, 40)
    busy = upstreams.members[0]
    busy.report(active=9, slots=4, now_s=0.1)
    assert set(together(upstreams, 8, 0.11)) == {ADDRESSES[1]}
    upstreams.members[1].report(active=0, slots=4, now_s=0.2)
    assert set(together(upstreams, 8, 3.0)) == {ADDRESSES[0], ADDRESSES[1]}


def test_reported_slots_are_weights() -> None:
    upstreams = Upstreams(service(2))
    first, second = upstreams.members
    for now_s in (0.0, 0.5):
        first.report(0, 6, now_s)
        second.report(0, 2, now_s)
    found = together(upstreams, 80, 0.9)
    assert found[ADDRESSES[0]] == 60


def test_own_requests_are_not_counted_twice() -> None:
    upstreams = Upstreams(service(2))
    mine = [begun(upstreams) for _ in range(10)]
    for upstream in upstreams.members:
        upstream.report(active=5, slots=8, now_s=0.0)
        assert upstream.others == 0
    for upstream in mine:
        upstream.end(Outcome.OK, 0.01, 0.0)


@pytest.mark.parametrize("n", [3, 200])
@pytest.mark.parametrize("balance", ALL)
def test_slots_are_never_exceeded_and_always_found(balance: policy.Balance, n: int) -> None:
    backends = tuple(policy.BackendSpec(address=f"127.0.0.1:{n + 1}", slots=1) for n in range(n))
    upstreams = Upstreams(service(balance=balance, backends=backends))
    chosen = [begun(upstreams, key=b"k%d" % i) for i in range(n)]
    assert len(set(chosen)) == n  # every idle one is known: nobody samples past it
    assert upstreams.pick(0.0, key=b"k") is None
    assert upstreams.anybody
    rng = Random(1)
    for _ in range(50):
        freed = rng.choice(chosen)
        freed.end(Outcome.OK, 0.01, 0.0)
        assert begun(upstreams, key=b"k") is freed


def test_the_bound_of_the_service() -> None:
    upstreams = Upstreams(service(2, breaker=policy.Breaker(max_requests=3)))
    chosen = [begun(upstreams) for _ in range(3)]
    assert upstreams.pick(0.0) is None
    chosen[0].end(Outcome.CANCELLED, 0.0, 0.0)
    assert upstreams.pick(0.0) is not None


@pytest.mark.parametrize("balance", ALL)
def test_who_was_tried_is_not_picked_again(balance: policy.Balance) -> None:
    upstreams = Upstreams(service(3, balance=balance))
    tried: list[Upstream] = []
    for _ in range(3):
        chosen = begun(upstreams, key=b"k", tried=tried)
        assert chosen not in tried
        tried.append(chosen)
    assert upstreams.pick(0.0, key=b"k", tried=tried) is None


def test_draining_and_gone_get_nothing_new() -> None:
    backends = (spec(0, state="draining"), spec(1, state="gone"), spec(2))
    upstreams = Upstreams(service(backends=backends))
    assert set(one_by_one(upstreams, 30)) == {ADDRESSES[2]}
    upstreams.updated(service(backends=backends[:2]))
    assert upstreams.pick(1.0) is None
    assert not upstreams.anybody


def test_a_backend_whose_host_leaves_gets_less_and_then_nothing() -> None:
    backends = (spec(0, leaves_at_s=1_000_100.0), spec(1))
    upstreams = Upstreams(service(backends=backends), unix_offset_s=1_000_000.0)
    assert together(upstreams, 40, 0.0)[ADDRESSES[0]] == 20
    assert 0 < together(upstreams, 40, 70.0)[ADDRESSES[0]] < 18
    assert together(upstreams, 40, 96.0)[ADDRESSES[0]] == 0
    upstreams.updated(service(backends=backends[:1]))
    assert upstreams.pick(97.0) is None


def test_the_own_zone_is_preferred_while_enough_of_it_is_well() -> None:
    backends = tuple(spec(n, zone="a" if n < 3 else "b", slots=4) for n in range(6))
    upstreams = Upstreams(service(backends=backends, zone="a"))
    assert set(one_by_one(upstreams, 30)) == set(ADDRESSES[:3])
    # Full: the other zone helps out.
    assert set(together(upstreams, 20, 0.1)) > set(ADDRESSES[:3])
    # One of three down: not enough, all zones are used.
    upstreams.set_health({ADDRESSES[0]: False}, 0.2)
    assert set(one_by_one(upstreams, 30, 0.3)) == set(ADDRESSES[1:6])
    upstreams.set_health({ADDRESSES[0]: True}, 0.4)
    assert set(one_by_one(upstreams, 30, 0.5)) == set(ADDRESSES[:3])


@pytest.mark.parametrize("balance", ["least-work", "round-robin"])
def test_slow_start_of_a_new_backend(balance: policy.Balance) -> None:
    upstreams = Upstreams(service(2, balance=balance, slow_start_s=10.0))
    assert together(upstreams, 40)[ADDRESSES[0]] == 20  # all are new: none is slow
    upstreams.updated(service(3, balance=balance, slow_start_s=10.0))
    early = together(upstreams, 60, 0.1)[ADDRESSES[2]]
    half = together(upstreams, 60, 5.0)[ADDRESSES[2]]
    late = together(upstreams, 60, 11.0)[ADDRESSES[2]]
    assert 0 < early < 8 < half < 16 < late
    assert late == 20


def test_a_change_of_the_policy_keeps_what_is_known() -> None:
    upstreams = Upstreams(service(3))
    one_by_one(upstreams, 30)
    kept = upstreams.members[1]
    running = begun(upstreams, 0.1, tried=[upstreams.members[0], upstreams.members[2]])
    assert running is kept
    served = kept.served
    assert upstreams.updated(service(3)) is upstreams
    changed = upstreams.updated(
        service(backends=(spec(1, weight=2.0), spec(4)), breaker=policy.Breaker(max_pending=5))
    )
    assert changed is upstreams
    assert upstreams.members[0] is kept
    assert (kept.active, kept.served, kept.spec.weight) == (1, served, 2.0)
    assert [m.address for m in upstreams.members] == [ADDRESSES[1], ADDRESSES[4]]
    running.end(Outcome.OK, 0.01, 0.2)
    assert set(one_by_one(upstreams, 30, 0.3)) == {ADDRESSES[1], ADDRESSES[4]}


def test_an_end_at_a_backend_that_was_taken_away_is_no_trouble() -> None:
    upstreams = Upstreams(service(2))
    gone = begun(upstreams)
    upstreams.updated(service(backends=tuple(a for a in ADDRESSES[:2] if a != gone.address)))
    gone.end(Outcome.RESET, 0.01, 0.1)
    assert gone.active == 0
    assert begun(upstreams, 0.2) is not gone


def test_services_by_name() -> None:
    first = upstreams_of([service(2)])
    second = upstreams_of([service(3), policy.Service(name="api")], first)
    assert second["web"] is first["web"]
    assert len(second["web"].members) == 3
    assert second["api"].pick(0.0) is None
    with pytest.raises(ValueError, match="nowhere"):
        upstreams_of([policy.Service(name="bad", backends=("nowhere",))])
    before = second["web"].members
    with pytest.raises(ValueError, match="contexts"):
        second["web"].updated(service(1, tls=policy.TlsOrigin()))
    assert second["web"].members == before  # nothing was changed by halves


def test_addresses() -> None:
    upstreams = Upstreams(service(backends=("unix:/run/x.sock", "[::1]:80", "localhost:8080")))
    backends = [member.backend for member in upstreams.members]
    assert [(b.path, b.host, b.port) for b in backends] == [
        ("/run/x.sock", "", 0),
        ("", "::1", 80),
        ("", "localhost", 8080),
    ]


# --- keys ---------------------------------------------------------------------------------------------


def test_a_leaving_backend_moves_only_its_own_keys() -> None:
    upstreams = Upstreams(service(8, balance="hash"))
    keys = [b"client-%d" % n for n in range(2000)]
    before = {key: upstreams.pick(0.0, key=key) for key in keys}
    shares = Counter(before.values())
    assert min(shares.values()) > 2000 / 8 * 0.6
    gone = upstreams.members[3]
    upstreams.updated(
        service(backends=tuple(a for a in ADDRESSES if a != gone.address), balance="hash")
    )
    after = {key: upstreams.pick(1.0, key=key) for key in keys}
    moved = [key for key in keys if before[key] is not after[key]]
    assert {before[key] for key in moved} == {gone}
    # One that is only down, too, and its keys come back.
    sick = upstreams.members[0]
    upstreams.set_health({sick.address: False}, 2.0)
    assert {after[k] for k in keys if upstreams.pick(2.1, key=k) is not after[k]} == {sick}
    upstreams.set_health({sick.address: True}, 3.0)
    assert all(upstreams.pick(3.1, key=k) is after[k] for k in keys)


def test_one_key_does_not_overload_its_backend() -> None:
    upstreams = Upstreams(service(4, balance="hash"))
    for _ in range(100):
        begun(upstreams, key=b"everybody")
    assert max(m.active for m in upstreams.members) <= 32  # 1.25 times the mean, rounded up


def test_hash_weights() -> None:
    upstreams = Upstreams(
        service(balance="hash", backends=(spec(0, weight=3.0), spec(1, weight=1.0)))
    )
    found = Counter(upstreams.pick(0.0, key=b"%d" % n).address for n in range(4000))  # type: ignore[union-attr]
    assert 0.68 < found[ADDRESSES[0]] / 4000 < 0.82


def test_sticky_keeps_a_client_until_its_backend_is_out() -> None:
    upstreams = Upstreams(service(4, balance="sticky"))
    home = begun(upstreams)
    for turn in range(20):
        assert begun(upstreams, 0.01 * turn, key=home.sticky_id) is home
    assert begun(upstreams, 0.3, key=home.sticky_id, tried=[home]) is not home
    home.end(Outcome.REFUSED, 0.0, 0.4)
    other = begun(upstreams, 0.41, key=home.sticky_id)
    assert other is not home
    assert begun(upstreams, 0.42, key=b"no such backend") is not home
    same = Upstreams(service(4, balance="sticky"))
    assert [m.sticky_id for m in same.members] == [m.sticky_id for m in upstreams.members]
    assert len({m.sticky_id for m in same.members}) == 4


# --- waiting --------------------------------------------------------------------------------------------


def one_slot(**more: object) -> Upstreams:
    return Upstreams(service(backends=(spec(0, slots=1),), breaker=policy.Breaker(**more)))  # type: ignore[arg-type]


async def test_waiters_are_served_in_order_and_before_newcomers() -> None:
    loop = asyncio.get_running_loop()
    upstreams = one_slot()
    running = begun(upstreams, loop.time())
    order: list[int] = []

    async def request(number: int) -> None:
        place = upstreams.pending()
        assert place is not None
        await place
        mine = begun(upstreams, loop.time(), waited=place)
        order.append(number)
        await asyncio.sleep(0)
        assert upstreams.active == 1
        mine.end(Outcome.OK, 0.0, loop.time())

    tasks = [asyncio.create_task(request(n)) for n in range(20)]
    await asyncio.sleep(0)
    assert len(upstreams.line) == 20
    running.end(Outcome.OK, 0.0, loop.time())
    # The slot is free, but promised: somebody who comes now must wait behind.
    assert upstreams.pick(loop.time()) is None
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert order == list(range(20))
    assert upstreams.pick(loop.time()) is not None


async def test_the_line_is_bounded_and_those_who_left_do_not_count() -> None:
    loop = asyncio.get_running_loop()
    upstreams = one_slot(max_pending=3)
    begun(upstreams, loop.time())
    places = [upstreams.pending() for _ in range(3)]
    assert upstreams.pending() is None
    assert places[1] is not None
    upstreams.leave(places[1], loop.time())
    assert upstreams.pending() is not None
    assert upstreams.pending() is None


async def test_waiting_ends() -> None:
    loop = asyncio.get_running_loop()
    upstreams = one_slot(pending_s=0.05)
    begun(upstreams, loop.time())
    place = upstreams.pending()
    assert place is not None
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(place), 10)
    assert place.done()
    assert len(upstreams.line) == 0


async def test_a_woken_waiter_that_leaves_passes_its_slot_on() -> None:
    loop = asyncio.get_running_loop()
    upstreams = one_slot()
    running = begun(upstreams, loop.time())
    first, second, third = (upstreams.pending() for _ in range(3))
    assert first and second and third
    second.cancel()
    running.end(Outcome.OK, 0.0, loop.time())
    assert first.done()
    assert not third.done()
    upstreams.leave(first, loop.time())
    assert third.done()
    assert begun(upstreams, loop.time(), waited=third) is running


async def test_a_new_backend_wakes_those_who_wait() -> None:
    loop = asyncio.get_running_loop()
    upstreams = one_slot()
    begun(upstreams, loop.time())
    place = upstreams.pending()
    assert place is not None
    upstreams.updated(service(backends=(spec(0, slots=1), spec(1, slots=1))))
    await asyncio.wait_for(place, 10)
    assert begun(upstreams, loop.time(), waited=place).address == ADDRESSES[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=120), st.integers(1, 3), st.integers(1, 2))
def test_no_slot_is_lost_and_nobody_is_forgotten(ops: list[int], slots: int, n: int) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        backends = tuple(spec(i, slots=slots) for i in range(n))
        upstreams = Upstreams(service(backends=backends))
        running: list[Upstream] = []
        places: list[asyncio.Future[None]] = []

        def settle() -> None:
            for place in [p for p in places if p.done()]:
                places.remove(place)
                if place.cancelled():
                    continue
                running.append(begun(upstreams, loop.time(), waited=place))

        for op in ops:
            if op <= 2:
                chosen = upstreams.pick(loop.time())
                if chosen is not None:
                    chosen.begin()
                    running.append(chosen)
                else:
                    place = upstreams.pending()
                    assert place is not None
                    places.append(place)
            elif op == 3 and running:
                running.pop(0).end(Outcome.OK, 0.01, loop.time())
            elif op == 4 and places:
                upstreams.leave(places.pop(len(places) // 2), loop.time())
            else:
                settle()
            assert all(0 <= m.active <= slots for m in upstreams.members)
            assert upstreams.active == len(running)
        while running or places:
            settle()
            assert running or not places  # somebody who waits while all is free was forgotten
            if running:
                running.pop(0).end(Outcome.OK, 0.01, loop.time())
        assert upstreams.active == 0
        assert upstreams.pick(loop.time()) is not None

    asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ALL),
    st.integers(1, 6),
    st.lists(
        st.tuples(st.integers(0, 7), st.sampled_from(list(Outcome)), st.floats(0, 1.0)),
        max_size=150,
    ),
    st.integers(0, 2**30),
)
def test_whatever_happens_somebody_is_picked(
    balance: policy.Balance, n: int, steps: list[tuple[int, Outcome, float]], seed: int
) -> None:
    upstreams = Upstreams(service(n, balance=balance), rng=Random(seed))
    rng = Random(seed)
    now_s = 0.0
    running: list[Upstream] = []
    for op, outcome, passed_s in steps:
        now_s += passed_s
        if op < 4 or not running:
            chosen = upstreams.pick(
                now_s, key=b"%d" % (op % 3), idempotent=bool(op % 2), tried=running[-1:]
            )
            if chosen is None:
                assert n == 1  # its only one was tried
                continue
            assert chosen not in running[-1:]
            chosen.begin()
            running.append(chosen)
        elif op < 7:
            running.pop(rng.randrange(len(running))).end(outcome, passed_s, now_s)
        else:
            upstreams.set_health({rng.choice(ADDRESSES[:n]): rng.random() < 0.5}, now_s)
        out = sum(1 for m in upstreams.members if m.out_until_s and not m.half_open)
        assert out <= n / 2
        assert upstreams.pick(now_s, idempotent=False) is not None
        assert all(m.active >= 0 and m.ewma_s >= 0 and m.slope > 0 for m in upstreams.members)
