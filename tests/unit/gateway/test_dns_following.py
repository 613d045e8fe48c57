"""A zone in step with an edge's routes; a zone without a file."""

import asyncio
from collections.abc import Callable

import dns.rcode
import pytest

from roost.gateway.dns import zonefile
from roost.gateway.dns.following import RouteFollower, reachable
from roost.gateway.dns.zone import Zone
from roost.gateway.holding import Pulse
from roost.gateway.model import Host, Route, RouteTable, Unix
from roost.ports.errors import Invalid
from tests.unit.gateway.dns_setup import ask, values


class Routes:
    """What an edge's router has."""

    def __init__(self) -> None:
        self.table = RouteTable()
        self.changed = Pulse()

    def set(self, *routes: Route) -> None:
        self.table = RouteTable(routes)
        self.changed.fire()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def page(session: str) -> Route:
    return Route(name=f"n/{session}", prefix=f"/n/{session}", target=Unix(path="/run/x.sock"))


def kernel(session: str, host: str, epoch: int) -> Route:
    name = f"kernel/{session}"
    return Route(name=name, prefix=name, target=Host(host_id=host, service=name), epoch=epoch)


async def test_names_come_move_and_go_with_the_routes() -> None:
    zone = Zone(zonefile.for_edges("roost.example", ["192.0.2.1", "2001:db8::1"]).data)
    routes, hosts = Routes(), {"h1": "203.0.113.1", "h2": "127.0.0.1"}
    follower = RouteFollower(zone, routes, lambda: hosts)
    name, main = "s-1.n.roost.example.", "main.s-1.n.roost.example."
    follower.start()
    try:
        assert ask(zone, name).rcode() == dns.rcode.NXDOMAIN
        routes.set(page("s-1"), kernel("s-1", "h1", 1))
        await until(lambda: values(ask(zone, name)) == ["192.0.2.1"])
        assert values(ask(zone, name, "AAAA"), "AAAA") == ["2001:db8::1"]
        assert values(ask(zone, main)) == ["203.0.113.1"]
        routes.set(page("s-1"), kernel("s-1", "h2", 2))
        await until(lambda: values(ask(zone, main)) == ["192.0.2.1"])
        hosts["h2"] = "203.0.113.2"
        routes.changed.fire()
        await until(lambda: values(ask(zone, main)) == ["203.0.113.2"])
        routes.set(page("s-1"), kernel("s-1", "h1", 1))
        routes.set(page("s-1"), page("s-2"), kernel("s-1", "h1", 1))
        await until(lambda: values(ask(zone, "s-2.n.roost.example.")) == ["192.0.2.1"])
        assert values(ask(zone, main)) == ["203.0.113.2"]
        routes.set()
        await until(lambda: ask(zone, name).rcode() == dns.rcode.NXDOMAIN)
    finally:
        await follower.close()


def test_a_zone_without_a_file_has_its_name_server() -> None:
    zone = Zone(zonefile.for_edges("roost.example", ["192.0.2.1"]).data)
    assert values(ask(zone, "roost.example.")) == ["192.0.2.1"]
    assert values(ask(zone, "roost.example.", "NS"), "NS") == ["ns1.roost.example."]
    assert values(ask(zone, "ns1.roost.example.")) == ["192.0.2.1"]
    with pytest.raises(Invalid, match=r"zone a\.\.b"):
        zonefile.for_edges("a..b", ["192.0.2.1"])


def test_hosts_on_this_machine_have_no_address_of_their_own() -> None:
    hosts = {"a": "127.0.0.1", "b": "unix", "c": "::1", "d": "10.0.0.1", "e": "2001:db8::5"}
    assert reachable(hosts) == {"d": ("10.0.0.1",), "e": ("2001:db8::5",)}
