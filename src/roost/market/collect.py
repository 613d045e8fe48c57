"""Brings what sources tell into the history: page by page, the cursor kept after the facts.

It may be ended anywhere and begun again. A throttled page is asked again after the vendor's seconds; a source
that fails never stops another. It never reads the clock: time, sleep and chance are arguments.
"""

import asyncio
import fcntl
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import msgspec
from blake3 import blake3

from roost.market.history import History, Stored
from roost.ports.errors import Invalid, Retry, RoostError
from roost.ports.sources import Page, PriceSource

TRIES = 4
"""Times one page is asked for."""
LONGEST_WAIT_S = 120.0
"""A vendor that wants more patience than this fails the source for now."""
JITTER = 0.1
"""Share of a cadence by which reads are spread."""
COMPACT_S = 6 * 3600.0
REST_S = 60.0
"""Least pause after a source failed."""

Sleep = Callable[[float], Awaitable[None]]
Say = Callable[[str], None]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one complete read of a source brought. ``error`` empty = it went through."""

    source: str
    new: int = 0
    known: int = 0
    """Facts that were in the history already."""
    pages: int = 0
    seconds: float = 0.0
    skipped: dict[str, int] = {}
    failed: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""
    again_s: float = 0.0
    """Seconds after which the vendor may be asked again (0: at the next cadence)."""

    @property
    def ok(self) -> bool:
        """All of it came."""
        return not self.error and not self.failed


class Kept(msgspec.Struct):
    """What is kept of a source between reads."""

    cursor: str = ""
    finished_s: float = 0.0
    """When the last complete read ended, UTC seconds."""


class Cursors:
    """Where each source is, one small file each, replaced in one step.

    ``scope`` says what the sources are narrowed to: another scope is another place to go on from.
    """

    def __init__(self, folder: Path, scope: str = "") -> None:
        self._folder = folder
        self._mark = f"-{blake3(scope.encode()).hexdigest()[:12]}" if scope else ""

    def get(self, source: str) -> Kept:
        """What is kept; nothing when it was never read or its file is damaged (then it starts anew)."""
        try:
            return msgspec.json.decode(self._path(source).read_bytes(), type=Kept)
        except (FileNotFoundError, msgspec.MsgspecError):
            return Kept()

    def put(self, source: str, kept: Kept) -> None:
        """Keep it. Raises ``Retry`` when it cannot be written."""
        path = self._path(source)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgspec.json.encode(kept))
            part.replace(path)
        except OSError as error:
            raise Retry(f"{path} cannot be written: {error.strerror}", after_s=60.0) from error

    def _path(self, source: str) -> Path:
        return self._folder / f"{re.sub(r'[^a-z0-9-]', '_', source)}{self._mark}.json"


class Collector:
    """Reads sources into one history."""

    def __init__(
        self,
        history: History,
        *,
        now: Callable[[], float],
        sleep: Sleep = asyncio.sleep,
        random: Random | None = None,
        scope: str = "",
    ) -> None:
        self._history = history
        self._cursors = Cursors(history.root / "cursors", scope)
        self._now = now
        self._sleep = sleep
        self._random = random or Random()

    async def collect(self, source: PriceSource, say: Say = lambda _text: None) -> Outcome:
        """Read a source until it has no further page; what came before an error stays."""
        began = self._now()
        stored, pages = Stored(), 0
        skipped: Counter[str] = Counter()
        failed: list[str] = []
        error: RoostError | None = None
        while True:
            kept = self._cursors.get(source.name)
            try:
                page = await self._page(source, kept.cursor, say)
                if page.records:
                    stored += await asyncio.to_thread(self._history.append, page.records)
                finished = self._now() if page.done else kept.finished_s
                self._cursors.put(source.name, Kept(cursor=page.cursor, finished_s=finished))
            except RoostError as raised:
                error = raised
                break
            pages += 1
            skipped.update(page.skipped)
            failed += page.failed
            say(f"{page.progress or f'page {pages}'}: {stored.new:,} new facts")
            if page.done:
                break
        return Outcome(
            source=source.name,
            new=stored.new,
            known=stored.known,
            pages=pages,
            seconds=self._now() - began,
            skipped=dict(skipped),
            failed=tuple(failed),
            error=error.message if error else "",
            hint=error.hint if error else "",
            again_s=error.after_s if isinstance(error, Retry) else 0.0,
        )

    async def _page(self, source: PriceSource, cursor: str, say: Say) -> Page:
        for turn in range(TRIES):
            try:
                return await source.fetch(cursor)
            except Retry as error:
                wait = max(error.after_s, 2.0**turn) * (1.0 + JITTER * self._random.random())
                if turn + 1 == TRIES or error.after_s > LONGEST_WAIT_S:
                    raise
                say(f"waits {wait:.0f} s: {error.message}")
                await self._sleep(wait)
        raise Invalid("unreachable")

    async def record(
        self,
        sources: Sequence[PriceSource],
        *,
        once: bool,
        tell: Callable[[Outcome], None],
        say: Callable[[str, str], None] = lambda _source, _text: None,
    ) -> list[Outcome]:
        """Read each source at its cadence until cancelled (``once``: each that is due, one time).

        Raises ``Invalid`` when another recorder has this history.
        """
        with alone(self._history.root):
            if once:
                return [await self._once(source, tell, say) for source in sources]
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(self._forever(source, tell, say))
                group.create_task(self._tidy())
        return []

    async def _once(
        self,
        source: PriceSource,
        tell: Callable[[Outcome], None],
        say: Callable[[str, str], None],
    ) -> Outcome:
        outcome = await self.collect(source, lambda text: say(source.name, text))
        tell(outcome)
        return outcome

    async def _forever(
        self,
        source: PriceSource,
        tell: Callable[[Outcome], None],
        say: Callable[[str, str], None],
    ) -> None:
        wait = self._due(source)
        while True:
            await self._sleep(wait)
            outcome = await self._once(source, tell, say)
            wait = max(outcome.again_s, REST_S) if outcome.error else self._due(source)

    def _due(self, source: PriceSource) -> float:
        """Seconds until the next read; each reader has its own jitter, so that fleets do not meet."""
        spread = 1.0 + JITTER * (2.0 * self._random.random() - 1.0)
        last = self._cursors.get(source.name).finished_s
        return max(0.0, last + source.cadence_s * spread - self._now()) if last else 0.0

    async def _tidy(self) -> None:
        while True:
            await asyncio.to_thread(self._history.compact)
            await self._sleep(COMPACT_S)


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """One recorder a history; the lock ends with its process, however that ends."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".recorder").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Invalid(
                f"another `roost market record` writes {root}",
                hint="end it, or choose another folder with --history",
            ) from error
        yield
