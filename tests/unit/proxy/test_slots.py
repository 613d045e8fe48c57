"""Slots counted over several workers: in one process by turns, and by real forked ones."""

import asyncio
import fcntl
import os
import tempfile
import time
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from roost.proxy import policy
from roost.proxy.slots import SlotTable
from roost.proxy.upstream import Outcome, Upstream, Upstreams


def workers_of(
    n: int, table: SlotTable, *, slots: int = 1, backends: int = 2, **more: object
) -> list[Upstreams]:
    service = policy.Service(
        name="models",
        backends=tuple(
            policy.BackendSpec(address=f"127.0.0.1:{8001 + i}", slots=slots)
            for i in range(backends)
        ),
        **more,  # type: ignore[arg-type]
    )
    return [Upstreams(service, slots=table.row(row)) for row in range(n)]


def test_a_single_slot_is_one_in_all_workers() -> None:
    one, two = workers_of(2, SlotTable(2))
    first = one.pick(0.0)
    assert first is not None
    first.begin()
    second = two.pick(0.0)
    assert second is not None
    second.begin()
    assert first.address != second.address
    assert one.pick(0.0) is None
    assert two.pick(0.0) is None
    second.end(Outcome.OK, 0.01, 0.1)
    third = one.pick(0.1)  # seen at once, without waiting for a refresh
    assert third is not None
    assert third.address == second.address


def test_picked_and_not_begun_gives_the_slot_back() -> None:
    one, two = workers_of(2, SlotTable(2), backends=1)
    chosen = one.pick(0.0)
    assert chosen is not None
    assert two.pick(0.0) is None
    chosen.unpicked()
    assert two.pick(0.0) is not None


def test_the_row_of_a_dead_worker_is_cleared() -> None:
    table = SlotTable(2)
    one, two = workers_of(2, table, backends=1)
    chosen = one.pick(0.0)
    assert chosen is not None
    chosen.begin()
    assert two.pick(0.0) is None
    table.clear(0)
    assert two.pick(0.0) is not None


def test_a_change_of_slots_and_backends() -> None:
    table = SlotTable(2)
    one, two = workers_of(2, table, backends=1)
    chosen = one.pick(0.0)
    assert chosen is not None
    chosen.begin()
    more = policy.Service(
        name="models", backends=(policy.BackendSpec(address="127.0.0.1:8001", slots=2),)
    )
    two.updated(more)
    other = two.pick(0.0)
    assert other is not None
    other.begin()
    assert two.pick(0.0) is None
    one.updated(policy.Service(name="models", backends=("127.0.0.1:8001",)))  # no bound any more
    assert one.pick(0.0) is chosen
    chosen.end(Outcome.OK, 0.01, 0.1)
    other.end(Outcome.OK, 0.01, 0.1)
    assert chosen.active == other.active == 0


async def test_who_waits_hears_of_a_slot_another_worker_frees() -> None:
    loop = asyncio.get_running_loop()
    one, two = workers_of(2, SlotTable(2), backends=1)
    running = one.pick(loop.time())
    assert running is not None
    running.begin()
    assert two.pick(loop.time()) is None
    place = two.pending()
    assert place is not None
    running.end(Outcome.OK, 0.01, loop.time())
    await asyncio.wait_for(place, 10)
    assert two.pick(loop.time(), waited=place) is not None


async def test_who_waits_for_long_in_another_worker_goes_first() -> None:
    loop = asyncio.get_running_loop()
    one, two = workers_of(2, SlotTable(2), backends=1)
    running = one.pick(loop.time())
    assert running is not None
    running.begin()
    assert two.pick(loop.time()) is None
    place = two.pending()
    assert place is not None
    soon_s, later_s, much_later_s = (loop.time() + n for n in (0.01, 1.0, 60.0))
    running.end(Outcome.OK, 0.01, loop.time())
    chosen = one.pick(soon_s)  # about as long: who comes first
    assert chosen is running
    chosen.unpicked()
    assert one.pick(later_s) is None
    assert one.pick(later_s, tried=[]) is None
    assert one.pick(much_later_s) is running  # nobody waits for so long: that worker hangs
    running.unpicked()
    await asyncio.wait_for(place, 10)
    mine = two.pick(loop.time(), waited=place)
    assert mine is not None
    mine.begin()
    mine.end(Outcome.OK, 0.01, loop.time())
    assert one.pick(later_s) is running  # nobody waits any more


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=120),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["least-work", "round-robin", "p2c-ewma", "hash"]),
)
def test_never_more_than_the_slots_and_none_is_lost(
    steps: list[tuple[int, bool]], slots: int, backends: int, balance: policy.Balance
) -> None:
    workers = workers_of(3, SlotTable(3), slots=slots, backends=backends, balance=balance)
    running: list[list[Upstream]] = [[], [], []]
    for row, begins in steps:
        if begins:
            chosen = workers[row].pick(0.0, key=b"k")
            total = sum(map(len, running))
            assert (chosen is None) == (total == slots * backends)
            if chosen is not None:
                chosen.begin()
                running[row].append(chosen)
        elif running[row]:
            running[row].pop().end(Outcome.OK, 0.01, 0.0)
        for members in zip(*(worker.members for worker in workers), strict=True):
            assert sum(member.active for member in members) <= slots


def _child(table: SlotTable, row: int, path: Path) -> int:
    """Takes and gives the one slot; a file lock says whether somebody else has it too."""
    cell = table.row(row).cell("models", "127.0.0.1:1")
    assert cell is not None
    rng = Random(row)
    had = 0
    with path.open("w") as lock:
        until_s = time.monotonic() + 20
        while had < 500 and time.monotonic() < until_s:
            if not cell.reserve(0, 1):
                os.sched_yield()
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 1
            had += 1
            for _ in range(rng.randrange(50)):
                pass
            fcntl.flock(lock, fcntl.LOCK_UN)
            cell.set(0)
            os.sched_yield()
    return 0 if had == 500 else 2


def test_real_processes_never_have_the_same_slot() -> None:
    table = SlotTable(3)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "lock"
        children = []
        for row in range(3):
            pid = os.fork()
            if pid == 0:
                code = 3
                try:
                    code = _child(table, row, path)
                finally:
                    os._exit(code)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0, 0]


def test_places_are_the_same_in_all_rows_and_apart_from_each_other() -> None:
    table = SlotTable(2, columns=64)
    for n in range(64):
        mine, theirs = (table.row(row).cell("web", str(n)) for row in (0, 1))
        assert mine is not None
        assert theirs is not None
        mine.set(n + 1)
        assert theirs.others() == n + 1
    assert table.row(0).cell("web", "one too many") is None
    for n in range(64):
        again = table.row(1).cell("web", str(n))
        assert again is not None
        assert again.others() == n + 1
