"""Time as an argument. Waiting is ``asyncio.sleep``: the simulator runs it on a virtual-time loop."""

from typing import Protocol


class Clock(Protocol):
    """Wall and monotonic time."""

    def now_s(self) -> float:
        """Seconds since 1970 UTC. May jump: use it for records, never for durations."""

    def monotonic_s(self) -> float:
        """Seconds that never go back; the origin means nothing."""
