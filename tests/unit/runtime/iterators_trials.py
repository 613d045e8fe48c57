"""Run as a program by ``test_frames``, with any Python: iterators stored, opened and gone on with."""

import collections
import itertools
import pickle
import re
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any

from roost.runtime.kernel.naming import Singletons
from roost.runtime.kernel.pickling import Surroundings, dump

AROUND = Surroundings("/nowhere", globals(), Singletons(), None, {})


def moved(value: Any) -> Any:
    done = dump(value, AROUND, in_band=True)
    return pickle.loads(done.content, buffers=done.buffers)


def numbers(n: int) -> Any:
    yield from range(n)


ORDERED = collections.OrderedDict(a=1, b=2, c=3)
TEXT = "one 12 twenty 3é4 €56"
MAKERS: list[Callable[[], Any]] = [
    lambda: itertools.pairwise(numbers(5)),
    lambda: itertools.groupby([1, 1, 2, 3, 3], key=lambda x: x // 2),
    lambda: itertools.zip_longest(numbers(2), "abcd", fillvalue=0),
    lambda: itertools.chain.from_iterable(numbers(n) for n in range(4)),
    lambda: map(lambda x: x + 1, filter(None, numbers(5))),
    lambda: enumerate(zip(numbers(4), "abcd", strict=False)),
    lambda: re.finditer(r"\d+|", TEXT),
    lambda: re.finditer(rb"\d*", TEXT.encode()),
    lambda: re.compile(r"(?<=e) ?").finditer(TEXT, 2, 15),
    lambda: reversed({1: 2, 3: 4}),
    lambda: reversed({1: 2, 3: 4}.items()),
    lambda: iter({1, 2, 3, 4}),
    lambda: iter(frozenset("abc")),
    lambda: iter(ORDERED),
    lambda: iter(ORDERED.values()),
    lambda: reversed(ORDERED.items()),
    lambda: iter(lambda: 3, 3),
    lambda: itertools.tee(numbers(5), 2)[1],
    lambda: struct.iter_unpack("<h", bytes(range(8))),
]
if sys.version_info >= (3, 12):
    MAKERS.append(lambda: itertools.batched(numbers(7), 3))


def step(iterator: Any) -> Any:
    found = next(iterator, "end")
    if isinstance(found, re.Match):
        return found.regs, found.string, found.pos, found.endpos
    if isinstance(found, tuple) and type(found[-1]).__name__ == "_grouper":
        return found[0], list(found[1])
    return found


def trial_go_on_from_everywhere() -> None:
    for number, make in enumerate(MAKERS):
        for steps in range(14):
            one, twin = make(), make()
            for _ in range(steps):
                assert step(one) == step(twin)
            one = moved(one)
            for _ in range(16):
                found, expected = step(one), step(twin)
                if number in (6, 7, 8) and found != "end":
                    found, expected = found[:2], expected[:2]
                assert found == expected, (number, steps, found, expected)


def trial_over_the_same_container() -> None:
    box: dict[str, int] = {"a": 1, "b": 2}
    group = {1, 2, 3}
    views: Any = (box, box.keys(), box.values(), box.items(), iter(group), group)
    next(views[4])
    found = moved(views)
    found[0]["z"] = 5
    assert list(found[1]) == ["a", "b", "z"] and list(found[2]) == [1, 2, 5] and len(found[3]) == 3
    found[5].add(99)
    try:
        next(found[4])
    except RuntimeError:
        return
    raise AssertionError("it goes over another set")


def trial_matches() -> None:
    pattern = re.compile(r"(?P<word>\w)(\d)?")
    for match in (
        pattern.search(TEXT, 2),
        pattern.match(TEXT, 1, 6),
        re.fullmatch("a*?", "aaa"),
        list(pattern.finditer(TEXT))[4],
    ):
        assert match is not None
        found = moved(match)
        assert (found.regs, found.groupdict(), found.lastgroup, found.endpos) == (
            match.regs, match.groupdict(), match.lastgroup, match.endpos,
        )  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, trial in list(globals().items()):
        if name.startswith("trial_"):
            trial()
            print("ok", name, flush=True)
