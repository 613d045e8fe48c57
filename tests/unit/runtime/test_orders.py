"""Sets come back in the order they had, whatever happened to them before."""

import pickle
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from roost.runtime.kernel import rebuild_orders
from roost.runtime.kernel.orders import with_orders

ELEMENTS = st.one_of(
    st.integers(-300, 300).map(lambda n: f"w{n}"),
    st.integers(-300, 300).map(lambda n: n * 64),
    st.integers(-3, 3),
    st.tuples(st.integers(0, 9), st.text(max_size=2)),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "drop", "pop"]), ELEMENTS), max_size=120
)


def back(value: Any) -> Any:
    """The set after a move, which its neighbour shares."""
    found = pickle.loads(pickle.dumps(with_orders([value, {"same": value}], [value]), 5))
    assert found[1]["same"] is found[0]
    return found[0]


def build(steps: list[tuple[str, Any]]) -> set[Any]:
    """A set with a history."""
    made: set[Any] = set()
    for what, element in steps:
        if what == "add":
            made.add(element)
        elif what == "drop":
            made.discard(element)
        elif made:
            made.pop()
    return made


@settings(max_examples=300, deadline=None)
@given(STEPS, STEPS)
def test_a_set_goes_on_as_it_would_have(first: list[Any], then: list[Any]) -> None:
    value = build(first)
    found = back(value)
    assert rebuild_orders.known()
    assert (list(found), type(found)) == (list(value), set)
    for what, element in then:
        for one in (value, found):
            if what == "add":
                one.add(element)
            elif what == "drop":
                one.discard(element)
        if what == "pop" and value:
            assert value.pop() == found.pop()
    assert list(found) == list(value) and found == value


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_frozen_sets_keep_their_order_and_their_hash(steps: list[Any]) -> None:
    value = frozenset(build(steps))
    found = back(value)
    assert (list(found), hash(found), found) == (list(value), hash(value), value)


def test_a_set_whose_elements_hash_otherwise_here_is_left_as_it_is() -> None:
    value = {f"w{n}" for n in range(40)}
    mask, finger, filled, hashes, dead = with_orders([value], [value])._parts[1][0][1:]
    other = set(value)
    wrong = bytes(len(hashes))
    assert not rebuild_orders.arrange(other, mask, finger, filled, wrong, dead)
    assert other == value and all(one in other for one in value)


def test_a_set_with_objects_is_not_asked_about_them() -> None:
    asked: list[str] = []

    class Trap:
        def __hash__(self) -> int:
            asked.append("hash")
            return 7

    value = {Trap(), "a", "b"}
    asked.clear()
    assert with_orders([value], [value])[0] is value
    assert not asked
