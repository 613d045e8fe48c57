"""Query message in, response message out: what the zone says, with the right codes and sections. Pure.

Messages are read and written by dnspython. Never recurses, never transfers the zone, and never answers
what is itself a response.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from roost.gateway.dns.choice import NOWHERE, Address, Client
from roost.gateway.dns.zone import Delegation, Key, Node, RecordSet, Zone

PAYLOAD = 1232
"""Largest UDP answer: fits every path without fragments (DNS flag day 2020)."""
PLAIN_PAYLOAD = 512
"""Without EDNS (RFC 1035)."""
TCP_PAYLOAD = 65_535
HEADER = 12
QUERY_BYTES = 4096
"""Larger queries are not read."""
CHASE = 8
"""Longest chain of aliases followed inside the zone."""
ANY_TTL_S = 3600

_MINIMAL = RecordSet(
    ANY_TTL_S,
    (dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.HINFO, '"RFC8482" ""'),),
)

Kind = Literal["answer", "nxdomain", "error"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, and the rates it counts towards."""

    message: dns.message.Message
    udp_bytes: int
    """What the client can take by UDP."""
    kind: Kind
    name: dns.name.Name

    def udp(self) -> bytes:
        """The wire form for UDP: whole record sets up to the size, TC when some are missing."""
        return self.message.to_wire(
            max_size=self.udp_bytes, prefer_truncation=True, want_shuffle=False
        )

    def tcp(self) -> bytes:
        """The wire form for TCP, without its length."""
        return self.message.to_wire(
            max_size=TCP_PAYLOAD, prefer_truncation=True, want_shuffle=False
        )

    def truncated(self) -> bytes:
        """Only header and question, with TC: no larger than the query; sends honest clients to TCP."""
        message = self.message
        message.answer, message.authority, message.additional = [], [], []
        message.flags |= dns.flags.TC
        return self.udp()


def reply(zone: Zone, wire: bytes, client: Address, draw: Callable[[], float]) -> Reply | None:
    """The reply to the bytes of a query; None = no reply is due. Never raises for what a client sent."""
    if len(wire) < HEADER or len(wire) > QUERY_BYTES:
        return None
    flags = int.from_bytes(wire[2:4], "big")
    if flags & dns.flags.QR:
        return None  # two servers answering each other's errors would never stop
    if dns.opcode.from_flags(flags) != dns.opcode.QUERY:
        return _unread(wire, dns.rcode.NOTIMP)
    # One question (RFC 9619), and no more records than a query has reasons for: parsing stays cheap.
    questions, answers, authorities, others = (
        int.from_bytes(wire[at : at + 2], "big") for at in range(4, HEADER, 2)
    )
    if questions != 1 or answers or authorities > 1 or others > 4:
        return _unread(wire, dns.rcode.FORMERR)
    try:
        query = dns.message.from_wire(wire, keyring=False)
    except (dns.exception.DNSException, ValueError):
        return _unread(wire, dns.rcode.FORMERR)
    response = respond(zone, query, client, draw)
    return Reply(response, _udp_bytes(query), _kind(response), _counted(zone, response))


def _unread(wire: bytes, rcode: dns.rcode.Rcode) -> Reply:
    """A bare header: the question cannot be read, or need not be."""
    message = dns.message.Message(id=int.from_bytes(wire[:2], "big"))
    message.flags = dns.flags.Flag(dns.flags.QR)
    asked = int.from_bytes(wire[2:4], "big")
    message.flags |= asked & dns.flags.RD
    message.set_opcode(dns.opcode.from_flags(asked))
    message.set_rcode(rcode)
    return Reply(message, PLAIN_PAYLOAD, "error", dns.name.root)


def _udp_bytes(query: dns.message.Message) -> int:
    if query.edns < 0:
        return PLAIN_PAYLOAD
    return min(max(query.payload, PLAIN_PAYLOAD), PAYLOAD)


def _kind(response: dns.message.Message) -> Kind:
    rcode = response.rcode()
    if rcode == dns.rcode.NOERROR:
        return "answer"
    return "nxdomain" if rcode == dns.rcode.NXDOMAIN else "error"


def _counted(zone: Zone, response: dns.message.Message) -> dns.name.Name:
    """Names made up at random share one rate: there is no end of them."""
    if response.answer:
        return response.question[0].name
    return zone.data.origin if _kind(response) == "nxdomain" else dns.name.root


def respond(
    zone: Zone, query: dns.message.Message, client: Address, draw: Callable[[], float]
) -> dns.message.Message:
    """The response to a query of one question. ``client`` is who sent it, a resolver as a rule."""
    response = dns.message.make_response(query, our_payload=PAYLOAD, pad=0)
    subnet = _subnet(query)
    rcode = _refusal(zone, query, subnet)
    if rcode is not None:
        if query.edns >= 0:
            response.use_edns(0, 0, PAYLOAD, query.payload)
        response.set_rcode(rcode)
        return response
    where = _locate(zone, subnet, client)
    walk = _Walk(zone, response, where, draw)
    walk.run()
    if query.edns >= 0:
        options: list[dns.edns.Option] = []
        if subnet is not None:
            scope = walk.scope if subnet.srclen else 0
            options = [dns.edns.ECSOption(subnet.address, subnet.srclen, scope)]
        # RFC 3225: DO comes back as it was sent.
        do = query.ednsflags & dns.flags.DO
        response.use_edns(0, do, PAYLOAD, query.payload, options)
    return response


def _subnet(query: dns.message.Message) -> dns.edns.ECSOption | None:
    """The client subnet a resolver passes on (RFC 7871)."""
    for option in query.options:
        if isinstance(option, dns.edns.ECSOption):
            return option
    return None


def _refusal(
    zone: Zone, query: dns.message.Message, subnet: dns.edns.ECSOption | None
) -> dns.rcode.Rcode | None:
    """The error a query gets before it is looked up, if any."""
    question = query.question[0]
    if query.edns > 0:
        return dns.rcode.BADVERS
    if query.had_tsig:
        return dns.rcode.NOTAUTH  # there are no keys
    if question.rdclass != dns.rdataclass.IN:
        return dns.rcode.REFUSED
    if question.rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR):
        return dns.rcode.REFUSED
    if dns.rdatatype.is_metatype(question.rdtype) and question.rdtype != dns.rdatatype.ANY:
        return dns.rcode.FORMERR
    if subnet is not None and subnet.scopelen != 0:
        return dns.rcode.FORMERR
    if zone.data.key(question.name) is None:
        return dns.rcode.REFUSED
    return None


def _locate(zone: Zone, subnet: dns.edns.ECSOption | None, client: Address) -> Client:
    if subnet is None or subnet.srclen == 0:
        # A client that wishes to stay unknown: its resolver's place must do.
        return zone.locate(client)
    try:
        return zone.locate(ip_address(subnet.address), subnet.srclen)
    except ValueError:
        return NOWHERE


class _Walk:
    """From the question's name along aliases to an answer, a referral, or the proof that there is none."""

    def __init__(
        self,
        zone: Zone,
        response: dns.message.Message,
        client: Client,
        draw: Callable[[], float],
    ) -> None:
        self._zone = zone
        self._response = response
        self._client = client
        self._draw = draw
        self.scope = 0

    def run(self) -> None:
        question = self._response.question[0]
        name: dns.name.Name = question.name
        seen: set[Key] = set()
        self._response.flags |= dns.flags.AA
        while len(seen) < CHASE:
            key = self._zone.data.key(name)
            if key is None or key in seen:
                return  # an alias leads out of the zone, or back: the resolver goes on from here
            seen.add(key)
            target = self._step(name, key, question.rdtype)
            if target is None:
                return
            name = target

    def _step(
        self, name: dns.name.Name, key: Key, rdtype: dns.rdatatype.RdataType
    ) -> dns.name.Name | None:
        """Answer for one name; the name to go on with, if it is an alias."""
        found = self._zone.find(key, rdtype)
        if found is None:
            self._response.set_rcode(dns.rcode.NXDOMAIN)
            self._negative()
            return None
        if isinstance(found, Delegation):
            self._refer(found)
            return None
        alias = found.sets.get(dns.rdatatype.CNAME)
        if rdtype == dns.rdatatype.ANY and alias is None:
            self._any(name, key, found)
            return None
        records = self._records(key, found, rdtype)
        if records is not None:
            self._add(self._response.answer, name, records)
            self._glue(rdtype, records)
            return None
        if alias is None:
            self._negative()
            return None
        self._add(self._response.answer, name, alias)
        if rdtype == dns.rdatatype.ANY:
            return None
        target: dns.name.Name = alias.rdatas[0].target  # type: ignore[attr-defined]
        return target

    def _records(self, key: Key, node: Node, rdtype: int) -> RecordSet | None:
        records, scope = self._zone.records(key, node, rdtype, self._client, self._draw)
        self.scope = max(self.scope, scope)
        return records

    def _any(self, name: dns.name.Name, key: Key, node: Node) -> None:
        """RFC 8482: one small made-up record instead of everything there is."""
        if not node.sets and node.endpoint is None and key:
            self._negative()
            return
        self._add(self._response.answer, name, _MINIMAL)

    def _refer(self, cut: Delegation) -> None:
        if not self._response.answer:
            self._response.flags &= ~dns.flags.AA
        self._add(self._response.authority, self._zone.data.name(cut.key), cut.nameservers)
        self._glue(dns.rdatatype.NS, cut.nameservers)

    def _glue(self, rdtype: int, records: RecordSet) -> None:
        """The addresses of name servers inside the zone: without them nobody could ask there."""
        if rdtype != dns.rdatatype.NS:
            return
        for rdata in records.rdatas:
            target: dns.name.Name = rdata.target  # type: ignore[attr-defined]
            key = self._zone.data.key(target)
            node = self._zone.data.nodes.get(key) if key is not None else None
            if key is None or node is None:
                continue
            for address in (dns.rdatatype.A, dns.rdatatype.AAAA):
                found = self._records(key, node, address)
                if found is not None:
                    self._add(self._response.additional, target, found)

    def _negative(self) -> None:
        self._add(self._response.authority, self._zone.data.origin, self._zone.negative())

    @staticmethod
    def _add(section: list[dns.rrset.RRset], name: dns.name.Name, records: RecordSet) -> None:
        section.append(dns.rrset.from_rdata_list(name, records.ttl_s, records.rdatas))
