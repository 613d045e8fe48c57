"""Zone files: each mistake is named with its place."""

from pathlib import Path

import pytest

from roost.gateway.dns import zonefile
from roost.gateway.dns.zone import Zone
from roost.ports.errors import Invalid
from tests.unit.gateway.dns_setup import ask, values

HEAD = 'zone = "z.example"\nnameservers = ["ns.example.net."]\n'


def record(name: str, type: str, value: str) -> str:
    return f'[[records]]\nname = "{name}"\ntype = "{type}"\nvalues = ["{value}"]\n'


def endpoint(more: str = "", place: str = 'name = "p"\naddresses = ["192.0.2.1"]') -> str:
    return f'[[endpoints]]\nname = "e"\n{more}\n[[endpoints.places]]\n{place}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zone = ", "Invalid value"),
        ('nameservers = ["a."]', "missing required field `zone`"),
        ('zone = "z"\nnameservers = []', "nameservers: at least one"),
        ('zone = "."\nnameservers = ["a."]', "the root cannot be served"),
        ('zone = "a..b"\nnameservers = ["a."]', "zone: 'a..b' is not a name"),
        ('zone = "z"\nnameservers = ["ns1"]', "ns1 is inside the zone and has no address"),
        ("color = 1\n" + HEAD, "unknown field `color`"),
        ("ttl_s = -1\n" + HEAD, "ttl_s: 0 to"),
        ('contact = "me"\n' + HEAD, "contact: 'me' is not a mail address"),
        (HEAD + record("a", "A", "999.1.1.1"), r"records\[0\].values\[0\]: '999.1.1.1' is not a A"),
        (HEAD + record("a", "AXFR", "x"), r"records\[0\].type: Invalid enum value 'AXFR'"),
        (HEAD + record("a.other.", "A", "192.0.2.1"), "'a.other.' is not in the zone"),
        (HEAD + record("@", "NS", "x."), "are given as `nameservers`"),
        (HEAD + record("@", "CNAME", "x."), "the zone itself cannot be an alias"),
        (HEAD + record("a", "A", "192.0.2.1") * 2, "a A is given twice"),
        (
            HEAD + record("a", "A", "192.0.2.1") + record("A", "CNAME", "b"),
            "a.z.example: an alias .CNAME. cannot have other records",
        ),
        (HEAD + record("c", "NS", "x.") + record("d.c", "TXT", "x"), "c.z.example is delegated"),
        (HEAD + endpoint(place='name = "p"\naddresses = []'), r"places\[0\].addresses: at least"),
        (HEAD + endpoint(place='name = "p"\naddresses = ["x"]'), r"places\[0\].addresses\[0\]"),
        (HEAD + endpoint('strategy = "odd"'), r"endpoints\[0\].strategy: Invalid enum value 'odd'"),
        (HEAD + endpoint("answers = 0"), "answers: at least 1"),
        (HEAD + endpoint() + record("e", "A", "192.0.2.1"), "cannot have A or AAAA records beside"),
        (HEAD + endpoint("probe = { port = 0 }"), r"endpoints\[0\].probe.port: 1 to 65535"),
        (HEAD + endpoint("probe = { port = 1, path = 'x' }"), "probe.path: begins with /"),
        (HEAD + endpoint("probe = { port = 1, interval_s = 0.0 }"), "at least 0.05"),
        (HEAD + endpoint("probe = { port = 1, healthy_after = 0 }"), "at least 1"),
        (HEAD + endpoint() * 2, "endpoint e is given twice"),
        (
            HEAD + endpoint(place='name = "p"\naddresses = ["192.0.2.1"]\nweight = -1.0'),
            "weight: 0 or more",
        ),
        (
            HEAD + endpoint(place='name = "p"\naddresses = ["192.0.2.1"]\nlocation = [91, 0]'),
            "is not .latitude, longitude.",
        ),
        (HEAD + '[[networks]]\nnetworks = ["10.0.0.1/8"]\nregion = "x"', "has host bits set"),
        (HEAD + '[[networks]]\nnetworks = ["10.0.0.0/8"]', "give a region, a location or a file"),
        (HEAD + '[[networks]]\nfile = "nowhere.csv"', "nowhere.csv cannot be read"),
        (HEAD + '[notebooks]\nendpoint = "x"', "there is no endpoint 'x'"),
        (
            HEAD + endpoint() + '[notebooks]\nendpoint = "e"\n' + record("a.n", "A", "192.0.2.1"),
            "below n",
        ),
        (HEAD + "[latency_ms.a]\nb = -1.0", "latency_ms.a.b"),
        (HEAD + "[limits]\nslip = -1", "limits: rates"),
        (HEAD + "[limits]\nipv4_prefix = 0", "ipv4_prefix is 1 to 32"),
        (HEAD + "[limits]\nconnections = 0", "are above 0"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(Invalid, match=message) as error:
        zonefile.parse(text, "zone.toml")
    assert error.value.message.startswith("zone.toml: ")


def test_a_file_with_a_table_beside_it(tmp_path: Path) -> None:
    (tmp_path / "nets.csv").write_text("# who\n10.0.0.0/8, b\n\n10.1.0.0/16,a\n")
    places = (
        '[[endpoints.places]]\nname = "a"\naddresses = ["192.0.2.1"]\n'
        '[[endpoints.places]]\nname = "b"\naddresses = ["192.0.2.2"]\n'
    )
    text = HEAD + '[[endpoints]]\nname = "@"\n' + places + '[[networks]]\nfile = "nets.csv"\n'
    (tmp_path / "zone.toml").write_text(text)
    zone = Zone(zonefile.load(tmp_path / "zone.toml").data)
    assert values(ask(zone, "z.example.", subnet="10.1.0.0/24")) == ["192.0.2.1"]
    assert values(ask(zone, "z.example.", subnet="10.9.0.0/24")) == ["192.0.2.2"]
    (tmp_path / "nets.csv").write_text("10.0.0.0/8\n")
    with pytest.raises(Invalid, match=r"nets.csv, line 1: expected `network,region`"):
        zonefile.load(tmp_path / "zone.toml")
    with pytest.raises(Invalid, match="cannot be read"):
        zonefile.load(tmp_path / "none.toml")


def test_the_example_of_the_documentation_loads() -> None:
    page = (Path(__file__).parents[3] / "docs" / "dns.md").read_text()
    example = page.split("# zone.toml\n", 1)[1].split("```", 1)[0]
    zone = Zone(zonefile.parse(example).data)
    assert values(ask(zone, "api.cloud.example.org.", subnet="10.1.2.0/24")) == ["198.51.100.10"]
