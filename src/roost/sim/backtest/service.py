"""(b) A service that wants N ready replicas always, replayed over a recording to the second. Pure.

The rules of the world, the same for every policy:

- At the beginning of a tick a pool keeps as many instances as its room says (a recording of 0 and 1
  says nothing about how many fit: any number while it is up). The youngest go first. They are told so
  ``notice_s`` before.
- An instance is billed from its launch to its end, and ready ``launch_s`` after its launch.
- A refused launch costs ``refusal_s``, then the next choice is asked for, at most once a pool in a tick.
- Availability is the share of the time with N ready replicas or more; the beginning counts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from roost.sim.backtest.pools import ON_DEMAND, Pools
from roost.sim.backtest.record import Record
from roost.sim.backtest.seen import Forecasts, Seen
from roost.sim.backtest.session import REFUSAL_MEMORY_S, Timing


@dataclass(slots=True, eq=False)
class Replica:
    """One instance of the service."""

    place: int
    launched_s: float
    ready_s: float
    told: bool = False
    """It has its notice."""
    leaving: bool = False
    """A policy's own mark: it is let go as soon as enough others are ready."""


@dataclass(slots=True)
class Plan:
    """What a policy wants now."""

    launch: list[int] = field(default_factory=list)
    """Places, one instance each."""
    release: list[Replica] = field(default_factory=list)


class ServicePolicy(Protocol):
    """Decides which replicas there are."""

    def plan(self, seen: Seen, replicas: Sequence[Replica], wanted: int) -> Plan:
        """Asked at every tick, notice, loss, refusal, and when a replica is ready."""


class ServiceWorld:
    """One replay."""

    def __init__(
        self,
        pools: Pools,
        policy: ServicePolicy,
        timing: Timing,
        forecasts: Forecasts,
        wanted: int,
        first: int = 0,
        last: int | None = None,
    ) -> None:
        self._pools = pools
        self._policy = policy
        self._timing = timing
        self._wanted = wanted
        self._last = pools.ticks if last is None else last
        self._tick = first
        self._now_s = first * pools.gap_s
        self._seen = Seen(pools.zones, pools.regions, pools.gap_s, forecasts)
        self._replicas: list[Replica] = []
        self._noticed = first
        """The newest tick whose losses have been told."""
        self.record = Record(pools.gap_s, first, self._last)
        self._look()

    def run(self) -> Record:
        """Play to the end of the recording."""
        gap_s, notice_s = self._pools.gap_s, self._timing.notice_s
        self._decide()
        while True:
            tick_s = (self._tick + 1) * gap_s
            notice_at_s = inf
            if notice_s > 0 and self._noticed + 1 < self._last:
                notice_at_s = max(self._now_s, (self._noticed + 1) * gap_s - notice_s)
            ready_s = min(
                (r.ready_s for r in self._replicas if r.ready_s > self._now_s), default=inf
            )
            event_s = min(tick_s, notice_at_s, ready_s)
            self._pass(event_s)
            if event_s == tick_s:
                self._tick += 1
                if self._tick == self._last:
                    self.record.close(self._now_s)
                    return self.record
                self._look()
                self._take()
            elif event_s == notice_at_s:
                self._noticed += 1
                if not self._tell(self._noticed):
                    continue
            self._decide()

    def _look(self) -> None:
        seen = self._seen
        seen.now_s, seen.tick = self._now_s, self._tick
        seen.up, seen.price = self._pools.up[self._tick], self._pools.price[self._tick]

    def _pass(self, until_s: float) -> None:
        seconds = until_s - self._now_s
        if seconds > 0:
            price = sum(self._pools.price_at(self._tick, r.place) for r in self._replicas)
            ready = sum(r.ready_s <= self._now_s for r in self._replicas)
            cost = price * seconds / self._wanted
            self.record.passed(self._tick, seconds, cost, ready < self._wanted)
        self._now_s = self._seen.now_s = until_s

    # --- losses ------------------------------------------------------------------------------------

    def _excess(self, tick: int) -> list[Replica]:
        """Who goes at a tick's beginning: the youngest of each pool beyond its room."""
        counted: Counter[int] = Counter()
        gone = []
        for replica in sorted(self._replicas, key=lambda r: r.launched_s):
            if replica.place != ON_DEMAND:
                counted[replica.place] += 1
                if counted[replica.place] > self._pools.room[tick][replica.place]:
                    gone.append(replica)
        return gone

    def _tell(self, tick: int) -> bool:
        told = [r for r in self._excess(tick) if not r.told]
        for replica in told:
            replica.told = True
            self._seen.lost[replica.place] = self._now_s
        return bool(told)

    def _take(self) -> None:
        for replica in self._excess(self._tick):
            self._replicas.remove(replica)
            self._seen.lost[replica.place] = self._now_s
            self.record.reclaims[self._tick - self.record.first] += 1
        if self._timing.notice_s <= 0:
            self._noticed = self._tick

    # --- decisions ---------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Ask until the policy wants nothing more, or every pool has refused in this tick."""
        delay_s = 0.0
        for _ in range(2 * len(self._pools.zones) + 2):
            plan = self._policy.plan(self._seen, self._replicas, self._wanted)
            for replica in plan.release:
                self._replicas.remove(replica)
            refused = False
            for place in plan.launch:
                refused |= not self._launch(place, delay_s)
            if not refused:
                break
            delay_s += self._timing.refusal_s
        self._show()

    def _launch(self, place: int, delay_s: float) -> bool:
        self.record.launches += 1
        at_s = self._now_s + delay_s
        if place != ON_DEMAND:
            here = sum(r.place == place for r in self._replicas)
            if here >= self._pools.room[self._tick][place]:
                self.record.refusals += 1
                self._seen.refused[place] = self._now_s + REFUSAL_MEMORY_S
                return False
        replica = Replica(place, at_s, at_s + self._timing.launch_s)
        self._replicas.append(replica)
        if self._noticed > self._tick and replica in self._excess(self._noticed):
            replica.told = True
            self._seen.lost[place] = self._now_s
            return False
        return True

    def _show(self) -> None:
        on_spot = [r.place for r in self._replicas if r.place != ON_DEMAND]
        common = Counter(on_spot).most_common(1)
        self.record.moved(self._now_s, common[0][0] if common else ON_DEMAND)
