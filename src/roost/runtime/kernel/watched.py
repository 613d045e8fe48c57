"""Big buffers whose written pages the system tells: what of them has to be read for the next capture.

Main thread: ``scan`` before memory is read or a child is forked. What it found is added up until a capture
with it is on disk (``commit``), so that a void capture loses nothing. Content is what counts, not the object:
a range that was not written holds what it held. A buffer is watched from the second time it is seen at its
place; one that is rewritten again and again is left alone for a while, as first writes to watched pages cost.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from roost.runtime.kernel.format import Extent, Group, Manifest
from roost.runtime.kernel.pages import WATCH_BYTES, Pages, Unwatched, address_of

BLOCK_BYTES = 64 << 10
"""What has changed is read and written in blocks of this size. A multiple of page sizes."""
MUCH_PART = 4
"""A buffer of which more than this part was written is read as a whole and watched no more for a while."""
PATIENCE = 4
"""So many captures the first time, twice as many each time after."""
MOST = 512
"""Buffers watched."""

Key = tuple[int, int]
"""Address and size."""
Sight = tuple[tuple[str, ...], int, Key, frozenset[int]]
"""Names of a group, index of one of its buffers, where that lies, and offsets of blocks that may hold
something else in the process that is watched."""


@dataclass(slots=True)
class Watch:
    """One buffer. ``extents`` is what it held when ``blocks`` was empty; None: not stored since."""

    names: tuple[str, ...] = ()
    extents: tuple[Extent, ...] | None = None
    blocks: set[int] = field(default_factory=set)
    """Offsets of blocks that may have changed since."""


@dataclass(slots=True)
class Part:
    """The blocks of a buffer that may have changed, copied."""

    nbytes: int
    readonly: bool
    key: Key
    extents: tuple[Extent, ...]
    """What it held before."""
    blocks: dict[int, bytes]


@dataclass(slots=True)
class Copy:
    """All of a buffer, copied."""

    view: memoryview
    key: Key | None
    """Where the user's own lies."""

    @property
    def nbytes(self) -> int:
        """Of the whole."""
        return self.view.nbytes


Taken = memoryview | Part | Copy
"""A buffer of the user's, or what was copied of it."""


class Watched:
    """See the module."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._lock = threading.RLock()
        """A capture without such buffers may be written while the next look goes on."""
        self._all: dict[Key, Watch] = {}
        self._seen: dict[Key, int] = {}
        """Captures that met a buffer which is not watched; below 0: so many are to pass first."""
        self._often: dict[Key, int] = {}
        """How often a buffer turned out to be rewritten."""
        self._here = False
        self._doubts: dict[Key, frozenset[int] | None] = {}

    def here(self) -> None:
        """This is a forked child, and what it stores was pickled here."""
        self._here = True

    def clear(self) -> None:
        """Trust nothing that is known: all is read as a whole."""
        with self._lock:
            for key in list(self._all):
                self._drop(key)

    def key(self, view: Taken) -> Key | None:
        """Where a buffer of the user's lies, if it is big enough to be watched."""
        if not isinstance(view, memoryview):
            return view.key
        if not self._pages.works or view.nbytes < WATCH_BYTES:
            return None
        key = address_of(view), view.nbytes
        return None if self._doubt(key) is None else key

    def sight(self, names: tuple[str, ...], index: int, view: Taken) -> Sight | None:
        """What ``commit`` is to know of a buffer that is stored."""
        key = self.key(view)
        return None if key is None else (names, index, key, self._doubt(key) or frozenset())

    def get(self, key: Key | None) -> Watch | None:
        """What is known of a buffer; None: it must be read as a whole."""
        found = self._all.get(key) if key is not None else None
        return found if found is not None and found.extents is not None else None

    def scan(self, keys: Iterable[Key | None] | None = None) -> None:
        """Note what was written in these buffers (None: all), and watch those that are due."""
        with self._lock:
            self._scan(keys)

    def commit(self, manifest: Manifest, sights: Iterable[Sight]) -> None:
        """A capture that met these buffers is on disk."""
        with self._lock:
            self._commit(manifest, sights)

    def _scan(self, keys: Iterable[Key | None] | None) -> None:
        wanted = [*self._all, *self._seen] if keys is None else [key for key in keys if key]
        if wanted and not self._pages.alone():
            self.clear()
            return
        for key in dict.fromkeys(wanted):
            known = self._all.get(key)
            if known is not None and known.extents is not None:
                self._look(key, known)
            elif known is not None or (self._seen.get(key, 0) > 0 and len(self._all) < MOST):
                self._seen.pop(key, None)
                self._all.pop(key, None)
                for other in self._beside(key):
                    self._drop(other)  # what was written to it would be forgotten now
                if self._pages.watch(*key):
                    self._all[key] = Watch()

    def _commit(self, manifest: Manifest, sights: Iterable[Sight]) -> None:
        groups = {group.names: group for group in manifest.groups}
        for names, index, key, doubt in sights:
            group = groups.get(names)
            known = self._all.get(key)
            if group is None or index >= len(group.buffers) or group.buffers[index].size != key[1]:
                self._drop(key)
            elif known is None:
                self._seen[key] = self._seen.get(key, 0) + 1
            else:
                self._all[key] = Watch(names, group.buffers[index].extents, set(doubt))
        self._forget(groups)

    def unread(self, view: Taken) -> int:
        """How many bytes of the user's memory a capture has to read for it."""
        if not isinstance(view, memoryview):
            return 0
        known = self.get(self.key(view))
        if known is None or view.nbytes < len(known.blocks) * BLOCK_BYTES:
            return view.nbytes
        return len(known.blocks) * BLOCK_BYTES

    def part(self, view: memoryview) -> Part | None:
        """What of a buffer is to be stored; None: all of it."""
        key = self.key(view)
        known = self.get(key)
        if key is None or known is None or known.extents is None:
            return None
        changed = known.blocks | (self._doubt(key) or frozenset())
        blocks = {at: bytes(view[at : at + BLOCK_BYTES]) for at in sorted(changed)}
        return Part(view.nbytes, view.readonly, key, known.extents, blocks)

    def own(self, view: Taken) -> Part | Copy:
        """A copy of what a capture has to read."""
        if not isinstance(view, memoryview):
            return view
        if (part := self.part(view)) is not None:
            return part
        copied = memoryview(bytes(view) if view.readonly else bytearray(view))
        return Copy(copied, self.key(view))

    def _doubt(self, key: Key) -> frozenset[int] | None:
        """Offsets of blocks that may not be what the watched process has there; None: too many."""
        if not self._here:
            return frozenset()
        if key not in self._doubts:
            own = self._pages.own(*key)
            much = sum(high - low for low, high in own) * MUCH_PART > key[1]
            found = frozenset(at for low, high in own for at in _blocks(low, high))
            self._doubts[key] = None if much else found
        return self._doubts[key]

    def _look(self, key: Key, known: Watch) -> None:
        try:
            changed = self._pages.changed(*key)
        except Unwatched:
            del self._all[key]
            return
        for low, high in changed:
            known.blocks.update(_blocks(low, high))
        for other in self._beside(key):  # the system tells it once
            for low, high in changed:
                first, last = key[0] + low - other[0], key[0] + high - other[0]
                if first < other[1] and last > 0:
                    self._all[other].blocks.update(_blocks(max(0, first), min(last, other[1])))
        if len(known.blocks) * BLOCK_BYTES * MUCH_PART > key[1] + 2 * MUCH_PART * BLOCK_BYTES:
            self._drop(key)
            times = self._often[key] = self._often.get(key, 0) + 1
            self._seen[key] = -(PATIENCE << min(times - 1, 8))

    def _beside(self, key: Key) -> list[Key]:
        """Watched buffers that share memory with this one."""
        low, high = key[0], key[0] + key[1]
        return [k for k in self._all if k != key and k[0] < high and k[0] + k[1] > low]

    def _drop(self, key: Key) -> None:
        self._seen.pop(key, None)
        if self._all.pop(key, None) is not None:
            self._pages.leave(*key)

    def _forget(self, groups: Mapping[tuple[str, ...], Group]) -> None:
        """Buffers that the newest capture does not hold: what they held may be deleted from disk."""
        for key, known in list(self._all.items()):
            if known.extents is None:
                continue
            group = groups.get(known.names)
            if group is None or all(one.extents != known.extents for one in group.buffers):
                self._drop(key)
        for memory in (self._seen, self._often):
            while len(memory) > MOST:
                del memory[next(iter(memory))]


def _blocks(low: int, high: int) -> range:
    return range(low // BLOCK_BYTES * BLOCK_BYTES, high, BLOCK_BYTES)
