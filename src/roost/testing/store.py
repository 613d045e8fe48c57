"""The contract of ``ports.store.Store``: what every implementation must do.

``CHECKS`` are coroutine functions that take an ``Open``: each call of it gives another handle on the same,
at first empty, durable truth. An implementation's test runs each check on a fresh truth. Never knows
which implementation it checks.
"""

import asyncio
from collections.abc import Awaitable, Callable

from roost.ports.errors import Conflict, RoostError, StaleEpoch
from roost.ports.store import Row, Store, StoryLine

Open = Callable[[], Store]
Check = Callable[[Open], Awaitable[None]]


def _row(
    id: str = "a",
    *,
    kind: str = "thing",
    version: int = 0,
    epoch: int = 0,
    state: str = "",
    parent: str = "",
    body: bytes = b"{}",
) -> Row:
    return Row(
        kind=kind, id=id, version=version, epoch=epoch, state=state, parent=parent, body=body
    )


async def _refused(store: Store, error: type[RoostError], *rows: Row) -> None:
    try:
        await store.commit(rows, [StoryLine(object_id="a", at_s=0.0, event="Refused")])
    except error:
        return
    raise AssertionError(f"expected {error.__name__}")


async def check_reads_what_was_written(open_: Open) -> None:
    """All fields come back; the version is the one after the write."""
    store = open_()
    row = Row(
        kind="thing",
        id="a",
        tenant="t",
        epoch=3,
        state="ready",
        parent="p",
        body=bytes(range(256)),
    )
    await store.commit([row])
    found = await store.get("thing", "a")
    assert found == Row(
        kind="thing",
        id="a",
        tenant="t",
        version=1,
        epoch=3,
        state="ready",
        parent="p",
        body=bytes(range(256)),
    )
    await store.close()


async def check_unknown_is_none(open_: Open) -> None:
    """Unknown ids and kinds are None, empty lists, never errors."""
    store = open_()
    await store.commit([_row()])
    assert await store.get("thing", "b") is None
    assert await store.get("other", "a") is None
    assert await store.find("other") == []
    assert await store.story("b") == []
    await store.close()


async def check_compare_and_set(open_: Open) -> None:
    """A write needs the version that was read; 0 means that it must not exist."""
    store = open_()
    await _refused(store, Conflict, _row(version=1))
    await store.commit([_row()])
    await _refused(store, Conflict, _row())
    await store.commit([_row(version=1, state="two")])
    await _refused(store, Conflict, _row(version=1, state="three"))
    await _refused(store, Conflict, _row(version=3, state="three"))
    found = await store.get("thing", "a")
    assert found is not None
    assert (found.version, found.state) == (2, "two")
    await store.close()


async def check_older_epoch_is_refused(open_: Open) -> None:
    """A writer of an older epoch gets ``StaleEpoch`` even with the right version."""
    store = open_()
    await store.commit([_row(epoch=4)])
    await _refused(store, StaleEpoch, _row(version=1, epoch=3))
    await _refused(store, StaleEpoch, _row(version=0, epoch=3))
    await store.commit([_row(version=1, epoch=4)])
    await store.commit([_row(version=2, epoch=5)])
    await store.close()


async def check_all_or_nothing(open_: Open) -> None:
    """One refused row undoes the others and the story lines, and the store works on."""
    store = open_()
    await store.commit([_row("a")])
    await _refused(store, Conflict, _row("b"), _row("a"), _row("c"))
    assert await store.get("thing", "b") is None
    assert await store.get("thing", "c") is None
    assert await store.story() == []
    await store.commit([_row("b"), _row("a", version=1)])
    await store.close()


async def check_find_filters_and_orders(open_: Open) -> None:
    """Rows of one kind by state and parent, ordered by id."""
    store = open_()
    rows = [
        _row("d", state="ready", parent="p"),
        _row("b", state="ready", parent="q"),
        _row("c", state="gone", parent="p"),
        _row("a", state="ready", parent="p", kind="other"),
    ]
    await store.commit(rows)
    assert [r.id for r in await store.find("thing")] == ["b", "c", "d"]
    assert [r.id for r in await store.find("thing", state="ready")] == ["b", "d"]
    assert [r.id for r in await store.find("thing", parent="p")] == ["c", "d"]
    assert [r.id for r in await store.find("thing", state="ready", parent="p")] == ["d"]
    await store.commit([_row("d", version=1, state="gone", parent="q")])
    assert [r.id for r in await store.find("thing", state="ready")] == ["b"]
    assert [r.id for r in await store.find("thing", parent="q")] == ["b", "d"]
    await store.close()


async def check_story_is_numbered(open_: Open) -> None:
    """Lines come back in the order of their commits with rising seq; ``after`` and ``limit`` page."""
    store = open_()
    data = {"n": 1, "s": "ü", "list": [1.5, None], "map": {"x": True}}
    await store.commit([], [StoryLine(object_id="a", at_s=1.5, event="Started", data=data)])
    lines = [
        StoryLine(object_id=name, at_s=2.0, event="Went", reason="r", tenant="t") for name in "bab"
    ]
    await store.commit([_row()], lines)
    told = await store.story()
    assert [line.object_id for line in told] == ["a", "b", "a", "b"]
    assert [line.seq for line in told] == sorted({line.seq for line in told})
    assert told[0].data == data
    assert (told[0].at_s, told[1].reason, told[1].tenant) == (1.5, "r", "t")
    assert [line.seq for line in await store.story("a")] == [told[0].seq, told[2].seq]
    assert await store.story("b", after=told[1].seq) == [told[3]]
    assert await store.story(limit=2) == told[:2]
    await store.close()


async def check_survives_reopening(open_: Open) -> None:
    """What a commit returned for is there for the next process, with its version and seq."""
    store = open_()
    await store.commit([_row(state="one")], [StoryLine(object_id="a", at_s=0.0, event="One")])
    await store.close()
    again = open_()
    found = await again.get("thing", "a")
    assert found is not None
    await again.commit(
        [_row(version=found.version)], [StoryLine(object_id="a", at_s=1.0, event="Two")]
    )
    told = await again.story("a")
    assert [line.event for line in told] == ["One", "Two"]
    assert told[0].seq < told[1].seq
    await again.close()


async def check_concurrent_writers(open_: Open) -> None:
    """Of many writers that read the same version, on two handles, exactly one wins each round."""
    first, second = open_(), open_()
    await first.commit([_row()])

    async def write(store: Store, version: int, name: str) -> bool:
        try:
            await store.commit([_row(version=version, state=name)])
        except Conflict:
            return False
        return True

    for version in range(1, 6):
        attempts = [write((first, second)[n % 2], version, f"w{n}") for n in range(8)]
        won = await asyncio.gather(*attempts)
        assert sum(won) == 1
        seen = [await store.get("thing", "a") for store in (first, second)]
        assert seen[0] == seen[1]
        assert seen[0] is not None
        assert seen[0].version == version + 1
    await first.close()
    await second.close()


async def check_closed_raises(open_: Open) -> None:
    """A closed store refuses every call."""
    store = open_()
    await store.close()
    for call in (store.get("thing", "a"), store.commit([_row()]), store.story()):
        try:
            await call
        except RoostError:
            continue
        raise AssertionError("a closed store answered")


CHECKS: tuple[Check, ...] = (
    check_reads_what_was_written,
    check_unknown_is_none,
    check_compare_and_set,
    check_older_epoch_is_refused,
    check_all_or_nothing,
    check_find_filters_and_orders,
    check_story_is_numbered,
    check_survives_reopening,
    check_concurrent_writers,
    check_closed_raises,
)
"""Every check, by name in ``__name__``."""
