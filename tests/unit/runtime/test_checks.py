"""What came back without an error, but not whole, is told by name."""

import pytest

from roost.runtime.kernel.checks import difference, note


class Sub(list):  # type: ignore[type-arg]
    pass


class Own:
    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)

    @property
    def lazy(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        (Own(a=1, b=2), Own(a=5, b=2), ""),
        (Own(a=1, b=2), Own(a=1), "it came back without b"),
        (Own(a=1, _cache=2), Own(a=1), ""),
        (Own(a=1, lazy=2), Own(a=1), ""),
        (Sub([1, 2]), Sub([1]), "it came back with 1 elements, it had 2"),
        ([Own(a=1), 3], [Own(), 3], ""),
        ([Own(a=1), Own(b=1, c=2)], [Own(a=1), Own(b=1)], "inside, it came back without c"),
        (Own(a=1), 5, ""),
    ],
)
def test_differences(was: object, now: object, told: str) -> None:
    noted = note(was)
    assert noted is not None
    assert difference(noted, now) == told


@pytest.mark.parametrize("value", [1, "a", [1, 2], {"a": [1]}, len, Own, (), {1}])
def test_nothing_is_noted_of_what_is_surely_whole(value: object) -> None:
    assert note(value) is None


def test_nothing_of_the_user_runs() -> None:
    class Meta(type):
        def __eq__(cls, other: object) -> bool:
            raise AssertionError

        __hash__ = None  # type: ignore[assignment]

    class Trap(metaclass=Meta):
        def __getattribute__(self, name: str) -> object:
            raise AssertionError(name)

        __len__ = __eq__ = __hash__ = __getattribute__  # type: ignore[assignment]

    assert note(Trap()) is None
    assert note([Trap()]) is None
