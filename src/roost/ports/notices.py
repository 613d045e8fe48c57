"""Where a host learns that it goes away: the metadata service of its cloud, in that cloud's dialect."""

from typing import Protocol

from roost.ports.values import Notice


class NoticeSource(Protocol):
    """Asked about once a second by the agent. Implementations: ``roost.adapters.notices``."""

    async def poll(self) -> Notice | None:
        """The current notice, or None. Never raises for an unreachable service: returns None."""
