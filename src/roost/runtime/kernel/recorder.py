"""Writes snapshots: the half of a capture that runs on the bytes thread.

Hashes, writes and renames; touches user objects only through buffers. A capture counts when its
manifest has its name; one that fails leaves the last one standing.
"""

import os
import platform
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from roost.runtime.kernel.chunks import KEEP_MANIFESTS, Reader, Writer, digest_of
from roost.runtime.kernel.crew import crew
from roost.runtime.kernel.format import (
    CHUNK_BYTES,
    FINISHED_LIMIT,
    REBUILT,
    Buffer,
    Entry,
    Extent,
    Group,
    Manifest,
    chunk_digests,
    chunk_path,
    manifest_numbers,
    manifest_path,
)
from roost.runtime.kernel.pages import pages
from roost.runtime.kernel.snapshot import INLINE_BYTES, Fresh, Snapshot
from roost.runtime.kernel.watched import BLOCK_BYTES, Copy, Part, Sight, Watched

PACK_BYTES = 256 << 10
"""Pickles smaller than this are written together as one chunk."""
PATCHED_PART = 4
"""Not when more than this part of it has changed."""
PIECES = 24
"""A chunk's worth of memory is put together from at most so many pieces: each is a mapping of its own."""
PACKS = 32
"""With more packs than this, the small pickles of all of them are written together anew."""


class Overtaken(Exception):
    """A cell began before the user's memory was read: the capture is void."""


class NotStored(Exception):
    """What was to stay as it is stored is not: an earlier capture was never written."""


class Seal:
    """Whether the user's memory has been read. Decided once, by whoever comes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._overtaken = False
        self.done = threading.Event()

    def close(self) -> None:
        """All memory is read. Raises ``Overtaken`` when a cell began before."""
        with self._lock:
            if self._overtaken:
                raise Overtaken
            self.done.set()

    def check(self) -> None:
        """Raises ``Overtaken`` as soon as it is known."""
        if self._overtaken:
            raise Overtaken

    def overtake(self) -> None:
        """A cell begins: void unless all memory is read."""
        with self._lock:
            self._overtaken = not self.done.is_set()


@dataclass(frozen=True, slots=True)
class Facts:
    """What the engine adds to a snapshot."""

    session_id: str
    root: str
    finished: tuple[str, ...]
    held: frozenset[int]


@dataclass(frozen=True, slots=True)
class Written:
    """A capture on disk."""

    manifest: Manifest
    path: Path
    bytes_new: int


@dataclass(frozen=True, slots=True)
class Learned:
    """What a recorder knows after a capture."""

    last: Manifest | None
    prints: dict[str, str]
    digests: dict[tuple[Extent, ...], str]
    unsynced: tuple[Path, ...]
    sights: list[Sight]


class Recorder:
    """Writes into one directory. Used by one thread at a time."""

    def __init__(self, directory: Path, last: Manifest | None, keep: int = KEEP_MANIFESTS) -> None:
        """``keep``: so many of the newest captures stay, and some older ones unless it is 2."""
        self._writer = Writer(directory, keep)
        self._last = last
        self._prints: dict[str, str] = {}
        """Digests of the pieces in the last manifest."""
        self._new_prints: dict[str, str] = {}
        self._digests: dict[tuple[Extent, ...], str] = {}
        """Digests of memory that is put together from pieces."""
        self._watched = Watched(pages)
        self._sights: list[Sight] = []
        """Big buffers that the capture under way has met."""
        self._looked = False
        """A child is about to be forked, and the system was asked what was written to watched memory."""
        numbers = manifest_numbers(directory)
        self._number = max(numbers, default=0)
        if last is not None:
            self._number = max(self._number, last.number)
            if not _complete(directory, last):
                self._last = None

    @property
    def directory(self) -> Path:
        """Where it writes."""
        return self._writer.directory

    @property
    def last(self) -> Manifest | None:
        """The newest manifest written here."""
        return self._last

    def sync_one(self) -> bool:
        """Make one more file durable; false: all are. On the bytes thread."""
        return self._writer.sync_one()

    def learned(self) -> "Learned":
        """What the last ``write`` has changed, for the recorder of another process."""
        return Learned(self._last, self._prints, self._digests, self._writer.unsynced, self._sights)

    def learn(self, learned: "Learned") -> None:
        """Take over what a recorder of this directory in a forked child has done."""
        self._last = learned.last
        self._prints = learned.prints
        self._digests = learned.digests
        if learned.last is not None:
            self._number = max(self._number, learned.last.number)
            self._watched.commit(learned.last, learned.sights)
        self._writer.written(learned.unsynced)

    def look(self, snapshot: Snapshot | None) -> None:
        """Before memory is read, on the main thread: which parts of these buffers (None: any; a child that
        is forked now will meet them) were written. What is small of it is copied by ``own_memory``."""
        if snapshot is None:
            self._looked = True
            self._watched.scan()
            return
        snapshot.looked = True
        views = [view for one in snapshot.fresh for view in one.dump.buffers]
        self._watched.scan([self._watched.key(view) for view in views if type(view) is memoryview])

    def here(self) -> None:
        """This is a forked child, and the snapshot that it writes was collected here."""
        self._watched.here()

    def own_memory(self, snapshot: Snapshot, limit: int = INLINE_BYTES) -> bool:
        """Copy what a capture needs of the user's memory, up to ``limit`` bytes; whether that is all."""
        return snapshot.own_memory(limit, self._watched)

    def write(self, snapshot: Snapshot, facts: Facts, seal: Seal, *, sync: bool = True) -> Written:
        """Store a snapshot (``sync``: durably). Raises ``OSError``, ``Overtaken``; nothing changes then."""
        self._writer.begin()
        self._new_prints = {}
        self._sights = []
        if not snapshot.looked:
            if not self._looked:
                self._watched.clear()
            self._looked = False
        try:
            manifest = self._manifest(snapshot, facts, seal)
            last = self._last
            if last is not None and _same(last, manifest):
                self._watched.commit(last, self._sights)
                return Written(last, manifest_path(self._writer.directory, last.number), 0)
            path = self._writer.commit(manifest, sync=sync)
        except BaseException:
            self._writer.discard()
            raise
        self._prints = self._new_prints
        self._last = manifest
        self._number = manifest.number
        self._watched.commit(manifest, self._sights)
        self._writer.collect(facts.held)
        return Written(manifest, path, self._writer.bytes_new)

    def _manifest(self, snapshot: Snapshot, facts: Facts, seal: Seal) -> Manifest:
        former = {g.names: g for g in self._last.groups} if self._last else {}
        buffers = [self._buffers(one, former.get(one.names), seal) for one in snapshot.fresh]
        seal.close()
        pack = _Pack(self._writer, self._crowded())
        fresh = [self._pickle(one, former.get(one.names), pack) for one in snapshot.fresh]
        if not former.keys() >= set(snapshot.kept):
            raise NotStored
        records = [former[names] for names in snapshot.kept]
        kept = [pack.again(record.extents) for record in records]
        old = self._last.state if self._last else {}
        state = {n: self._piece(n, c, old.get(n), pack) for n, c in snapshot.state.items()}
        cells = self._last.cells if self._last else ()
        log = [
            self._piece(f"cells {i}", block, cells[i : i + 1], pack)
            for i, block in enumerate(snapshot.log)
        ]
        pack.write()
        groups = [
            _group(one, pack.at(place), parts, former.get(one.names))
            for one, place, parts in zip(snapshot.fresh, fresh, buffers, strict=True)
        ]
        groups += [
            _moved(record, pack.at(place)) for record, place in zip(records, kept, strict=True)
        ]
        made = Manifest(
            number=self._number + 1,
            python=f"{sys.version_info[0]}.{sys.version_info[1]}",
            machine=platform.machine(),
            session_id=facts.session_id,
            created_s=time.time(),
            hash_seed=os.environ.get("PYTHONHASHSEED", ""),
            root=facts.root,
            execution_count=snapshot.execution_count,
            groups=tuple(sorted(groups, key=lambda g: g.names)),
            modules=dict(sorted(snapshot.modules.items())),
            namespaces=snapshot.namespaces,
            rebuilds=tuple(snapshot.rebuilds),
            state={name: pack.at(place) for name, place in state.items()},
            cells=tuple(extent for place in log for extent in pack.at(place)),
            imports=snapshot.imports,
            finished=facts.finished[-FINISHED_LIMIT:],
            report=_report(snapshot, records),
        )
        return replace(made, bytes_total=self._total(made))

    def _pickle(self, one: Fresh, former: Group | None, pack: "_Pack") -> "_Place":
        if former is not None and former.fingerprint == digest_of(one.dump.content):
            return pack.again(former.extents)
        return pack.add(one.dump.content)

    def _piece(
        self, name: str, content: bytes, known: tuple[Extent, ...] | None, pack: "_Pack"
    ) -> "_Place":
        """A piece without a fingerprint in the manifest: remembered here."""
        digest = digest_of(content)
        unchanged = known and self._prints.get(name) == digest
        self._new_prints[name] = digest
        return (
            pack.again(known)
            if known and unchanged
            else pack.add(content, whole=name[:5] == "cells")
        )

    def _buffers(self, one: Fresh, former: Group | None, seal: Seal) -> tuple[Buffer, ...]:
        found = []
        for index, view in enumerate(one.dump.buffers):
            sight = self._watched.sight(one.names, index, view)
            if sight is not None:
                self._sights.append(sight)
            taken = (self._watched.part(view) if isinstance(view, memoryview) else None) or view
            if isinstance(taken, Part):
                found.append(Buffer(self._changed(taken), taken.nbytes, taken.readonly))
                continue
            known: tuple[Extent, ...] = ()
            if former is not None and index < len(former.buffers):
                known = former.buffers[index].extents
            whole = taken.view if isinstance(taken, Copy) else taken
            found.append(Buffer(self._extents(whole, known, seal), whole.nbytes, whole.readonly))
        return tuple(found)

    def _changed(self, part: Part) -> tuple[Extent, ...]:
        """Chunks of a watched buffer: only the blocks that may have changed were read."""
        windows = _windows(part.extents)
        changed: dict[int, dict[int, bytes]] = {}
        for at, content in part.blocks.items():
            changed.setdefault(at // CHUNK_BYTES * CHUNK_BYTES, {})[at % CHUNK_BYTES] = content
        for start, inside in changed.items():
            windows[start] = self._blocks(windows[start], inside)
        return tuple(extent for start in sorted(windows) for extent in windows[start])

    def _blocks(self, known: tuple[Extent, ...], inside: dict[int, bytes]) -> tuple[Extent, ...]:
        """A chunk's worth of memory with these blocks in it."""
        runs: list[tuple[int, int]] = []
        for low, content in sorted(inside.items()):
            high = low + len(content)
            if self._writer.read(_part(known, low, high)) == content:
                continue  # a page was written, with what it held or beside the buffer
            if runs and runs[-1][1] == low:
                runs[-1] = (runs[-1][0], high)
            else:
                runs.append((low, high))
        if not runs:
            return known
        pieces = _pieces(known, runs)
        changed = sum(high - low for low, high in runs)
        size = sum(extent.size for extent in known)
        if changed * PATCHED_PART > size or len(pieces) > PIECES:
            whole = bytearray(self._writer.read(known))
            for low, content in inside.items():
                whole[low : low + len(content)] = content
            return (Extent(self._writer.put(bytes(whole)), 0, size),)
        made = []
        for piece in pieces:
            if isinstance(piece, Extent):
                made.append(piece)
                continue
            content = b"".join(inside[at] for at in range(*piece, BLOCK_BYTES))
            made.append(Extent(self._writer.put(content), 0, len(content)))
        return tuple(made)

    def _extents(
        self, view: memoryview, known: tuple[Extent, ...], seal: Seal
    ) -> tuple[Extent, ...]:
        """Chunks of one buffer: what is unchanged is only hashed."""
        windows = _windows(known)

        def one(start: int) -> tuple[Extent, ...]:
            seal.check()
            return self._window(view[start : start + CHUNK_BYTES], windows.get(start, ()))

        made = crew.map(one, range(0, view.nbytes, CHUNK_BYTES))
        return tuple(extent for extents in made for extent in extents)

    def _window(self, part: memoryview, known: tuple[Extent, ...]) -> tuple[Extent, ...]:
        """A chunk's worth of memory: as it is stored already, else what of it is new."""
        same_size = sum(extent.size for extent in known) == part.nbytes
        if known and same_size:
            whole = len(known) == 1 and not known[0].offset
            if digest_of(part) == (known[0].chunk if whole else self._digests.get(known)):
                return known
        # A copy: hashed and written bytes must be the same even while a thread writes.
        content = bytes(part)
        if known and same_size:
            return self._patched(content, known)
        return (Extent(self._writer.put(content), 0, len(content)),)

    def _patched(self, content: bytes, known: tuple[Extent, ...]) -> tuple[Extent, ...]:
        try:
            old = self._writer.read(known)
        except OSError:
            old = b""
        runs = _differing(old, content) if len(old) == len(content) else [(0, len(content))]
        changed = sum(high - low for low, high in runs)
        pieces = _pieces(known, runs)
        if changed * PATCHED_PART > len(content) or len(pieces) > PIECES:
            return (Extent(self._writer.put(content), 0, len(content)),)
        made = tuple(
            piece
            if isinstance(piece, Extent)
            else Extent(self._writer.put(content[piece[0] : piece[1]]), 0, piece[1] - piece[0])
            for piece in pieces
        )
        self._digests[made] = digest_of(content)
        return made

    def _crowded(self) -> Reader | None:
        """A reader for writing all packs anew, when there are too many."""
        if self._last is None:
            return None
        small = [g.extents for g in self._last.groups]
        small += [*self._last.state.values(), self._last.cells]
        packs = {e.chunk for extents in small for e in extents if e.size < PACK_BYTES}
        return Reader(self._writer.directory) if len(packs) > PACKS else None

    def _total(self, manifest: Manifest) -> int:
        return self._writer.size(chunk_digests(manifest))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where bytes are or will be."""

    extents: tuple[Extent, ...] = ()
    start: int = 0
    size: int = -1
    """Bytes in the pack from ``start``; -1: in ``extents`` already."""


class _Pack:
    """Gathers small pickles into one chunk. ``at`` gives the extents of a place after ``write``."""

    def __init__(self, writer: Writer, crowded: Reader | None) -> None:
        self._writer = writer
        self._crowded = crowded
        self._content = bytearray()
        self._chunk = ""

    def add(self, content: bytes, *, whole: bool = False) -> _Place:
        """Store new bytes (``whole``: as one extent whatever their size)."""
        if len(content) >= PACK_BYTES:
            if whole:
                return _Place((Extent(self._writer.put(content), 0, len(content)),))
            return _Place(self._writer.put_all(content))
        place = _Place(start=len(self._content), size=len(content))
        self._content += content
        return place

    def again(self, extents: tuple[Extent, ...]) -> _Place:
        """Keep stored bytes where they are; small ones move along when the packs are too many."""
        if self._crowded is not None and len(extents) == 1 and extents[0].size < PACK_BYTES:
            return self.add(self._crowded.content(extents))
        return _Place(extents)

    def write(self) -> None:
        """Store what was gathered."""
        if self._content:
            self._chunk = self._writer.put(bytes(self._content))

    def at(self, place: _Place) -> tuple[Extent, ...]:
        """Where the bytes of a place are."""
        if place.size < 0:
            return place.extents
        return (Extent(self._chunk, place.start, place.size),)


def _windows(extents: tuple[Extent, ...]) -> dict[int, tuple[Extent, ...]]:
    """Extents of one buffer by the chunk's worth of memory they make up."""
    found: dict[int, tuple[Extent, ...]] = {}
    gathered: list[Extent] = []
    start = at = 0
    for extent in extents:
        gathered.append(extent)
        at += extent.size
        if at - start >= CHUNK_BYTES:
            found[start] = tuple(gathered)
            gathered, start = [], at
    if gathered:
        found[start] = tuple(gathered)
    return found


def _part(known: tuple[Extent, ...], low: int, high: int) -> tuple[Extent, ...]:
    """Where the bytes from ``low`` to ``high`` of what these extents make up are stored."""
    found = []
    at = 0
    for extent in known:
        first, last = max(low, at), min(high, at + extent.size)
        if first < last:
            found.append(Extent(extent.chunk, extent.offset + first - at, last - first))
        at += extent.size
    return tuple(found)


def _differing(old: bytes, new: bytes) -> list[tuple[int, int]]:
    """Runs of blocks that differ."""
    runs: list[tuple[int, int]] = []
    for low in range(0, len(new), BLOCK_BYTES):
        high = min(low + BLOCK_BYTES, len(new))
        if old[low:high] != new[low:high]:
            if runs and runs[-1][1] == low:
                runs[-1] = (runs[-1][0], high)
            else:
                runs.append((low, high))
    return runs


def _pieces(
    known: tuple[Extent, ...], runs: list[tuple[int, int]]
) -> list[Extent | tuple[int, int]]:
    """What memory is put together from: stored pieces, and between them the runs that are new."""
    made: list[Extent | tuple[int, int]] = []
    todo = list(runs)
    at = 0
    for extent in known:
        end = at + extent.size
        here = at
        while here < end:
            if todo and todo[0][0] <= here:
                low, high = todo[0]
                if here == low:
                    made.append((low, high))
                here = min(end, high)
                if here == high:
                    todo.pop(0)
            else:
                stop = min(end, todo[0][0]) if todo else end
                made.append(Extent(extent.chunk, extent.offset + here - at, stop - here))
                here = stop
        at = end
    return made


def _group(
    one: Fresh, extents: tuple[Extent, ...], buffers: tuple[Buffer, ...], former: Group | None
) -> Group:
    """The group's record; the former one when nothing in it changed."""
    fingerprint = digest_of(one.dump.content)
    if former is not None and former.fingerprint == fingerprint and former.buffers == buffers:
        return replace(former, extents=extents, notes=one.notes)
    return Group(one.names, fingerprint, extents, buffers, one.dump.seconds, one.notes)


def _moved(record: Group, extents: tuple[Extent, ...]) -> Group:
    """A record whose pickle lies elsewhere now; the same object where it does not."""
    return record if extents is record.extents else replace(record, extents=extents)


def _report(snapshot: Snapshot, kept: list[Group]) -> tuple[Entry, ...]:
    rebuilt = [Entry(n, REBUILT, r.reason) for r in snapshot.rebuilds for n in r.names]
    notes = [note for one in snapshot.fresh for note in one.notes]
    notes += [note for record in kept for note in record.notes]
    return tuple(sorted((*snapshot.refused, *rebuilt, *notes), key=lambda entry: entry.name))


def _same(last: Manifest, made: Manifest) -> bool:
    return replace(made, number=last.number, created_s=last.created_s) == last


def _complete(directory: Path, manifest: Manifest) -> bool:
    """Whether every chunk lies here, so that unchanged ones need not be written."""
    return all(chunk_path(directory, digest).exists() for digest in chunk_digests(manifest))
