"""Counts by whole seconds or minutes, bounded: the newest are kept. Never reads a clock."""

import numpy as np

from roost.services.observation import Floats


class Series:
    """Values by index (a second or a minute since 1970)."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._buffer: Floats = np.zeros(min(kept, 256))
        self._base: int | None = None
        """Index of the first value; None = nothing was added yet."""

    @property
    def begins(self) -> int | None:
        """The oldest index there is a value of."""
        return self._base

    def add(self, index: int, value: float) -> None:
        """Add to the value of an index; what is older than all that is kept is dropped."""
        if self._base is None:
            self._base = index
        if index < self._base:
            return
        self._reach(index)
        self._buffer[index - self._base] += value

    def lay(self, begin: int, values: Floats) -> None:
        """Add many values from an index on; what is older than the first value is dropped."""
        if self._base is None:
            self._base = begin
        values = values[max(0, self._base - begin) :]
        begin = max(begin, self._base)
        if not len(values):
            return
        self._reach(begin + len(values) - 1)
        assert self._base is not None
        values = values[max(0, self._base - begin) :]
        at = max(begin, self._base) - self._base
        self._buffer[at : at + len(values)] += values

    def view(self, end: int, count: int) -> Floats:
        """Up to ``count`` values before ``end``, the newest last; from where the series begins on."""
        if self._base is None or end <= self._base:
            return np.zeros(0)
        self._reach(end - 1)
        stop = end - self._base
        return self._buffer[max(0, stop - count) : stop]

    def _reach(self, index: int) -> None:
        assert self._base is not None
        size = len(self._buffer)
        if index - self._base < size:
            return
        if size < 2 * self._kept:
            grown = np.zeros(min(2 * self._kept, max(2 * size, 1 + index - self._base)))
            grown[:size] = self._buffer
            self._buffer = grown
            size = len(grown)
        if index - self._base >= size:
            shift = index - self._base + 1 - self._kept
            moved = np.zeros(size)
            rest = self._buffer[shift:]
            moved[: len(rest)] = rest
            self._buffer = moved
            self._base += shift
