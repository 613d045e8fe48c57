"""In which order sets come back: the layout of their hash tables is noted beside them and made again.

A set that is filled anew in the order of the old one may iterate in another: where its elements collided, the
history of insertions and deletions decides. Tables are read from memory, so that no element is asked for its
hash; sets of plain values only, which hash alike in every process with the same seed.
"""

import array
import ctypes
import gc
import itertools
from collections.abc import Iterable
from typing import Any

from roost.runtime.kernel import rebuild_orders
from roost.runtime.kernel.rebuild_orders import FILL, FINGER, MASK, TABLE, USED

_PLAIN = frozenset(id(kind) for kind in (str, bytes, int, float, complex, bool, type(None)))
_DEPTH = 3
_BIG = 50_000
_LEAST_MASK = 7


class Ordered:
    """Values of a group together with the layouts of the sets among them."""

    def __init__(self, values: Any, layouts: list[Any]) -> None:
        self._parts = (values, layouts)

    def __reduce__(self) -> Any:
        return rebuild_orders.ordered, self._parts


def with_orders(values: list[Any], sets: Iterable[Any]) -> Any:
    """What to pickle in the place of these values, so that their sets keep their order."""
    if not rebuild_orders.known():
        return values
    seen: set[int] = set()
    layouts = []
    for one in sets:
        if id(one) not in seen:
            seen.add(id(one))
            if (layout := _layout(one)) is not None:
                layouts.append((one, *layout))
    return Ordered(values, layouts) if layouts else values


def _layout(value: Any) -> tuple[Any, ...] | None:
    """Mask, finger, slots and hashes of the elements, slots of deleted ones; None: it comes by itself.

    The elements themselves too, where two have one hash.
    """
    words = rebuild_orders.words(value)
    mask, used = words[MASK], words[USED]
    if not _plain(gc.get_referents(value), 0):
        return None
    filled, hashes, dead = _read(words, mask)
    at_home = all(number & mask == slot for number, slot in zip(hashes, filled, strict=True))
    if at_home and not dead and not words[FINGER] and mask == _grown(used):
        return None
    told = (list(value),) if len(set(hashes)) != len(hashes) else ()
    return mask, words[FINGER], filled.tobytes(), hashes.tobytes(), dead.tobytes(), *told


def _read(words: Any, mask: int) -> tuple[Any, Any, Any]:
    """Slots and hashes of the elements of a table, and the slots of deleted ones."""
    table = (ctypes.c_int64 * (2 * (mask + 1))).from_address(words[TABLE])
    flat = memoryview(table).cast("B").cast("q")
    keys, numbers = flat[0::2], flat[1::2]
    filled = array.array("I", itertools.compress(range(mask + 1), keys))
    hashes = array.array("q", itertools.compress(numbers, keys))
    dead = array.array("I")
    if words[FILL] != words[USED]:
        live = [number != -1 for number in hashes]
        dead.extend(slot for slot, there in zip(filled, live, strict=True) if not there)
        filled = array.array("I", itertools.compress(filled, live))
        hashes = array.array("q", itertools.compress(hashes, live))
    return filled, hashes, dead


def _grown(used: int) -> int:
    """The mask of a table after so many insertions into an empty set."""
    mask, count = _LEAST_MASK, 0
    while True:
        full = -(-mask * 3 // 5)  # the insertion that makes fill * 5 >= mask * 3
        if used < full:
            return mask
        count = full
        wanted, size = count * (2 if count > _BIG else 4), _LEAST_MASK + 1
        while size <= wanted:
            size <<= 1
        mask = size - 1


def _plain(items: Iterable[Any], depth: int) -> bool:
    """Whether these hash by their value, and nothing of the user is asked for it."""
    for item in items:
        kind = type(item)
        if id(kind) in _PLAIN:
            continue
        if (kind is not tuple and kind is not frozenset) or depth >= _DEPTH:
            return False
        if not _plain(gc.get_referents(item), depth + 1):
            return False
    return True
