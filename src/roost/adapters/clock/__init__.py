"""The system's clocks: the only adapter that reads them. Never waits."""

import time


class SystemClock:
    """Implements ``ports.clock.Clock`` with the operating system's clocks."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()
