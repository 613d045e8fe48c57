"""The algorithms by themselves: turns, rings, orders, idle lists."""

import math
from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from roost.proxy import balance, policy
from roost.proxy.upstream import Upstream, Upstreams

weights_of = st.lists(st.integers(1, 9), min_size=1, max_size=7)


def members_of(weights: Sequence[float]) -> tuple[Upstream, ...]:
    backends = tuple(
        policy.BackendSpec(address=f"10.0.0.{n}:80", weight=weight)
        for n, weight in enumerate(weights)
    )
    upstreams = Upstreams(policy.Service(name="web", backends=backends))
    upstreams.refresh(0.0)
    return upstreams.members


@settings(max_examples=100, deadline=None)
@given(weights_of, st.integers(1, 4))
def test_turns_give_each_its_weight(weights: list[int], rounds: int) -> None:
    members = members_of(weights)
    turns = balance.Turns()
    turns.rebuild(members)
    counts = Counter(turns.next() for _ in range(sum(weights) * rounds))
    for member, weight in zip(members, weights, strict=True):
        assert abs(counts[member] - weight * rounds) <= 1


@settings(max_examples=100, deadline=None)
@given(weights_of, st.data())
def test_turns_pass_over_the_full_and_the_tried(weights: list[int], data: st.DataObject) -> None:
    members = members_of(weights)
    for member in members:
        member.room = data.draw(st.integers(0, 3))
    tried = data.draw(st.lists(st.sampled_from(members), max_size=3))
    turns = balance.Turns()
    turns.rebuild(members)
    room = sum(member.room for member in members if member not in tried)
    for _ in range(room):
        chosen = turns.next(tried)
        assert chosen is not None
        assert chosen not in tried
        chosen.active += 1
        assert chosen.active <= chosen.room
    assert turns.next(tried) is None


def test_one_who_comes_back_does_not_catch_up() -> None:
    members = members_of([1, 1, 1])
    turns = balance.Turns()
    turns.rebuild(members[:2])
    for _ in range(100):
        turns.next()
    turns.rebuild(members)
    assert Counter(turns.next() for _ in range(30))[members[2]] in (9, 10, 11)


@settings(max_examples=60, deadline=None)
@given(weights_of)
def test_orders_hold_everybody_and_begin_by_weight(weights: list[int]) -> None:
    members = members_of(weights)
    orders = balance.orders(members)
    assert all(set(order) == set(members) and len(order) == len(members) for order in orders)
    firsts = Counter(order[0] for order in orders)
    for member, weight in zip(members, weights, strict=True):
        assert abs(firsts[member] - len(orders) * weight / sum(weights)) <= 2


def test_what_one_does_not_get_goes_to_all_others() -> None:
    members = members_of([1] * 6)
    seconds = Counter(order[1] for order in balance.orders(members) if order[0] is members[0])
    assert set(seconds) == set(members[1:])
    assert len(set(seconds.values())) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.data())
def test_only_the_keys_of_who_leaves_move(n: int, data: st.DataObject) -> None:
    members = members_of([1.0] * n)
    gone = data.draw(st.sampled_from(members))
    left = tuple(m for m in members if m is not gone)
    before, after = balance.Ring(members), balance.Ring(left)
    keys = [b"%d" % k for k in range(300)]
    for key in keys:
        home = before.choose(key, frozenset(members))
        assert home is not None
        new = after.choose(key, frozenset(left))
        assert new is home or home is gone
        # Out for a while only: the same place as when it had left.
        assert before.choose(key, frozenset(left)) is new


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(1, 6))
def test_no_backend_is_loaded_above_the_bound(keys: list[int], n: int) -> None:
    members = members_of([1.0] * n)
    ring = balance.Ring(members)
    usable = frozenset(members)
    for count, key in enumerate(keys):
        chosen = ring.choose(b"%d" % key, usable)
        assert chosen is not None
        chosen.active += 1
        assert chosen.active <= max(
            balance.LOAD_FLOOR, math.ceil(balance.LOAD_BOUND * (count + 1) / n)
        )


def test_idle_ones_are_found_among_many() -> None:
    members = members_of([1.0] * 100)
    idle = balance.Idle(members)
    for _ in range(100):
        chosen = idle.take(())
        assert chosen is not None
        assert chosen.active == 0
        chosen.active += 1
    assert idle.take(()) is None
    members[41].active = 0
    idle.put(members[41])
    idle.put(members[41])
    assert idle.take([members[41]]) is None
    assert idle.take(()) is members[41]
    members[41].active = 1
    assert idle.take(()) is None
