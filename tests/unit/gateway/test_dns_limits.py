"""Rates of responses per client network; kept answers are the answers that would be made."""

import random
from ipaddress import ip_address, ip_network

import dns.message
from hypothesis import given
from hypothesis import strategies as st

from roost.gateway.dns.choice import Area
from roost.gateway.dns.limits import BUCKETS, Limits, RateLimiter
from roost.gateway.dns.memo import ENTRIES, VARIANTS, Memo
from tests.unit.gateway.dns_setup import a_zone, query, replied

ZONE = a_zone()


def rates(**options: object) -> RateLimiter:
    return RateLimiter(Limits(responses_per_s=10, burst_s=1, **options))  # type: ignore[arg-type]


def test_equal_responses_are_limited_and_slip_in_turn() -> None:
    limiter = rates(slip=2)
    net = limiter.network(ip_address("192.0.2.1"))
    verdicts = [limiter.equal_response(net, "x", 5.0) for _ in range(20)]
    assert verdicts == ["pass"] * 10 + ["drop", "slip"] * 5
    assert limiter.equal_response(net, "y", 5.0) == "pass"
    assert limiter.equal_response(net, "x", 5.15) == "pass"
    assert limiter.equal_response(net, "x", 5.15) != "pass"
    assert [rates(slip=0).equal_response(net, 1, 0.0) for _ in range(20)].count("slip") == 0


def test_networks_are_counted_as_one() -> None:
    limiter = rates()
    of = limiter.network
    assert of(ip_address("192.0.2.1")) == of(ip_address("192.0.2.254"))
    assert of(ip_address("192.0.2.1")) != of(ip_address("192.0.3.1"))
    assert of(ip_address("2001:db8::1")) == of(ip_address("2001:db8:0:ff::1"))
    assert of(ip_address("2001:db8::1")) != of(ip_address("2001:db8:0:100::1"))


def test_no_rate_and_exempt_networks() -> None:
    free = RateLimiter(Limits(responses_per_s=0, all_per_s=0), (ip_network("10.0.0.0/8"),))
    assert {free.any_response((4, 1), 0.0) for _ in range(5000)} == {"pass"}
    assert free.exempt(ip_address("10.1.2.3")) and not free.exempt(ip_address("11.1.2.3"))
    assert not free.exempt(ip_address("::1"))


def test_forged_sources_cost_no_memory() -> None:
    limiter = rates()
    for number in range(BUCKETS + 500):
        limiter.any_response((4, number), 0.0)
    assert len(limiter._buckets) == BUCKETS


def fed(wire: bytes, memo: Memo, area: Area, version: int) -> set[bytes]:
    """The answers made anew until the memo has some."""
    made = set()
    for seed in range(VARIANTS * 4):
        if memo.find(wire, area, version) is None:
            found = replied(ZONE, wire, seed=seed)
            made.add(found.udp())
            memo.keep(wire, area, found, found.udp())
    return made


def test_a_kept_answer_is_one_that_was_made_with_id_and_case_of_the_query() -> None:
    memo = Memo(random.Random(1).random)
    lower = query("www.cloud.example.org", id=1)
    made = fed(lower.to_wire(), memo, Area(), 1)
    assert len(made) > 1
    mixed = query("wWw.cLOUD.example.oRg", id=2)
    for _ in range(100):
        kept = memo.find(mixed.to_wire(), Area(), 1)
        if kept is None:
            continue  # the share that is renewed
        response = dns.message.from_wire(kept[1])
        assert response.id == 2
        assert response.question[0].name.labels[0] == b"wWw"
        assert response.answer[0].name.labels[:2] == (b"wWw", b"cLOUD")
        assert kept[1].lower()[2:] in {wire.lower()[2:] for wire in made}
    assert memo.find(mixed.to_wire(), Area("other"), 1) is None
    assert memo.find(mixed.to_wire(), Area(), 2) is None
    assert memo.find(mixed.to_wire(), Area(), 1) is None


def test_errors_and_large_answers_are_not_kept_and_there_are_not_too_many() -> None:
    memo = Memo(random.Random(1).random)
    for name in ("nope.cloud.example.org", "example.net"):
        wire = query(name).to_wire()
        fed(wire, memo, Area(), 1)
        assert memo.find(wire, Area(), 1) is None
    for number in range(ENTRIES + 10):
        wire = query(f"x{number}.apps.cloud.example.org").to_wire()
        memo.keep(wire, Area(), found := replied(ZONE, wire), found.udp())
    assert len(memo._known) <= ENTRIES


@given(st.data())
def test_odd_queries_get_from_the_memo_what_they_would_get_anew(data: st.DataObject) -> None:
    memo = Memo(random.Random(data.draw(st.integers(0, 99))).random)
    base = query("x.apps.cloud.example.org", id=7).to_wire()
    fed(base, memo, Area(), 1)
    wire = bytearray(base)
    for _ in range(data.draw(st.integers(0, 3))):
        wire[data.draw(st.integers(12, len(wire) - 1))] = data.draw(st.integers(0, 255))
    odd = bytes(wire)
    kept = memo.find(odd, Area(), 1)
    if kept is not None:
        assert kept[1] == replied(ZONE, odd).udp()
