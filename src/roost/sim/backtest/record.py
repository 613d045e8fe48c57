"""What a replay adds up: money, downtime, losses, by tick, and where the work ran. Pure."""

from dataclasses import dataclass, field

import numpy as np

HOUR_S = 3600.0
DAY_S = 86_400.0


@dataclass(slots=True)
class Record:
    """Sums by tick, from tick ``first`` to before ``last``. Money in on-demand seconds."""

    gap_s: float
    first: int
    last: int
    cost: list[float] = field(init=False)
    down: list[float] = field(init=False)
    reclaims: list[int] = field(init=False)
    """Notices (or, without notice, losses) that met the work where it ran."""
    launches: int = 0
    refusals: int = 0
    moves: int = 0
    """Changes of place that were ready in time."""
    places: list[tuple[float, float, int | None]] = field(default_factory=list)
    """(from, to, place), seconds since the start of the recording; None = nowhere."""
    _since_s: float = field(init=False)
    _place: int | None = None

    def __post_init__(self) -> None:
        ticks = self.last - self.first
        self.cost, self.down, self.reclaims = [0.0] * ticks, [0.0] * ticks, [0] * ticks
        self._since_s = self.first * self.gap_s

    @property
    def seconds(self) -> float:
        """Length of what was replayed."""
        return (self.last - self.first) * self.gap_s

    def passed(self, tick: int, seconds: float, cost: float, is_down: bool) -> None:
        """Time has passed within ``tick``."""
        self.cost[tick - self.first] += cost
        if is_down:
            self.down[tick - self.first] += seconds

    def stood_still(self, tick: int, seconds: float) -> None:
        """A move in time: frozen, not down, which counts the same."""
        self.down[tick - self.first] += seconds

    def moved(self, now_s: float, place: int | None) -> None:
        """The work is at ``place`` from now on."""
        if now_s > self._since_s:
            self.places.append((self._since_s, now_s, self._place))
        self._since_s, self._place = now_s, place

    def close(self, now_s: float) -> None:
        """The end of the replay."""
        self.moved(now_s, None)

    # --- figures -----------------------------------------------------------------------------------

    @property
    def cost_share(self) -> float:
        """Cost relative to on demand for the whole time."""
        return sum(self.cost) / self.seconds

    @property
    def down_share(self) -> float:
        """Share of the time that the work was down or stood still."""
        return sum(self.down) / self.seconds

    def j(self, weight: float) -> float:
        """Cost + ``weight`` x downtime share."""
        return self.cost_share + weight * self.down_share

    @property
    def reclaims_per_day(self) -> float:
        """Losses a day."""
        return sum(self.reclaims) / self.seconds * DAY_S

    @property
    def down_min_per_day(self) -> float:
        """Minutes a day."""
        return self.down_share * DAY_S / 60.0

    def by_tick(self, weight: float) -> np.ndarray:
        """[T, 4]: cost, downtime, reclaims, J, each per second of the tick (for resampling)."""
        cost, down = np.asarray(self.cost) / self.gap_s, np.asarray(self.down) / self.gap_s
        reclaims = np.asarray(self.reclaims) / self.gap_s * DAY_S
        return np.stack([cost, down, reclaims, cost + weight * down], axis=1)
