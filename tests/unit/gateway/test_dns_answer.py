"""What is answered: codes, sections, aliases, wildcards, EDNS; hostile bytes."""

import random
from ipaddress import ip_address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.tsig
import dns.update
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.gateway.dns.answer import PAYLOAD, reply
from tests.unit.gateway.dns_setup import CLIENT, a_zone, ask, query, replied, values

AA, RA, TC = dns.flags.AA, dns.flags.RA, dns.flags.TC
SHARED = a_zone()


def soa_ttl(response: dns.message.Message) -> int:
    (soa,) = response.authority
    assert soa.rdtype == dns.rdatatype.SOA
    assert soa.name == dns.name.from_text("cloud.example.org")
    return soa.ttl


def test_an_address_is_authoritative_without_recursion_offered() -> None:
    response = ask(SHARED, "web")
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & AA and not response.flags & RA
    assert sorted(values(response)) == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert not response.authority
    assert response.answer[0].ttl == 30


def test_several_answers_take_turns_to_be_first() -> None:
    firsts = {values(ask(SHARED, "web", seed=seed))[0] for seed in range(40)}
    assert firsts == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}


@pytest.mark.parametrize("name", ["nope", "a.b.c.nope", "x.web", "x.real.apps"])
def test_a_name_that_does_not_exist(name: str) -> None:
    response = ask(SHARED, name)
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert response.flags & AA
    assert soa_ttl(response) == 7
    assert not response.answer


@pytest.mark.parametrize(
    ("name", "type"),
    [
        ("web", "AAAA"),
        ("text", "A"),
        ("_tcp.web", "A"),  # empty non-terminals exist
        ("apps", "A"),
        ("any.apps", "TXT"),  # a wildcard of another type
        ("n", "A"),
        ("cloud.example.org.", "A"),
        ("web", "TYPE65280"),
    ],
)
def test_a_name_without_records_of_the_type(name: str, type: str) -> None:
    response = ask(SHARED, name, type)
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & AA
    assert soa_ttl(response) == 7
    assert not response.answer


def test_the_wildcard_answers_under_the_asked_name_and_not_beside_real_names() -> None:
    for name in ("x.apps", "deep.x.apps"):
        response = ask(SHARED, name)
        assert values(response) == ["192.0.2.9"]
        assert response.answer[0].name.to_text() == f"{name}.cloud.example.org."
    assert not values(ask(SHARED, "real.apps"))


def test_an_alias_is_followed_inside_the_zone() -> None:
    response = ask(SHARED, "www")
    assert values(response, "CNAME") == ["Web.cloud.example.org."]
    assert len(values(response)) == 3
    assert ask(SHARED, "www", "CNAME").answer[0].rdtype == dns.rdatatype.CNAME
    assert len(ask(SHARED, "www", "CNAME").answer) == 1


def test_an_alias_out_of_the_zone_to_nothing_and_in_a_ring() -> None:
    far = ask(SHARED, "far")
    assert values(far, "CNAME") == ["elsewhere.example.net."] and len(far.answer) == 1
    assert far.rcode() == dns.rcode.NOERROR and not far.authority
    broken = ask(SHARED, "broken")
    assert values(broken, "CNAME") == ["missing.cloud.example.org."]
    assert broken.rcode() == dns.rcode.NXDOMAIN and soa_ttl(broken) == 7
    assert len(ask(SHARED, "ring").answer) == 2


def test_soa_ns_srv_txt() -> None:
    soa = values(ask(SHARED, "cloud.example.org.", "SOA"), "SOA")[0]
    assert soa.startswith("ns1.cloud.example.org. dns\\.team.example.org. 100 ")
    servers = ask(SHARED, "cloud.example.org.", "NS")
    assert sorted(values(servers, "NS")) == ["ns1.cloud.example.org.", "ns2.example.net."]
    assert servers.additional[0].to_text().endswith("A 192.0.2.53")
    assert values(ask(SHARED, "_http._tcp.web", "SRV"), "SRV") == [
        "10 5 8080 web.cloud.example.org."
    ]
    assert values(ask(SHARED, "text", "TXT"), "TXT") == ['"plain \\"quoted\\" text"']


@pytest.mark.parametrize("name", ["child", "x.y.child"])
def test_a_delegated_name_is_referred(name: str) -> None:
    response = ask(SHARED, name)
    assert response.rcode() == dns.rcode.NOERROR
    assert not response.flags & AA and not response.answer
    assert response.authority[0].rdtype == dns.rdatatype.NS
    assert response.authority[0].name.to_text() == "child.cloud.example.org."
    assert [s.to_text() for s in response.additional] == [
        "ns.child.cloud.example.org. 30 IN A 192.0.2.99"
    ]
    # The parent answers for DS.
    assert soa_ttl(ask(SHARED, "child", "DS")) == 7


def test_case_does_not_matter_and_comes_back_as_sent() -> None:
    response = ask(SHARED, "wEb.ClOuD.eXaMpLe.OrG.")
    assert len(values(response)) == 3
    assert response.question[0].name.to_text() == "wEb.ClOuD.eXaMpLe.OrG."
    assert response.answer[0].name.to_text() == "wEb.ClOuD.eXaMpLe.OrG."


@pytest.mark.parametrize("name", ["example.org.", "example.net.", ".", "xcloud.example.org."])
def test_other_zones_are_refused(name: str) -> None:
    response = ask(SHARED, name)
    assert response.rcode() == dns.rcode.REFUSED
    assert not response.flags & AA and not response.answer and not response.authority


def test_any_is_minimal() -> None:
    response = ask(SHARED, "big", "ANY")
    assert values(response, "HINFO") == ['"RFC8482" ""']
    assert len(response.answer) == 1
    assert values(ask(SHARED, "www", "ANY"), "CNAME")
    assert ask(SHARED, "nope", "ANY").rcode() == dns.rcode.NXDOMAIN
    assert soa_ttl(ask(SHARED, "_tcp.web", "ANY")) == 7


@pytest.mark.parametrize("type", ["AXFR", "IXFR"])
def test_the_zone_is_not_transferred(type: str) -> None:
    wire = query("cloud.example.org", type).to_wire()
    assert dns.message.from_wire(replied(SHARED, wire).tcp()).rcode() == dns.rcode.REFUSED


def test_other_classes_opcodes_types_and_keys() -> None:
    chaos = query("version.bind", "TXT", rdclass=dns.rdataclass.CH)
    assert replied(SHARED, chaos.to_wire()).message.rcode() == dns.rcode.REFUSED
    for opcode in (dns.opcode.NOTIFY, dns.opcode.STATUS):
        other = query("web.cloud.example.org")
        other.set_opcode(opcode)
        message = replied(SHARED, other.to_wire()).message
        assert message.rcode() == dns.rcode.NOTIMP
        assert message.opcode() == opcode and message.id == other.id
    update = dns.update.UpdateMessage("cloud.example.org")
    update.add("evil", 1, "A", "192.0.2.66")
    assert replied(SHARED, update.to_wire()).message.rcode() == dns.rcode.NOTIMP
    meta = query("web.cloud.example.org", "TSIG")
    assert replied(SHARED, meta.to_wire()).message.rcode() == dns.rcode.FORMERR
    signed = query("web.cloud.example.org")
    signed.use_tsig(dns.tsig.Key("key.", b"secret"))
    assert replied(SHARED, signed.to_wire()).message.rcode() == dns.rcode.NOTAUTH


def test_edns_versions_sizes_and_flags() -> None:
    newer = query("web.cloud.example.org", use_edns=1).to_wire()
    response = dns.message.from_wire(replied(SHARED, newer).udp())
    assert response.rcode() == dns.rcode.BADVERS
    assert response.edns == 0 and not response.answer
    response = ask(SHARED, "web", want_dnssec=True, payload=4096)
    assert response.payload == PAYLOAD
    assert response.ednsflags & dns.flags.DO
    assert ask(SHARED, "web", use_edns=-1).edns == -1
    assert not ask(SHARED, "web").ednsflags & dns.flags.DO


@pytest.mark.parametrize(
    ("edns", "payload", "most"), [(-1, 0, 512), (0, 100, 512), (0, 800, 800), (0, 65535, 1232)]
)
def test_udp_answers_keep_to_the_size_and_tcp_has_all(edns: int, payload: int, most: int) -> None:
    wire = query("big.cloud.example.org", "TXT", use_edns=edns, payload=payload).to_wire()
    short = replied(SHARED, wire).udp()
    assert len(short) <= most
    message = dns.message.from_wire(short)
    assert message.flags & TC and not message.answer
    assert (message.edns >= 0) == (edns >= 0)
    whole = dns.message.from_wire(replied(SHARED, wire).tcp())
    assert not whole.flags & TC and len(values(whole, "TXT")) == 12


def test_the_client_subnet_decides_and_its_scope_comes_back() -> None:
    for subnet, address, scope in (
        ("10.1.2.0/24", "198.51.100.", 16),
        ("10.2.2.0/24", "203.0.113.1", 16),
        ("10.3.0.0/16", "198.51.100.", 16),  # Paris: nearer to Frankfurt than to Virginia
        ("2001:db8:1::/56", "198.51.100.", 48),
    ):
        response = ask(SHARED, "api", subnet=subnet)
        assert all(v.startswith(address) for v in values(response)), subnet
        (option,) = response.options
        assert isinstance(option, dns.edns.ECSOption)
        assert (option.scopelen, option.srclen) == (scope, int(subnet.rpartition("/")[2]))
    # One answer for everybody: scope 0. The same without a client's wish to be known.
    for name, subnet in (("web", "10.1.2.0/24"), ("api", "0.0.0.0/0")):
        (option,) = ask(SHARED, name, subnet=subnet, client="10.2.0.1").options
        assert isinstance(option, dns.edns.ECSOption) and option.scopelen == 0
    assert values(ask(SHARED, "api", subnet="0.0.0.0/0", client="10.2.0.1")) == ["203.0.113.1"]
    assert not ask(SHARED, "api", client="10.2.0.1").options


def test_a_bad_client_subnet_is_a_format_error() -> None:
    assert ask(SHARED, "api", subnet="10.1.2.0/24/8").rcode() == dns.rcode.FORMERR
    odd = dns.edns.GenericOption(dns.edns.OptionType.ECS, b"\x00\x07\x18\x00\x01\x02\x03")
    wire = query("api.cloud.example.org", options=[odd]).to_wire()
    assert replied(SHARED, wire).message.rcode() == dns.rcode.FORMERR


def test_no_reply_to_responses_and_to_less_than_a_header() -> None:
    answered = query("web.cloud.example.org")
    answered.flags |= dns.flags.QR
    for wire in (answered.to_wire(), b"", b"\x00" * 11, b"\x00" * 5000):
        assert reply(SHARED, wire, ip_address(CLIENT), random.random) is None


def test_several_or_no_questions_are_a_format_error() -> None:
    twice = query("web.cloud.example.org")
    twice.question += query("api.cloud.example.org").question
    none = query("web.cloud.example.org")
    none.question = []
    junk = query("web.cloud.example.org").to_wire() + b"junk"
    for wire in (twice.to_wire(), none.to_wire(), junk):
        message = replied(SHARED, wire).message
        assert message.rcode() == dns.rcode.FORMERR
        assert message.id == int.from_bytes(wire[:2], "big")


def test_a_truncated_reply_is_no_larger_than_its_query() -> None:
    for edns in (-1, 0):
        wire = query("web.cloud.example.org", use_edns=edns).to_wire()
        short = replied(SHARED, wire).truncated()
        assert len(short) <= len(wire)
        message = dns.message.from_wire(short)
        assert message.flags & TC and message.rcode() == dns.rcode.NOERROR


def check(wire: bytes) -> None:
    found = reply(SHARED, wire, ip_address(CLIENT), random.Random(1).random)
    if found is None:
        return
    udp = found.udp()
    assert len(udp) <= PAYLOAD
    assert udp[:2] == wire[:2] and udp[2] & 0x80
    assert len(found.truncated()) <= max(len(wire), 12)


@given(st.binary(max_size=200))
def test_any_bytes(wire: bytes) -> None:
    check(wire)


@given(st.binary(max_size=100), st.integers(0, 3))
def test_any_bytes_behind_the_header_of_a_query(rest: bytes, others: int) -> None:
    check(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00" + bytes([others]) + rest)


@given(st.data())
def test_queries_with_bytes_changed(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["web", "api", "big", "x.child", "www", "n"]))
    rdtype = data.draw(st.sampled_from(["A", "AAAA", "TXT", "ANY", "NS", "SOA", "IXFR"]))
    subnet = dns.edns.ECSOption("10.1.2.0", 24)
    wire = bytearray(query(f"{name}.cloud.example.org", rdtype, options=[subnet]).to_wire())
    for _ in range(data.draw(st.integers(0, 4))):
        wire[data.draw(st.integers(2, len(wire) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(wire))
