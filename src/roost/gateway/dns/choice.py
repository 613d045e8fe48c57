"""Which places of an endpoint a client is told: by its network, measured latency, distance, weights. Pure.

Knows no DNS message and no health source: who is well is an argument. Never answers with nobody.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Location = tuple[float, float]
"""Latitude and longitude in degrees."""
Strategy = Literal["nearest", "latency", "weighted", "all"]

EARTH_KM = 6371.0
BLOCK_PARTS = 64
"""Most parts of the table looked at for one (short) client subnet."""


@dataclass(frozen=True, slots=True)
class Area:
    """Where a client network is: a region of the latency table, a point, or both."""

    region: str = ""
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks, as far as the table of networks tells."""

    area: Area
    scope: int = 0
    """Leading bits of its address that decided (what RFC 7871 calls the scope)."""


NOWHERE = Client(Area())


@dataclass(frozen=True, slots=True)
class Place:
    """One region or cloud in which an endpoint lives."""

    name: str
    region: str
    addresses: tuple[Address, ...]
    weight: float = 1.0
    """Its share among equals; 0 = standby: used only when nobody else is well."""
    location: Location | None = None
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class Probe:
    """How the addresses of an endpoint are asked whether they are well."""

    port: int
    protocol: Literal["tcp", "http"] = "tcp"
    """``tcp``: a connection is enough; ``http``: a GET of ``path`` must give 200 to 399."""
    path: str = "/"
    interval_s: float = 2.0
    timeout_s: float = 1.0
    healthy_after: int = 2
    unhealthy_after: int = 3


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A name that lives in several places."""

    name: str
    places: tuple[Place, ...]
    strategy: Strategy = "nearest"
    answers: int = 1
    """Places in one answer (``all`` gives every one)."""
    ttl_s: int = 30
    probe: Probe | None = None


class Networks:
    """Client networks by longest prefix, as sorted disjoint intervals: one bisection a lookup."""

    def __init__(self, entries: Iterable[tuple[Network, Area]] = ()) -> None:
        every = list(entries)
        self._tables = {
            4: _Intervals(32, [e for e in every if e[0].version == 4]),
            6: _Intervals(128, [e for e in every if e[0].version == 6]),
        }

    def find(self, address: Address, length: int | None = None) -> Client:
        """The client at ``address``, of which only the first ``length`` bits are known."""
        table = self._tables[address.version]
        known = table.bits if length is None else min(length, table.bits)
        return table.find(int(address), known)


class _Intervals:
    """Nested networks of one address family, flattened."""

    def __init__(self, bits: int, entries: Sequence[tuple[Network, Area]]) -> None:
        self.bits = bits
        starts, areas = [0], [Area()]

        def begin(at: int, area: Area) -> None:
            if starts[-1] == at:
                areas[-1] = area
            else:
                starts.append(at)
                areas.append(area)

        def end_until(first: int) -> None:
            while inside and inside[-1][0] < first:
                last, _ = inside.pop()
                begin(last + 1, inside[-1][1] if inside else Area())

        inside: list[tuple[int, Area]] = []
        for network, area in sorted(
            entries, key=lambda e: (int(e[0].network_address), e[0].prefixlen)
        ):
            first = int(network.network_address)
            end_until(first)
            inside.append((int(network.broadcast_address), area))
            begin(first, area)
        end_until(1 << bits)
        # Neighbours with one answer are one interval: scopes stay short, resolvers cache better.
        keep = [i for i in range(len(starts)) if i == 0 or areas[i] != areas[i - 1]]
        self._starts = [starts[i] for i in keep if starts[i] < 1 << bits]
        self._areas = [areas[i] for i in keep if starts[i] < 1 << bits]

    def find(self, address: int, known: int) -> Client:
        width = self.bits - known
        first = address >> width << width
        last = first + (1 << width) - 1
        index = self._largest_part(first, last)
        begin = self._starts[index]
        end = self._starts[index + 1] if index + 1 < len(self._starts) else 1 << self.bits
        # The shortest prefix that holds the address and nothing outside of the interval.
        inner = max(first, begin)
        scope = 0
        if begin > 0:
            scope = self.bits - (inner ^ (begin - 1)).bit_length() + 1
        if end < 1 << self.bits:
            scope = max(scope, self.bits - (inner ^ end).bit_length() + 1)
        return Client(self._areas[index], min(scope, known))

    def _largest_part(self, first: int, last: int) -> int:
        """Index of the interval that covers most of first..last."""
        best = index = bisect_right(self._starts, first) - 1
        best_size = -1
        for part in range(index, min(index + BLOCK_PARTS, len(self._starts))):
            begin = max(self._starts[part], first)
            if begin > last:
                break
            end = self._starts[part + 1] if part + 1 < len(self._starts) else last + 1
            size = min(end, last + 1) - begin
            if size > best_size:
                best, best_size = part, size
        return best


def distance_km(a: Location, b: Location) -> float:
    """Great-circle distance."""
    lat_a, lon_a, lat_b, lon_b = map(math.radians, (*a, *b))
    h = (
        math.sin((lat_b - lat_a) / 2) ** 2
        + math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    )
    return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))


def choose(
    endpoint: Endpoint,
    places: Sequence[Place],
    client: Client,
    latency_ms: Mapping[tuple[str, str], float],
    draw: Callable[[], float],
) -> list[Place]:
    """``places`` (those that may be used now) in the order of preference, cut to what is answered.

    ``draw`` gives numbers in [0, 1): among equals places come first in proportion to their weights.
    """
    usable = [place for place in places if place.weight > 0] or list(places)

    def order(place: Place) -> tuple[float, float, float]:
        # The smallest of exponentials with rates w is each one with probability w / sum of w.
        lot = -math.log(1.0 - draw()) / (place.weight or 1.0)
        return (*_score(endpoint.strategy, place, client.area, latency_ms), lot)

    ranked = sorted(usable, key=order)
    return ranked if endpoint.strategy == "all" else ranked[: max(1, endpoint.answers)]


def _score(
    strategy: Strategy,
    place: Place,
    area: Area,
    latency_ms: Mapping[tuple[str, str], float],
) -> tuple[float, float]:
    """Less is better: (how sure, how far)."""
    if strategy in ("weighted", "all"):
        return 0.0, 0.0
    if strategy == "latency" and area.region:
        measured = latency_ms.get((area.region, place.name))
        if measured is None:
            measured = latency_ms.get((area.region, place.region))
        if measured is not None:
            return 0.0, measured
    if area.region and area.region == place.region:
        return 1.0, 0.0
    if area.location is not None and place.location is not None:
        return 2.0, distance_km(area.location, place.location)
    return 3.0, 0.0


def follows_client(strategy: Strategy) -> bool:
    """Whether answers depend on the client's network (else one answer suits all: scope 0)."""
    return strategy in ("nearest", "latency")
