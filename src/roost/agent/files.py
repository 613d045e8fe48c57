"""The host's half of the workspace protocol (``ports/files.py``): serve one folder over one stream.

Changes are applied in one step each (temporary file, then rename), under a lock, in the order of their
``seq``; the highest applied one is kept beside the folder and goes into checkpoints as ``files_seq``.

For the agent:
- ``await serve(reader, writer, root, on_seq=...)`` for each spliced ``files/<session>`` stream. **Cancel
  it when the session is fenced, before the final capture**: then the capture holds exactly the changes
  up to ``applied_seq(root)`` and the client sends the later ones to the next host.
- at a capture: ``seq = applied_seq(root)`` first, then ``capture_tree(root, cache)``.
- when that checkpoint is durable off the host: ``set_durable_seq(root, seq)``.
- after a restore: ``set_applied_seq(root, files_seq)`` before the first ``serve``.

It never looks outside the folder: paths and links that lead out are ``Denied``.
"""

import asyncio
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from roost.agent.tree import TreeCache, capture_tree, read_chunk, restore_tree, sidecar
from roost.ports.errors import Conflict, Denied, Gone, Invalid, Never, RoostError, to_wire
from roost.ports.files import (
    CHUNK,
    Applied,
    AppliedIs,
    Change,
    Content,
    Delete,
    Done,
    Entries,
    Entry,
    Failed,
    Limits,
    ListDir,
    MakeDir,
    Read,
    Rename,
    Stat,
    ToClient,
    ToHost,
    Tree,
    TreeIs,
    Write,
    WritePart,
    clean,
    to_client,
    to_host,
)
from roost.ports.frames import BadFrame

__all__ = [
    "Files",
    "TreeCache",
    "applied_seq",
    "capture_tree",
    "read_chunk",
    "restore_tree",
    "serve",
    "set_applied_seq",
    "set_durable_seq",
]


_log = logging.getLogger(__name__)


class _Seq(msgspec.Struct, frozen=True, kw_only=True):
    """The sidecar's content."""

    applied: int = 0
    durable: int = 0


def _read_seq(root: Path) -> _Seq:
    try:
        return msgspec.json.decode(sidecar(root, "seq").read_bytes(), type=_Seq)
    except FileNotFoundError:
        return _Seq()


def _write_seq(root: Path, seq: _Seq) -> None:
    # No fsync: the file shares the fate of the workspace beside it.
    temporary = sidecar(root, "seq.new")
    temporary.write_bytes(msgspec.json.encode(seq))
    temporary.replace(sidecar(root, "seq"))


def applied_seq(root: Path) -> int:
    """The highest change from outside that the workspace contains (0: none)."""
    return _read_seq(root).applied


def set_applied_seq(root: Path, seq: int) -> None:
    """After a restore: the workspace contains every change up to ``seq``, and so does its checkpoint."""
    with _locked(root):
        _write_seq(root, _Seq(applied=seq, durable=seq))


def set_durable_seq(root: Path, seq: int) -> None:
    """A checkpoint with ``files_seq == seq`` is durable off the host."""
    with _locked(root):
        known = _read_seq(root)
        _write_seq(root, _Seq(applied=known.applied, durable=max(seq, known.durable)))


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    # A replaced stream may still finish its last change while the next one begins.
    with sidecar(root, "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    root: Path,
    on_seq: Callable[[int], None] | None = None,
    *,
    limits: Limits | None = None,
) -> None:
    """Answer requests until the stream ends. ``on_seq`` hears the highest applied change after each."""
    files = Files(root, limits)
    requests, answers = to_host(), to_client()
    try:
        while (request := await requests.read(reader)) is not None:
            answer = await asyncio.to_thread(files.answer, request)
            writer.write(answers.encode(answer))
            await writer.drain()
            if on_seq is not None and isinstance(request, Change):
                on_seq(request.seq)
    except BadFrame as error:
        _log.warning("a files stream of %s ended: %s", root.name, error)
    except ConnectionError:
        pass  # the client connects again and asks what was applied
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class Files:
    """One workspace folder. Every method blocks on the disk: call it in a thread."""

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        self._limits = limits or Limits()
        self._cache = TreeCache()

    def answer(self, request: ToHost) -> ToClient:
        """The answer to one request; every error becomes ``Failed``."""
        try:
            return self._answer(request)
        except RoostError as error:
            return Failed(error=to_wire(error))
        except OSError as error:
            return Failed(error=to_wire(_typed(error)))

    def _answer(self, request: ToHost) -> ToClient:
        match request:
            case ListDir():
                return self._list(request)
            case Stat():
                return self._stat(request)
            case Read():
                return self._read(request)
            case Tree():
                tree = capture_tree(self.root, self._cache, self._limits)
                return TreeIs(entries=tree.entries, left_out=tree.left_out)
            case Applied():
                seq = _read_seq(self.root)
                return AppliedIs(seq=seq.applied, durable_seq=seq.durable)
            case WritePart():
                return self._part(request)
            case _:
                return self._change(request)

    # --- reading -----------------------------------------------------------------------------------

    def _inside(self, path: str, *, follow: bool = True) -> Path:
        """The real place of ``path``; ``follow=False``: the link itself, not what it points to."""
        cleaned = clean(path)
        place = self.root / cleaned
        real = place.resolve() if follow else place.parent.resolve() / place.name
        if not cleaned:
            return self.root
        if not real.is_relative_to(self.root):
            raise Denied(f"{path!r} leads out of the workspace")
        return real

    def _entry(self, path: str, info: os.stat_result) -> Entry:
        kind = "other"
        if stat.S_ISDIR(info.st_mode):
            kind = "dir"
        elif stat.S_ISREG(info.st_mode):
            kind = "file"
        return Entry(
            path=path,
            kind=kind,
            size=info.st_size if kind == "file" else 0,
            mtime_ns=info.st_mtime_ns,
            writable=bool(info.st_mode & stat.S_IWUSR),
        )

    def _list(self, request: ListDir) -> Entries:
        folder = self._inside(request.path)
        prefix = clean(request.path)
        entries = []
        for name in sorted(os.listdir(folder)):  # noqa: PTH208
            path = f"{prefix}/{name}" if prefix else name
            try:
                info = self._inside(path).stat()
                name.encode()
            except (OSError, Denied, UnicodeEncodeError):
                continue  # a broken or leading-out link, or gone since it was listed
            entries.append(self._entry(path, info))
        return Entries(entries=tuple(entries))

    def _stat(self, request: Stat) -> Entries:
        place = self._inside(request.path)
        try:
            info = place.stat()
        except (FileNotFoundError, NotADirectoryError):
            return Entries(entries=())
        entry = self._entry(clean(request.path), info)
        if request.hash and entry.kind == "file":
            with place.open("rb") as file:
                entry = msgspec.structs.replace(
                    entry, hash=hashlib.file_digest(file, "sha256").hexdigest()
                )
        return Entries(entries=(entry,))

    def _read(self, request: Read) -> Content:
        if request.offset < 0 or not 0 <= request.size <= CHUNK:
            raise Invalid(f"a read is at most {CHUNK} bytes")
        place = self._inside(request.path)
        if not stat.S_ISREG(place.stat().st_mode):
            raise Conflict(f"{request.path!r} is not a file")
        with place.open("rb") as file:
            entry = self._entry(clean(request.path), os.fstat(file.fileno()))
            file.seek(request.offset)
            return Content(content=file.read(request.size), entry=entry)

    # --- changing ----------------------------------------------------------------------------------

    def _part_file(self, seq: int) -> Path:
        return sidecar(self.root, f"part-{seq}")

    def _part(self, request: WritePart) -> Done:
        with self._part_file(request.seq).open("wb" if request.offset == 0 else "r+b") as file:
            file.seek(request.offset)
            file.write(request.content)
        return Done()

    def _change(self, change: Change) -> Done:
        with _locked(self.root):
            known = _read_seq(self.root)
            try:
                if change.seq > known.applied:
                    self._apply(change)
            finally:  # also when refused: the client has its answer, it must not be tried again later
                if change.seq > known.applied:
                    _write_seq(self.root, msgspec.structs.replace(known, applied=change.seq))
                self._part_file(change.seq).unlink(missing_ok=True)
        path = change.to if isinstance(change, Rename) else change.path
        found = self._stat(Stat(path=path)).entries
        return Done(entry=found[0] if found else None)

    def _apply(self, change: Change) -> None:
        match change:
            case Write():
                self._write(change)
            case Delete():
                self._delete(change)
            case Rename():
                self._rename(change)
            case MakeDir():
                place = self._inside(change.path)
                if place.exists() and not place.is_dir():
                    raise Conflict(f"{change.path!r} is a file")
                place.mkdir(parents=True, exist_ok=True)

    def _write(self, change: Write) -> None:
        place = self._inside(change.path)
        if place.is_dir():
            raise Conflict(f"{change.path!r} is a folder")
        part = self._part_file(change.seq)
        if change.size == 0:
            part.write_bytes(b"")
        if not part.exists() or part.stat().st_size != change.size:
            raise Conflict("the parts of this write are not complete", hint="send them again")
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            part.chmod(stat.S_IMODE(place.stat().st_mode))
        os.utime(part, ns=(change.mtime_ns, change.mtime_ns))
        part.replace(place)

    def _delete(self, change: Delete) -> None:
        place = self._inside(change.path, follow=False)
        if place == self.root:
            raise Denied("the workspace itself cannot be deleted")
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=change.again)

    def _rename(self, change: Rename) -> None:
        source = self._inside(change.path, follow=False)
        target = self._inside(change.to, follow=False)
        if self.root in (source, target):
            raise Denied("the workspace itself cannot be renamed")
        there = os.path.lexists(source)
        if change.again and not there and os.path.lexists(target):
            return
        if not there:
            raise Gone(f"{change.path!r} does not exist")
        if os.path.lexists(target) and not (
            source.exists() and target.exists() and source.samefile(target)
        ):
            raise Conflict(f"{change.to!r} exists already")
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def _typed(error: OSError) -> RoostError:
    """The typed error of a refused disk operation."""
    name = Path(str(error.filename)).name if error.filename else "the workspace"
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Gone(f"{name} does not exist")
    if isinstance(error, (FileExistsError, IsADirectoryError)):
        return Conflict(f"{name} exists already")
    if isinstance(error, PermissionError):
        return Denied(f"{name} may not be changed or read")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Never("the disk of the host is full", hint="delete files in the workspace")
    if error.errno == errno.ENAMETOOLONG:
        return Invalid("the name is too long")
    return Never(f"{name}: {error.strerror or error}")
