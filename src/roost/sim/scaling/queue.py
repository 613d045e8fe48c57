"""The requests of one service, one by one, first come first served, with a perfect balancer. Exact.

A request takes the slot that is free first. As long as nobody can have waited the step is computed on whole
arrays; only a step in which some did walks a heap. Never decides how many slots there are.
"""

from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np

from roost.sim.scaling.scenario import MINUTE_S, Load
from roost.sim.scaling.traces import Floats

NONE = np.empty(0)
PIECE = 1024
"""Requests that are walked one by one at a time."""
SAMPLES = 2000
"""Finished requests a policy may see the service times of."""


@dataclass(slots=True)
class Step:
    """What one step saw."""

    arrived: int = 0
    busy_s: float = 0.0
    """Slot-seconds at work."""


class Queue:
    """Arrivals in order, the slots at work, and who was late."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.at_s = load.at_s
        self.takes_s = load.takes_s
        self.busy = NONE
        """Sorted ends of what is in flight; at most ``slots`` of them after a step."""
        self.slots = 0
        """Requests that can be served at once now."""
        self.opening: list[float] = []
        """When further slots open, each ``load.concurrency`` wide."""
        self.head = 0
        """The first request that has not begun."""
        self.tail = 0
        """The first that has not arrived."""
        self.counted = load.takes_s <= load.bound_s
        """A request longer than the bound by itself is late whatever one does: it does not count."""
        self.response_s = load.takes_s.copy()
        """From arrival to answer; before a request has begun: its service time alone."""
        self.minute = (load.at_s // MINUTE_S).astype(np.int64)
        size = len(load.minutes)
        self.total = np.bincount(self.minute[self.counted], minlength=size).astype(np.float64)
        self.late = np.zeros(size)
        self.spoilt = np.zeros(size)
        """Of ``late``: those whose server was taken away under them, and those that found nothing awake."""
        self.awake_s = -np.inf
        """When the first slot opened after there was none."""
        self.squares = np.concatenate([[0.0], np.cumsum(load.takes_s**2)])
        self.sums = np.concatenate([[0.0], np.cumsum(load.takes_s)])

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self.tail - self.head

    def in_flight(self, now_s: float) -> int:
        """Requests being served."""
        return int(len(self.busy) - np.searchsorted(self.busy, now_s, side="right"))

    def arrived(self, since_s: float, until_s: float) -> int:
        """Requests that arrived in [since, until)."""
        first, last = np.searchsorted(self.at_s, (since_s, until_s))
        return int(last - first)

    def next_arrival_s(self) -> float:
        """When the first request after the last step arrives."""
        return float(self.at_s[self.tail]) if self.tail < len(self.at_s) else np.inf

    def service_time(self, flying: int) -> tuple[float, float, int]:
        """Mean and coefficient of variation of the last finished requests, and how many there were."""
        last = max(0, self.head - flying)
        first = max(0, last - SAMPLES)
        n = last - first
        if n < 2:
            return self.load.mean_s, 1.0, n
        mean = (self.sums[last] - self.sums[first]) / n
        square = (self.squares[last] - self.squares[first]) / n
        return float(mean), float(np.sqrt(max(0.0, square - mean**2)) / mean), n

    def samples(self, flying: int) -> Floats:
        """Service times of the last finished requests."""
        last = max(0, self.head - flying)
        return self.takes_s[max(0, last - SAMPLES) : last]

    def shrink(self, now_s: float, wide: int) -> Floats:
        """Take ``wide`` slots away, idle ones first; the ends of what those still at work are doing."""
        self.busy = self.busy[np.searchsorted(self.busy, now_s, side="right") :]
        self.slots -= wide
        over = max(0, len(self.busy) - self.slots)
        ends, self.busy = self.busy[:over], self.busy[over:]
        return ends

    def spoil(self, now_s: float, requests: int) -> None:
        """``requests`` in flight lost their server: they are late, whoever serves them in the end."""
        place = int(now_s // MINUTE_S)
        self.late[place] += requests
        self.spoilt[place] += requests

    def again(self, at_s: float) -> None:
        """As new, with nothing begun, from the first request after ``at_s`` on."""
        self.response_s[:] = self.takes_s
        self.late[:] = 0.0
        self.spoilt[:] = 0.0
        self.busy, self.slots, self.opening, self.awake_s = NONE, 0, [], -np.inf
        self.head = self.tail = int(np.searchsorted(self.at_s, at_s))

    def advance(self, now_s: float, until_s: float) -> Step:
        """Serve until ``until_s``. Slots that open before are used from the moment they open."""
        step = Step()
        self._span(now_s, until_s, step)
        return step

    def _span(self, now_s: float, until_s: float, step: Step) -> None:
        before = self.tail
        self.tail = int(np.searchsorted(self.at_s, until_s))
        arrived = self.tail - before
        busy = self.busy[np.searchsorted(self.busy, now_s, side="right") :]
        opening = [at for at in self.opening if at < until_s]
        if not self._all_at_once(now_s, until_s, busy, step):
            if arrived > PIECE:
                # Somebody waits, but hardly all the time: most pieces are done at once.
                self.tail, middle_s = before, (now_s + until_s) / 2.0
                self._span(now_s, middle_s, step)
                self._span(middle_s, until_s, step)
                return
            self._one_by_one(now_s, until_s, busy, opening, step)
        step.arrived += arrived
        if opening:
            self.opening = [at for at in self.opening if at >= until_s]
            self.slots += len(opening) * self.load.concurrency

    def _all_at_once(self, now_s: float, until_s: float, busy: Floats, step: Step) -> bool:
        """True if no request waits, with the slots open now: then all begin as they arrive."""
        head, tail = self.head, self.tail
        if head == tail:
            self.busy = busy[np.searchsorted(busy, until_s, side="right") :]
            step.busy_s += _inside(busy, until_s) - len(busy) * now_s
            return True
        at_s = self.at_s[head:tail]
        if self.slots == 0 or at_s[0] < now_s:
            return False
        ends = at_s + self.takes_s[head:tail]
        everything = np.concatenate([busy, ends])
        everything.sort()
        before = len(busy)
        # In flight just after each arrival: those from before, and all that arrived, less those that ended.
        flying = np.arange(before + 1, before + 1 + len(at_s))
        flying -= np.searchsorted(everything, at_s, side="right")
        if flying.max() > self.slots:
            return False
        step.busy_s += _inside(everything, until_s) - before * now_s - float(at_s.sum())
        self.busy = everything[np.searchsorted(everything, until_s, side="right") :]
        self.head = tail
        return True

    def _one_by_one(
        self, now_s: float, until_s: float, busy: Floats, opening: list[float], step: Step
    ) -> None:
        wide = self.load.concurrency
        heap = busy.tolist()
        heap += [now_s] * (self.slots - len(heap))
        for at in opening:
            heap += [max(at, now_s)] * wide
        begun: list[float] = []
        if opening and not self.slots:
            self.awake_s = min(opening)
        if heap:
            heapify(heap)
            for first in range(self.head, self.tail, PIECE):
                piece = slice(first, min(first + PIECE, self.tail))
                if _begin(heap, self.at_s[piece], self.takes_s[piece], until_s, begun):
                    break
        self._note(np.array(begun))
        everything = np.array(heap)
        everything.sort()
        step.busy_s += self._worked(now_s, until_s, busy, begun)
        self.busy = everything[np.searchsorted(everything, until_s, side="right") :]

    def _worked(self, now_s: float, until_s: float, busy: Floats, begun: list[float]) -> float:
        starts = np.array(begun)
        last = self.head
        ends = starts + self.takes_s[last - len(begun) : last]
        return (
            _inside(busy, until_s)
            - len(busy) * now_s
            + _inside(ends, until_s)
            - float(starts.sum())
        )

    def _note(self, starts: Floats) -> None:
        """Count who of those that began was late."""
        head = self.head
        done = slice(head, head + len(starts))
        waited = starts - self.at_s[done]
        self.response_s[done] = waited + self.takes_s[done]
        late = (self.response_s[done] > self.load.bound_s) & self.counted[done]
        if late.any():
            minutes = self.minute[done][late]
            np.add.at(self.late, minutes, 1.0)
            np.add.at(self.spoilt, minutes, self.at_s[done][late] < self.awake_s)
        self.head = head + len(starts)


def _begin(
    heap: list[float], at_s: Floats, takes_s: Floats, until_s: float, begun: list[float]
) -> bool:
    """Let requests begin, each on the slot that is free first; True once one cannot before ``until_s``."""
    begin = begun.append
    for at, takes in zip(at_s.tolist(), takes_s.tolist(), strict=True):
        free = heap[0]
        start = at if at > free else free
        if start >= until_s:
            return True
        heapreplace(heap, start + takes)
        begin(start)
    return False


def _inside(ends: Floats, until_s: float) -> float:
    return float(np.minimum(ends, until_s).sum())
