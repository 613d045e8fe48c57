"""How much extra work a service may be given: retries, hedges, and what counts as slow. Pure.

Time is an argument everywhere; nothing here asks a clock.
"""

from collections.abc import Iterable

WINDOW_S = 10
"""Budgets look at this many seconds."""
HEDGE_FLOOR = 20
"""Hedging: a quiet service is treated as if it had this many requests more in the window."""

_OCTAVES = 40
_STEPS = 4
_UNIT = 1 << 20
"""One second in the unit of the histogram: about a microsecond."""
_DECAY = 0.9
"""Each decay (one a second) keeps this much: what is ten seconds old weighs a third."""


class Window:
    """Counts over the last ten seconds: requests, retries, hedges, in one-second buckets."""

    __slots__ = ("_hedges", "_requests", "_retries", "_second", "hedges", "requests", "retries")

    def __init__(self) -> None:
        self._requests = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S
        self._hedges = [0] * WINDOW_S
        self._second = 0
        self.requests = 0
        self.retries = 0
        self.hedges = 0

    def advance(self, now_s: float) -> int:
        """Forget what is too old. Returns the present bucket."""
        second = int(now_s)
        if second > self._second:
            for old in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
                bucket = old % WINDOW_S
                self.requests -= self._requests[bucket]
                self.retries -= self._retries[bucket]
                self.hedges -= self._hedges[bucket]
                self._requests[bucket] = self._retries[bucket] = self._hedges[bucket] = 0
            self._second = second
        return self._second % WINDOW_S

    def count(self, requests: int, now_s: float) -> None:
        """That many requests were begun since the last call."""
        self._requests[self.advance(now_s)] += requests
        self.requests += requests

    def take_retry(self, share: float, per_s: float, now_s: float) -> bool:
        """One retry more, if the budget allows."""
        bucket = self.advance(now_s)
        if self.retries + 1 > share * self.requests + per_s * WINDOW_S:
            return False
        self._retries[bucket] += 1
        self.retries += 1
        return True

    def take_hedge(self, share: float, now_s: float) -> bool:
        """One hedge more, if the budget allows."""
        bucket = self.advance(now_s)
        if self.hedges + 1 > share * (self.requests + HEDGE_FLOOR):
            return False
        self._hedges[bucket] += 1
        self.hedges += 1
        return True


class Latencies:
    """A histogram in logarithmic buckets (four an octave) that forgets: for the p99 of a service."""

    __slots__ = ("_buckets", "_decayed_s", "count")

    def __init__(self) -> None:
        self._buckets = [0.0] * (_OCTAVES * _STEPS)
        self._decayed_s = 0.0
        self.count = 0.0

    def add(self, samples: Iterable[float], now_s: float) -> None:
        """Take samples in, in seconds."""
        if now_s - self._decayed_s >= 1.0:
            keep = _DECAY ** min(100.0, now_s - self._decayed_s)
            self._buckets = [n * keep for n in self._buckets]
            self.count *= keep
            self._decayed_s = now_s
        buckets = self._buckets
        taken = 0
        for seconds in samples:
            units = int(seconds * _UNIT) | 4  # at least three bits: the octave and the step
            bits = units.bit_length()
            index = (bits - 3) * _STEPS + ((units >> (bits - 3)) & 3)
            if index >= len(buckets):
                index = len(buckets) - 1
            buckets[index] += 1.0
            taken += 1
        self.count += taken

    def quantile(self, share: float) -> float:
        """The upper edge of the bucket in which this share is reached, in seconds; 0 = no samples."""
        wanted = self.count * share
        if wanted <= 0:
            return 0.0
        reached = 0.0
        last = 0
        for index, n in enumerate(self._buckets):
            if n:
                reached += n
                last = index
                if reached >= wanted:
                    break
        octave, step = divmod(last, _STEPS)
        return float((1 << octave) * (_STEPS + step + 1)) / _UNIT
