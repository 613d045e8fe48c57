"""Spares stand by while risk is high."""

from hypothesis import given
from hypothesis import strategies as st

from roost.fleet.spares import CALM, RISK, spares

risks = st.lists(st.floats(0, 1), max_size=8)


def test_none_while_calm_one_while_trouble_is_likely() -> None:
    assert spares([RISK / 5] * 4) == 0
    assert spares([RISK / 3] * 4) == 1
    assert spares([]) == 0


def test_a_spare_stays_until_it_is_clearly_calm() -> None:
    between = RISK * (1 + CALM) / 2
    assert spares([between], standing=0) == 0
    assert spares([between], standing=1) == 1
    assert spares([RISK * CALM * 0.9], standing=1) == 0


@given(risks, st.integers(0, 3), st.integers(0, 3))
def test_more_risk_never_means_fewer_spares(found: list[float], standing: int, most: int) -> None:
    few = spares(found, standing, most=most)
    assert 0 <= few <= most
    assert few <= spares([*found, 0.5], standing, most=most)
    assert few <= spares(found, most, most=most)
