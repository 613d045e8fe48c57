"""Chunks and manifests on disk: written under a temporary name, renamed, never changed afterwards.

Runs on the engine's bytes thread. Never opens a pickle and never touches a user's object but through
a buffer.
"""

import ctypes
import mmap
import os
from collections import OrderedDict
from pathlib import Path

from blake3 import blake3

from roost.runtime.kernel.format import (
    CHUNK_BYTES,
    Buffer,
    Extent,
    Manifest,
    chunk_digests,
    chunk_path,
    dumps,
    manifest_numbers,
    manifest_path,
    read,
)

MAP_BYTES = 1 << 20
"""Buffers from this size are mapped, smaller ones copied: a process may hold 65,530 mappings."""
KEEP_MANIFESTS = 2
"""Manifests kept on disk besides those that are held."""
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

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bytes_new = 0
        """Bytes written since the last ``begin``."""
        self._new: list[Path] = []
        """Chunks of the capture under way."""
        self._unsynced: set[Path] = set()
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
        if path.exists() and path.stat().st_size == size:
            return digest
        self._write(path, data)
        self.bytes_new += size
        self._new.append(path)
        return digest

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
        content = dumps(manifest)
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
            self._unsynced.update(self._new)
        self._new = []
        return path

    def discard(self) -> None:
        """Give back the space of a capture that failed."""
        for path in self._new:
            path.unlink(missing_ok=True)
        self._new = []

    def collect(self, held: frozenset[int]) -> None:
        """Delete what neither the newest manifests nor the held ones need."""
        numbers = manifest_numbers(self.directory)
        kept = set(numbers[-KEEP_MANIFESTS:]) | held
        needed: set[str] = set()
        for number in numbers:
            path = manifest_path(self.directory, number)
            if number in kept:
                needed.update(chunk_digests(read(path)))
        for number in numbers:
            if number not in kept:
                manifest_path(self.directory, number).unlink(missing_ok=True)
        with os.scandir(self.directory / "chunks") as entries:
            for entry in entries:
                if entry.name not in needed:
                    Path(entry.path).unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes | bytearray | memoryview) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb", buffering=0, opener=_private) as file:
                view = memoryview(data).cast("B")
                while view.nbytes:
                    view = view[file.write(view) :]
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


class Reader:
    """Reads verified bytes back. Raises ``DamagedChunk`` and ``OSError``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._recent: OrderedDict[str, bytes] = OrderedDict()

    def content(self, extents: tuple[Extent, ...]) -> bytes:
        """The bytes of these extents, one after the other."""
        parts = [self._chunk(e.chunk)[e.offset : e.offset + e.size] for e in extents]
        if sum(map(len, parts)) != sum(e.size for e in extents):
            raise DamagedChunk("a chunk is shorter than its manifest says")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def buffer(self, buffer: Buffer) -> bytes | bytearray | memoryview | Mapping:
        """One pickle buffer: mapped when big (private: writes never reach the file)."""
        if buffer.size >= MAP_BYTES and _mappable(buffer.extents):
            mapping = self._map(buffer)
            return memoryview(mapping).toreadonly() if buffer.readonly else mapping
        content = self.content(buffer.extents)
        return content if buffer.readonly else bytearray(content)

    def _chunk(self, digest: str) -> bytes:
        found = self._recent.get(digest)
        if found is None:
            found = chunk_path(self._directory, digest).read_bytes()
            if digest_of(found) != digest:
                raise DamagedChunk(f"chunk {digest[:12]} is damaged")
            self._recent[digest] = found
            if len(self._recent) > OPEN_PACKS:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(digest)
        return found

    def _map(self, buffer: Buffer) -> Mapping:
        mapping = Mapping(-1, buffer.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        offset = 0
        for extent in buffer.extents:
            self._map_chunk(base + offset, extent)
            view = memoryview(mapping)[offset : offset + extent.size]
            if digest_of(view) != extent.chunk:
                raise DamagedChunk(f"chunk {extent.chunk[:12]} is damaged")
            offset += extent.size
        return mapping

    def _map_chunk(self, address: int, extent: Extent) -> None:
        handle = os.open(chunk_path(self._directory, extent.chunk), os.O_RDONLY)
        try:
            if os.fstat(handle).st_size != extent.size:
                raise DamagedChunk(f"chunk {extent.chunk[:12]} has another size")
            found = _LIBC.mmap(
                address,
                extent.size,
                mmap.PROT_READ | mmap.PROT_WRITE,
                mmap.MAP_PRIVATE | _MAP_FIXED,
                handle,
                0,
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


def _mappable(extents: tuple[Extent, ...]) -> bool:
    """Whole chunks side by side: every one but the last a multiple of the page size."""
    return all(e.offset == 0 for e in extents) and all(
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
