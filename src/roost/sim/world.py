"""What all parts of a simulated world share: time, chance, faults, tallies, and the control plane's life.

It holds no rule of Roost. A part asks it for random streams, background tasks and calls that may go wrong.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from roost.ports.errors import Retry, RoostError
from roost.sim.faults import CALM, Streams, Swarm
from roost.sim.loop import VirtualClock

T = TypeVar("T")


class Violation(Exception):
    """A checker's finding."""

    def __init__(self, checker: str, what: str) -> None:
        super().__init__(f"{checker}: {what}")
        self.checker = checker
        self.what = what


class Life:
    """One incarnation of the control plane. What a dead one still tries has no effect."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.dead = False


@dataclass(slots=True)
class _Outcome(Generic[T]):
    value: T | None = None
    error: RoostError | None = None


class World:
    """Time, chance and faults of one run."""

    def __init__(self, seed: int, swarm: Swarm) -> None:
        self.seed = seed
        self.swarm = swarm
        self.streams = Streams(seed)
        self.clock = VirtualClock(asyncio.get_running_loop())
        self.tally: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.blobs: dict[str, tuple[int, ...]] = {}
        """What is durable off the hosts: the cells of each checkpoint, by digest."""
        self.job_steps: dict[str, int] = {}
        """Steps that a job's saved files contain, by digest; unknown = as they were sent: none."""
        self.life = Life(0)
        self.crash_asked = asyncio.Event()
        self._crash_in = 0
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def now_s(self) -> float:
        """UTC seconds."""
        return self.clock.now_s()

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        self.swarm = CALM
        self._crash_in = 0

    def violate(self, checker: str, what: str) -> None:
        """Record a finding; the run ends at the next look at it."""
        at_s = asyncio.get_running_loop().time()
        self.violations.append(Violation(checker, f"at {at_s:.1f} s: {what}"))

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run beside everything; a failure of the simulation itself is a violation."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.violate("simulation", f"{task.get_name()}: {error!r}")

    def stream(self, name: str) -> random.Random:
        """The random stream called ``name``."""
        return self.streams(name)

    async def pause(self, name: str, mean_s: Callable[[], float]) -> None:
        """Wait an exponential time whose mean may change while waiting (the liveness phase ends faults)."""
        rng = self.streams(name)
        left = rng.expovariate(1.0)
        while left > 0:
            step_s = min(left * mean_s(), 30.0)
            await asyncio.sleep(step_s)
            left -= step_s / mean_s()

    # --- the control plane's calls -----------------------------------------------------------------

    def arm_crash(self) -> None:
        """Choose the call at which the control plane dies next."""
        mean = self.swarm.crash_mean_calls
        self._crash_in = 1 + int(self.streams("crash").expovariate(1 / mean)) if mean else 0

    async def point(self, life: Life) -> None:
        """A place where the control plane may die, or another task may get its turn."""
        if life.dead:
            raise asyncio.CancelledError
        if self._crash_in:
            self._crash_in -= 1
            if not self._crash_in:
                life.dead = True
                self.crash_asked.set()
                await asyncio.get_running_loop().create_future()
        if self.streams("turns").random() < 0.05:
            await asyncio.sleep(0)

    async def call(self, life: Life, name: str, effect: Callable[[], Awaitable[T]]) -> T:
        """Make ``effect`` happen as a call over a network does: late, twice, not at all, or unanswered.

        Once sent, the effect happens whether or not its caller still lives.
        """
        await self.point(life)
        rng, swarm = self.streams(f"call/{name}"), self.swarm
        out_s, back_s = rng.uniform(0, swarm.delay_s), rng.uniform(0, swarm.delay_s)
        fails, loses, repeats = (rng.random() for _ in range(3))
        again_s = rng.uniform(0, 5.0)
        if fails < swarm.fail:
            self.tally["calls failed"] += 1
            await asyncio.sleep(out_s)
            raise Retry(f"{name} could not be sent", after_s=0.5)
        sent = self.spawn(self._effect(effect, out_s), f"call {name}")
        if repeats < swarm.repeat:
            self.tally["calls repeated"] += 1
            self.spawn(self._effect(effect, out_s + again_s), f"call {name} again")
        outcome = await asyncio.shield(sent)
        await asyncio.sleep(back_s)
        await self.point(life)
        if loses < swarm.lose_reply:
            self.tally["replies lost"] += 1
            raise Retry(f"{name} was not answered", after_s=0.5)
        if outcome.error is not None:
            raise outcome.error
        return cast(T, outcome.value)

    async def _effect(self, effect: Callable[[], Awaitable[T]], delay_s: float) -> _Outcome[T]:
        await asyncio.sleep(delay_s)
        try:
            return _Outcome(value=await effect())
        except RoostError as error:
            return _Outcome(error=error)
