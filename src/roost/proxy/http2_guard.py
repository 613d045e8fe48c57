"""How much a client may make an HTTP/2 connection work for nothing. Pure.

Frames that cost us work and bring nothing forward (resets, pings, settings, empty data, dribbled windows)
take tokens from one bucket; time and finished work give them back. An honest client never notices; a flood
(rapid reset, CVE-2023-44487; settings, ping, empty frames, CVE-2019-9512 and its kin) empties it at once.
"""

CAPACITY = 1000.0
PER_S = 50.0
CHEAP = 1.0
"""A window update, a ping, a priority."""
DEAR = 5.0
"""A reset, new settings, an empty piece: each makes us do more than it cost to send."""


class Guard:
    """The bucket of one connection."""

    __slots__ = ("_at_s", "_tokens")

    def __init__(self, now_s: float) -> None:
        self._at_s = now_s
        self._tokens = CAPACITY

    def spend(self, tokens: float) -> None:
        """The client sent something of no use."""
        self._tokens -= tokens

    def earn(self, tokens: float) -> None:
        """Work that was wanted is done."""
        self._tokens = min(CAPACITY, self._tokens + tokens)

    def broken(self, now_s: float) -> bool:
        """Whether it was too much."""
        self._tokens = min(CAPACITY, self._tokens + (now_s - self._at_s) * PER_S)
        self._at_s = now_s
        return self._tokens < 0
