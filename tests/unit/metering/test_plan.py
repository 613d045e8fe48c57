"""Seconds and money, by hand-computed figures and by properties."""

import random

import msgspec
import pytest

from roost.fleet.model import Instance, InstanceState, Span
from roost.kit.money import NANO, charge_nano_usd, nano_usd
from roost.metering.plan import bill, lines_of, per_second, reconcile
from roost.ports.provider import LedgerLine
from roost.ports.values import Image, Offer, PurchaseOption, Resources

NOW_S = 10_000.0


def _offer(price: float = 0.036, provider: str = "aws") -> Offer:
    return Offer(
        provider=provider,
        region="ap-northeast-2",
        zone="apne2-az1",
        instance_type="m5.xlarge",
        purchase_option=PurchaseOption.SPOT,
        price_usd_hour=price,
        on_demand_usd_hour=0.236,
        resources=Resources(vcpus=4, memory_gib=16),
    )


def _instance(
    id: str, *spans: tuple[float, float | None, float], owner: str = "s-1", role: str = "active"
) -> Instance:
    return Instance(
        id=id,
        state=InstanceState.READY,
        parent="c-1",
        owner=owner,
        role=role,
        offer=_offer(),
        image=Image(name="py", python="3.11"),
        launch_token=f"l-{id}",
        spans=tuple(
            Span(started_s=a, ended_s=b, price_usd_hour=p, on_demand_usd_hour=0.236)
            for a, b, p in spans
        ),
    )


def test_a_started_second_is_charged_whole() -> None:
    (line,) = lines_of(_instance("i", (100.0, 110.2, 3.6)), NOW_S)
    assert (line.started_s, line.seconds, line.open) == (100.0, 11, False)
    assert line.charge_nano_usd == 11 * NANO // 1000
    assert line.on_demand_nano_usd == nano_usd(0.236) * 11 // 3600


def test_an_open_span_is_charged_up_to_now() -> None:
    (line,) = lines_of(_instance("i", (9_000.0, None, 3.6)), NOW_S)
    assert (line.seconds, line.open) == (1000, True)


def test_nothing_is_billed_while_stopped() -> None:
    stopped = _instance("i", (0.0, 60.0, 3.6), (3_660.0, 3_720.0, 3.6))
    assert [line.seconds for line in lines_of(stopped, NOW_S)] == [60, 60]
    assert lines_of(_instance("i"), NOW_S) == []


def test_each_second_has_the_price_of_its_beginning() -> None:
    changed = _instance("i", (0.0, 10.4, 3.6), (10.4, 20.2, 7.2))
    lines = lines_of(changed, NOW_S)
    assert [(x.started_s, x.seconds, x.price_usd_hour) for x in lines] == [
        (0.0, 11, 3.6),
        (11.0, 10, 7.2),
    ]
    assert (
        sum(x.seconds for x in lines) == lines_of(_instance("i", (0.0, 20.2, 1.0)), 0.0)[0].seconds
    )


def test_a_span_that_ended_before_it_began_costs_nothing() -> None:
    assert lines_of(_instance("i", (50.0, 50.0, 3.6), (60.0, 59.0, 3.6)), NOW_S) == []


def test_float_seconds_far_from_zero_do_not_add_one() -> None:
    start_s = 1_800_000_000.1
    (line,) = lines_of(_instance("i", (start_s, start_s + 120.0, 3.6)), NOW_S)
    assert line.seconds == 120


def test_the_bill_sums_in_every_way() -> None:
    rows = [
        _instance("i-2", (20.0, 80.0, 3.6), owner="s-2"),
        _instance("i-1", (0.0, 10.0, 3.6), role="standby"),
        _instance("i-0", (0.0, 10.0, 36.0)),
        _instance("i-9"),
    ]
    made = bill(rows, NOW_S)
    assert [line.instance_id for line in made.lines] == ["i-0", "i-1", "i-2"]
    assert made.total.seconds == 80
    assert made.total.charge_nano_usd == 10_000_000 + 100_000_000 + 60_000_000
    assert made.total.saved_nano_usd == made.total.on_demand_nano_usd - 170_000_000
    assert list(made.per_instance) == ["i-0", "i-1", "i-2"]
    assert made.per_session["s-1"].seconds == 20
    assert made.per_role["standby"].charge_nano_usd == 10_000_000
    assert made.per_purchase_option["spot"] == made.total
    for sums in (made.per_instance, made.per_session, made.per_role, made.per_purchase_option):
        assert sum(t.charge_nano_usd for t in sums.values()) == made.total.charge_nano_usd
    assert bill(rows, NOW_S, "s-2").total.seconds == 60
    assert bill(reversed(rows), NOW_S) == made, "the order of rows does not matter"


def test_a_bill_crosses_json() -> None:
    made = bill([_instance("i", (0.0, 10.0, 3.6))], NOW_S)
    assert msgspec.json.decode(msgspec.json.encode(made), type=type(made)) == made


@pytest.mark.parametrize("seed", range(20))
def test_seconds_sum_to_the_charge_and_time_only_adds(seed: int) -> None:
    draw = random.Random(seed)
    spans: list[tuple[float, float | None, float]] = []
    at_s = draw.uniform(0, 1000)
    for _ in range(draw.randrange(1, 8)):
        end_s = at_s + draw.choice((0.0, 0.3, 1.0, draw.uniform(0, 500)))
        spans.append((at_s, end_s, round(draw.uniform(0.001, 30), 6)))
        at_s = end_s + draw.choice((0.0, 0.0, draw.uniform(1, 100)))
    spans.append((at_s, None, 1.0))
    instance = _instance("i", *spans)
    for line in lines_of(instance, at_s + 30):
        amounts = list(per_second(line))
        assert len(amounts) == line.seconds
        assert sum(amount for _, amount in amounts) == line.charge_nano_usd
        assert line.charge_nano_usd == charge_nano_usd(line.price_usd_hour, line.seconds)
    sooner = bill([instance], at_s + 10).total
    later = bill([instance], at_s + 10 + draw.uniform(0, 5)).total
    assert later.seconds >= sooner.seconds
    assert later.charge_nano_usd >= sooner.charge_nano_usd


def _ledger(host_id: str, started_s: float, ended_s: float | None, price: float) -> LedgerLine:
    return LedgerLine(
        provider_id=f"p-{host_id}",
        host_id=host_id,
        started_s=started_s,
        ended_s=ended_s,
        price_usd_hour=price,
    )


def test_reconcile_agrees_when_both_saw_the_same() -> None:
    rows = [_instance("a", (0.0, 10.5, 1.0), (20.0, None, 1.0)), _instance("b", (5.0, 6.0, 2.0))]
    ledger = [
        _ledger("b", 5.0, 6.0, 2.0),
        _ledger("a", 20.0, None, 1.0),
        _ledger("a", 0.0, 10.5, 1.0),
    ]
    assert reconcile(rows, ledger, 30.0) == []


def test_reconcile_names_each_difference() -> None:
    rows = [
        _instance("extra", (0.0, 10.0, 3.6)),
        _instance("longer", (0.0, 12.0, 3.6)),
        _instance("price", (0.0, 10.0, 7.2)),
        _instance("never billed"),
    ]
    ledger = [
        _ledger("longer", 0.0, 10.0, 3.6),
        _ledger("price", 0.0, 10.0, 3.6),
        _ledger("unknown", 0.0, 10.0, 3.6),
    ]
    found = reconcile(rows, ledger, 100.0)
    assert [(d.instance_id, d.reason) for d in found] == [
        ("extra", "not in the ledger"),
        ("longer", "seconds differ"),
        ("price", "price differs"),
        ("unknown", "not metered"),
    ]
    assert (found[1].metered_s, found[1].ledger_s) == (12, 10)
    assert (found[2].metered_nano_usd, found[2].ledger_nano_usd) == (20_000_000, 10_000_000)
