"""A zone for the tests of the DNS server, and short ways to ask it."""

import random
from ipaddress import ip_address

import dns.edns
import dns.message
import dns.rdatatype

from roost.gateway.dns import zonefile
from roost.gateway.dns.answer import Reply, reply
from roost.gateway.dns.zone import Zone

ZONE = """
zone = "cloud.example.org"
nameservers = ["ns1", "ns2.example.net."]
contact = "dns.team@example.org"
ttl_s = 30
negative_ttl_s = 7

[[records]]
name = "ns1"
type = "A"
values = ["192.0.2.53"]

[[records]]
name = "web"
type = "A"
values = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]

[[records]]
name = "www"
type = "CNAME"
values = ["Web"]

[[records]]
name = "far"
type = "CNAME"
values = ["elsewhere.example.net."]

[[records]]
name = "broken"
type = "CNAME"
values = ["missing"]

[[records]]
name = "ring"
type = "CNAME"
values = ["ring2"]

[[records]]
name = "ring2"
type = "CNAME"
values = ["ring"]

[[records]]
name = "_http._tcp.web"
type = "SRV"
values = ["10 5 8080 web"]

[[records]]
name = "text"
type = "TXT"
values = ['plain "quoted" text']

[[records]]
name = "big"
type = "TXT"
values = [{big}]

[[records]]
name = "*.apps"
type = "A"
values = ["192.0.2.9"]

[[records]]
name = "real.apps"
type = "TXT"
values = ["here"]

[[records]]
name = "child"
type = "NS"
values = ["ns.child", "ns.example.net."]

[[records]]
name = "ns.child"
type = "A"
values = ["192.0.2.99"]

[[endpoints]]
name = "api"
ttl_s = 5
[[endpoints.places]]
name = "aws-eu"
region = "eu"
addresses = ["198.51.100.1", "198.51.100.2", "2001:db8::1"]
[[endpoints.places]]
name = "gcp-us"
region = "us"
addresses = ["203.0.113.1"]

[[endpoints]]
name = "edge"
strategy = "all"
[[endpoints.places]]
name = "one"
addresses = ["192.0.2.10"]
[[endpoints.places]]
name = "two"
addresses = ["192.0.2.20"]

[regions]
eu = [50.1, 8.7]
us = [39.0, -77.5]

[[networks]]
networks = ["10.1.0.0/16", "2001:db8:1::/48"]
region = "eu"
[[networks]]
networks = ["10.2.0.0/16"]
region = "us"
[[networks]]
networks = ["10.3.0.0/16"]
location = [48.8, 2.3]

[notebooks]
endpoint = "edge"
""".replace("{big}", ", ".join(f'"{letter * 200}"' for letter in "abcdefghijkl"))

CLIENT = "192.0.2.200"


def a_zone(more: str = "", *, serial: int = 100) -> Zone:
    return Zone(zonefile.parse(more + ZONE).data, serial=serial)


def query(name: str, type: str = "A", **options: object) -> dns.message.Message:
    options.setdefault("use_edns", 0)
    options.setdefault("payload", 1232)
    return dns.message.make_query(name, type, **options)  # type: ignore[arg-type]


def ask(
    zone: Zone,
    name: str,
    type: str = "A",
    *,
    client: str = CLIENT,
    subnet: str = "",
    seed: int = 1,
    **options: object,
) -> dns.message.Message:
    """The response as a client reads it from the wire."""
    if subnet:
        options["options"] = [dns.edns.ECSOption.from_text(subnet)]
    full = name if name.endswith(".") else f"{name}.cloud.example.org."
    found = replied(zone, query(full, type, **options).to_wire(), client, seed)
    return dns.message.from_wire(found.tcp())


def replied(zone: Zone, wire: bytes, client: str = CLIENT, seed: int = 1) -> Reply:
    found = reply(zone, wire, ip_address(client), random.Random(seed).random)
    assert found is not None
    return found


def values(response: dns.message.Message, type: str = "A") -> list[str]:
    """The data of one type in the answer section, in order."""
    rdtype = dns.rdatatype.from_text(type)
    return [r.to_text() for s in response.answer if s.rdtype == rdtype for r in s]
