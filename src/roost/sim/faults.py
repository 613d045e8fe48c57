"""What goes wrong, and how often: drawn once per seed, so that each seed is a different kind of bad day.

Swarm testing: a fault that is off leaves room for what it would hide. Every component draws from a random
stream of its own name, so that a new draw in one place does not change the others. Never reads a clock.
"""

import random
from dataclasses import dataclass, field, replace

NEVER_S = 1e12
"""A mean time between events that do not happen."""


class Streams:
    """Independent random streams of one seed, by name."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[str, random.Random] = {}

    def __call__(self, name: str) -> random.Random:
        """The stream called ``name``; the same object every time."""
        if name not in self._streams:
            # A string seed goes through SHA-512: it does not depend on PYTHONHASHSEED.
            self._streams[name] = random.Random(f"{self._seed}/{name}")
        return self._streams[name]


@dataclass(frozen=True, slots=True)
class Swarm:
    """The faults of one seed. Shares are probabilities per call; means are of exponential times."""

    fail: float = 0.0
    """Calls that fail before their effect."""
    lose_reply: float = 0.0
    """Calls whose effect happens and whose caller is told ``Retry``."""
    repeat: float = 0.0
    """Calls whose effect happens again, a little later."""
    delay_s: float = 0.02
    """Longest delay of a call before its effect, and again of its reply."""
    refuse: float = 0.0
    """Share of pools without capacity, drawn again every ten minutes."""
    store_fail: float = 0.0
    """Reads and commits that find the database locked or the disk full."""
    capture_fail: float = 0.0
    """Captures that cannot be made durable (disk full)."""
    notice_mean_s: float = NEVER_S
    """Time to an interruption notice, per instance."""
    rebalance_mean_s: float = NEVER_S
    """Time to a rebalance recommendation, per instance."""
    death_mean_s: float = NEVER_S
    """Time to the loss of an instance without notice."""
    kernel_death_mean_s: float = NEVER_S
    """Time to the death of a kernel alone (out of memory)."""
    cut_mean_s: float = NEVER_S
    """Time to a cut of a host's control connection."""
    cut_s: float = 10.0
    """Longest cut."""
    crash_mean_calls: float = 0.0
    """Calls of the controllers' ports between two crashes of the control plane; 0 = never."""
    edge_away_mean_s: float = NEVER_S
    """Time to a moment in which the edge does not hear control."""
    asked_mean_s: float = NEVER_S
    """Time between moves that a person asks for, per session."""
    slow_boot: float = 0.0
    """Share of instances that never become ready."""
    boot_s: float = 90.0
    """Longest boot; the shortest is five seconds."""

    def names(self) -> tuple[str, ...]:
        """The faults that are on, by name."""
        calm = Swarm()
        return tuple(
            name for name in self.__dataclass_fields__ if getattr(self, name) != getattr(calm, name)
        )


CALM = Swarm()
"""No faults: the liveness phase."""


@dataclass(slots=True)
class _Drawer:
    """Draws the strength of each fault, most of them on."""

    rng: random.Random
    on: float = 0.6
    drawn: dict[str, float] = field(default_factory=dict)

    def draw(self, name: str, low: float, high: float) -> None:
        # Log-uniform: strong and weak days are as likely as middling ones.
        wanted, value = self.rng.random() < self.on, low * (high / low) ** self.rng.random()
        if wanted:
            self.drawn[name] = value


def draw_swarm(rng: random.Random) -> Swarm:
    """The faults of a seed."""
    drawer = _Drawer(rng)
    drawer.draw("fail", 0.005, 0.3)
    drawer.draw("lose_reply", 0.005, 0.3)
    drawer.draw("repeat", 0.005, 0.2)
    drawer.draw("delay_s", 0.05, 8.0)
    drawer.draw("refuse", 0.05, 0.7)
    drawer.draw("store_fail", 0.0005, 0.03)
    drawer.draw("capture_fail", 0.01, 0.7)
    drawer.draw("notice_mean_s", 60.0, 3_600.0)
    drawer.draw("rebalance_mean_s", 120.0, 3_600.0)
    drawer.draw("death_mean_s", 90.0, 5_000.0)
    drawer.draw("kernel_death_mean_s", 60.0, 5_000.0)
    drawer.draw("cut_mean_s", 30.0, 1_200.0)
    drawer.draw("cut_s", 1.0, 60.0)
    drawer.draw("crash_mean_calls", 800.0, 30_000.0)
    drawer.draw("edge_away_mean_s", 30.0, 1_200.0)
    drawer.draw("asked_mean_s", 40.0, 3_600.0)
    drawer.draw("slow_boot", 0.02, 0.3)
    return replace(CALM, **drawer.drawn)
