"""Gives sets the order that they had: called by stored pickles, part of the format."""

import array
import ctypes
import functools
import gc
import itertools
from typing import Any

FILL, USED, MASK, TABLE, _HASH, FINGER, SMALL = range(2, 9)
"""Words of a set object behind reference count and type; then its small table of eight entries."""
_SMALL_SLOTS = 8
_LEAST_MASK = 7
_WORDS = SMALL + 2 * _SMALL_SLOTS


def words(value: Any) -> Any:
    """The memory of a set object."""
    return (ctypes.c_int64 * _WORDS).from_address(id(value))


@functools.cache
def known() -> bool:
    """Whether sets of this Python lie in memory as is thought here."""
    small, big = {1, 2, 3}, set(range(100))
    big.discard(7)
    one, two = words(small), words(big)
    if (one[FILL], one[USED], one[MASK]) != (3, 3, _LEAST_MASK):
        return False
    if one[TABLE] != id(small) + 8 * SMALL or (one[SMALL + 2], one[SMALL + 3]) != (id(1), 1):
        return False
    return (
        (two[USED], two[FILL]) == (99, 100)
        and two[TABLE] != id(big) + 8 * SMALL
        and one[_HASH] == -1
    )


def ordered(values: Any, layouts: list[Any]) -> Any:
    """The values, their sets in order."""
    if known():
        for value, *layout in layouts:
            arrange(value, *layout)
    return values


def arrange(
    value: Any,
    mask: int,
    finger: int,
    filled: bytes,
    hashes: bytes,
    dead: bytes,
    told: list[Any] | None = None,
) -> bool:
    """Lay a set's table out like this; leave it alone where its elements hash otherwise here."""
    slots, gone = _numbers("I", filled), _numbers("I", dead)
    numbers = _numbers("q", hashes)
    items = _by_hash(value, numbers, told)
    made = _empty(mask)
    inside = words(made)
    if items is None or inside[MASK] != mask or max((0, *slots[-1:], *gone[-1:])) > mask:
        return False
    table = array.array("q", bytes(16 * (mask + 1)))
    for slot, item, number in zip(slots, items, numbers, strict=True):
        table[2 * slot], table[2 * slot + 1] = id(item), number
    for slot in gone:
        table[2 * slot], table[2 * slot + 1] = _dummy(), -1
    collecting = gc.isenabled()
    gc.disable()  # for a moment two tables hold the elements, with one reference
    try:
        ctypes.memmove(inside[TABLE], table.buffer_info()[0], 16 * (mask + 1))
        inside[FILL], inside[USED] = len(slots) + len(gone), len(slots)
        # Every element must be found where it lies now.
        right = made.issuperset(value)
        if right:
            inside[FINGER] = finger
            _swap(words(value), inside)
        ctypes.memset(inside[TABLE], 0, 16 * (inside[MASK] + 1))
        inside[FILL] = inside[USED] = 0
    finally:
        if collecting:
            gc.enable()
    return right


def _numbers(code: str, content: bytes) -> Any:
    found: Any = array.array(code)
    found.frombytes(content)
    return found


def _by_hash(value: Any, hashes: Any, told: list[Any] | None) -> list[Any] | None:
    """A set's elements in the order of these hashes (or of ``told``)."""
    inside = words(value)
    table = (ctypes.c_int64 * (2 * (inside[MASK] + 1))).from_address(inside[TABLE])
    flat = memoryview(table).cast("B").cast("q")
    mine = list(itertools.compress(flat[1::2], flat[0::2]))
    if len(mine) != len(value) or len(mine) != len(hashes):
        return None  # the second: it was never changed since it was made, so it has no deleted ones
    if told is not None:
        if sorted(mine) != sorted(hashes):
            return None
        mine, hashes = list(value), told
    known = dict(zip(mine, value, strict=True))
    found = list(map(known.get, hashes, itertools.repeat(_NONE)))
    return None if any(one is _NONE for one in found) else found


_NONE = object()


def _empty(mask: int) -> set[Any]:
    """An empty set with a table of this size."""
    made: set[Any] = set()
    if mask > _LEAST_MASK:
        filling = set(range((mask + 1) // 2 - 1))
        made.update(filling)
        for one in filling:  # unlike ``difference_update`` this leaves the table as it is
            made.discard(one)
        inside = words(made)
        ctypes.memset(inside[TABLE], 0, 16 * (inside[MASK] + 1))
        inside[FILL] = 0
    return made


@functools.cache
def _dummy() -> int:
    """The address of what stands for a deleted element."""
    made = {1, 2}
    made.discard(1)
    inside = words(made)
    table = (ctypes.c_int64 * (2 * _SMALL_SLOTS)).from_address(inside[TABLE])
    return next(table[n] for n in range(0, 16, 2) if table[n] and table[n + 1] == -1)


def _swap(one: Any, other: Any) -> None:
    """Two sets change tables."""
    own = [ctypes.addressof(part) + 8 * SMALL for part in (one, other)]
    small = [part[TABLE] == place for part, place in zip((one, other), own, strict=True)]
    for word in (FILL, USED, MASK, TABLE, FINGER, *range(SMALL, _WORDS)):
        one[word], other[word] = other[word], one[word]
    if small[1]:
        one[TABLE] = own[0]
    if small[0]:
        other[TABLE] = own[1]
