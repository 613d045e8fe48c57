"""Arrivals outlive control; what nobody counted stays unknown."""

import numpy as np

from roost.adapters.store.sqlite.store import open_store
from roost.ports.seen import Seen, ServiceSeen
from roost.services.archive import DAY_S, DAYS, Archive
from roost.services.observe import History
from tests.unit.services.world import HandClock

DAY0 = 19_700 * DAY_S


def hour(history: History, begin_s: float, per_second: int, service_id: str = "s") -> None:
    for second in range(3600):
        at_s = begin_s + second
        one = ServiceSeen(service_id=service_id, arrived=second * per_second)
        history.seen(Seen(edge=0, began_s=begin_s, at_s=at_s, services=(one,)))


async def test_minutes_come_back_after_a_restart_with_the_gap_unknown() -> None:
    store, clock = open_store(None), HandClock()
    history = History()
    archive = Archive(store, clock, history)
    await archive.load()
    hour(history, DAY0 + 22.5 * 3600, 2)
    hour(history, DAY0 + 23.5 * 3600, 3)  # over midnight
    clock.at_s = DAY0 + 24.5 * 3600
    before = history.minutes("s", clock.at_s)
    await archive.save(["s"])
    await archive.save(["s"])

    again = History()
    kept = Archive(store, clock, again)
    await kept.load()
    assert np.array_equal(again.minutes("s", clock.at_s)[-120:], before, equal_nan=True)
    assert np.isnan(again.minutes("s", clock.at_s)[: -len(before)]).all(), "before the first word"
    hour(again, DAY0 + 26 * 3600, 1)
    clock.at_s = DAY0 + 27 * 3600
    minutes = again.minutes("s", clock.at_s)
    assert np.isnan(minutes[-150:-60]).all(), "control was away"
    assert minutes[-59:].sum() > 3000
    assert np.array_equal(minutes[-270:-150], before, equal_nan=True)
    await kept.save(["s"])


async def test_a_deleted_service_and_an_old_day_leave_nothing() -> None:
    store, clock = open_store(None), HandClock()
    history = History()
    archive = Archive(store, clock, history)
    hour(history, DAY0, 1, "a")
    clock.at_s = DAY0 + 3600
    await archive.save(["a"])
    await archive.save([])
    rows = await store.find("arrivals")
    assert all(len(row.body) < 200 for row in rows)
    hour(history, DAY0 + 2 * 3600, 1, "b")
    clock.at_s = DAY0 + 3 * 3600
    await archive.save(["b"])
    clock.at_s += DAYS * DAY_S
    later = History()
    await Archive(store, clock, later).load()
    assert not len(later.minutes("b", clock.at_s))
