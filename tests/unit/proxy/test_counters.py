"""Counters: what is counted, how rows are published, that nothing is lost with a worker."""

import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.proxy import policy
from roost.proxy.counters import (
    BOUNDS_S,
    OTHER,
    REASONS,
    Count,
    Counters,
    CounterTable,
    Sheet,
    Summary,
)
from roost.proxy.plan import Finished
from roost.proxy.upstream import Upstream, Upstreams


def upstream(address: str = "127.0.0.1:80") -> Upstream:
    return Upstreams(policy.Service(name="web", backends=(address,))).members[0]


def finished(
    to: Upstream | None = None,
    *,
    route: str = "all",
    status: int = 200,
    seconds: float = 0.003,
    outcome: str = "ok",
    refused: str = "",
    retries: int = 0,
) -> Finished:
    record = Finished()
    record.route, record.upstream, record.status = route, to, status
    record.client, record.method, record.target, record.host = "192.0.2.1", b"GET", b"/a", b"h"
    record.bytes_in, record.bytes_out = 3, 100
    record.began_s, record.seconds = 5.0, seconds
    record.outcome, record.refused, record.request_id = outcome, refused, b"id-1"
    record.retries, record.hedged = retries, retries > 1
    return record


def test_requests_are_counted_by_route_and_backend() -> None:
    counters = Counters()
    one, two = upstream(), upstream("127.0.0.1:81")
    for record in (
        finished(one),
        finished(one, status=503, retries=2),
        finished(two, outcome="cut"),
        finished(None, status=404, outcome="own", refused="no route"),
        finished(one, status=0, outcome="gone"),
    ):
        counters.done(record)
    by_backend = {count.backend: count for count in counters.counts()}
    first = by_backend["127.0.0.1:80"]
    assert (first.route, first.service, first.requests) == ("all", "web", 3)
    assert first.statuses == [1, 0, 1, 0, 0, 1]
    assert (first.retries, first.hedges, first.gone, first.bytes_out) == (2, 1, 1, 300)
    assert by_backend["127.0.0.1:81"].cut == 1
    assert by_backend[""].statuses[4] == 1
    assert counters.refused == {"no_route": 1}


def test_reasons_are_few_and_known() -> None:
    counters = Counters()
    for status in range(400, 600):
        counters.done(
            finished(status=status, outcome="own", refused=f"there is no route for {status}")
        )
    assert set(counters.refused) == {*REASONS.values(), OTHER}
    assert sum(counters.refused.values()) == 200


def test_a_tally_is_what_a_whole_record_would_have_counted() -> None:
    by_record, by_tally = Counters(), Counters()
    one = upstream()
    for seconds in (0.0001, 0.003, 99.0):
        record = finished(one, seconds=seconds)
        record.bytes_in = 0
        by_record.done(record)
        by_tally.tally("all", one, 200, seconds, 100)
    assert by_tally.counts() == by_record.counts()


@given(st.lists(st.floats(0, 100), max_size=50))
def test_each_latency_is_in_the_first_bucket_that_holds_it(latencies: list[float]) -> None:
    counters = Counters()
    one = upstream()
    for seconds in latencies:
        counters.done(finished(one, seconds=seconds))
    buckets = counters.counts()[0].buckets if latencies else [0] * (len(BOUNDS_S) + 1)
    for index, bound in enumerate(BOUNDS_S):
        assert sum(buckets[: index + 1]) == sum(1 for s in latencies if s <= bound)
    assert sum(buckets) == len(latencies)


def test_a_backend_that_is_gone_keeps_its_numbers_and_not_its_object() -> None:
    counters = Counters()
    one = upstream()
    counters.done(finished(one))
    counters.settle([])
    counters.settle([])
    assert [(c.backend, c.requests) for c in counters.counts()] == [("127.0.0.1:80", 1)]
    counters.done(finished(upstream()))  # it comes back: another object, the same name
    assert sum(c.requests for c in counters.counts()) == 2


def test_rows_add_up_and_outlive_their_worker() -> None:
    table = CounterTable(3)
    summary = Summary(table)
    assert summary.total() == Sheet()
    for row in range(2):
        count = Count("all", "web", "a", statuses=[0, 0, 5, 0, 0, 0], seconds=0.5)
        sheet = Sheet(version=1, counts=[count], refused={"x": 1}, totals={"n": 2})
        sheet.gauges = {"g": 3}
        table.write(row, sheet)
    total = summary.total()
    assert [(c.requests, c.seconds) for c in total.counts] == [(10, 1.0)]
    assert (total.refused, total.totals, total.gauges) == ({"x": 2}, {"n": 4}, {"g": 6})
    summary.retire(0)
    after = summary.total()
    assert after.counts == total.counts
    assert (after.totals, after.gauges) == ({"n": 4}, {"g": 3})  # what it had open is gone


def test_a_row_too_large_for_the_table_stands_still(caplog: pytest.LogCaptureFixture) -> None:
    table = CounterTable(1)
    table.write(0, Sheet(version=1))
    table.write(0, Sheet(version=2, refused={"x" * (3 << 20): 1}))
    assert table.read(0).version == 1
    assert "too many" in caplog.text


def _write_often(table: CounterTable, rounds: int) -> None:
    for number in range(rounds):
        table.write(0, Sheet(version=number, refused={"x": number}, totals={"y" * 2000: number}))


def test_a_reader_in_another_process_never_sees_half_a_row() -> None:
    table = CounterTable(1)
    writer = multiprocessing.get_context("fork").Process(target=_write_often, args=(table, 3000))
    writer.start()
    seen = set()
    while writer.is_alive():
        sheet = table.read(0)
        assert set(sheet.refused.values()) <= {sheet.version}
        assert set(sheet.totals.values()) <= {sheet.version}
        seen.add(sheet.version)
    writer.join()
    assert table.read(0).version == 2999
    assert seen
