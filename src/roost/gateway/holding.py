"""Requests that wait for a route's target: bounded in number and bytes, woken by any change.

Never looks at routes: whoever waits decides again after each wake.
"""

import asyncio
from dataclasses import dataclass

REQUESTS = 1000
"""Most requests waiting."""
BYTES = 64 << 20
"""Most bytes of heads and bodies waiting."""


class Pulse:
    """Something changed: all who wait look again."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def fire(self) -> None:
        """Wake everybody who waits."""
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    def ticket(self) -> "asyncio.Future[None]":
        """To be taken before looking, so that no change is missed."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next


@dataclass
class Waiting:
    """How much waits now, against its bounds."""

    requests_limit: int = REQUESTS
    bytes_limit: int = BYTES
    requests: int = 0
    bytes: int = 0

    def enter(self, size: int) -> bool:
        """Count a request of ``size`` bytes in; False when it does not fit."""
        if self.requests >= self.requests_limit or self.bytes + size > self.bytes_limit:
            return False
        self.requests += 1
        self.bytes += size
        return True

    def leave(self, size: int) -> None:
        """Count it out."""
        self.requests -= 1
        self.bytes -= size
