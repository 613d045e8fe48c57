"""Response rate limiting by client network: an authoritative server must be no use to a flooder. Pure.

Sources of UDP queries can be forged; what is limited is therefore answers towards a network. The time is
an argument.
"""

from collections.abc import Hashable
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

import msgspec

from roost.gateway.dns.choice import Address

Verdict = Literal["pass", "slip", "drop"]

BUCKETS = 50_000
"""Most rates kept; the longest unused are forgotten."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client network may draw by UDP, and connections by TCP."""

    responses_per_s: float = 300.0
    """Equal responses (name and kind) to one network, 0 = no bound. All NXDOMAINs are equal, so are all
    empty answers and all errors. Not less: a resolver that passes client subnets on asks often."""
    all_per_s: float = 1000.0
    """All responses to one network; 0 = no bound."""
    burst_s: float = 2.0
    """A network that was quiet may draw this many seconds' worth at once."""
    slip: int = 2
    """Of the responses over the rate every ``slip``-th is an empty one with TC (a real client then
    comes by TCP), the others are dropped; 0 = all are dropped."""
    ipv4_prefix: int = 24
    ipv6_prefix: int = 56
    exempt: tuple[str, ...] = ()
    """Networks without these rates."""
    connections: int = 500
    """TCP connections; over it the one idle for longest is closed."""
    connections_per_network: int = 50
    idle_s: float = 10.0
    """A TCP connection without a whole query for this long is closed."""


class RateLimiter:
    """Token buckets of client networks."""

    def __init__(self, limits: Limits, exempt: tuple[IPv4Network | IPv6Network, ...] = ()) -> None:
        self._limits = limits
        self._exempt = exempt
        self._shift = {4: 32 - limits.ipv4_prefix, 6: 128 - limits.ipv6_prefix}
        self._buckets: dict[Hashable, tuple[float, float]] = {}
        self._over = 0

    def network(self, address: Address) -> tuple[int, int]:
        """The network counted for ``address``."""
        return address.version, int(address) >> self._shift[address.version]

    def exempt(self, address: Address) -> bool:
        """Whether nothing is counted for ``address``."""
        return any(address in network for network in self._exempt)

    def any_response(self, network: tuple[int, int], now_s: float) -> Verdict:
        """Before the query is read."""
        return self._take(network, self._limits.all_per_s, now_s)

    def equal_response(self, network: tuple[int, int], what: Hashable, now_s: float) -> Verdict:
        """Before a response of this name and kind is sent."""
        return self._take((network, what), self._limits.responses_per_s, now_s)

    def _take(self, key: Hashable, rate: float, now_s: float) -> Verdict:
        if rate <= 0:
            return "pass"
        most = max(1.0, rate * self._limits.burst_s)
        # Taken out and put back: the dict stays in order of use.
        tokens, seen_s = self._buckets.pop(key, (most, now_s))
        tokens = min(most, tokens + (now_s - seen_s) * rate)
        passes = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if passes else tokens, now_s)
        if len(self._buckets) > BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        if passes:
            return "pass"
        self._over += 1
        slip = self._limits.slip
        return "slip" if slip and self._over % slip == 0 else "drop"
