"""Chunks and manifests on disk: written under a temporary name, renamed, never changed afterwards.

Runs on the engine's bytes thread. Never opens a pickle and never touches a user's object but through
a buffer.
"""

import contextlib
import ctypes
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from pathlib import Path

from blake3 import blake3

from roost.runtime.kernel.crew import crew
from roost.runtime.kernel.format import (
    CHUNK_BYTES,
    Buffer,
    Extent,
    FormatError,
    Manifest,
    Texts,
    chunk_digests,
    chunk_path,
    dumps,
    manifest_numbers,
    manifest_path,
    read,
)

MAP_BYTES = 1 << 20
"""Buffers from this size are mapped, smaller ones copied: a process may hold 65,530 mappings."""
KEEP_MANIFESTS = 50
"""The newest manifests that are kept; of older ones every tenth."""
THINNED = 10
KEEP_THINNED = 100
"""So many of the thinned ones at most."""
COLLECT_EVERY = 8
COLLECT_BYTES = 64 << 20
"""Rubbish is looked for after so many captures, or so many new bytes."""
HISTORY_BYTES = 256 << 20
"""What only older manifests need may take so much, or as much as the newest capture if that is more."""
OPEN_PACKS = 64
"""Chunks a reader remembers: many small pickles lie in one chunk."""


class Mapping(mmap.mmap):
    """Private writable memory over chunk files; a type of its own, so that a capture knows it as ours."""


class DamagedChunk(ValueError):
    """The stored bytes are not what their name says."""


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """BLAKE3 of the bytes, 64 hexadecimal digits."""
    return blake3(data).hexdigest()


class Writer:
    """Adds to one directory. ``OSError`` (disk full) leaves no half-written chunk behind."""

    def __init__(self, directory: Path, keep: int = KEEP_MANIFESTS) -> None:
        self.directory = directory
        self._keep = keep
        self._since = COLLECT_EVERY
        self._since_bytes = 0
        self.bytes_new = 0
        """Bytes written since the last ``begin``."""
        self._new: list[Path] = []
        """Chunks of the capture under way."""
        self._unsynced: dict[Path, None] = {}
        self._lock = threading.Lock()
        """``put`` is called from several threads."""
        self._sizes: dict[str, int] = {}
        self._needs: dict[int, frozenset[str]] = {}
        """Chunks of the manifests on disk."""
        self._texts: Texts = {}
        (directory / "chunks").mkdir(parents=True, exist_ok=True, mode=0o700)

    def begin(self) -> None:
        """A new capture starts."""
        self.bytes_new = 0
        self._new = []

    def put(self, data: bytes | bytearray | memoryview, digest: str = "") -> str:
        """Store one chunk unless it is there; returns its digest."""
        digest = digest or digest_of(data)
        path = chunk_path(self.directory, digest)
        size = memoryview(data).nbytes
        # A size check too: a power cut may leave a renamed file empty.
        with contextlib.suppress(OSError):
            if path.stat().st_size == size:
                return digest
        self._write(path, data)
        with self._lock:
            self.bytes_new += size
            self._new.append(path)
        return digest

    def size(self, digests: Iterable[str]) -> int:
        """Bytes these chunks take on disk."""
        total = 0
        for digest in digests:
            if digest not in self._sizes:
                try:
                    self._sizes[digest] = chunk_path(self.directory, digest).stat().st_size
                except FileNotFoundError:
                    continue
            total += self._sizes[digest]
        return total

    def read(self, extents: tuple[Extent, ...]) -> bytes:
        """Stored bytes, as they are on disk. Raises ``OSError``."""
        parts = []
        for extent in extents:
            with chunk_path(self.directory, extent.chunk).open("rb", buffering=0) as file:
                parts.append(os.pread(file.fileno(), extent.size, extent.offset))
        return b"".join(parts)

    def put_all(self, data: bytes) -> tuple[Extent, ...]:
        """Store bytes of any size as whole chunks."""
        view = memoryview(data)
        return tuple(
            Extent(self.put(part), 0, part.nbytes)
            for start in range(0, view.nbytes, CHUNK_BYTES)
            if (part := view[start : start + CHUNK_BYTES])
        )

    def commit(self, manifest: Manifest, *, sync: bool) -> Path:
        """Give the capture its name; ``sync``: make it and all before it outlive the machine's power too.

        A process that is killed loses nothing that was written: background captures need no sync.
        """
        path = manifest_path(self.directory, manifest.number)
        content = dumps(manifest, self._texts)
        if sync:
            for chunk in (*self._unsynced, *self._new):
                if chunk.exists():
                    _sync(chunk)
            _sync(self.directory / "chunks")
        self._write(path, content)
        self.bytes_new += len(content)
        if sync:
            _sync(path)
            _sync(self.directory)
            self._unsynced.clear()
        else:
            self._unsynced.update(dict.fromkeys([*self._new, path]))
        self._new = []
        self._needs[manifest.number] = frozenset(chunk_digests(manifest))
        return path

    def sync_one(self) -> bool:
        """Make one more file of the captures so far durable; whether there was one."""
        if not self._unsynced:
            return False
        path = next(iter(self._unsynced))
        with contextlib.suppress(OSError):  # deleted since, or told at the next explicit capture
            _sync(path)
        del self._unsynced[path]
        return True

    def written(self, paths: Iterable[Path]) -> None:
        """Another process has written these here."""
        self._unsynced.update(dict.fromkeys(paths))

    @property
    def unsynced(self) -> tuple[Path, ...]:
        """Files that a power cut could still take."""
        return tuple(self._unsynced)

    def discard(self) -> None:
        """Give back the space of a capture that failed."""
        for path in self._new:
            path.unlink(missing_ok=True)
        self._new = []

    def collect(self, held: frozenset[int]) -> None:
        """Delete what neither the newest manifests nor the held ones need; now and then, it takes a while."""
        self._since += 1
        self._since_bytes += self.bytes_new
        if self._keep > 2 and self._since < COLLECT_EVERY and self._since_bytes < COLLECT_BYTES:
            return
        self._since = self._since_bytes = 0
        numbers = manifest_numbers(self.directory)
        kept, needed = self._kept(numbers, held)
        for number in numbers:
            if number not in kept:
                manifest_path(self.directory, number).unlink(missing_ok=True)
                self._needs.pop(number, None)
        with os.scandir(self.directory / "chunks") as entries:
            for entry in entries:
                if entry.name not in needed:
                    Path(entry.path).unlink(missing_ok=True)
                    self._sizes.pop(entry.name, None)

    def _kept(self, numbers: list[int], held: frozenset[int]) -> tuple[set[int], set[str]]:
        """The manifests to keep, and the chunks they need."""
        wanted = numbers[-self._keep :]
        thinned = numbers[: -self._keep] if self._keep > 2 else []
        older = [number for number in thinned if number % THINNED == 0]
        kept: set[int] = set()
        needed: set[str] = set()
        left: int | None = None
        for number in reversed(older[-KEEP_THINNED:] + wanted):
            needs = self._needs_of(number)
            cost = self.size(needs - needed)
            left = max(HISTORY_BYTES, cost) if left is None else left - cost
            if left < 0:
                break
            kept.add(number)
            needed |= needs
        for number in held.intersection(numbers) | set(numbers[-2:]):
            kept.add(number)
            needed |= self._needs_of(number)
        return kept, needed

    def _needs_of(self, number: int) -> frozenset[str]:
        known = self._needs.get(number)
        if known is None:
            try:
                known = frozenset(chunk_digests(read(manifest_path(self.directory, number))))
            except (OSError, FormatError):  # damaged, or newer than we are: not ours to judge
                known = frozenset()
            self._needs[number] = known
        return known

    def _write(self, path: Path, data: bytes | bytearray | memoryview) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            with open(part, "wb", buffering=0, opener=_private) as file:
                view = memoryview(data).cast("B")
                while view.nbytes:
                    view = view[file.write(view) :]
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


class _Check:
    """The verification of one chunk file: done once, by whoever comes first."""

    def __init__(self, path: Path, digest: str) -> None:
        self._path = path
        self._digest = digest
        self._turn = threading.Lock()
        self._sound: bool | None = None

    def run(self) -> bool:
        """Whether the chunk is what its name says. The file, whole: parts of it may be mapped."""
        with self._turn:
            if self._sound is None:
                try:
                    self._sound = self._look()
                except OSError:  # gone, or the disk cannot read it
                    self._sound = False
            return self._sound

    def _look(self) -> bool:
        with self._path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return False
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as whole:
                return bool(blake3(whole).hexdigest() == self._digest)


class Reader:
    """Reads verified bytes back. Raises ``DamagedChunk`` and ``OSError``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._checks: dict[str, _Check] = {}
        self._begun: list[Future[bool]] = []

    def begin(self, buffers: Iterable[Buffer]) -> None:
        """Start to verify the chunks of these buffers, beside whatever else happens."""
        for buffer in buffers:
            if mapped(buffer):
                for extent in buffer.extents:
                    if extent.chunk not in self._checks:
                        self._begun.append(crew.submit(self._check(extent.chunk).run))

    def prove(self, buffers: Iterable[Buffer]) -> None:
        """These buffers are what was captured when it returns. Raises ``DamagedChunk``."""
        for buffer in buffers:
            for extent in buffer.extents if mapped(buffer) else ():
                if not self._check(extent.chunk).run():
                    raise DamagedChunk(f"chunk {extent.chunk[:12]} is damaged")

    def then(self, work: Callable[[], None]) -> None:
        """Have this called, by one of the crew, when all that was begun is verified."""
        begun = list(self._begun)

        def last() -> None:
            wait(begun)
            work()

        crew.submit(last)

    def _check(self, digest: str) -> _Check:
        known = self._checks.get(digest)
        if known is None:
            known = self._checks[digest] = _Check(chunk_path(self.directory, digest), digest)
        return known

    def content(self, extents: tuple[Extent, ...]) -> bytes:
        """The bytes of these extents, one after the other."""
        parts = [self._chunk(e.chunk)[e.offset : e.offset + e.size] for e in extents]
        if sum(map(len, parts)) != sum(e.size for e in extents):
            raise DamagedChunk("a chunk is shorter than its manifest says")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def buffer(
        self, buffer: Buffer, *, proven: bool = True
    ) -> bytes | bytearray | memoryview | Mapping:
        """One pickle buffer: mapped when big (private: writes never reach the file). Not ``proven``: what is
        mapped may be verified later, by ``prove``."""
        if mapped(buffer):
            mapping = self._map(buffer)
            if proven:
                self.prove((buffer,))
            return memoryview(mapping).toreadonly() if buffer.readonly else mapping
        content = self.content(buffer.extents)
        return content if buffer.readonly else bytearray(content)

    def _chunk(self, digest: str) -> bytes:
        found = self._recent.get(digest)
        if found is None:
            found = self._read(digest)
            if digest_of(found) != digest:
                raise DamagedChunk(f"chunk {digest[:12]} is damaged")
            self._recent[digest] = found
            if len(self._recent) > OPEN_PACKS:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(digest)
        return found

    def _read(self, digest: str) -> bytes:
        try:
            return chunk_path(self.directory, digest).read_bytes()
        except OSError as error:
            raise DamagedChunk(f"chunk {digest[:12]} cannot be read: {error.strerror}") from error

    def _map(self, buffer: Buffer) -> Mapping:
        mapping = Mapping(-1, buffer.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        offset = 0
        for extent in buffer.extents:
            self._map_chunk(base + offset, extent)
            offset += extent.size
        return mapping

    def _map_chunk(self, address: int, extent: Extent) -> None:
        path = chunk_path(self.directory, extent.chunk)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise DamagedChunk(f"chunk {extent.chunk[:12]} is missing") from error
        try:
            # Beyond the end of a file there is nothing to map: touching it would kill the process.
            if os.fstat(handle).st_size < extent.offset + extent.size:
                raise DamagedChunk(f"chunk {extent.chunk[:12]} is cut short")
            found = _LIBC.mmap(
                address,
                extent.size,
                mmap.PROT_READ | mmap.PROT_WRITE,
                mmap.MAP_PRIVATE | _MAP_FIXED,
                handle,
                extent.offset,
            )
            if found != address:
                raise OSError(ctypes.get_errno(), "a chunk could not be mapped")
        finally:
            os.close(handle)


_MAP_FIXED = 0x10
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def mapped(buffer: Buffer) -> bool:
    """Whether a buffer is mapped, not read."""
    return buffer.size >= MAP_BYTES and _mappable(buffer.extents)


def _mappable(extents: tuple[Extent, ...]) -> bool:
    """Whole pages side by side: every piece but the last a multiple of their size."""
    return all(e.offset % mmap.PAGESIZE == 0 for e in extents) and all(
        e.size % mmap.PAGESIZE == 0 for e in extents[:-1]
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
