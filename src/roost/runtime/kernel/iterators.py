"""Iterators and views that plain pickle refuses, or detaches from what they go over.

Some keep their place where Python does not show it: it is read from memory, by offsets that are proven on a
sample first. The rebuilding half is ``rebuild_iterators``.
"""

import collections
import ctypes
import functools
import gc
import itertools
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild_iterators as rebuild
from roost.runtime.kernel.kinds import Handler, Refusal
from roost.runtime.kernel.rebuild_frames import int_at, pointer_at

ADVICE = "use a list instead, or create it again after a move"


def _held(value: Any) -> list[Any]:
    """What it refers to, but for its type."""
    return [one for one in gc.get_referents(value) if one is not type(value)]


# --- dictionaries and sets ---------------------------------------------------------------------------


def view(name: str) -> Handler:
    """Views of dictionaries stay views."""

    def handler(_pickler: Any, value: Any) -> Any:
        source = _held(value)[0]
        if type(source) is not dict:
            return NotImplemented
        return rebuild.view_of, (source, name)

    return handler


def backwards(name: str) -> Handler:
    """``reversed`` over dictionaries."""

    def handler(_pickler: Any, value: Any) -> Any:
        sources = [one for one in _held(value) if type(one) is dict]
        if not sources:
            return iter, ((),)
        consumed = len(sources[0]) - value.__length_hint__()
        return rebuild.backwards, (sources[0], name, consumed)

    return handler


_ORDERED = {2: "keys", 4: "values", 6: "items"}


def reduce_ordered(_pickler: Any, value: Any) -> Any:
    """Iterators over an ``OrderedDict``."""
    sources = _held(value)
    if not sources or type(sources[0]) is not collections.OrderedDict:
        return NotImplemented if sources else (iter, ((),))
    kind = int_at(value, _HEAD)
    name = _ORDERED.get(kind & 6)
    if name is None or kind & ~7:
        raise Refusal("an iterator over an OrderedDict that could not be read", ADVICE)
    remaining = value.__reduce__()[1][0]
    consumed = len(sources[0]) - len(remaining)
    return rebuild.ordered, (sources[0], name, bool(kind & 1), consumed)


def reduce_set_iterator(_pickler: Any, value: Any) -> Any:
    """Iterators over sets: over the same set, where its order is kept."""
    sources = _held(value)
    if not sources:
        return iter, ((),)
    try:
        remaining = value.__reduce__()[1][0]
    except RuntimeError as error:
        raise Refusal("an iterator over a set that has changed since", ADVICE) from error
    return rebuild.of_set, (sources[0], remaining)


# --- itertools ---------------------------------------------------------------------------------------

_HEAD = 16
"""Bytes before an object's own fields."""


def reduce_pairwise(_pickler: Any, value: Any) -> Any:
    """``itertools.pairwise``; the tuple it uses again (3.13) is none of its parts."""
    source, former = pointer_at(value, _HEAD), pointer_at(value, _HEAD + 8)
    held = {id(one): one for one in _held(value)}
    if not source:
        return iter, ((),)
    if source not in held or (former and former not in held):
        raise Refusal("an itertools.pairwise that could not be read", ADVICE)
    return rebuild.pairwise, (held[source], (held[former],) if former else ())


def reduce_batched(_pickler: Any, value: Any) -> Any:
    """``itertools.batched``."""
    held = _held(value)
    if not held:
        return iter, ((),)
    size = pointer_at(value, _HEAD + 8)
    if pointer_at(value, _HEAD) != id(held[0]) or len(held) != 1 or not _proven_batched():
        raise Refusal("an itertools.batched that could not be read", ADVICE)
    options = {"strict": bool(int_at(value, _HEAD + 16) & 1)} if sys.version_info >= (3, 13) else {}
    return rebuild.batched, (held[0], size, options)


@functools.cache
def _proven_batched() -> bool:
    make: Any = getattr(itertools, "batched", None)
    return make is not None and pointer_at(make((), 7), _HEAD + 8) == 7


# --- regular expressions -----------------------------------------------------------------------------

_PATTERN, _BEGINNING, _START, _STRING, _POS, _ENDPOS, _SIZE, _ADVANCE = (
    16, 32, 40, 56, 144, 152, 164, 172,
)  # fmt: skip


def reduce_scanner(_pickler: Any, value: Any) -> Any:
    """What ``re.finditer`` goes on with."""
    if not _proven_scanner() or pointer_at(value, _PATTERN) != id(value.pattern):
        raise Refusal("an iterator over matches that could not be read", ADVICE)
    size = int_at(value, _SIZE)
    start = pointer_at(value, _START)
    if not start or size not in (1, 2, 4):
        return rebuild.scanner, (value.pattern, "", 1, 0, False)
    string = _string_of(value)
    place = (start - pointer_at(value, _BEGINNING)) // size
    again = bool(int_at(value, _ADVANCE))
    return rebuild.scanner, (value.pattern, string, place, pointer_at(value, _ENDPOS), again)


def _string_of(scanner: Any) -> Any:
    """The text under a scanner, which nothing but its memory tells."""
    known: Any = ctypes.cast(pointer_at(scanner, _STRING), ctypes.py_object).value
    if id(type(known)) not in _TEXTS:
        raise Refusal("an iterator over matches in something that is no text", ADVICE)
    return known


_TEXTS = frozenset(id(kind) for kind in (str, bytes, bytearray))


@functools.cache
def _proven_scanner() -> bool:
    text = "xaxé€xcx"
    scanner: Any = re.compile("x|").scanner(text, 1, 7)  # type: ignore[attr-defined]
    scanner.search()
    before = int_at(scanner, _ADVANCE)
    scanner.search()
    moved = pointer_at(scanner, _START) - pointer_at(scanner, _BEGINNING)
    expected = (id(scanner.pattern), id(text), 1, 7)
    found = tuple(pointer_at(scanner, n) for n in (_PATTERN, _STRING, _POS, _ENDPOS))
    size = int_at(scanner, _SIZE)
    return found == expected and (before, size, moved, int_at(scanner, _ADVANCE)) == (1, 2, 6, 0)


def reduce_match(pickler: Any, value: re.Match[Any]) -> Any:
    """A match is found again: its text, its pattern and where it lay are known."""
    text = value.string
    if id(type(text)) not in _TEXTS:
        raise Refusal("a match in something that is no text", ADVICE)
    tries = [(how, value.pos) for how in ("search", "match", "fullmatch")]
    tries += [(how, value.start()) for how in ("match", "fullmatch")]
    for how, start in tries:
        again = getattr(value.re, how)(text, start, value.endpos)
        if again is not None and again.regs == value.regs and again.lastindex == value.lastindex:
            if start != value.pos:
                pickler.note("a match without the place where its search began")
            return rebuild.match, (value.re, how, text, start, value.endpos)
    raise Refusal("a match that is not found again", "keep its groups instead")


# --- packed data -------------------------------------------------------------------------------------


def reduce_struct(_pickler: Any, value: struct.Struct) -> Any:
    """A format that was compiled."""
    return struct.Struct, (value.format,)


def reduce_unpacking(_pickler: Any, value: Any) -> Any:
    """What ``struct.iter_unpack`` gives, where it stands."""
    held = _held(value)
    if not held:
        return iter, ((),)
    form = next(one for one in held if type(one) is struct.Struct)
    source = next(one for one in held if one is not form)
    with memoryview(source) as whole:
        consumed = whole.nbytes // form.size - value.__length_hint__()
    return rebuild.unpacking, (form, source, consumed)


# --- folders -----------------------------------------------------------------------------------------


def reduce_scandir(_pickler: Any, value: Any) -> Any:
    """``os.scandir`` at its end, as ``os.walk`` keeps it."""
    if not _proven_scandir() or pointer_at(value, type(value).__basicsize__ - 16):
        raise Refusal("a folder that is being read", "read it to its end before the move")
    return rebuild.read_folder, ()


@functools.cache
def _proven_scandir() -> bool:
    sample = os.scandir(os.sep)
    place = type(sample).__basicsize__ - 16
    before = pointer_at(sample, place)
    sample.close()
    return bool(before) and not pointer_at(sample, place)


def reduce_entry(_pickler: Any, value: Any) -> Any:
    """An entry of a folder is looked up again."""
    if type(value.path) is not str:
        raise Refusal("an entry of a folder named by bytes", "keep its path instead")
    return rebuild.folder_entry, (str(Path(value.path).parent), value.name)


_SCANNER: Any = re.compile("").scanner("")  # type: ignore[attr-defined]
with os.scandir(os.sep) as _FOLDER:
    pass

EXACT: dict[type, Handler] = {
    type({}.keys()): view("keys"),
    type({}.values()): view("values"),
    type({}.items()): view("items"),
    type(reversed({})): backwards("keys"),
    type(reversed({}.values())): backwards("values"),
    type(reversed({}.items())): backwards("items"),
    type(iter(collections.OrderedDict())): reduce_ordered,
    type(iter(set())): reduce_set_iterator,
    itertools.pairwise: reduce_pairwise,
    type(_SCANNER): reduce_scanner,
    struct.Struct: reduce_struct,
    type(struct.iter_unpack("b", b"")): reduce_unpacking,
    re.Match: reduce_match,
    type(_FOLDER): reduce_scandir,
    os.DirEntry: reduce_entry,
}
if hasattr(itertools, "batched"):
    EXACT[itertools.batched] = reduce_batched
