"""The zone file: TOML to ``ZoneData``. Every error says the file, the place in it and what is wrong.

The format is described in docs/dns.md. Never keeps half a file: it loads whole or not at all.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Literal

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import msgspec
from dns.rdtypes.ANY.TXT import TXT

from roost.gateway.dns.choice import (
    Area,
    Endpoint,
    Location,
    Network,
    Networks,
    Place,
    Probe,
    Strategy,
)
from roost.gateway.dns.limits import Limits
from roost.gateway.dns.zone import EMPTY, Key, Node, RecordSet, SoaTimes, ZoneData
from roost.ports.errors import Invalid

RecordType = Literal["A", "AAAA", "CNAME", "SRV", "TXT", "NS", "MX", "CAA", "PTR"]
MAX_TTL_S = 604_800
_STRING = 255
"""Longest piece of a TXT record."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base: an unknown key is an error that names it."""


class _Record(_Part, frozen=True, kw_only=True):
    name: str
    type: RecordType
    values: tuple[str, ...]
    ttl_s: int | None = None


class _Place(_Part, frozen=True, kw_only=True):
    name: str
    addresses: tuple[str, ...]
    region: str = ""
    weight: float = 1.0
    location: Location | None = None
    healthy: bool = True


class _Probe(_Part, frozen=True, kw_only=True):
    port: int
    protocol: Literal["tcp", "http"] = "tcp"
    path: str = "/"
    interval_s: float = 2.0
    timeout_s: float = 1.0
    healthy_after: int = 2
    unhealthy_after: int = 3


class _Endpoint(_Part, frozen=True, kw_only=True):
    name: str
    places: tuple[_Place, ...]
    strategy: Strategy = "nearest"
    answers: int = 1
    ttl_s: int | None = None
    probe: _Probe | None = None


class _Networks(_Part, frozen=True, kw_only=True):
    networks: tuple[str, ...] = ()
    file: str | None = None
    region: str = ""
    location: Location | None = None


class _Notebooks(_Part, frozen=True, kw_only=True):
    endpoint: str


class _ZoneFile(_Part, frozen=True, kw_only=True):
    zone: str
    nameservers: tuple[str, ...]
    primary: str | None = None
    contact: str | None = None
    ttl_s: int = 30
    negative_ttl_s: int = 10
    soa_ttl_s: int = 300
    nameservers_ttl_s: int = 86_400
    records: tuple[_Record, ...] = ()
    endpoints: tuple[_Endpoint, ...] = ()
    regions: dict[str, Location] = {}
    networks: tuple[_Networks, ...] = ()
    latency_ms: dict[str, dict[str, float]] = {}
    notebooks: _Notebooks | None = None
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a zone file says."""

    data: ZoneData
    limits: Limits
    exempt: tuple[IPv4Network | IPv6Network, ...] = ()


def load(path: Path) -> Loaded:
    """Read a zone file. Raises ``Invalid``."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is not UTF-8") from error
    return parse(text, str(path), path.parent)


def parse(text: str, shown: str = "zone", folder: Path | None = None) -> Loaded:
    """A zone file's text. Files it names are relative to ``folder``. Raises ``Invalid``."""
    try:
        file = msgspec.convert(tomllib.loads(text), _ZoneFile)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{shown}: {error}") from error
    except msgspec.ValidationError as error:
        raise Invalid(f"{shown}: {_readable(str(error))}") from error
    try:
        return _Builder(file, folder).build()
    except Invalid as error:
        raise Invalid(f"{shown}: {error.message}", hint=error.hint) from error


def for_edges(zone: str, addresses: Sequence[str]) -> Loaded:
    """A zone without a file: its own name, its name server and its notebooks are at ``addresses``."""
    listed = ", ".join(f'"{address}"' for address in addresses)
    families = {"A": 4, "AAAA": 6}
    records = "".join(
        f'[[records]]\nname = "ns1"\ntype = "{kind}"\nvalues = [{values}]\n'
        for kind, version in families.items()
        if (values := ", ".join(f'"{a}"' for a in addresses if ip_address(a).version == version))
    )
    text = (
        f"zone = {json.dumps(zone)}\n"
        'nameservers = ["ns1"]\n'
        f"{records}"
        f'[[endpoints]]\nname = "@"\nstrategy = "all"\n'
        f'[[endpoints.places]]\nname = "edge"\naddresses = [{listed}]\n'
        '[notebooks]\nendpoint = "@"\n'
    )
    return parse(text, f"zone {zone}")


def _readable(message: str) -> str:
    """``records[0].type: ...`` instead of ``... - at `$.records[0].type```."""
    what, _, where = message.partition(" - at `$.")
    return f"{where.rstrip('`')}: {what}" if where else what


class _Builder:
    """Checks and turns one file into a zone."""

    def __init__(self, file: _ZoneFile, folder: Path | None) -> None:
        self._file = file
        self._folder = folder
        self._origin = _name(file.zone, dns.name.root, "zone")
        if self._origin == dns.name.root:
            raise Invalid("zone: the root cannot be served")
        self._sets: dict[Key, dict[int, RecordSet]] = {}
        self._endpoints: dict[Key, Endpoint] = {}

    def build(self) -> Loaded:
        file = self._file
        _ttl(file.ttl_s, "ttl_s")
        _ttl(file.negative_ttl_s, "negative_ttl_s")
        if not file.nameservers:
            raise Invalid("nameservers: at least one is needed (two for a public zone)")
        servers = tuple(
            _rdata("NS", server, self._origin, f"nameservers[{i}]")
            for i, server in enumerate(file.nameservers)
        )
        self._sets[()] = {dns.rdatatype.NS: RecordSet(file.nameservers_ttl_s, servers)}
        for index, record in enumerate(file.records):
            self._record(record, f"records[{index}]")
        for index, endpoint in enumerate(file.endpoints):
            self._endpoint(endpoint, f"endpoints[{index}]")
        nodes = {
            key: Node(self._sets.get(key, {}), self._endpoints.get(key))
            for key in self._sets.keys() | self._endpoints.keys()
        }
        data = ZoneData(
            self._origin,
            self._soa(),
            nodes,
            networks=self._networks(),
            latency_ms=self._latencies(),
            notebooks=self._notebooks(),
        )
        self._check_nameservers(data)
        exempt = tuple(_network(n, f"limits.exempt[{i}]") for i, n in enumerate(file.limits.exempt))
        _check_limits(file.limits)
        return Loaded(data, file.limits, exempt)

    def _soa(self) -> SoaTimes:
        file = self._file
        primary = _name(file.primary or file.nameservers[0], self._origin, "primary")
        if file.contact is None:
            contact = _name("hostmaster", self._origin, "contact")
        else:
            user, at, domain = file.contact.partition("@")
            if not user or not at:
                raise Invalid(f"contact: {file.contact!r} is not a mail address")
            # A dot in the first part belongs to one label (RFC 1035, 8).
            host = _name(domain, dns.name.root, "contact")
            contact = dns.name.Name((user.encode(), *host.labels))
        return SoaTimes(primary, contact, ttl_s=file.soa_ttl_s, negative_ttl_s=file.negative_ttl_s)

    def _key(self, name: str, where: str) -> Key:
        if name == "@":
            return ()
        full = _name(name, self._origin, where)
        if not full.is_subdomain(self._origin):
            raise Invalid(f"{where}: {name!r} is not in the zone {self._origin}")
        below = full.labels[: -len(self._origin.labels)]
        return tuple(label.lower() for label in below)[::-1]

    def _record(self, record: _Record, where: str) -> None:
        key = self._key(record.name, f"{where}.name")
        ttl_s = self._file.ttl_s if record.ttl_s is None else record.ttl_s
        _ttl(ttl_s, f"{where}.ttl_s")
        rdtype = dns.rdatatype.from_text(record.type)
        if not key and rdtype == dns.rdatatype.NS:
            raise Invalid(f"{where}: the zone's own name servers are given as `nameservers`")
        if not record.values:
            raise Invalid(f"{where}.values: at least one is needed")
        if rdtype == dns.rdatatype.CNAME and len(record.values) > 1:
            raise Invalid(f"{where}.values: an alias (CNAME) has one target")
        sets = self._sets.setdefault(key, {})
        if rdtype in sets:
            raise Invalid(f"{where}: {record.name} {record.type} is given twice")
        rdatas = [
            _rdata(record.type, value, self._origin, f"{where}.values[{i}]")
            for i, value in enumerate(record.values)
        ]
        sets[rdtype] = RecordSet(ttl_s, tuple(dict.fromkeys(rdatas)))

    def _endpoint(self, endpoint: _Endpoint, where: str) -> None:
        key = self._key(endpoint.name, f"{where}.name")
        if key in self._endpoints:
            raise Invalid(f"{where}: endpoint {endpoint.name} is given twice")
        if not endpoint.places:
            raise Invalid(f"{where}.places: at least one is needed")
        if endpoint.answers < 1:
            raise Invalid(f"{where}.answers: at least 1")
        ttl_s = self._file.ttl_s if endpoint.ttl_s is None else endpoint.ttl_s
        _ttl(ttl_s, f"{where}.ttl_s")
        places = tuple(
            self._place(place, f"{where}.places[{i}]") for i, place in enumerate(endpoint.places)
        )
        if len({place.name for place in places}) < len(places):
            raise Invalid(f"{where}.places: two have one name")
        self._endpoints[key] = Endpoint(
            endpoint.name,
            places,
            endpoint.strategy,
            endpoint.answers,
            ttl_s,
            _probe(endpoint.probe, f"{where}.probe"),
        )

    def _place(self, place: _Place, where: str) -> Place:
        if not place.addresses:
            raise Invalid(f"{where}.addresses: at least one is needed")
        if not 0 <= place.weight < float("inf"):
            raise Invalid(f"{where}.weight: 0 or more")
        addresses = []
        for index, address in enumerate(place.addresses):
            try:
                addresses.append(ip_address(address))
            except ValueError as error:
                raise Invalid(f"{where}.addresses[{index}]: {error}") from error
        return Place(
            name=place.name,
            region=place.region or place.name,
            addresses=tuple(dict.fromkeys(addresses)),
            weight=place.weight,
            location=_location(
                place.location or self._file.regions.get(place.region or place.name), where
            ),
            healthy=place.healthy,
        )

    def _networks(self) -> Networks:
        entries: dict[Network, Area] = {}
        for index, part in enumerate(self._file.networks):
            where = f"networks[{index}]"
            if part.file is not None:
                entries.update(self._table(part.file, where))
            elif not part.region and part.location is None:
                raise Invalid(f"{where}: give a region, a location or a file")
            for i, text in enumerate(part.networks):
                network = _network(text, f"{where}.networks[{i}]")
                entries[network] = self._area(part.region, part.location, where)
        return Networks(entries.items())

    def _area(self, region: str, location: Location | None, where: str) -> Area:
        return Area(region, _location(location or self._file.regions.get(region), where))

    def _table(self, name: str, where: str) -> dict[Network, Area]:
        """Lines of ``network,region`` (comments with #): for tables of thousands."""
        path = (self._folder or Path()) / name
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"{where}.file: {path} cannot be read: {error}") from error
        table: dict[Network, Area] = {}
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            network, _, region = text.partition(",")
            at = f"{name}, line {number}"
            if not region.strip():
                raise Invalid(f"{at}: expected `network,region`")
            table[_network(network.strip(), at)] = self._area(region.strip(), None, at)
        return table

    def _latencies(self) -> Mapping[tuple[str, str], float]:
        latencies = {}
        for client, places in self._file.latency_ms.items():
            for place, value in places.items():
                if not 0 <= value < float("inf"):
                    raise Invalid(f"latency_ms.{client}.{place}: 0 or more")
                latencies[client, place] = value
        return latencies

    def _notebooks(self) -> Endpoint | None:
        if self._file.notebooks is None:
            return None
        name = self._file.notebooks.endpoint
        edges = self._endpoints.get(self._key(name, "notebooks.endpoint"))
        if edges is None:
            raise Invalid(f"notebooks.endpoint: there is no endpoint {name!r}")
        return edges

    def _check_nameservers(self, data: ZoneData) -> None:
        """Name servers inside the zone need addresses, or nobody finds them."""
        for server in self._file.nameservers:
            key = data.key(_name(server, self._origin, "nameservers"))
            if key is None:
                continue
            node = data.nodes.get(key, EMPTY)
            if not node.sets.keys() & {dns.rdatatype.A, dns.rdatatype.AAAA} and not node.endpoint:
                raise Invalid(
                    f"nameservers: {server} is inside the zone and has no address",
                    hint="add an A or AAAA record for it",
                )


def _name(text: str, origin: dns.name.Name, where: str) -> dns.name.Name:
    try:
        return dns.name.from_text(text, origin)
    except (dns.exception.DNSException, ValueError) as error:
        raise Invalid(f"{where}: {text!r} is not a name: {error}") from error


def _rdata(type: str, value: str, origin: dns.name.Name, where: str) -> dns.rdata.Rdata:
    """One record's data as zone files write it; names without a final dot are below the zone."""
    rdtype = dns.rdatatype.from_text(type)
    if rdtype == dns.rdatatype.TXT:
        # The plain text: quotes and escapes of zone files would only be in the way.
        raw = value.encode()
        pieces = [raw[at : at + _STRING] for at in range(0, len(raw), _STRING)] or [b""]
        return TXT(dns.rdataclass.IN, rdtype, pieces)
    try:
        return dns.rdata.from_text(
            dns.rdataclass.IN, rdtype, value, origin=origin, relativize=False
        )
    except (dns.exception.DNSException, ValueError) as error:
        raise Invalid(f"{where}: {value!r} is not a {type} record: {error}") from error


def _network(text: str, where: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise Invalid(f"{where}: {error}") from error


def _probe(probe: _Probe | None, where: str) -> Probe | None:
    if probe is None:
        return None
    if not 0 < probe.port < 65536:
        raise Invalid(f"{where}.port: 1 to 65535")
    if not probe.path.startswith("/") or not probe.path.isprintable() or " " in probe.path:
        raise Invalid(f"{where}.path: begins with / and has no spaces")
    if min(probe.interval_s, probe.timeout_s) < 0.05:
        raise Invalid(f"{where}: interval_s and timeout_s are at least 0.05")
    if min(probe.healthy_after, probe.unhealthy_after) < 1:
        raise Invalid(f"{where}: healthy_after and unhealthy_after are at least 1")
    return Probe(**msgspec.structs.asdict(probe))


def _location(location: Location | None, where: str) -> Location | None:
    if location is not None and not (-90 <= location[0] <= 90 and -180 <= location[1] <= 180):
        raise Invalid(f"{where}: {list(location)} is not [latitude, longitude] in degrees")
    return location


def _ttl(value: int, where: str) -> None:
    if not 0 <= value <= MAX_TTL_S:
        raise Invalid(f"{where}: 0 to {MAX_TTL_S} seconds")


def _check_limits(limits: Limits) -> None:
    if not 1 <= limits.ipv4_prefix <= 32 or not 1 <= limits.ipv6_prefix <= 128:
        raise Invalid("limits: ipv4_prefix is 1 to 32, ipv6_prefix 1 to 128")
    if limits.connections < 1 or limits.connections_per_network < 1 or limits.idle_s <= 0:
        raise Invalid("limits: connections, connections_per_network and idle_s are above 0")
    if min(limits.responses_per_s, limits.all_per_s, limits.burst_s, limits.slip) < 0:
        raise Invalid("limits: rates, burst_s and slip are 0 or more")
