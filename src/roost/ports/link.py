"""The control side of the agents' control connections, and the cell's edges, as the domain sees them."""

from collections.abc import Callable, Mapping
from typing import Protocol

from roost.ports.values import HostReport
from roost.ports.wire import CommandBody, EventBody, ReplyBody


class Links(Protocol):
    """All connected hosts."""

    def reports(self) -> Mapping[str, HostReport]:
        """The latest report per connected host id."""

    def connected(self, host_id: str) -> bool:
        """Whether the host's control connection is up."""

    async def call(
        self, host_id: str, body: CommandBody, *, epoch: int, timeout_s: float
    ) -> ReplyBody:
        """Send a command and wait for its one reply; sent again after a reconnect.

        Raises the error the host replied with, ``Retry`` when the host is not connected in time.
        """

    def subscribe(
        self, on_event: Callable[[str, EventBody], None], on_change: Callable[[str], None]
    ) -> None:
        """``on_event(host_id, event)`` for each new event; ``on_change(host_id)`` when a host connects,
        disconnects, becomes ready, or its tasks change state. Both only wake keys."""
