"""What a policy may look at while a recording is replayed: the past, and the answers to its own
launches.

The world (``session.py``, ``service.py``, ``job.py``) fills it in; a policy never gets the recording
itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

HORIZONS_H = (1 / 6, 1.0, 6.0, 24.0)
"""10 minutes, 1 h, 6 h, 24 h: what forecasts are made for."""


class Forecasts(Protocol):
    """Forecasts made at each tick from that tick and those before it."""

    def p_loss(self, tick: int, horizon: int) -> Sequence[float]:
        """[Z] that an instance of the pool is lost within ``HORIZONS_H[horizon]``; 1.0 for a pool that
        is down."""


@dataclass(slots=True)
class Seen:
    """The state of the world as its policy knows it. Changed in place as time goes on."""

    zones: tuple[str, ...]
    regions: tuple[str, ...]
    gap_s: float
    forecasts: Forecasts
    now_s: float = 0.0
    tick: int = 0
    up: Sequence[bool] = ()
    """[Z] which pools gave instances when the newest tick was recorded (at most one tick ago)."""
    price: Sequence[float] = ()
    """[Z] share of on-demand, at the newest tick."""
    place: int | None = None
    """Where the work runs now; None = nowhere."""
    since_s: float = 0.0
    """When it came to this place."""
    leaving: int | None = None
    """The place whose notice or loss asks for another."""
    refused: dict[int, float] = field(default_factory=dict)
    """Zone -> until when the pool's last refusal is remembered."""
    lost: dict[int, float] = field(default_factory=dict)
    """Zone -> when an instance of ours was last taken there."""

    def open(self, zone: int) -> bool:
        """Whether a launch there makes sense: not refused lately, nor ours being taken there in this
        tick."""
        return not self.refuses(zone) and self.lost.get(zone, -1.0) < self.tick * self.gap_s

    def refuses(self, zone: int) -> bool:
        """Whether the pool refused a launch lately."""
        return self.refused.get(zone, -1.0) > self.now_s
