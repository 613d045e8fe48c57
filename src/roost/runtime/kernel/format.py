"""The stored form of a captured kernel: manifests, chunks and where they lie.

Standard library only, and imports nothing of Roost, so that everyone may read it. It never opens a
pickle: a manifest is JSON and only names chunks by their BLAKE3 digest.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from json import dumps as to_json
from json import loads as from_json
from pathlib import Path
from typing import Any

FORMAT = 1
"""Version of everything written here; a newer one is refused, never guessed at."""
CHUNK_BYTES = 4 << 20
"""Largest chunk. A multiple of every page size, so that chunk files can be mapped side by side."""
FINISHED_LIMIT = 1000
"""How many finished requests a manifest names, the newest last."""

LOOP = "loop "
"""Names of groups that hold the iterator of a loop in a running cell: ``loop 3``."""

KEPT = "kept"
REBUILT = "rebuilt"
REFUSED = "refused"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MANIFEST = re.compile(r"manifest-(\d{1,15})\.json")


class FormatError(ValueError):
    """Not a manifest this version can read; the message says why."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes inside one chunk."""

    chunk: str
    """BLAKE3 of the whole chunk, 64 hexadecimal digits."""
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Buffer:
    """One out-of-band buffer of a pickle."""

    extents: tuple[Extent, ...]
    size: int
    readonly: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one variable or one piece of state."""

    name: str
    outcome: str
    """``kept``, ``rebuilt`` or ``refused``."""
    reason: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Variables that share mutable objects: one pickle of their values, in the order of ``names``."""

    names: tuple[str, ...]
    """Names of the namespace, or ``Out[n]``, ``_``, ``__``, ``___``, ``figure n``."""
    fingerprint: str
    """BLAKE3 of the pickle."""
    extents: tuple[Extent, ...]
    buffers: tuple[Buffer, ...] = ()
    seconds: float = 0.0
    """How long the pickle took."""
    notes: tuple[Entry, ...] = ()
    """What is not exactly as it was."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Variables that come back by running one recorded cell again."""

    names: tuple[str, ...]
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about one captured moment of a kernel."""

    number: int
    python: str
    """``3.11``: pickles of functions hold bytecode, so the minor version must be the same."""
    machine: str
    """``x86_64``: buffers are memory images."""
    session_id: str = ""
    created_s: float = 0.0
    """Unix time."""
    hash_seed: str = ""
    root: str = ""
    """The session's first working directory; paths below are relative to it where they lie in it."""
    execution_count: int = 1
    groups: tuple[Group, ...] = ()
    modules: dict[str, str] = field(default_factory=dict)
    """Variable -> name of the module bound to it."""
    namespaces: tuple[str, ...] = ()
    """Variables bound to the namespace itself (``g = globals()``)."""
    rebuilds: tuple[Rebuild, ...] = ()
    state: dict[str, tuple[Extent, ...]] = field(default_factory=dict)
    """Piece of process state (``random``, ``warnings`` ...) -> its pickle."""
    cells: tuple[Extent, ...] = ()
    """The cell log: blocks of JSON, oldest first."""
    imports: tuple[str, ...] = ()
    """Modules to import before anything is opened: what a standby kernel should be warmed with."""
    finished: tuple[str, ...] = ()
    """msg_ids of the requests whose effects are in here, in order."""
    report: tuple[Entry, ...] = ()
    """The variables that are not ``kept``."""
    bytes_total: int = 0
    """Size of all chunks together, in bytes."""


def chunk_path(directory: Path, digest: str) -> Path:
    """Where a chunk lies. Raises ``FormatError`` for anything that is not a digest."""
    if not _DIGEST.fullmatch(digest):
        raise FormatError(f"not a digest: {digest[:80]!r}")
    return directory / "chunks" / digest


def manifest_path(directory: Path, number: int) -> Path:
    """Where manifest ``number`` lies."""
    return directory / f"manifest-{number}.json"


def manifest_numbers(directory: Path) -> list[int]:
    """Numbers of the manifests in a directory, ascending (empty when it does not exist)."""
    if not directory.is_dir():
        return []
    found = (_MANIFEST.fullmatch(path.name) for path in directory.iterdir())
    return sorted(int(match.group(1)) for match in found if match)


def chunk_digests(manifest: Manifest) -> tuple[str, ...]:
    """Every chunk the manifest needs, each once, in the order a restore reads them."""
    seen: dict[str, None] = {}
    for extent in _all_extents(manifest):
        seen[extent.chunk] = None
    return tuple(seen)


def variables(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Each restorable variable with the variables of its group (itself included)."""
    found = {name: group.names for group in manifest.groups for name in group.names}
    found.update((name, (name,)) for name in (*manifest.modules, *manifest.namespaces))
    for rebuild in manifest.rebuilds:
        found.update((name, rebuild.names) for name in rebuild.names)
    return found


Texts = dict[int, tuple[Group, str]]
"""JSON of groups by their ids: most are the same objects from one manifest to the next."""


def dumps(manifest: Manifest, texts: Texts | None = None) -> bytes:
    """The manifest as JSON. Equal manifests give equal bytes. ``texts``: those of the manifest before, which
    become those of this one."""
    texts = {} if texts is None else texts
    made: Texts = {}
    for group in manifest.groups:
        known = texts.get(id(group))
        made[id(group)] = known or (group, to_json(_plain_group(group), separators=(",", ":")))
    groups = ",".join([made[id(group)][1] for group in manifest.groups])
    texts.clear()
    texts.update(made)
    # Without ``asdict`` for the whole: it would copy every extent first.
    fields: dict[str, Any] = {"format": FORMAT}
    fields.update((name, getattr(manifest, name)) for name in _READERS)
    del fields["groups"]
    fields["rebuilds"] = [asdict(rebuild) for rebuild in manifest.rebuilds]
    fields["report"] = [asdict(entry) for entry in manifest.report]
    fields["state"] = {name: _plain(extents) for name, extents in manifest.state.items()}
    fields["cells"] = _plain(manifest.cells)
    rest = to_json(fields, separators=(",", ":"), sort_keys=True)
    return f'{rest[:-1]},"groups":[{groups}]}}'.encode()


def loads(content: bytes) -> Manifest:
    """Read a manifest. Raises ``FormatError`` (damaged, newer, not a manifest)."""
    try:
        fields = from_json(content)
    except ValueError as error:
        raise FormatError(f"the manifest is damaged: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
        raise FormatError("not a manifest")
    if fields["format"] > FORMAT:
        raise FormatError(
            f"the checkpoint has format {fields['format']}, this Roost reads up to {FORMAT}: "
            "restore it with the newer version"
        )
    try:
        return _manifest(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the manifest is damaged: {type(error).__name__}: {error}") from error


def read(path: Path) -> Manifest:
    """Read a manifest file. Raises ``OSError`` and ``FormatError``."""
    return loads(path.read_bytes())


def _all_extents(manifest: Manifest) -> Iterable[Extent]:
    for extents in manifest.state.values():
        yield from extents
    for group in manifest.groups:
        yield from group.extents
        for buffer in group.buffers:
            yield from buffer.extents
    yield from manifest.cells


def _plain(extents: tuple[Extent, ...]) -> list[list[str | int]]:
    return [[e.chunk, e.offset, e.size] for e in extents]


def _plain_group(group: Group) -> dict[str, Any]:
    return {
        "names": group.names,
        "fingerprint": group.fingerprint,
        "extents": _plain(group.extents),
        "buffers": [[_plain(b.extents), b.size, b.readonly] for b in group.buffers],
        "seconds": group.seconds.__round__(6),  # a notebook may have replaced `round`
        "notes": [asdict(note) for note in group.notes],
    }


def _extents(rows: Any) -> tuple[Extent, ...]:
    extents = tuple(Extent(str(chunk), int(offset), int(size)) for chunk, offset, size in rows)
    for extent in extents:
        if not _DIGEST.fullmatch(extent.chunk) or extent.offset < 0 or extent.size < 0:
            raise ValueError(f"a bad extent: {extent}")
    return extents


def _words(value: Any) -> tuple[str, ...]:
    if not all(isinstance(word, str) for word in value):
        raise TypeError("a list of words is expected")
    return tuple(value)


def _entries(rows: Any) -> tuple[Entry, ...]:
    return tuple(Entry(**row) for row in rows)


def _group(row: dict[str, Any]) -> Group:
    return Group(
        names=_words(row["names"]),
        fingerprint=str(row["fingerprint"]),
        extents=_extents(row["extents"]),
        buffers=tuple(Buffer(_extents(e), int(s), bool(r)) for e, s, r in row["buffers"]),
        seconds=float(row["seconds"]),
        notes=_entries(row["notes"]),
    )


def _rebuild(row: dict[str, Any]) -> Rebuild:
    return Rebuild(_words(row["names"]), str(row["code"]), str(row["reason"]))


_READERS: dict[str, Callable[[Any], Any]] = {
    "number": int,
    "python": str,
    "machine": str,
    "session_id": str,
    "created_s": float,
    "hash_seed": str,
    "root": str,
    "execution_count": int,
    "groups": lambda rows: tuple(_group(row) for row in rows),
    "modules": lambda rows: {str(k): str(v) for k, v in rows.items()},
    "namespaces": _words,
    "rebuilds": lambda rows: tuple(_rebuild(row) for row in rows),
    "state": lambda rows: {str(k): _extents(v) for k, v in rows.items()},
    "cells": _extents,
    "imports": _words,
    "finished": _words,
    "report": _entries,
    "bytes_total": int,
}


def _manifest(fields: dict[str, Any]) -> Manifest:
    return Manifest(**{name: reader(fields[name]) for name, reader in _READERS.items()})
