"""Which handler stores which awkward kind of object: the tables of all families together.

Every handler gets the pickler and the object and answers as ``__reduce_ex__`` does, or raises
``Refusal`` with the reason and what the user can do. Never lets a kind through that plain pickle is
known to change silently.
"""

import gc
import io
import mmap
import sys
import types
from typing import Any

from roost.runtime.kernel import (
    archives,
    concurrency,
    data,
    databases,
    files,
    lossy,
    rebuild,
    tensors,
    values,
    widgets,
)
from roost.runtime.kernel.refusal import Handler, Refusal, Storing, advice_for, refuse
from roost.runtime.kernel.values import reduce_exception

__all__ = [
    "BASES",
    "EXACT",
    "LATE",
    "Handler",
    "Refusal",
    "advice_for",
    "bases",
    "reduce_exception",
]


def dict_iterator(view: str) -> Handler:
    """Iterators over dictionaries: plain pickle would detach them."""

    def handler(_pickler: Storing, value: Any) -> Any:
        sources = [r for r in gc.get_referents(value) if type(r) is dict]
        if not sources:
            return iter, ((),)
        return rebuild.advanced, (sources[0], view, len(sources[0]) - value.__length_hint__())

    return handler


EXACT: dict[type, Handler] = {
    io.TextIOWrapper: files.reduce_text,
    io.BufferedReader: files.reduce_buffered,
    io.BufferedWriter: files.reduce_buffered,
    io.BufferedRandom: files.reduce_buffered,
    io.FileIO: files.reduce_raw,
    type(iter({})): dict_iterator("keys"),
    type(iter({}.values())): dict_iterator("values"),
    type(iter({}.items())): dict_iterator("items"),
    types.FrameType: refuse("a frame"),
    mmap.mmap: files.reduce_mmap,
    **archives.EXACT,
    **concurrency.EXACT,
    **data.EXACT,
    **values.EXACT,
}

BASES: dict[type, Handler] = {
    **archives.BASES,
    **concurrency.BASES,
    **data.BASES,
}

LATE: dict[tuple[str, str], Handler] = {
    ("asyncio", "Future"): refuse("an asyncio future or task", "await it before the move"),
    ("asyncio", "AbstractEventLoop"): refuse("an event loop"),
    **concurrency.LATE,
    **data.LATE,
    **databases.LATE,
    **lossy.LATE,
    **tensors.LATE,
    **values.LATE,
    **widgets.LATE,
}
"""Kinds of modules that are not imported for this: looked for when they are loaded."""


def bases() -> dict[type, Handler]:
    """Every base class with a handler, as far as its module is loaded."""
    found = {**BASES, **lossy.patsy()}
    for (module, name), handler in LATE.items():
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            found[kind] = handler
    return found
