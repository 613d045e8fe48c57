"""The zone: names, records and endpoints as the file gives them, and what is alive about them. Pure.

``ZoneData`` is what a zone file says and never changes; ``Zone`` adds health, latency and the routes
followed, and a serial that rises with each change. Times, randomness and the network are arguments.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from typing import TypeVar

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from roost.gateway.dns.choice import (
    Address,
    Client,
    Endpoint,
    Networks,
    Place,
    choose,
    follows_client,
)
from roost.gateway.model import Host, Route, RouteTable
from roost.ports.errors import Invalid

T = TypeVar("T")
Key = tuple[bytes, ...]
"""A name below the zone: lower-cased labels, the one next to the zone first; () = the zone itself."""

MAX_ADDRESSES = 16
"""Most addresses in one answer of an endpoint."""
GONE_ROUTES = 100_000
"""Epochs kept of routes that are gone."""
NOTEBOOKS: bytes = b"n"
MAIN_WORKER: bytes = b"main"


@dataclass(frozen=True, slots=True)
class RecordSet:
    """The records of one name and type."""

    ttl_s: int
    rdatas: tuple[dns.rdata.Rdata, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A name that exists. Without records and endpoint: an empty non-terminal."""

    sets: Mapping[int, RecordSet] = field(default_factory=dict)
    endpoint: Endpoint | None = None


EMPTY = Node()


@dataclass(frozen=True, slots=True)
class Delegation:
    """The name is in another server's hands, from ``key`` down."""

    key: Key
    nameservers: RecordSet


@dataclass(frozen=True, slots=True)
class SoaTimes:
    """The start of authority, less its serial."""

    primary: dns.name.Name
    contact: dns.name.Name
    ttl_s: int = 300
    refresh_s: int = 3600
    retry_s: int = 600
    expire_s: int = 604_800
    negative_ttl_s: int = 10


class ZoneData:
    """What a zone file says. Raises ``Invalid`` where names contradict each other."""

    def __init__(
        self,
        origin: dns.name.Name,
        soa: SoaTimes,
        nodes: Mapping[Key, Node],
        *,
        networks: Networks | None = None,
        latency_ms: Mapping[tuple[str, str], float] | None = None,
        notebooks: Endpoint | None = None,
    ) -> None:
        self.origin = origin
        self.soa = soa
        self.networks = networks or Networks()
        self.latency_ms = dict(latency_ms or {})
        self.notebooks = notebooks
        self.suffix = tuple(label.lower() for label in origin.labels)
        self.nodes = dict(nodes)
        self.nodes.setdefault((), EMPTY)
        self.cuts: dict[Key, Delegation] = {
            key: Delegation(key, node.sets[dns.rdatatype.NS])
            for key, node in nodes.items()
            if key and dns.rdatatype.NS in node.sets
        }
        self._check()
        # Names on the way to others exist too (RFC 8020).
        for key in nodes:
            for depth in range(1, len(key)):
                self.nodes.setdefault(key[:depth], EMPTY)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints."""
        nodes = self.nodes.values()
        return tuple(node.endpoint for node in nodes if node.endpoint is not None)

    def _check(self) -> None:
        for key, node in self.nodes.items():
            name = self.shown(key)
            if dns.rdatatype.CNAME in node.sets:
                if not key:
                    raise Invalid(f"{name}: the zone itself cannot be an alias (CNAME)")
                if len(node.sets) > 1 or node.endpoint is not None:
                    raise Invalid(f"{name}: an alias (CNAME) cannot have other records beside it")
            addresses = {dns.rdatatype.A, dns.rdatatype.AAAA}
            if node.endpoint is not None and addresses & node.sets.keys():
                raise Invalid(f"{name}: an endpoint cannot have A or AAAA records beside it")
            if self.notebooks is not None and key[:1] == (NOTEBOOKS,):
                raise Invalid(f"{name}: names below n are made from the notebooks' routes")
            cut = self.cut(key)
            if cut is not None and (
                node.endpoint is not None
                or node.sets.keys() - addresses - ({dns.rdatatype.NS} if key == cut.key else set())
            ):
                raise Invalid(
                    f"{name}: {self.shown(cut.key)} is delegated: only A and AAAA records (glue)"
                    " may be below it"
                )

    def cut(self, key: Key) -> Delegation | None:
        """The delegation ``key`` is at or below."""
        if not self.cuts:
            return None
        for depth in range(1, len(key) + 1):
            cut = self.cuts.get(key[:depth])
            if cut is not None:
                return cut
        return None

    def key(self, name: dns.name.Name) -> Key | None:
        """``name`` as a key; None = not in this zone."""
        labels = tuple([label.lower() for label in name.labels])
        size = len(self.suffix)
        if labels[-size:] != self.suffix:
            return None
        return labels[:-size][::-1]

    def name(self, key: Key) -> dns.name.Name:
        """A key as a name."""
        return dns.name.Name((*key[::-1], *self.origin.labels))

    def shown(self, key: Key) -> str:
        """A key as text."""
        return self.name(key).to_text(omit_final_dot=True)


class Zone:
    """The zone as it is now. One thread; readers see each change whole."""

    def __init__(self, data: ZoneData, *, serial: int = 1) -> None:
        self.data = data
        self.serial = serial & 0xFFFFFFFF or 1
        self.version = 0
        """Rises with whatever may change an answer."""
        self._soa = self._make_soa()
        self._down: set[tuple[str, Address]] = set()
        """Of one endpoint, or ("") of all."""
        self._down_regions: set[str] = set()
        self._measured: dict[tuple[str, str], float] = {}
        self._latency_ms: dict[tuple[str, str], float] = dict(data.latency_ms)
        self._routes: dict[str, Route] = {}
        self._gone: dict[str, int] = {}
        self._notebooks: dict[bytes, tuple[Address, ...]] = {}
        """Label of a notebook -> the addresses of its main worker (none: the edges')."""

    # --- changes ---------------------------------------------------------------------------------

    def replace(self, data: ZoneData) -> None:
        """Another version of the file; health, latencies and followed routes stay."""
        if data.origin != self.data.origin:
            raise Invalid(
                f"the zone was {self.data.origin}, the file now says {data.origin}",
                hint="restart to serve another zone",
            )
        self.data = data
        self._latency_ms = {**data.latency_ms, **self._measured}
        self._changed()

    def follow(
        self, table: RouteTable, hosts: Mapping[str, Iterable[str]] | None = None
    ) -> tuple[str, ...]:
        """Give each notebook of ``table`` its names; returns the routes refused for an older epoch.

        ``<id>.n.<zone>`` (route ``n/<id>``) leads to the edges, held or not. ``main.<id>.n.<zone>``
        leads to the host of the main worker (route ``kernel/<id>``) where ``hosts`` knows addresses
        clients can reach, else to the edges: a notebook's names never end before its routes do.
        """
        routes, stale = {}, []
        for name, route in table.by_name.items():
            if not name.startswith(("n/", "kernel/")):
                continue
            known = self._routes.get(name)
            newest = known.epoch if known is not None else self._gone.pop(name, 0)
            if newest > route.epoch:
                stale.append(name)
                if known is None:
                    self._gone[name] = newest
                    continue
                route = known
            routes[name] = route
        for name in self._routes.keys() - routes.keys():
            self._gone[name] = self._routes[name].epoch
        while len(self._gone) > GONE_ROUTES:
            del self._gone[next(iter(self._gone))]
        self._routes = routes
        known_hosts = {
            host_id: tuple(ip_address(address) for address in addresses)
            for host_id, addresses in (hosts or {}).items()
        }
        notebooks = {
            label: _addresses(routes.get(f"kernel/{name[2:]}"), known_hosts)
            for name in routes
            if name.startswith("n/") and (label := _label(name[2:]))
        }
        if notebooks != self._notebooks:
            self._notebooks = notebooks
            self._changed()
        return tuple(sorted(stale))

    def set_health(self, address: str, healthy: bool, *, endpoint: str = "") -> None:
        """What a prober found out about one address of an endpoint (of whatever endpoint: "")."""
        self._mark(self._down, (endpoint, ip_address(address)), healthy)

    def set_region_health(self, region: str, healthy: bool) -> None:
        """A whole region is gone, or back."""
        self._mark(self._down_regions, region, healthy)

    def set_latency(self, client_region: str, place: str, latency_ms: float | None) -> None:
        """A measured latency from a client region to a place (or its region); None = the file's."""
        pair = client_region, place
        if latency_ms is None:
            self._measured.pop(pair, None)
        else:
            self._measured[pair] = latency_ms
        # Not a change of the zone: the serial stays.
        self._latency_ms = {**self.data.latency_ms, **self._measured}
        self.version += 1

    def _mark(self, down: set[T], what: T, healthy: bool) -> None:
        if healthy == (what in down):
            (down.discard if healthy else down.add)(what)
            self._changed()

    def _changed(self) -> None:
        self.version += 1
        # Serial arithmetic of RFC 1982: it wraps, and 0 is skipped.
        self.serial = (self.serial + 1) & 0xFFFFFFFF or 1
        self._soa = self._make_soa()

    def _make_soa(self) -> RecordSet:
        soa = self.data.soa
        text = (
            f"{soa.primary} {soa.contact} {self.serial}"
            f" {soa.refresh_s} {soa.retry_s} {soa.expire_s} {soa.negative_ttl_s}"
        )
        rdata = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.SOA, text)
        return RecordSet(soa.ttl_s, (rdata,))

    # --- reading ---------------------------------------------------------------------------------

    @property
    def addresses(self) -> frozenset[str]:
        """Every address of every endpoint: what a prober should look at."""
        return frozenset(
            str(address)
            for endpoint in self.data.endpoints
            for place in endpoint.places
            for address in place.addresses
        )

    def find(self, key: Key, rdtype: int) -> Node | Delegation | None:
        """What is at a name: wildcards and followed notebooks included; None = it does not exist."""
        data = self.data
        cut = data.cut(key)
        if cut is not None and not (key == cut.key and rdtype == dns.rdatatype.DS):
            return cut
        node = data.nodes.get(key)
        if node is not None:
            return node
        if data.notebooks is not None and key[:1] == (NOTEBOOKS,):
            return self._notebook(key, data.notebooks)
        depth = len(key) - 1
        while key[:depth] not in data.nodes:
            depth -= 1
        return data.nodes.get((*key[:depth], b"*"))

    def _notebook(self, key: Key, edges: Endpoint) -> Node | None:
        if len(key) == 1:
            # It exists also while there is no notebook: a cached NXDOMAIN would hide the first one.
            return EMPTY
        addresses = self._notebooks.get(key[1])
        if addresses is None or len(key) > 3 or key[2:] not in ((), (MAIN_WORKER,)):
            return None
        if len(key) == 2 or not addresses:
            return Node(endpoint=edges)
        host = Place(name="host", region="", addresses=addresses)
        return Node(endpoint=Endpoint(name="main", places=(host,), ttl_s=edges.ttl_s))

    def records(
        self, key: Key, node: Node, rdtype: int, client: Client, draw: Callable[[], float]
    ) -> tuple[RecordSet | None, int]:
        """The records of one type at a node, in the order to answer; and the scope of the choice."""
        if not key and rdtype == dns.rdatatype.SOA:
            return self._soa, 0
        found = node.sets.get(rdtype)
        if found is not None:
            return RecordSet(found.ttl_s, rotated(found.rdatas, draw)), 0
        if node.endpoint is None or rdtype not in (dns.rdatatype.A, dns.rdatatype.AAAA):
            return None, 0
        addresses = self._choose(node.endpoint, rdtype, client, draw)
        scope = client.scope if follows_client(node.endpoint.strategy) else 0
        if not addresses:
            return None, 0
        rdatas = tuple(address_rdata(address) for address in addresses)
        return RecordSet(node.endpoint.ttl_s, rdatas), scope

    def negative(self) -> RecordSet:
        """The SOA as negative answers carry it."""
        soa = self.data.soa
        return RecordSet(min(soa.ttl_s, soa.negative_ttl_s), self._soa.rdatas)

    def locate(self, address: Address, length: int | None = None) -> Client:
        """Where a client is."""
        return self.data.networks.find(address, length)

    def _is_down(self, endpoint: Endpoint, address: Address) -> bool:
        down = self._down
        return bool(down) and ((endpoint.name, address) in down or ("", address) in down)

    def _choose(
        self, endpoint: Endpoint, rdtype: int, client: Client, draw: Callable[[], float]
    ) -> list[Address]:
        version = 4 if rdtype == dns.rdatatype.A else 6
        every, well = [], []
        for place in endpoint.places:
            of_type = tuple([a for a in place.addresses if a.version == version])
            if not of_type:
                continue
            every.append((place, of_type))
            if place.healthy and place.region not in self._down_regions:
                up = tuple([a for a in of_type if not self._is_down(endpoint, a)])
                if up:
                    well.append((place, up))
        # When nobody is well the health data is more likely wrong than everything broken.
        usable = {place.name: addresses for place, addresses in well or every}
        places = [place for place, _ in well or every]
        chosen = choose(endpoint, places, client, self._latency_ms, draw)
        answer = [a for place in chosen for a in rotated(usable[place.name], draw)]
        return answer[:MAX_ADDRESSES]


def rotated(items: tuple[T, ...], draw: Callable[[], float]) -> tuple[T, ...]:
    """The same items, beginning at any of them."""
    if len(items) < 2:
        return items
    start = int(draw() * len(items))
    return items[start:] + items[:start]


def _label(id: str) -> bytes:
    """The DNS label of a notebook's id; empty = it cannot be one."""
    label = id.lower().encode("ascii", "replace")
    return label if 0 < len(label) <= 63 and b"." not in label and b"?" not in label else b""


def _addresses(
    route: Route | None, hosts: Mapping[str, tuple[Address, ...]]
) -> tuple[Address, ...]:
    if route is None or not isinstance(route.target, Host):
        return ()
    return hosts.get(route.target.host_id, ())


@lru_cache(maxsize=4096)
def address_rdata(address: Address) -> dns.rdata.Rdata:
    """An A or AAAA record."""
    rdtype = dns.rdatatype.A if address.version == 4 else dns.rdatatype.AAAA
    return dns.rdata.from_text(dns.rdataclass.IN, rdtype, str(address))
