"""The columns stay true, and several at once are placed as one after the other would be."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.placement.hosts import Hosts
from roost.placement.model import Affinity, Ask, By, HostFacts, Spread
from roost.placement.place import _biggest_first, place, place_many

HOSTS = st.lists(
    st.builds(
        dict,
        vcpus=st.sampled_from((2.0, 4.0, 8.0)),
        memory_mib=st.sampled_from((4_096.0, 8_192.0)),
        slots=st.sampled_from((2.0, 4.0, float("inf"))),
        gpus=st.sampled_from((0, 0, 2)),
        zone=st.sampled_from("abc"),
        region=st.sampled_from("rs"),
        pool=st.sampled_from("pqs"),
        survival=st.sampled_from((1.0, 0.9)),
        ready_in_s=st.sampled_from((0.0, 60.0)),
        takes=st.sampled_from((True, True, True, False)),
    ),
    min_size=1,
    max_size=12,
)
SPREADS = st.lists(
    st.builds(
        Spread,
        by=st.sampled_from((By.HOST, By.ZONE, By.POOL)),
        share=st.sampled_from((0.3, 0.5, 1.0)),
        most=st.sampled_from((0, 0, 2)),
        strict=st.booleans(),
    ),
    max_size=2,
).map(tuple)
COMPANY = st.lists(
    st.builds(
        Affinity,
        service=st.sampled_from(("s0", "s1", "s2")),
        by=st.sampled_from((By.HOST, By.ZONE)),
        apart=st.just(True),
        strict=st.booleans(),
    ),
    max_size=1,
).map(tuple)
ASKS = st.lists(
    st.builds(
        Ask,
        service=st.sampled_from(("s0", "s1", "s2", "s3")),
        vcpus=st.sampled_from((0.5, 1.0, 3.0)),
        memory_mib=st.sampled_from((256.0, 1_024.0)),
        gpus=st.sampled_from((0.0, 0.0, 0.5, 1.0)),
        wanted=st.sampled_from((2, 6)),
        spread=SPREADS,
        affinity=COMPANY,
        loss=st.sampled_from((0.0, 1.0)),
    ),
    max_size=30,
)


def _hosts(rows: list[dict[str, Any]]) -> Hosts:
    return Hosts(HostFacts(id=f"h{n}", **row) for n, row in enumerate(rows))


def _state(hosts: Hosts) -> list[np.ndarray[Any, Any]]:
    columns = [*hosts.free, hosts.idle, hosts.gpu_left, hosts.gpu_most, hosts.gpu_whole]
    return [column.copy() for column in columns]


@settings(max_examples=150, deadline=None)
@given(HOSTS, ASKS)
def test_many_are_placed_as_one_after_the_other(
    rows: list[dict[str, Any]], asks: list[Ask]
) -> None:
    together, single = _hosts(rows), _hosts(rows)
    names = [f"c{n}" for n in range(len(asks))]
    made = {c.container: c.host for c in place_many(asks, together, containers=names)}
    alike = list(dict.fromkeys(asks))
    for one in _biggest_first(alike, single):
        for name in [name for name, other in zip(names, asks, strict=True) if other == one]:
            assert place(one, single, container=name).host == made[name]
    for ours, theirs in zip(_state(together), _state(single), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


@settings(max_examples=150, deadline=None)
@given(HOSTS, ASKS)
def test_nothing_is_overcommitted_and_no_strict_spread_broken(
    rows: list[dict[str, Any]], asks: list[Ask]
) -> None:
    hosts = _hosts(rows)
    made = place_many(asks, hosts)
    assert all((free >= -1e-9).all() for free in hosts.free)
    assert all(free >= -1e-9 for here in hosts.devices for free in here)
    for choice, one in zip(made, asks, strict=True):
        if choice.host is None:
            continue
        facts = hosts.facts[choice.index]
        assert facts.takes
        for rule in one.spread:
            if rule.strict:
                peers = [
                    o
                    for c, o in zip(made, asks, strict=True)
                    if c.host is not None
                    and o.service == one.service
                    and hosts.facts[c.index].domain(rule.by) == facts.domain(rule.by)
                    and rule in o.spread
                    and o.wanted == one.wanted
                ]
                assert len(peers) <= rule.cap(one.wanted)


@settings(max_examples=100, deadline=None)
@given(HOSTS, ASKS, st.randoms(use_true_random=False))
def test_take_undoes_put_in_any_order(
    rows: list[dict[str, Any]], asks: list[Ask], draw: Any
) -> None:
    hosts = _hosts(rows)
    before = _state(hosts)
    made = [c.container for c in place_many(asks, hosts) if c.host is not None]
    twin = hosts.copy()
    middle = _state(twin)
    draw.shuffle(made)
    for name in made:
        hosts.take(name)
    for ours, theirs in zip(_state(hosts), before, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    assert not any(hosts.tally(f"s{n}").hosts for n in range(4))
    # The copy knows nothing of it.
    for ours, theirs in zip(_state(twin), middle, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert set(twin.containers) == set(made)
