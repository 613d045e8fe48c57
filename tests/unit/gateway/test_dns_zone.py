"""The living zone: serials, followed routes and their epochs, another version of the file."""

import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.gateway.dns import zonefile
from roost.gateway.dns.zone import Zone
from roost.gateway.model import Hold, Host, Route, RouteTable, Target, Unix
from roost.ports.errors import Invalid
from tests.unit.gateway.dns_setup import ZONE, a_zone, ask, values

HERE = Unix(path="/run/s.sock")
EDGES = ["192.0.2.10", "192.0.2.20"]


def route(name: str, epoch: int = 1, target: Target = HERE) -> Route:
    return Route(name=name, prefix=f"/{name}", target=target, epoch=epoch)


def kernel(id: str, host: str, epoch: int = 1) -> Route:
    return route(f"kernel/{id}", epoch, Host(host_id=host, service=f"kernel/{id}"))


def follow(zone: Zone, *routes: Route, **hosts: str) -> tuple[str, ...]:
    return zone.follow(RouteTable(routes), {name: (address,) for name, address in hosts.items()})


def test_a_notebook_has_its_names_while_its_route_lives() -> None:
    zone = a_zone()
    assert ask(zone, "s-1.n").rcode() == dns.rcode.NXDOMAIN
    assert not follow(zone, route("n/s-1"), kernel("s-1", "h1"), route("api"), h1="203.0.113.7")
    assert sorted(values(ask(zone, "S-1.n"))) == EDGES
    assert values(ask(zone, "main.s-1.n")) == ["203.0.113.7"]
    for name in ("s-2.n", "other.s-1.n", "x.main.s-1.n", "api.n"):
        assert ask(zone, name).rcode() == dns.rcode.NXDOMAIN
    assert ask(zone, "s-1.n", "TXT").rcode() == dns.rcode.NOERROR
    follow(zone)
    assert ask(zone, "s-1.n").rcode() == dns.rcode.NXDOMAIN
    assert ask(zone, "n").rcode() == dns.rcode.NOERROR


def test_the_main_worker_keeps_its_name_on_hold_and_where_its_host_cannot_be_dialled() -> None:
    zone = a_zone()
    follow(zone, route("n/s-1", 1, Hold()), route("kernel/s-1", 1, Hold()))
    assert sorted(values(ask(zone, "main.s-1.n"))) == EDGES
    assert sorted(values(ask(zone, "s-1.n"))) == EDGES
    follow(zone, route("n/s-1"), kernel("s-1", "unknown", 2))
    assert sorted(values(ask(zone, "main.s-1.n"))) == EDGES
    follow(zone, route("n/s-1"), kernel("s-1", "h2", 2), h2="203.0.113.8")
    assert values(ask(zone, "main.s-1.n")) == ["203.0.113.8"]


def test_an_older_epoch_never_replaces_a_newer_nor_comes_back_from_the_dead() -> None:
    zone = a_zone()
    hosts = {"old": "203.0.113.1", "new": "203.0.113.2"}
    follow(zone, route("n/s-1"), kernel("s-1", "new", 5), **hosts)
    assert follow(zone, route("n/s-1"), kernel("s-1", "old", 4), **hosts) == ("kernel/s-1",)
    assert values(ask(zone, "main.s-1.n")) == ["203.0.113.2"]
    follow(zone, route("n/s-1"))
    assert follow(zone, route("n/s-1"), kernel("s-1", "old", 4), **hosts) == ("kernel/s-1",)
    assert sorted(values(ask(zone, "main.s-1.n"))) == EDGES
    assert not follow(zone, route("n/s-1"), kernel("s-1", "old", 6), **hosts)
    assert values(ask(zone, "main.s-1.n")) == ["203.0.113.1"]


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=3)))
def test_epochs_shown_never_fall(tables: list[list[tuple[str, int]]]) -> None:
    zone = a_zone()
    shown: dict[str, int] = {}
    hosts = {f"h{epoch}": f"203.0.113.{epoch}" for epoch in range(1, 5)}
    for table in tables:
        epochs = dict(table)
        routes = [r for s, e in epochs.items() for r in (route(f"n/{s}"), kernel(s, f"h{e}", e))]
        serial = zone.serial
        follow(zone, *routes, **hosts)
        assert zone.serial >= serial
        for session in epochs:
            (address,) = set(values(ask(zone, f"main.{session}.n"))) - set(EDGES) or {"203.0.113.0"}
            epoch = int(address.rpartition(".")[2])
            assert epoch == 0 or epoch >= shown.get(session, 0)
            shown[session] = max(epoch, shown.get(session, 0))


def test_the_serial_rises_with_each_change_and_only_then() -> None:
    zone = a_zone(serial=100)
    assert "100" in values(ask(zone, "cloud.example.org.", "SOA"), "SOA")[0]
    follow(zone, route("n/s-1"))
    follow(zone, route("n/s-1", 2))
    assert zone.serial == 101
    zone.set_health("203.0.113.1", False)
    zone.set_health("203.0.113.1", False)
    zone.set_region_health("us", False)
    assert zone.serial == 103
    zone.replace(zonefile.parse(ZONE).data)
    assert zone.serial == 104
    assert " 104 " in values(ask(zone, "cloud.example.org.", "SOA"), "SOA")[0]
    assert " 104 " in ask(zone, "nope").authority[0].to_text()


def test_the_serial_wraps_past_nought() -> None:
    zone = a_zone(serial=0xFFFFFFFF)
    zone.set_health("203.0.113.1", False)
    assert zone.serial == 1


def test_another_version_of_the_file_keeps_what_is_alive() -> None:
    zone = a_zone()
    follow(zone, route("n/s-1"))
    zone.set_region_health("eu", False)
    changed = ZONE.replace('"192.0.2.1", "192.0.2.2", "192.0.2.3"', '"192.0.2.77"')
    zone.replace(zonefile.parse(changed).data)
    assert values(ask(zone, "web")) == ["192.0.2.77"]
    assert values(ask(zone, "api", subnet="10.1.0.0/24")) == ["203.0.113.1"]
    assert sorted(values(ask(zone, "s-1.n"))) == EDGES
    with pytest.raises(Invalid, match="restart"):
        zone.replace(zonefile.parse(ZONE.replace("cloud.example.org", "x.example.org")).data)


def test_what_a_prober_should_look_at() -> None:
    assert {"198.51.100.1", "203.0.113.1", "2001:db8::1", "192.0.2.10"} <= a_zone().addresses
