"""Capture and restore of a workspace: a folder as paths, chunk digests, modes and modification times.

The caller moves the chunks (they are blobs, named by BLAKE3); this module only reads and writes the
folder. It never follows links, and what it leaves out it names, except the ignored names.
"""

import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from roost.ports.errors import Never
from roost.ports.files import CHUNK, LeftOut, Limits, TreeEntry, clean

# A file changed this shortly before it was read may change again within the same timestamp.
_RACY_NS = 50_000_000


@dataclass(slots=True)
class TreeCache:
    """Digests of files whose inode, size and times have not changed since they were read."""

    known: dict[str, tuple[tuple[int, int, int, int], tuple[str, ...]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class CapturedTree:
    """A captured workspace; ``places`` says where each chunk can be read (path, offset)."""

    entries: dict[str, TreeEntry]
    left_out: tuple[LeftOut, ...]
    places: dict[str, tuple[str, int]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries.values())


def capture_tree(root: Path, cache: TreeCache, limits: Limits | None = None) -> CapturedTree:
    """The workspace as it is now; unchanged files cost one ``stat``. Blocks: call it in a thread."""
    limits = limits or Limits()
    now_ns = _filesystem_now_ns(root)
    entries: dict[str, TreeEntry] = {}
    left_out: list[LeftOut] = []
    places: dict[str, tuple[str, int]] = {}
    fresh: dict[str, tuple[tuple[int, int, int, int], tuple[str, ...]]] = {}
    total = 0
    for path, info in _walk(root, "", frozenset(limits.ignored)):
        reason = _refusal(root, path, info, limits, total, len(entries))
        if reason:
            left_out.append(LeftOut(path=path, reason=reason, size=info.st_size))
            continue
        try:
            entry = _entry(root, path, info, cache)
        except OSError as error:  # removed or replaced since it was listed, or not readable
            left_out.append(LeftOut(path=path, reason=error.strerror or str(error)))
            continue
        entries[path] = entry
        total += entry.size
        for index, digest in enumerate(entry.digests):
            places.setdefault(digest, (path, index * CHUNK))
        if entry.kind == "file" and info.st_mtime_ns < now_ns - _RACY_NS:
            fresh[path] = (_key(info), entry.digests)
    cache.known = fresh
    return CapturedTree(entries=entries, left_out=tuple(left_out), places=places)


def read_chunk(root: Path, captured: CapturedTree, digest: str) -> bytes | None:
    """The bytes of one captured chunk; None when the file has changed since (capture it again)."""
    path, offset = captured.places[digest]
    try:
        with (root / path).open("rb") as file:
            file.seek(offset)
            content = file.read(CHUNK)
    except OSError:
        return None
    return content if blake3(content).hexdigest() == digest else None


async def restore_tree(
    root: Path, entries: dict[str, TreeEntry], fetch: Callable[[str], Awaitable[bytes]]
) -> int:
    """Write ``entries`` under ``root`` (bytes fetched are returned); other files there stay.

    A file that already has the size and modification time is kept. ``Never`` when a chunk's content
    does not have its digest.
    """
    root.mkdir(parents=True, exist_ok=True)
    fetched = 0
    for path in sorted(entries):
        entry = entries[path]
        target = root / clean(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == "dir":
            target.mkdir(exist_ok=True)
        elif entry.kind == "link":
            target.unlink(missing_ok=True)
            target.symlink_to(entry.target)
        elif not _same(target, entry):
            fetched += await _restore_file(root, target, entry, fetch)
    for path in sorted(entries, reverse=True):  # a folder's time changes while it is filled
        entry = entries[path]
        if entry.kind == "dir":
            os.utime(root / clean(path), ns=(entry.mtime_ns, entry.mtime_ns))
    return fetched


async def _restore_file(
    root: Path, target: Path, entry: TreeEntry, fetch: Callable[[str], Awaitable[bytes]]
) -> int:
    part = sidecar(root, "restore")
    with part.open("wb") as file:
        for digest in entry.digests:
            content = await fetch(digest)
            if blake3(content).hexdigest() != digest:
                raise Never(f"chunk {digest[:12]} of {target.name} is damaged")
            file.write(content)
    part.chmod(entry.mode)
    os.utime(part, ns=(entry.mtime_ns, entry.mtime_ns))
    part.replace(target)
    return entry.size


def sidecar(root: Path, kind: str) -> Path:
    """A file that belongs to the workspace but is not in it: ``<parent>/.<name>.<kind>``."""
    return root.parent / f".{root.name}.{kind}"


def _same(target: Path, entry: TreeEntry) -> bool:
    try:
        info = target.lstat()
    except OSError:
        return False
    return (
        stat.S_ISREG(info.st_mode)
        and info.st_size == entry.size
        and info.st_mtime_ns == entry.mtime_ns
    )


def _walk(root: Path, folder: str, ignored: frozenset[str]) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(root / folder) as listing:
            found = sorted(listing, key=lambda item: item.name)
    except OSError:
        return
    for item in found:
        if item.name in ignored:
            continue
        path = f"{folder}/{item.name}" if folder else item.name
        try:
            info = item.stat(follow_symlinks=False)
        except OSError:
            continue
        yield path, info
        if stat.S_ISDIR(info.st_mode):
            yield from _walk(root, path, ignored)


def _refusal(
    root: Path, path: str, info: os.stat_result, limits: Limits, total: int, count: int
) -> str:
    if count >= limits.count:
        return f"more than {limits.count} files"
    if stat.S_ISLNK(info.st_mode):
        return _link_refusal(root, path)
    if stat.S_ISDIR(info.st_mode):
        return ""
    if not stat.S_ISREG(info.st_mode):
        return "not a regular file"
    if info.st_size > limits.file_bytes:
        return f"larger than {limits.file_bytes} bytes"
    if total + info.st_size > limits.total_bytes:
        return f"the workspace is larger than {limits.total_bytes} bytes"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return ""


def _link_refusal(root: Path, path: str) -> str:
    target = (root / path).readlink()
    inside = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120
    if target.is_absolute() or inside == ".." or inside.startswith("../"):
        return "a link that leads out of the workspace"
    return ""


def _key(info: os.stat_result) -> tuple[int, int, int, int]:
    return (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _entry(root: Path, path: str, info: os.stat_result, cache: TreeCache) -> TreeEntry:
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISDIR(info.st_mode):
        return TreeEntry(kind="dir", mtime_ns=info.st_mtime_ns, mode=mode)
    if stat.S_ISLNK(info.st_mode):
        target = os.fspath((root / path).readlink())
        return TreeEntry(kind="link", mtime_ns=info.st_mtime_ns, mode=mode, target=target)
    known = cache.known.get(path)
    if known is not None and known[0] == _key(info):
        digests, size = known[1], info.st_size
    else:
        digests, size = _digests(root / path)
    return TreeEntry(kind="file", digests=digests, size=size, mtime_ns=info.st_mtime_ns, mode=mode)


def _digests(file: Path) -> tuple[tuple[str, ...], int]:
    digests: list[str] = []
    size = 0
    with file.open("rb") as opened:
        while content := opened.read(CHUNK):
            digests.append(blake3(content).hexdigest())
            size += len(content)
    return tuple(digests), size


def _filesystem_now_ns(root: Path) -> int:
    """The file system's own clock, the only one that file times can be compared with."""
    stamp = sidecar(root, "stamp")
    stamp.write_bytes(b"")
    return stamp.stat().st_mtime_ns
