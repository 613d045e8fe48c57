"""Retry policy as data: who retries decides how, and the delays can be tested without waiting."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with a ceiling; ``jitter`` is a share added by the caller's random draw."""

    first_s: float = 0.1
    """Delay before the second attempt, in seconds."""
    factor: float = 2.0
    """Growth per attempt."""
    ceiling_s: float = 5.0
    """Longest delay, in seconds."""

    def delay_s(self, attempt: int, draw: float = 0.0) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (from 1); ``draw`` in [0, 1) is jitter."""
        base = min(self.ceiling_s, self.first_s * self.factor ** max(0, attempt - 1))
        return base * (1.0 + 0.25 * draw)
