"""Big buffers whose written pages the system tells: what of them has to be read for the next capture.

Main thread: ``scan`` before memory is read or a child is forked. What it found is added up until a capture
with it is on disk (``commit``), so that a void capture loses nothing. Content is what counts, not the object:
a range that was not written holds what it held. A buffer is watched from the second time it is seen at its
place; one that is rewritten again and again is left alone for a while, as first writes to watched pages cost.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from roost.runtime.kernel.format import Extent, Manifest
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
Sight = tuple[tuple[str, ...], int, Key]
"""Names of a group, index of one of its buffers, and where that lies."""


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


class Watched:
    """See the module."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._all: dict[Key, Watch] = {}
        self._seen: dict[Key, int] = {}
        """Captures that met a buffer which is not watched; below 0: so many are to pass first."""
        self._often: dict[Key, int] = {}
        """How often a buffer turned out to be rewritten."""

    def clear(self) -> None:
        """Trust nothing that is known: all is read as a whole."""
        for key in list(self._all):
            self._drop(key)

    def key(self, view: memoryview | Part) -> Key | None:
        """Where a buffer lies, if it is big enough to be watched."""
        if isinstance(view, Part):
            return view.key
        if not self._pages.works or view.nbytes < WATCH_BYTES:
            return None
        return address_of(view), view.nbytes

    def get(self, key: Key | None) -> Watch | None:
        """What is known of a buffer; None: it must be read as a whole."""
        found = self._all.get(key) if key is not None else None
        return found if found is not None and found.extents is not None else None

    def scan(self, keys: Iterable[Key | None] | None = None) -> None:
        """Note what was written in these buffers (None: all), and watch those that are due."""
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

    def commit(self, manifest: Manifest, sights: Iterable[Sight]) -> None:
        """A capture that met these buffers is on disk."""
        groups = {group.names: group for group in manifest.groups}
        for names, index, key in sights:
            group = groups.get(names)
            known = self._all.get(key)
            if group is None or index >= len(group.buffers) or group.buffers[index].size != key[1]:
                self._drop(key)
            elif known is None:
                self._seen[key] = self._seen.get(key, 0) + 1
            else:
                self._all[key] = Watch(names, group.buffers[index].extents)
        self._forget(groups.keys())

    def unread(self, view: memoryview | Part) -> int:
        """How many bytes of the user's memory a capture has to read for it."""
        if isinstance(view, Part):
            return 0
        known = self.get(self.key(view))
        if known is None or view.nbytes < len(known.blocks) * BLOCK_BYTES:
            return view.nbytes
        return len(known.blocks) * BLOCK_BYTES

    def part(self, view: memoryview | Part) -> Part | None:
        """What of a buffer is to be stored; None: all of it."""
        if isinstance(view, Part):
            return view
        key = self.key(view)
        known = self.get(key)
        if key is None or known is None or known.extents is None:
            return None
        blocks = {at: bytes(view[at : at + BLOCK_BYTES]) for at in sorted(known.blocks)}
        return Part(view.nbytes, view.readonly, key, known.extents, blocks)

    def own(self, view: memoryview | Part) -> memoryview | Part:
        """A copy of what a capture has to read."""
        if (part := self.part(view)) is not None:
            return part
        copied = bytes(view) if view.readonly else bytearray(view)  # type: ignore[arg-type]
        return memoryview(copied)

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

    def _forget(self, names: Collection[tuple[str, ...]]) -> None:
        """Buffers that the newest capture does not hold: what they held may be deleted from disk."""
        for key, known in list(self._all.items()):
            if known.extents is not None and known.names not in names:
                self._drop(key)
        for memory in (self._seen, self._often):
            while len(memory) > MOST:
                del memory[next(iter(memory))]


def _blocks(low: int, high: int) -> range:
    return range(low // BLOCK_BYTES * BLOCK_BYTES, high, BLOCK_BYTES)
