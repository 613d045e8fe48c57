"""Contract of ``ports.sources.PriceSource``: run ``CHECKS`` on a source over a vendor of your own making.

It never knows which source it checks; what a vendor's errors become is each source's own test.
"""

import re
from collections.abc import Awaitable, Callable
from math import isfinite

import msgspec

from roost.ports.errors import Invalid
from roost.ports.sources import FACTS, Fact, Page, PriceSource

Open = Callable[[], PriceSource]
"""Opens the source on a vendor that answers whole pages with facts, the same ones each time."""
Check = Callable[[Open], Awaitable[None]]
MOST_PAGES = 1000


async def check_introduces_itself(open_source: Open) -> None:
    """Name, licence and cadence are there for a person and for the history."""
    source = open_source()
    try:
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", source.name), "a name that can be a folder"
        assert source.licence.strip(), "a licence a person can read"
        assert isinstance(source.needs, str)
        assert isinstance(source.consent, bool)
        assert source.cadence_s >= 60.0, "no source is worth asking every minute"
    finally:
        await source.close()


async def check_pages_end(open_source: Open) -> None:
    """From the empty cursor the pages end; every fact is whole and says who told it and when."""
    source = open_source()
    try:
        facts = await _all(source)
        assert facts, "a vendor with facts gives facts"
        for fact in facts:
            _check_fact(fact, source.name)
    finally:
        await source.close()


async def check_a_page_can_be_asked_for_again(open_source: Open) -> None:
    """The same cursor gives the same facts: what a crash between fetching and storing needs."""
    source = open_source()
    try:
        cursor = ""
        for _ in range(MOST_PAGES):
            first, second = await source.fetch(cursor), await source.fetch(cursor)
            assert _keys(first) == _keys(second), f"from {cursor!r}"
            cursor = first.cursor
            if first.done:
                return
        raise AssertionError("the pages do not end")
    finally:
        await source.close()


async def check_a_restart_goes_on(open_source: Open) -> None:
    """A new instance with the cursor of another gives what the other would have given next."""
    one, other = open_source(), open_source()
    try:
        page = await one.fetch("")
        if page.done:
            return
        assert _keys(await other.fetch(page.cursor)) == _keys(await one.fetch(page.cursor))
    finally:
        await one.close()
        await other.close()


async def check_a_finished_read_can_begin_again(open_source: Open) -> None:
    """The last cursor is good for the next read, which may find nothing new."""
    source = open_source()
    try:
        cursor = ""
        for _ in range(2):
            for _page in range(MOST_PAGES):
                page = await source.fetch(cursor)
                cursor = page.cursor
                if page.done:
                    break
            else:
                raise AssertionError("the pages do not end")
    finally:
        await source.close()


async def check_refuses_a_foreign_cursor(open_source: Open) -> None:
    """A damaged cursor is ``Invalid``, never the start of something else."""
    source = open_source()
    try:
        for cursor in ("rubbish", "[1, 2", '"text"'):
            try:
                await source.fetch(cursor)
            except Invalid:
                continue
            raise AssertionError(f"{cursor!r} was taken for a cursor")
    finally:
        await source.close()


CHECKS: tuple[Check, ...] = (
    check_introduces_itself,
    check_pages_end,
    check_a_page_can_be_asked_for_again,
    check_a_restart_goes_on,
    check_a_finished_read_can_begin_again,
    check_refuses_a_foreign_cursor,
)


async def _all(source: PriceSource) -> list[Fact]:
    facts: list[Fact] = []
    cursor = ""
    for _ in range(MOST_PAGES):
        page = await source.fetch(cursor)
        facts += page.records
        cursor = page.cursor
        assert isinstance(cursor, str)
        if page.done:
            return facts
    raise AssertionError("the pages do not end")


def _check_fact(fact: Fact, name: str) -> None:
    assert type(fact) is FACTS.get(fact.KIND), f"{fact.KIND} is a kind of fact"
    assert fact.source == name, "a fact names the source that told it"
    assert 9.4e8 < fact.observed_at < 4.2e9, f"UTC seconds: {fact.observed_at}"
    for field, value in msgspec.structs.asdict(fact).items():
        if isinstance(value, float):
            assert isfinite(value) and value >= 0.0, f"{field} = {value}"
    for field in ("provider", "instance_type"):
        assert getattr(fact, field, "x"), f"{field} is empty"


def _keys(page: Page) -> list[tuple[object, ...]]:
    return sorted(
        (fact.KIND, *(str(getattr(fact, name)) for name in fact.KEY)) for fact in page.records
    )
