"""An edge that serves its notebooks' names: started as a process, its routes read from disk."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import msgspec
import pytest

from roost.gateway.model import Hold, Route, RouteSnapshot
from tests.unit.edge.test_edge import Process


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    (folder / "run").mkdir()
    (folder / "data.secret").write_text("the data secret")
    yield folder
    shutil.rmtree(folder)


def asked(address: str, name: str) -> dns.message.Message:
    host, _, port = address.rpartition(":")
    return dns.query.udp(dns.message.make_query(name, "A"), host, 10, int(port))


def test_notebooks_of_an_edge_have_names(state: Path) -> None:
    route = Route(name="n/s-1", prefix="/n/s-1", target=Hold())
    snapshot = RouteSnapshot(version=1, routes=(route,))
    (state / "routes.json").write_bytes(msgspec.json.encode(snapshot))
    edge = Process(state, "--dns", "127.0.0.1:0", "--zone", "roost.example")
    try:
        address = edge.addresses["dns"]
        (answer,) = asked(address, "s-1.n.roost.example").answer
        assert [rdata.to_text() for rdata in answer] == ["127.0.0.1"]
        assert asked(address, "s-2.n.roost.example").rcode() == dns.rcode.NXDOMAIN
    finally:
        assert edge.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dns", "127.0.0.1:0"), "--zone"),
        (("--zone", "roost.example"), "--dns"),
        (("--dns", "here:53", "--zone", "roost.example"), "not an IP address"),
        (("--dns", "127.0.0.1:0", "--zone", "none.toml"), "none.toml cannot be read"),
        (("--dns", "0.0.0.0:0", "--zone", "z.example", "--public", "0.0.0.0:0"), "not known"),
    ],
)
def test_what_cannot_be_served_is_said(state: Path, options: tuple[str, ...], message: str) -> None:
    edge = Process(state, *options)
    assert not edge.addresses
    assert edge.stop() == 2
    assert message in edge.errors
