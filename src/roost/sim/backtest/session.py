"""(a) One session that wants to be up always, replayed over a recording to the second. Pure.

The rules of the world, the same for every policy and for the oracle:

- A pool that is down at tick t is down for the whole tick: instances in it are taken at the tick's
  beginning, and told so ``notice_s`` before. A launch into it is refused (the answer takes
  ``refusal_s``).
- An instance is billed from its launch. It can take over ``launch_s + move_s`` later; until then the
  old one runs on.
- A change of place that is ready before the old instance ends stands still for ``freeze_s``; else the
  session is down from the end of the old to the readiness of the new. So a loss costs max(freeze,
  launch + move - notice).
- Beginning counts: the session is down until its first place is ready.
"""

from dataclasses import dataclass
from math import inf
from typing import Protocol

from roost.market.refusals import Refusal, avoid_s
from roost.sim.backtest.pools import ON_DEMAND, Pools
from roost.sim.backtest.record import Record
from roost.sim.backtest.seen import Forecasts, Seen

REFUSAL_MEMORY_S = avoid_s("aws", Refusal.CAPACITY)
"""How long a refused pool is left alone: the recordings are of AWS."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: from the create call to a running host, to bring the state over, of warning, standing
    still."""

    launch_s: float = 150.0
    move_s: float = 30.0
    notice_s: float = 120.0
    freeze_s: float = 2.0
    refusal_s: float = 10.0
    downtime_weight: float = 10.0
    """What an hour of being down costs, in hours of the machine on demand (V of the notes)."""

    @property
    def ready_s(self) -> float:
        """From the create call to taking over."""
        return self.launch_s + self.move_s

    @property
    def surprise_s(self) -> float:
        """How long a loss leaves the session down when a launch succeeds at the notice."""
        return max(self.freeze_s, self.ready_s - self.notice_s)


class SessionPolicy(Protocol):
    """Decides where a session runs."""

    def place(self, seen: Seen) -> int:
        """A place to launch now: at the start, at a notice, after a loss or a refusal."""

    def better(self, seen: Seen) -> int | None:
        """Asked at every tick: a place to move to, None to stay."""


@dataclass(slots=True)
class _Instance:
    place: int
    ready_s: float
    ends_s: float
    told_s: float
    told: bool = False


class SessionWorld:
    """One replay."""

    def __init__(
        self,
        pools: Pools,
        policy: SessionPolicy,
        timing: Timing,
        forecasts: Forecasts,
        first: int = 0,
        last: int | None = None,
    ) -> None:
        self._pools = pools
        self._policy = policy
        self._timing = timing
        self._last = pools.ticks if last is None else last
        self._seen = Seen(pools.zones, pools.regions, pools.gap_s, forecasts)
        self._active: _Instance | None = None
        self._next: _Instance | None = None
        self._retry_s = inf
        self._now_s = first * pools.gap_s
        self._tick = first
        self.record = Record(pools.gap_s, first, self._last)
        self._look()

    def run(self) -> Record:
        """Play to the end of the recording."""
        gap_s = self._pools.gap_s
        self._find_place(None)
        while True:
            tick_s = (self._tick + 1) * gap_s
            event_s = min(tick_s, self._retry_s, self._moments(self._next), self._active_s())
            self._pass(event_s)
            if event_s == tick_s:
                self._tick += 1
                if self._tick == self._last:
                    self.record.close(self._now_s)
                    return self.record
                self._look()
            self._happen()
            if event_s == tick_s and self._next is None and self._active is not None:
                self._retry_s = inf
                self._consider(self._active)

    # --- time --------------------------------------------------------------------------------------

    def _moments(self, instance: _Instance | None) -> float:
        if instance is None:
            return inf
        told_s = inf if instance.told else instance.told_s
        return min(instance.ready_s, instance.ends_s, told_s)

    def _active_s(self) -> float:
        active = self._active
        if active is None:
            return inf
        return active.ends_s if active.told else active.told_s

    def _pass(self, until_s: float) -> None:
        seconds = until_s - self._now_s
        if seconds > 0:
            price = 0.0
            for instance in (self._active, self._next):
                if instance is not None:
                    price += self._pools.price_at(self._tick, instance.place)
            self.record.passed(self._tick, seconds, price * seconds, self._active is None)
        self._now_s = until_s
        self._seen.now_s = until_s

    def _look(self) -> None:
        seen = self._seen
        seen.now_s, seen.tick = self._now_s, self._tick
        seen.up, seen.price = self._pools.up[self._tick], self._pools.price[self._tick]

    # --- what happens ------------------------------------------------------------------------------

    def _happen(self) -> None:
        now_s, active, following = self._now_s, self._active, self._next
        if active is not None and active.ends_s <= now_s:
            if not active.told:
                self._told(active)
            self._active = active = None
            self._settle_at(None)
        if following is not None and following.ends_s <= now_s:
            self._next = following = None
            if active is None or active.told:
                self._find_place(None)
                following = self._next
        if following is not None and following.ready_s <= now_s:
            self._take_over(following)
            return
        if active is not None and not active.told and active.told_s <= now_s:
            self._told(active)
            if self._next is None:
                self._find_place(active.place)
        following = self._next
        if following is not None and not following.told and following.told_s <= now_s:
            following.told = True
            self._next_is_told(following)
        if self._retry_s <= now_s or (self._active is None and self._next is None):
            self._retry_s = inf
            if self._next is None:
                self._again()

    def _told(self, active: _Instance) -> None:
        active.told = True
        self.record.reclaims[self._tick - self.record.first] += 1
        self._seen.lost[active.place] = self._now_s

    def _next_is_told(self, following: _Instance) -> None:
        """The place on its way goes away itself: another, unless it still bridges a gap."""
        self._seen.lost[following.place] = self._now_s
        if self._active is not None and not self._active.told:
            self._next = None  # no need to go anywhere
        elif self._active is not None or following.ready_s >= following.ends_s:
            self._next = None
            self._find_place(following.place)

    def _take_over(self, following: _Instance) -> None:
        freeze_s = self._timing.freeze_s
        if self._active is not None:
            self.record.moves += 1
        else:  # down for less than the freeze: it still stands still that long
            freeze_s -= self._now_s - self._seen.since_s
        self.record.stood_still(self._tick, max(0.0, freeze_s))
        self._active, self._next = following, None
        self._retry_s = inf
        following.ready_s = inf
        self._settle_at(following.place)
        if following.told or following.told_s <= self._now_s:
            if not following.told:
                self._told(following)
            self._find_place(following.place)

    def _settle_at(self, place: int | None) -> None:
        self._seen.place, self._seen.since_s = place, self._now_s
        self.record.moved(self._now_s, place)

    # --- launches ----------------------------------------------------------------------------------

    def _find_place(self, leaving: int | None) -> None:
        """Ask for a place and launch there; a refusal is answered ``refusal_s`` later."""
        self._seen.leaving = leaving
        place = self._policy.place(self._seen)
        self._launch(place)

    def _again(self) -> None:
        """After a refusal: the next choice."""
        active = self._active
        if active is None or active.told:
            self._find_place(self._seen.leaving)
        else:
            self._consider(active)

    def _consider(self, active: _Instance) -> None:
        """A move nobody forces."""
        place = self._policy.better(self._seen)
        if place is not None and place != active.place and not active.told:
            self._launch(place)

    def _launch(self, place: int) -> None:
        now_s, timing, pools = self._now_s, self._timing, self._pools
        self.record.launches += 1
        ends_s = inf
        if place != ON_DEMAND:
            if not pools.up[self._tick][place]:
                self.record.refusals += 1
                self._seen.refused[place] = now_s + REFUSAL_MEMORY_S
                self._retry_s = now_s + timing.refusal_s
                return
            down_at = pools.down_at[self._tick][place]
            ends_s = down_at * pools.gap_s if down_at < pools.ticks else inf
        told_s = max(now_s, ends_s - timing.notice_s)
        self._next = _Instance(place, now_s + timing.ready_s, ends_s, told_s)
