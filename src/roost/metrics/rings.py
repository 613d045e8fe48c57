"""Rows of numbers by time in bounded memory: one a second for minutes, their means for hours. Pure.

A time nobody told of is NaN, never zero. Rings grow as they fill, up to their bound, and hold single
precision: a row of ten numbers for five minutes and twelve hours is 40 KiB.
"""

import math
from array import array
from collections.abc import Sequence

SECONDS = 300
MINUTES = 720
MINUTE_S = 60
NAN = math.nan


class Ring:
    """Up to ``kept`` rows of ``width`` numbers, one per step of time."""

    __slots__ = ("_count", "_kept", "_rows", "_width", "end")

    def __init__(self, width: int, kept: int) -> None:
        self._width = width
        self._kept = kept
        self._rows = array("f")
        self._count = 0
        self.end = 0
        """Step after the newest row."""

    def put(self, step: int, row: Sequence[float]) -> None:
        """The row of a step, once. Steps left out before it are unknown; a clock that was set back by
        more than a step begins anew."""
        if self._count and step < self.end:
            if step >= self.end - 2:
                return
            self._rows = array("f")
            self._count = 0
        if self._count:
            for _ in range(min(step - self.end, self._kept)):
                self._add((NAN,) * self._width)
        self._add(row)
        self.end = step + 1

    def _add(self, row: Sequence[float]) -> None:
        at = self._count % self._kept * self._width
        if at == len(self._rows):
            self._rows.extend(row)
        else:
            self._rows[at : at + self._width] = array("f", row)
        self._count += 1

    def column(self, index: int, count: int, end: int | None = None) -> list[float]:
        """Up to ``count`` values of a column, oldest first, the last before step ``end`` (None: the
        newest). Steps after the newest row are unknown."""
        missing = 0 if end is None else max(0, end - self.end)
        wanted = max(0, min(count - missing, self._count, self._kept))
        first = self._count - wanted
        width, kept, rows = self._width, self._kept, self._rows
        found = [rows[n % kept * width + index] for n in range(first, self._count)]
        return found + [NAN] * min(count, missing)


class Track:
    """The rows of one service or host: seconds, and the means of minutes."""

    __slots__ = ("_counts", "_minute", "_sums", "minutes", "seconds")

    def __init__(self, width: int) -> None:
        self.seconds = Ring(width, SECONDS)
        self.minutes = Ring(width, MINUTES)
        self._minute = 0
        self._sums = [0.0] * width
        self._counts = [0] * width

    def put(self, second: int, row: Sequence[float]) -> None:
        """The row of a second."""
        minute = second // MINUTE_S
        if minute != self._minute:
            self._close()
            self._minute = minute
        for index, value in enumerate(row):
            if value == value:  # known
                self._sums[index] += value
                self._counts[index] += 1
        self.seconds.put(second, row)

    def _close(self) -> None:
        if any(self._counts):
            row = [s / n if n else NAN for s, n in zip(self._sums, self._counts, strict=True)]
            self.minutes.put(self._minute, row)
        self._sums = [0.0] * len(self._sums)
        self._counts = [0] * len(self._counts)

    def mean(self, index: int, seconds: int, end: int) -> float:
        """Over the last seconds before ``end``; NaN where nobody told."""
        known = [v for v in self.seconds.column(index, seconds, end) if v == v]
        return sum(known) / len(known) if known else NAN
