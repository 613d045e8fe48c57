"""The halves of ``iterators`` that stored pickles call. Names and arguments here are part of the format."""

import importlib
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

_VIEWS: dict[str, Any] = {"keys": dict.keys, "values": dict.values, "items": dict.items}


def view_of(source: dict[Any, Any], view: str) -> Any:
    """A living view of a dictionary."""
    return _VIEWS[view](source)


def backwards(source: dict[Any, Any], view: str, consumed: int) -> Iterator[Any]:
    """A reversed iterator over a dictionary, where it stood."""
    return _onward(reversed(_VIEWS[view](source)), consumed)


def ordered(source: Any, view: str, reverse: bool, consumed: int) -> Iterator[Any]:
    """An iterator over an ``OrderedDict``, where it stood."""
    found = getattr(source, view)()
    return _onward(reversed(found) if reverse else iter(found), consumed)


def of_set(source: Any, remaining: list[Any]) -> Iterator[Any]:
    """An iterator over a set, where it stood; over what remained where the set has another order now."""
    everything = list(source)
    consumed = len(everything) - len(remaining)
    rest = everything[consumed:] if consumed >= 0 else []
    if consumed < 0 or any(a is not b for a, b in zip(rest, remaining, strict=True)):
        return iter(remaining)
    return _onward(iter(source), consumed)


def _onward(iterator: Iterator[Any], steps: int) -> Iterator[Any]:
    for _ in itertools.islice(iterator, steps):
        pass
    return iterator


def pairwise(source: Any, former: tuple[Any, ...]) -> Iterator[Any]:
    """``itertools.pairwise`` that has taken ``former`` already."""
    return itertools.pairwise(itertools.chain(former, source) if former else source)


def batched(source: Any, size: int, options: dict[str, bool]) -> Any:
    """``itertools.batched``."""
    make: Any = importlib.import_module("itertools").batched
    return make(source, size, **options)


def scanner(pattern: Any, string: Any, start: int, end: int, moved_on: bool) -> Any:
    """The scanner under ``re.finditer``. ``moved_on``: an empty match at ``start`` was had already."""
    found = pattern.scanner(string, start, end)
    if moved_on:
        found.search()
    return found


def match(pattern: Any, how: str, string: Any, start: int, end: int) -> re.Match[Any]:
    """A match, found again."""
    found: re.Match[Any] | None = getattr(pattern, how)(string, start, end)
    if found is None:
        raise ValueError("a match that is none any more")
    return found


def unpacking(form: Any, source: Any, consumed: int) -> Iterator[Any]:
    """``Struct.iter_unpack``, where it stood."""
    return _onward(form.iter_unpack(source), consumed)


def read_folder() -> Any:
    """``os.scandir`` that has come to its end."""
    found = os.scandir(os.curdir)
    found.close()
    return found


def folder_entry(folder: Any, name: Any) -> Any:
    """What ``os.scandir`` gives for a file. Raises ``FileNotFoundError``."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == name:
                return entry
    raise FileNotFoundError(f"{name} is no longer in {folder}")
