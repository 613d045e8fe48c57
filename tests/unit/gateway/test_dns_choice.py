"""Which places are told: networks and scopes, distance, latency, weights, fail-over."""

import random
from collections import Counter
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from roost.gateway.dns import zonefile
from roost.gateway.dns.choice import (
    Area,
    Client,
    Endpoint,
    Networks,
    Place,
    Strategy,
    choose,
    distance_km,
)
from roost.gateway.dns.zone import Zone
from tests.unit.gateway.dns_setup import ZONE, a_zone, ask, values

EU, US = (50.1, 8.7), (39.0, -77.5)


def place(name: str, **options: object) -> Place:
    address = ip_address("192.0.2.1")
    return Place(name=name, region=name, addresses=(address,), **options)  # type: ignore[arg-type]


def chosen(
    strategy: Strategy,
    *places: Place,
    area: Area | None = None,
    latency: dict[tuple[str, str], float] | None = None,
    answers: int = 1,
    seed: int = 1,
) -> list[str]:
    endpoint = Endpoint("e", places, strategy, answers)
    client = Client(area or Area())
    draw = random.Random(seed).random
    return [p.name for p in choose(endpoint, places, client, latency or {}, draw)]


def test_distances() -> None:
    assert 6400 < distance_km(EU, US) < 6700
    assert distance_km(EU, EU) == 0


def test_the_same_region_then_the_nearest_then_anybody() -> None:
    eu, us, lost = place("eu", location=EU), place("us", location=US), place("lost")
    assert chosen("nearest", eu, us, lost, area=Area("us")) == ["us"]
    assert chosen("nearest", us, lost, eu, area=Area(location=(48.8, 2.3)), answers=3) == [
        "eu",
        "us",
        "lost",
    ]
    assert {chosen("nearest", eu, us, seed=seed)[0] for seed in range(30)} == {"eu", "us"}


def test_measured_latency_beats_the_map() -> None:
    eu, us = place("eu", location=EU), place("us", location=US)
    area = Area("home", EU)
    assert chosen("latency", eu, us, area=area) == ["eu"]
    assert chosen("latency", eu, us, area=area, latency={("home", "us"): 20.0}) == ["us"]
    both = {("home", "us"): 20.0, ("home", "eu"): 12.0}
    assert chosen("latency", eu, us, area=area, latency=both) == ["eu"]
    assert chosen("nearest", eu, us, area=area, latency={("home", "us"): 1.0}) == ["eu"]


def test_weights_are_shares_and_nought_is_standby() -> None:
    places = (place("a", weight=3.0), place("b", weight=1.0), place("c", weight=0.0))
    counted = Counter(chosen("weighted", *places, seed=seed)[0] for seed in range(2000))
    assert 1350 < counted["a"] < 1650 and counted["a"] + counted["b"] == 2000
    assert chosen("weighted", places[2]) == ["c"]
    assert len(chosen("all", *places)) == 2


NETWORKS = st.builds(
    lambda address, length: ip_network((address, length), strict=False),
    st.integers(0, 255).map(lambda n: (10 << 24) + (n << 16) + (n << 3)),
    st.integers(0, 32),
)


@given(st.lists(NETWORKS, max_size=12, unique=True), st.integers(0, 2**32 - 1))
def test_a_lookup_is_the_longest_prefix_and_its_scope_holds_for_all_of_it(
    networks: list[IPv4Network], number: int
) -> None:
    table = Networks((network, Area(str(network))) for network in networks)

    def expected(address: IPv4Address) -> str:
        inside = [n for n in networks if address in n]
        return str(max(inside, key=lambda n: n.prefixlen)) if inside else ""

    address = IPv4Address(number)
    found = table.find(address)
    assert found.area.region == expected(address)
    block = ip_network((number, found.scope), strict=False)
    assert isinstance(block, IPv4Network)
    edges = [block[0], block[-1], *(n[0] for n in networks), *(n[-1] for n in networks)]
    assert {expected(a) for a in edges if a in block} == {found.area.region}


def test_a_short_subnet_takes_the_area_of_most_of_it() -> None:
    table = Networks(
        [
            (ip_network("10.0.0.0/8"), Area("wide")),
            (ip_network("10.1.0.0/24"), Area("special")),
            (ip_network("2001:db8::/32"), Area("six")),
        ]
    )
    assert table.find(ip_address("10.1.0.0"), 16) == Client(Area("wide"), 16)
    assert table.find(ip_address("10.1.0.0"), 24) == Client(Area("special"), 24)
    assert table.find(ip_address("2001:db8::"), 56) == Client(Area("six"), 32)
    assert table.find(ip_address("::"), 0).scope == 0


def first(zone: Zone, subnet: str = "10.1.0.0/24", type: str = "A") -> set[str]:
    return set(values(ask(zone, "api", type, subnet=subnet), type))


def test_a_region_goes_and_comes_back() -> None:
    zone = a_zone()
    eu, us = {"198.51.100.1", "198.51.100.2"}, {"203.0.113.1"}
    assert first(zone) == eu
    zone.set_health("198.51.100.1", False)
    assert first(zone) == {"198.51.100.2"}
    zone.set_health("198.51.100.2", False)
    assert first(zone) == us
    zone.set_health("203.0.113.1", False)
    assert first(zone) == eu  # nobody is well: everybody may be
    zone.set_health("198.51.100.1", True)
    assert first(zone) == {"198.51.100.1"}
    zone.set_region_health("eu", False)
    assert first(zone, type="AAAA") == {"2001:db8::1"}  # its only place, well or not
    zone.set_health("203.0.113.1", True)
    assert first(zone) == us
    zone.set_region_health("eu", True)
    zone.set_health("198.51.100.2", True)
    assert first(zone) == eu


def test_a_place_with_addresses_of_the_asked_family_is_chosen() -> None:
    assert first(a_zone(), subnet="10.2.0.0/24", type="AAAA") == {"2001:db8::1"}


def test_measured_latency_can_be_set_and_taken_back() -> None:
    strategy = 'name = "api"\nstrategy = "latency"'
    zone = Zone(zonefile.parse(ZONE.replace('name = "api"', strategy)).data)
    zone.set_latency("eu", "us", 10.0)
    assert first(zone) == {"203.0.113.1"}
    zone.set_latency("eu", "us", None)
    assert first(zone) == {"198.51.100.1", "198.51.100.2"}
