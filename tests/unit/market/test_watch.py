"""What changed between two rankings, and whether leaving the offer one holds pays."""

import msgspec
import pytest

from roost.market.advisor import rank
from roost.market.catalogue import Catalogue
from roost.market.service import Market
from roost.market.survival import Hazard
from roost.market.watch import better, changes, holding
from roost.ports.values import Ask
from tests.unit.market.offers import CONTEXT
from tests.unit.market.test_advisor import made


def ranked(*offers):
    return rank(offers, Ask(), msgspec.structs.replace(CONTEXT, limit=3))


def test_nothing_is_told_when_nothing_changed():
    found = ranked(made(), made(zone="here-2", price_usd_hour=0.06))
    assert changes(found, found) == []


def test_each_change_is_told_with_its_reason():
    cheap, dear = made(), made(zone="there-1", region="there", price_usd_hour=0.06)
    gone = made(zone="far-1", region="far", price_usd_hour=0.055)
    before = ranked(cheap, dear, gone)
    dearer = msgspec.structs.replace(cheap, price_usd_hour=0.09)
    new = made(zone="new-1", region="new", price_usd_hour=0.2)
    told = {c.offer: c for c in changes(before, ranked(dearer, dear, new))}
    fell = told[cheap.key]
    assert (fell.change, fell.was_rank, fell.rank) == ("fell", 1, 2)
    assert fell.why == "price $0.0500 -> $0.0900 (+80.0%)"
    assert told[dear.key].change == "rose"
    assert told[dear.key].why == "others changed"
    assert told[new.key].change == "entered"
    assert told[gone.key].change == "left"
    assert told[gone.key].rank is None


def test_a_new_band_is_told_as_survival():
    before, now = ranked(made()), ranked(made(interruption_bucket=">20%"))
    (change,) = changes(before, now)
    assert change.change == "costs"
    assert change.why.startswith("survives 24 h 0.999 -> 0.98")
    unknown = ranked(made(interruption_bucket=None))
    assert "-> unknown ~0.9" in changes(before, unknown)[0].why


@pytest.fixture(scope="module")
def market() -> Market:
    return Market(Catalogue.load())


def test_a_session_moves_for_what_an_hour_saves(market):
    ask = Ask(vcpus=4, memory_gib=16)
    dear = market.catalogue.resolve("aws/apne2-az1/m5.xlarge/spot")
    stays = better(market, dear, ask)
    assert stays is not None
    assert not stays.move
    assert "within 1 h" in stays.why
    hazard = Hazard(expected=0.5, low=0.1, high=1.0, source="observed")
    columns = market.catalogue.columns
    row = int(columns.find(*dear.key.split("/"))[0])
    live = market.catalogue.with_columns(columns.with_live({row: hazard}, {}))
    leaves = better(Market(live), dear, ask)
    assert leaves is not None
    assert leaves.move, leaves.why
    assert "stability" in leaves.why
    best = market.rank(ask, 1)[0].offer
    away = msgspec.structs.replace(ask, avoid_pools=(best.key,))
    assert better(market, best, away) is None, "nothing is better"
    assert better(market, dear, Ask(vcpus=4, memory_gib=16, max_usd_hour=1e-6)) is None


def test_a_move_has_to_pay_within_a_day_and_not_walk_down_the_ladder(market):
    ask = Ask(vcpus=4, memory_gib=16)
    best = market.why(market.rank(ask, 1)[0].offer.key, ask)
    assert holding(best, best).why == "it is the best"
    assert not holding(best, best).move
    dear = market.why("aws/apne2-az1/m5.xlarge/spot", ask)
    leave = holding(dear, best)
    assert leave.move
    assert leave.move_usd > 0.04, "standing still at $50 an hour"
    second = market.why(market.rank(ask, 2)[1].offer.key, ask)
    assert not holding(second, best).move
    few = msgspec.structs.replace(dear, may_leave_for_price=False, cheaper_types=3)
    ladder = holding(few, best)
    if "stability" not in leave.why:
        assert not ladder.move
        assert "down the ladder" in ladder.why
