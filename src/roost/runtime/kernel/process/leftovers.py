"""What variables only name: temporary files by their path, descriptors by their number, finalizers at all."""

import gc
import io
import os
import socket
import stat
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from roost.runtime.kernel import archives, rebuild_files
from roost.runtime.kernel.naming import foreign, is_module, module_of
from roost.runtime.kernel.process.base import Baseline
from roost.runtime.kernel.refusal import Refusal

MOST_BYTES = 32 << 20
"""Temporary files that variables name travel with their content up to so much together."""
_ITEMS = 200
_DEPTH = 2


def note(_shell: Any) -> dict[str, Any]:
    """Descriptors and finalizers before the user's first cell."""
    return {
        "begun": time.time(),
        "descriptors": _descriptors(),
        "finalizers": {id(one): one for one in list(_registry())},
        "files": ((), None),
    }


def _registry() -> dict[Any, Any]:
    found: dict[Any, Any] = vars(weakref.finalize)["_registry"]
    return found


# --- temporary files -----------------------------------------------------------------------------


def files(base: Baseline, shell: Any) -> Any:
    """Temporary files and folders that variables name by their path."""
    noted = base.noted["leftovers"]
    top = tempfile.gettempdir()
    found: dict[str, os.stat_result] = {}
    for path in _named(base, shell.user_ns, top + os.sep):
        status = _own(path, base.root, noted["begun"])
        if status is not None:
            found[path] = status
    if not found:
        return None
    marks = tuple((path, *_mark(path, status)) for path, status in sorted(found.items()))
    if noted["files"][0] == marks:
        return noted["files"][1]
    value = {path: _content(path, status) for path, status in sorted(found.items())}
    noted["files"] = (marks, value)
    return value


def _named(base: Baseline, space: dict[str, Any], start: str) -> list[str]:
    """Paths in the variables, as far as a look that is about some of them has to look at them again."""
    former = {} if base.touched is None else base.noted["leftovers"].get("paths", {})
    touched = base.touched or ()
    paths: dict[str, tuple[int, list[str]]] = {}
    for name, value in list(space.items()):
        known = former.get(name) if type(name) is str and name not in touched else None
        if known is None or known[0] != id(value):
            known = (id(value), [])
            _gather(value, start, known[1], 0)
        if type(name) is str:
            paths[name] = known
    base.noted["leftovers"]["paths"] = paths
    return [path for _id, found in paths.values() for path in found]


def names_files(value: Any) -> bool:
    """Whether a variable names a place among the temporary files."""
    found: list[str] = []
    _gather(value, tempfile.gettempdir() + os.sep, found, 0)
    return bool(found)


def _gather(value: Any, start: str, found: list[str], depth: int) -> None:
    kind = type(value)
    if kind is str:
        if value.startswith(start):
            found.append(value)
    elif kind is list or kind is tuple or kind is set or kind is dict:
        if depth < _DEPTH:
            for item in list(islice(value.values() if kind is dict else value, _ITEMS)):
                if type(item) is not int and type(item) is not float:
                    _gather(item, start, found, depth + 1)
    elif module_of(kind).startswith("pathlib") and isinstance(value, PurePath):
        _gather(str(value), start, found, depth)


def _own(path: str, root: str, begun: float) -> os.stat_result | None:
    """What was made in this session, and is no part of its folder."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    place = PurePath(path)
    near = place.is_relative_to(root) or PurePath(root).is_relative_to(place)
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    mine = status.st_uid == os.getuid() and status.st_ctime >= begun
    return status if plain and mine and not near else None


def _mark(path: str, status: os.stat_result) -> tuple[Any, ...]:
    if not stat.S_ISDIR(status.st_mode):
        return status.st_mtime_ns, status.st_size
    inside = [p.lstat() for p in sorted(Path(path).rglob("*"))[:10_000]]
    return status.st_mtime_ns, *((one.st_mtime_ns, one.st_size) for one in inside)


def _content(path: str, status: os.stat_result) -> Any:
    if stat.S_ISDIR(status.st_mode):
        return archives.entries_of(path)
    if status.st_size > MOST_BYTES:
        raise Refusal(f"a big temporary file: {path}", "keep files in the session's folder")
    return (stat.S_IMODE(status.st_mode), Path(path).read_bytes())


def set_files(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Make them again where they are not there."""
    for path, content in value.items():
        if type(content) is list:
            rebuild_files.tree(path, content)
        else:
            rebuild_files.put_back(path, content[1])
            Path(path).chmod(content[0])


# --- descriptors and finalizers ------------------------------------------------------------------


class Descriptor:
    """A descriptor that a variable names by its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        status = os.fstat(self.number)
        path = os.readlink(f"/proc/self/fd/{self.number}")  # noqa: PTH115
        if not stat.S_ISREG(status.st_mode) or not Path(path).exists():
            raise Refusal(
                f"descriptor {self.number}, a pipe, device or deleted file", "open it again"
            )
        rights = 0
        for line in Path(f"/proc/self/fdinfo/{self.number}").read_text().splitlines():
            if line.startswith("flags:"):
                rights = int(line.split()[1], 8)
        rights &= os.O_ACCMODE | os.O_APPEND | os.O_SYNC
        position = os.lseek(self.number, 0, os.SEEK_CUR)
        return rebuild_files.descriptor, (self.number, path, rights, position, status.st_size)


_MOST = 1 << 20
"""No process has more descriptors, by the kernel's own limit (fs.nr_open)."""


def _descriptors() -> frozenset[int]:
    found = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    # The descriptor of the listing itself is gone by now.
    return frozenset(number for number in found if _mode(number))


def _mode(number: int) -> int:
    try:
        return os.fstat(number).st_mode
    except OSError:
        return 0


def objects(base: Baseline, shell: Any) -> Iterator[tuple[str, Any]]:
    """Descriptors that variables name, and finalizers of objects of the notebook."""
    noted = base.noted["leftovers"]
    for name, number in _numbers(shell.user_ns, noted["descriptors"]):
        known = noted.setdefault("made", {})
        yield f"descriptor {name}", known.setdefault(number, Descriptor(number))
    for one, info in list(_registry().items()):
        if id(one) in noted["finalizers"]:
            continue
        target = info.weakref()
        if target is not None and _of_notebook(info.func, target):
            yield f"finalizer {info.index}", one


def _of_notebook(function: Any, target: Any) -> bool:
    if foreign(function) or foreign(target):
        return True
    owner = getattr(function, "__self__", None) if type(function) is type(len) else None
    return owner is not None and not is_module(owner)


def _numbers(space: dict[str, Any], old: frozenset[int]) -> list[tuple[str, int]]:
    """Variables whose value is the number of a descriptor that no object owns, and that is not an old one."""
    found = []
    for name, value in list(space.items()):
        kind = type(value)
        if kind is int:
            parts: Sequence[Any] = (value,)
        elif (kind is tuple or kind is list) and len(value) == 2:
            parts = value
        else:
            continue
        if type(name) is str and not name.startswith("_"):
            found += [(name, part) for part in parts if type(part) is int and part not in old]
    found = [(name, number) for name, number in found if 0 <= number < _MOST and _a_file(number)]
    if not found:
        return []
    owned = _owned()
    return [(f"{name} {number}", number) for name, number in found if number not in owned]


def _a_file(number: int) -> bool:
    mode = _mode(number)
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def _owned() -> set[int]:
    """Descriptors of file objects and sockets."""
    found = set()
    for item in gc.get_objects():
        kind = type(item)
        if kind is io.FileIO or kind is socket.socket:
            try:
                found.add(item.fileno())
            except (OSError, ValueError):
                continue
    return found
