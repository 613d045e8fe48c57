"""Memory that several objects share without a reference between them: found by where it lies.

A tensor made of an array, or of a ``bytearray``, has its memory and keeps it alive in a way that Python does
not show. Ranges that overlap are stored as one piece, and whoever has a part of it names its place in there.
"""

import ctypes
import pickle
import typing
from collections.abc import Iterable
from typing import Any

from roost.runtime.kernel import rebuild
from roost.runtime.kernel.chunks import Mapping


class Range(typing.NamedTuple):
    """Where memory lies. ``lender``: the ``bytearray`` (or its like) whose memory it is, the library for
    memory of a library's own, None for an array's."""

    start: int
    end: int
    lender: Any


class Memory:
    """A range of memory that is stored; one per range and pickle."""

    __slots__ = ("_pickle",)

    def __init__(self, start: int, size: int) -> None:
        self._pickle = pickle.PickleBuffer((ctypes.c_char * size).from_address(start))

    def __reduce_ex__(self, protocol: typing.SupportsIndex) -> Any:
        return rebuild.same, (self._pickle,)


def span(array: Any) -> tuple[int, int]:
    """First and last-plus-one address of an array's elements."""
    low = high = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


def of_array(array: Any) -> Range | None:
    """Where the memory of an array lies that is no view of another."""
    base = array.base
    base = base.obj if type(base) is memoryview else base
    if type(base) is Mapping:
        start = ctypes.addressof(ctypes.c_char.from_buffer(base))
        return Range(start, start + len(base), None)
    return Range(*span(array), None) if array.nbytes else None


def of_bytes(value: bytearray) -> Range | None:
    """Where the content of a ``bytearray`` lies."""
    if not value:
        return None
    start = ctypes.addressof(ctypes.c_char.from_buffer(value))
    return Range(start, start + len(value), value)


def clusters(ranges: Iterable[Range]) -> list[list[Range]]:
    """Ranges that overlap, together; each list begins with its lowest."""
    made: list[list[Range]] = []
    end = 0
    for one in sorted(ranges, key=lambda one: (one.start, -one.end)):
        if made and one.start < end:
            made[-1].append(one)
        else:
            made.append([one])
        end = max(end, one.end)
    return made


def joined(ranges: Iterable[Range]) -> list[Range]:
    """One range for those that overlap without being the same, by address; who lends all of it is in it."""
    found = []
    for cluster in clusters(ranges):
        places = {(one.start, one.end) for one in cluster}
        kinds = {id(one.lender) for one in cluster}
        if len(places) == 1 and len(kinds) == 1:
            continue
        start, end = cluster[0].start, max(one.end for one in cluster)
        lender = next((one.lender for one in cluster if _lends(one, start, end)), None)
        found.append(Range(start, end, lender))
    return found


def _lends(one: Range, start: int, end: int) -> bool:
    whole = one.start == start and one.end == end
    return whole and type(one.lender) is bytearray
