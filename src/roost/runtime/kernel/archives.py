"""Files over files: compressed ones, members of archives, csv, and temporary files and folders."""

import bz2
import csv
import gc
import gzip
import io
import lzma
import os
import stat
import tempfile
import types
import zipfile
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild_files
from roost.runtime.kernel.refusal import CELL_ADVICE, Handler, Refusal, Storing

TREE_BYTES = 64 << 20
"""A temporary folder up to this size travels with its content."""
_READ = (1, "rb")
_DIALECT = (
    "delimiter", "quotechar", "escapechar", "doublequote", "skipinitialspace", "lineterminator",
    "quoting", "strict",
)  # fmt: skip


def reduce_gzip(_pickler: Storing, value: gzip.GzipFile) -> Any:
    """Read: reopened at its position. Written: goes on as a new member of the same file."""
    inner: Any = value
    file, own = inner.fileobj, inner.myfileobj is not None
    if file is None:
        return rebuild_files.plain_compressed, ("gzip",)
    if inner.mode in _READ:
        begin = 0
        if not own and not _starts(file, b"\x1f\x8b"):
            raise Refusal("a gzip stream in the middle of another", CELL_ADVICE)
        return rebuild_files.gzip_reader, (
            type(value), inner.name, file, own, begin, value.tell(),
        )  # fmt: skip
    if hasattr(inner, "_buffer"):
        inner._buffer.flush()
    file.flush()
    # A copy of the compressor ends the stream; the user's own goes on.
    options = {
        "raw": file.tell(), "crc": inner.crc, "size": inner.size, "offset": inner.offset,
        "level": 9,
    }  # fmt: skip
    tail = inner.compress.copy().flush()
    return rebuild_files.gzip_writer, (type(value), inner.name, file, own, tail, options)


def _starts(file: Any, mark: bytes) -> bool:
    if type(file) is io.BytesIO:
        return file.getvalue().startswith(mark)
    try:
        return os.pread(file.fileno(), len(mark), 0) == mark
    except (OSError, AttributeError):
        return False


def reduce_packed(_pickler: Storing, value: Any) -> Any:
    """A bz2 or lzma file: reading goes on at its position; a writer cannot be divided."""
    kind = "bz2" if isinstance(value, bz2.BZ2File) else "lzma"
    if value.closed:
        return rebuild_files.plain_compressed, (kind,)
    if value._mode not in _READ:
        raise Refusal(f"a {kind} file being written", "close it before the move")
    options = {}
    if kind == "lzma":
        found = value._buffer.raw._decomp_args
        options = {k: v for k, v in found.items() if k in ("format", "filters")}
    return rebuild_files.packed_reader, (
        type(value), value._fp, value._closefp, value.tell(), options,
    )  # fmt: skip


def reduce_zip_member(_pickler: Storing, value: Any) -> Any:
    """A member that is read, opened again."""
    archive = getattr(getattr(value._fileobj, "_close", None), "__self__", None)
    if not isinstance(archive, zipfile.ZipFile) or not value._seekable:
        raise Refusal("a member of an archive", "read it before the move")
    info = archive.NameToInfo.get(value.name)
    return rebuild_files.zip_member, (archive, info, value.tell())


# --- csv -----------------------------------------------------------------------------------------


def _dialect(dialect: Any) -> dict[str, Any]:
    return {name: getattr(dialect, name) for name in _DIALECT}


def reduce_csv_reader(_pickler: Storing, value: Any) -> Any:
    """A reader over its source, with the number of its line."""
    dialect = value.dialect
    refs = gc.get_referents(value)
    sources = [r for r in refs if r is not dialect and not isinstance(r, type)]
    if not sources:
        raise Refusal("a csv reader", CELL_ADVICE)
    return rebuild_files.csv_reader, (sources[0], _dialect(dialect), value.line_num)


def reduce_csv_writer(_pickler: Storing, value: Any) -> Any:
    """A writer over the ``write`` of its file."""
    dialect = value.dialect
    for write in gc.get_referents(value):
        if isinstance(write, types.BuiltinMethodType | types.MethodType):
            return rebuild_files.csv_writer, (write, _dialect(dialect))
        if write is not dialect and not isinstance(write, type) and callable(write):
            return rebuild_files.csv_writer, (write, _dialect(dialect))
    raise Refusal("a csv writer", CELL_ADVICE)


# --- temporary files and folders -----------------------------------------------------------------


def entries_of(path: str) -> list[tuple[str, int, Any]]:
    """What lies in a folder: name, mode and content (None a folder, text a link's target)."""
    found: list[tuple[str, int, Any]] = []
    size = 0
    for place in sorted(Path(path).rglob("*")):
        status = place.lstat()
        name = str(place.relative_to(path))
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            found.append((name, mode, str(place.readlink())))
        elif stat.S_ISDIR(status.st_mode):
            found.append((name, mode, None))
        elif stat.S_ISREG(status.st_mode):
            size += status.st_size
            if size > TREE_BYTES:
                raise Refusal(
                    f"a temporary folder of more than {TREE_BYTES >> 20} MB: {path}",
                    "use a folder of the session",
                )
            found.append((name, mode, place.read_bytes()))
    return found


def reduce_temporary_directory(_pickler: Storing, value: Any) -> Any:
    """The folder's content; a new finalizer removes it."""
    state = {k: v for k, v in value.__dict__.items() if k != "_finalizer"}
    there = value._finalizer.alive and Path(value.name).is_dir()
    return rebuild_files.temporary_directory, (
        type(value), state, entries_of(value.name) if there else None,
    )  # fmt: skip


def reduce_temporary_file(_pickler: Storing, value: Any) -> Any:
    """The file by content, removed by its new owner."""
    closer = value._closer
    options = {"delete": closer.delete}
    if hasattr(closer, "delete_on_close"):
        options["delete_on_close"] = closer.delete_on_close
    if value.__dict__["file"].closed:
        options["delete"] = False
    return rebuild_files.temporary_file, (value.__dict__["file"], value.name, options)


EXACT: dict[type, Handler] = {
    gzip.GzipFile: reduce_gzip,
    bz2.BZ2File: reduce_packed,
    lzma.LZMAFile: reduce_packed,
    zipfile.ZipExtFile: reduce_zip_member,
    type(csv.reader(())): reduce_csv_reader,
    type(csv.writer(io.StringIO())): reduce_csv_writer,
}
BASES: dict[type, Handler] = {
    tempfile.TemporaryDirectory: reduce_temporary_directory,
    tempfile._TemporaryFileWrapper: reduce_temporary_file,
}
