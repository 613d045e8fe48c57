"""What stored pickles of files call. Names and arguments here are part of the format: only add."""

import bz2
import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import lzma
import mmap
import os
import struct
import tempfile
import weakref
import zipfile
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild


def _open(path: str, name: Any, mode: str, position: int) -> io.FileIO:
    made = io.FileIO(path, mode)
    made.seek(position)
    made.name = name
    return made


def deleted_file(name: Any, mode: str, position: int, content: bytes) -> io.FileIO:
    """A file that no folder names any more."""
    descriptor, path = tempfile.mkstemp()
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    made = _open(path, name, mode, position)
    Path(path).unlink()
    if type(name) is int:
        made.name = made.fileno()
    return made


def put_back(path: str, content: bytes, *, writing: bool = True) -> None:
    """A small file as it was, unless it is there; one that grew under a reader stays as it is."""
    place = Path(path)
    if place.exists():
        there = place.read_bytes()
        if there == content or (not writing and there.startswith(content)):
            return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)


def outside_file(path: str, name: Any, mode: str, position: int, content: bytes) -> io.FileIO:
    """A temporary file, with its content."""
    put_back(path, content, writing="+" in mode or "a" in mode)
    return _open(path, name, mode, position)


def known_file(
    path: str, name: Any, mode: str, position: int, print_: tuple[int, str]
) -> io.FileIO:
    """A file outside the session's folder; raises when it is another one here."""
    status = os.stat(path)  # noqa: PTH116
    same = status.st_size == print_[0]
    if same and print_[1] != str(status.st_mtime_ns) and len(print_[1]) > 20:
        with open(path, "rb") as file:  # noqa: PTH123
            same = hashlib.file_digest(file, "blake2b").hexdigest() == print_[1]
    if not same:
        raise OSError(f"{path} is not the file it was")
    return _open(path, name, mode, position)


def closed_mapping() -> mmap.mmap:
    """A mapping that was closed already."""
    made = mmap.mmap(-1, 1)
    made.close()
    return made


def memory_mapping(content: bytes, position: int, writable: bool) -> mmap.mmap:
    """Mapped memory without a file."""
    made = mmap.mmap(-1, len(content))
    made[:] = content
    if not writable:
        descriptor = os.memfd_create("mapping")
        os.write(descriptor, content)
        made.close()
        made = mmap.mmap(descriptor, len(content), access=mmap.ACCESS_READ)
        os.close(descriptor)
    made.seek(position)
    return made


def file_mapping(
    path: str,
    inside: bool,
    content: bytes | None,
    size: int,
    offset: int,
    position: int,
    writable: bool,
) -> mmap.mmap:
    """The same part of a file, mapped again."""
    place = rebuild.absolute(path) if inside else path
    if content is not None:
        put_back(place, content, writing=writable)
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    with open(place, "r+b" if writable else "rb") as file:  # noqa: PTH123
        made = mmap.mmap(file.fileno(), size, access=access, offset=offset)
    made.seek(position)
    return made


# --- compressed ----------------------------------------------------------------------------------


def gzip_reader(cls: type, name: str, file: Any, own: bool, begin: int, position: int) -> Any:
    """A gzip file that is read, at its position."""
    file.seek(begin)
    made: Any = cls(name, "rb", fileobj=file)
    made.seek(position)
    if own:
        made.myfileobj = file
    return made


def gzip_writer(
    cls: type, name: str, file: Any, own: bool, tail: bytes, options: dict[str, Any]
) -> Any:
    """A gzip file that is written: its member ends here, what follows is a new one."""
    file.seek(options["raw"])
    file.truncate()
    file.write(tail + struct.pack("<LL", options["crc"], options["size"] & 0xFFFFFFFF))
    made: Any = cls(name, "wb", options["level"], fileobj=file)
    made.offset = options["offset"]
    if own:
        made.myfileobj = file
    return made


def packed_reader(cls: type, file: Any, own: bool, position: int, options: dict[str, Any]) -> Any:
    """A bz2 or lzma file that is read, at its position."""
    file.seek(0)
    made: Any = cls(file, "rb", **options)
    made.seek(position)
    made._closefp = own
    return made


def zip_member(archive: zipfile.ZipFile, info: Any, position: int) -> Any:
    """A member of a zip file that is read."""
    made = archive.open(info)
    if position:
        made.seek(position)
    return made


def plain_compressed(kind: str) -> Any:
    """A compressed file that was closed already."""
    file = io.BytesIO()
    made: Any = (
        {"gzip": gzip.GzipFile, "bz2": bz2.BZ2File, "lzma": lzma.LZMAFile}[kind](file, "wb")
        if kind != "gzip"
        else gzip.GzipFile("", "wb", fileobj=file)
    )
    made.close()
    return made


# --- csv -----------------------------------------------------------------------------------------


def csv_reader(source: Any, dialect: dict[str, Any], lines: int) -> Any:
    """A reader that has read ``lines`` lines of its source."""
    if lines:
        made = csv.reader(itertools.chain(itertools.repeat("", lines), source), **dialect)
        for _ in itertools.islice(made, lines):
            pass
        return made
    return csv.reader(source, **dialect)


class Writing:
    """Something with a ``write``: all that a csv writer asks of its file."""

    def __init__(self, write: Any) -> None:
        self.write = write


def csv_writer(write: Any, dialect: dict[str, Any]) -> Any:
    """A writer over a file."""
    return csv.writer(Writing(write), **dialect)


# --- temporary -----------------------------------------------------------------------------------


def tree(path: str, entries: list[tuple[str, int, Any]]) -> None:
    """A folder with all that lies in it; what is there already and the same is left alone."""
    top = Path(path)
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, mode, content in entries:
        place = top / name
        if content is None:
            place.mkdir(parents=True, exist_ok=True)
        elif type(content) is str:
            if not place.is_symlink():
                place.symlink_to(content)
            continue
        else:
            put_back(str(place), content)
        with contextlib.suppress(OSError):
            place.chmod(mode)


def temporary_directory(cls: Any, state: dict[str, Any], entries: Any) -> Any:
    """A temporary folder, removed when this process is done with it."""
    made: Any = cls.__new__(cls)
    made.__dict__.update(state)
    path = state["name"]
    if entries is None:
        made._finalizer = weakref.finalize(made, len, "")
        made._finalizer.detach()
        return made
    tree(path, entries)
    options = {"ignore_errors": state.get("_ignore_cleanup_errors", False)}
    if "_delete" in state:
        options["delete"] = state["_delete"]
    made._finalizer = weakref.finalize(
        made, cls._cleanup, path, warn_message=f"Implicitly cleaning up {made!r}", **options
    )
    return made


def temporary_file(file: Any, name: Any, options: dict[str, Any]) -> Any:
    """A temporary file with a name."""
    return tempfile._TemporaryFileWrapper(file, name, **options)


def descriptor(number: int, path: str, rights: int, position: int, size: int) -> int:
    """A descriptor under its old number; raises when that is taken here."""
    try:
        os.fstat(number)
    except OSError:
        pass
    else:
        raise OSError(f"descriptor {number} is another file here: open it again")
    made = os.open(path, rights)
    if os.fstat(made).st_size < size:
        os.close(made)
        raise OSError(f"{path} is shorter than it was")
    os.lseek(made, position, os.SEEK_SET)
    if made != number:
        os.dup2(made, number)
        os.close(made)
    return number
