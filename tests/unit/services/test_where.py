"""Rules of placement as people write them, and as the door takes them."""

import pytest

from roost.client.where import where_in, where_of
from roost.doors.rest.services import where_of as typed
from roost.placement.model import Affinity, By, Spread
from roost.ports.errors import Invalid


def test_flags_become_rules() -> None:
    where = typed(
        where_of(["zone=0.5", "host=2", "pool=0.34?"], ["db@zone"], ["batch", "db2@region?"])
    )
    assert where.spread == (
        Spread(by=By.ZONE, share=0.5),
        Spread(by=By.HOST, most=2),
        Spread(by=By.POOL, share=0.34, strict=False),
    )
    assert where.affinity == (
        Affinity(service="db", by=By.ZONE),
        Affinity(service="batch", apart=True),
        Affinity(service="db2", by=By.REGION, apart=True, strict=False),
    )
    assert typed(where_of()).spread == ()


def test_a_file_says_the_same() -> None:
    where = typed(
        where_in(
            {
                "spread": {"zone": 0.5, "host": 1},
                "with": ["db"],
                "apart": ["batch@zone"],
                "zones": ["a", "b"],
                "min_survival": 0.9,
                "loss": 1,
            }
        )
    )
    assert where.spread == (Spread(by=By.ZONE, share=0.5), Spread(by=By.HOST, most=1))
    assert [rule.apart for rule in where.affinity] == [False, True]
    assert (where.zones, where.min_survival, where.loss) == (("a", "b"), 0.9, 1.0)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ({"spread": {"planet": 0.5}}, "one of host, zone"),
        ({"spread": {"zone": 0}}, "zone=0.5"),
        ({"spread": {"zone": "half"}}, "zone=0.5"),
        ({"spread": {"zone": 1.5}}, "zone=0.5"),
        ({"with": ["@zone"]}, "db@zone"),
        ({"weight": 3}, "it knows"),
    ],
)
def test_what_is_not_understood_says_what_would_be(words: dict[str, object], hint: str) -> None:
    with pytest.raises(Invalid) as caught:
        where_in(words)
    assert hint in caught.value.hint


def test_the_door_refuses_unknown_rules() -> None:
    with pytest.raises(Invalid, match="where is not understood"):
        typed({"spred": []})
