"""What the picture shows: the frontier, and that unknown offers are never on it."""

import msgspec
from hypothesis import given

from roost.market.picture import dots
from tests.unit.market.offers import CONTEXT, MANY
from tests.unit.market.test_advisor import made


@given(MANY)
def test_no_cheaper_known_offer_lasts_as_long_as_one_of_the_frontier(found):
    drawn = dots(found, CONTEXT, 720.0)
    assert {d.usd_useful_hour for d in drawn} == {
        o.price_usd_hour / _speed(o.provider, o.instance_type) for o in found
    }
    known = [d for d in drawn if d.known]
    for dot in drawn:
        beaten = any(
            other.usd_useful_hour < dot.usd_useful_hour and other.survives >= dot.survives
            for other in known
        )
        if dot.frontier:
            assert dot.known
            assert not beaten
    assert bool(known) == any(d.frontier for d in drawn)


def _speed(provider, kind):
    speed = CONTEXT.speeds.get((provider, kind))
    return CONTEXT.unknown_speed if speed is None else speed.relative


def test_zones_alike_are_one_dot_and_unknown_ones_have_their_interval():
    same = [made(zone="here-1"), made(zone="here-2")]
    assert len(dots(same, CONTEXT, 24.0)) == 1
    (unknown,) = dots([msgspec.structs.replace(same[0], interruption_bucket=None)], CONTEXT, 24.0)
    assert not unknown.known
    assert not unknown.frontier
    assert unknown.low < unknown.survives < unknown.high
