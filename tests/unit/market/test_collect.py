"""The collector: cursors after facts, patience with throttling, one failing source, restarts, cadences."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from roost.market.collect import JITTER, TRIES, Collector, Cursors, Kept, Outcome, alone
from roost.market.history import History
from roost.ports.errors import Denied, Invalid, Never, Retry, RoostError
from roost.ports.sources import OfferPrice, Page

T0 = 1_780_000_000.0


class Source:
    """Three pages of one fact; ``trouble`` may raise before a page is given."""

    licence, needs, consent = "none", "", False

    def __init__(
        self, name: str, trouble: Callable[[int], RoostError | None] = lambda _: None
    ) -> None:
        self.name = name
        self.cadence_s = 100.0
        self.calls = 0
        self.asked: list[str] = []
        self._trouble = trouble

    async def fetch(self, cursor: str) -> Page:
        self.calls += 1
        self.asked.append(cursor)
        error = self._trouble(self.calls)
        if error is not None:
            raise error
        page = int(cursor or 0)
        fact = OfferPrice(
            source=self.name,
            observed_at=T0 + page,
            provider="aws",
            region="r",
            instance_type=f"t{page}",
            option="spot",
            usd_hour=0.1,
        )
        last = page % 3 == 2
        return Page(
            records=(fact,),
            cursor="0" if last else str(page + 1),
            done=last,
            skipped={"odd": 1},
            failed=("a part",) if last else (),
        )

    async def close(self) -> None: ...


class Time:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = T0
        self.slept: list[float] = []
        self._wakes: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        wake = self.now + seconds
        self._wakes.append(wake)
        await asyncio.sleep(0.001)
        while wake > min(self._wakes):  # noqa: ASYNC110 (others may begin to sleep meanwhile)
            await asyncio.sleep(0.001)
        self._wakes.remove(wake)
        self.now = max(self.now, wake)


def _collector(folder: Path, time: Time) -> Collector:
    return Collector(History(folder), now=time, sleep=time.sleep)


async def test_a_read_from_beginning_to_end(tmp_path: Path) -> None:
    time, source = Time(), Source("one")
    outcome = await _collector(tmp_path, time).collect(source)
    assert (outcome.new, outcome.pages, outcome.skipped) == (3, 3, {"odd": 3})
    assert outcome.failed == ("a part",) and not outcome.ok and not outcome.error
    again = await _collector(tmp_path, time).collect(source)
    assert (again.new, again.known) == (0, 3)
    kept = Cursors(tmp_path / "cursors").get("one")
    assert kept.cursor == "0" and kept.finished_s == T0


async def test_throttling_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    time = Time()
    busy = Source("busy", lambda call: Retry("slow down", after_s=7.0) if call == 2 else None)
    outcome = await _collector(tmp_path, time).collect(busy)
    assert outcome.new == 3 and not outcome.error
    assert len(time.slept) == 1 and 7.0 <= time.slept[0] <= 7.0 * (1 + JITTER)
    never = Source("never", lambda call: Retry("slow down", after_s=1.0) if call > 1 else None)
    outcome = await _collector(tmp_path, Time()).collect(never)
    assert (outcome.error, outcome.new, outcome.again_s) == ("slow down", 1, 1.0)
    assert never.calls == 1 + TRIES
    patient = Source("patient", lambda _: Retry("tomorrow", after_s=40_000.0))
    outcome = await _collector(tmp_path, time).collect(patient)
    assert patient.calls == 1 and outcome.again_s == 40_000.0, "nobody waits for half a day"


async def test_after_an_error_it_goes_on_where_it_was(tmp_path: Path) -> None:
    source = Source("one", lambda call: Never("not what is documented") if call == 2 else None)
    first = await _collector(tmp_path, Time()).collect(source)
    assert first.new == 1 and first.error and first.pages == 1
    second = await _collector(tmp_path, Time()).collect(source)
    assert source.asked == ["", "1", "1", "2"] and second.new == 2
    other = Collector(History(tmp_path), now=Time(), scope="us-east-1 only")
    assert (await other.collect(source)).known == 3 and source.asked[4] == "", "a read of its own"
    damaged = tmp_path / "cursors" / "one.json"
    damaged.write_text("{")
    third = await _collector(tmp_path, Time()).collect(source)
    assert (third.new, third.known) == (0, 3), (
        "a damaged cursor: from the start, nothing is doubled"
    )


async def test_facts_that_cannot_be_true_leave_the_cursor(tmp_path: Path) -> None:
    class Wrong(Source):
        async def fetch(self, cursor: str) -> Page:
            page = await super().fetch(cursor)
            bad = OfferPrice(
                source="one", observed_at=5.0, provider="a", region="r", instance_type="t",
                option="spot", usd_hour=1.0,
            )  # fmt: skip
            return Page(records=(*page.records, bad), cursor=page.cursor, done=page.done)

    outcome = await _collector(tmp_path, Time()).collect(Wrong("one"))
    assert "moments outside" in outcome.error
    assert Cursors(tmp_path / "cursors").get("one") == Kept()
    assert History(tmp_path).read("offer_price").height == 0


async def test_one_failing_source_never_stops_the_others(tmp_path: Path) -> None:
    told: list[Outcome] = []
    bad, good = Source("bad", lambda _: Denied("no", hint="sign in")), Source("good")
    outcomes = await _collector(tmp_path, Time()).record([bad, good], once=True, tell=told.append)
    assert [o.source for o in outcomes] == ["bad", "good"] and told == outcomes
    assert outcomes[0].hint == "sign in" and outcomes[1].new == 3


async def test_a_recorder_keeps_cadences_and_is_alone(tmp_path: Path) -> None:
    time, told = Time(), list[Outcome]()
    slow, quick = Source("slow"), Source("quick")
    slow.cadence_s = 1000.0
    when: dict[str, list[float]] = {}

    def tell(outcome: Outcome) -> None:
        told.append(outcome)
        when.setdefault(outcome.source, []).append(time.now)
        if len(told) >= 12:
            work.cancel()

    collector = _collector(tmp_path, time)
    work = asyncio.ensure_future(collector.record([slow, quick], once=False, tell=tell))
    with pytest.raises(asyncio.CancelledError):
        await work
    for source in (slow, quick):
        times = when[source.name]
        gaps = [b - a for a, b in pairwise(times)]
        assert gaps and min(gaps) >= source.cadence_s * (1 - JITTER), source.name
    with alone(tmp_path), pytest.raises(Invalid, match="another"):
        await _collector(tmp_path, time).record([quick], once=True, tell=told.append)
    assert (await _collector(tmp_path, time).record([quick], once=True, tell=told.append))[0].known
