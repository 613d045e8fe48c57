"""Backends that are being emptied: their WebSockets are told to come back, and so land elsewhere.

Requests under way just end; a WebSocket would stay until its host is gone. A backend that merely left
the configuration is not one of them: what it has may stay.
"""

import asyncio
from collections.abc import Iterable

from roost.proxy.tunnel import Tunnel
from roost.proxy.upstream import Upstream
from roost.proxy.websocket import SERVICE_RESTART, tell_all

NOTICE_S = 60.0
"""This long before a host is taken away its WebSockets are told."""
SPREAD_S = 5.0
"""Over this time, so that not all come back in the same moment."""
REASON = "the server is leaving"


class Leaving:
    """Watches one worker's backends."""

    def __init__(self, tunnels: set[Tunnel], *, unix_offset_s: float) -> None:
        """``unix_offset_s``: Unix time minus the loop's clock."""
        self._tunnels = tunnels
        self._unix_offset_s = unix_offset_s
        self._next: asyncio.TimerHandle | None = None

    def look(self, members: Iterable[Upstream]) -> None:
        """Tell those of draining backends, and plan for those whose hosts leave at a known time. To be
        called when backends have changed."""
        loop = asyncio.get_running_loop()
        now_s = loop.time() + self._unix_offset_s
        known = list(members)
        leaving, planned_s = set(), []
        for member in known:
            if member.spec.state != "ready":
                leaving.add(member)
            elif member.spec.leaves_at_s is not None:
                wait_s = member.spec.leaves_at_s - NOTICE_S - now_s
                if wait_s <= 0:
                    leaving.add(member)
                else:
                    planned_s.append(wait_s)
        if leaving:
            told = [tunnel for tunnel in self._tunnels if tunnel.owner in leaving]
            tell_all(told, SERVICE_RESTART, REASON, over_s=SPREAD_S if len(told) > 1 else 0.0)
        self.close()
        if planned_s:
            self._next = loop.call_later(min(planned_s), self.look, known)

    def close(self) -> None:
        """Plan nothing any more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
