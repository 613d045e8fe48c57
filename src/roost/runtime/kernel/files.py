"""Open files: by path and position when their content is where it was, else with their content.

Never reads through the user's file object: what lies in its buffers stays there. Flushing is the only
thing done to it.
"""

import ctypes
import gc
import hashlib
import io
import mmap
import os
import re
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild, rebuild_files
from roost.runtime.kernel.refusal import CELL_ADVICE, Refusal, Storing

SMALL_BYTES = 16 << 20
"""Files up to this size outside the session's folder travel with their content."""
CHECKED_BYTES = 64 << 20
"""Files up to this size are recognised by their content, bigger ones by their size and time."""
_WORD = ctypes.sizeof(ctypes.c_void_p)
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ (\d+)\s*(.*)")


# --- text ----------------------------------------------------------------------------------------


def reduce_text(_pickler: Storing, value: io.TextIOWrapper) -> Any:
    """A text file: reopened at its position."""
    for name in ("stdin", "stdout", "stderr"):
        if value is getattr(sys, f"__{name}__"):
            return rebuild.module_attribute, ("sys", f"__{name}__")
    if value.closed:
        mode = getattr(value, "mode", "r")
        return rebuild.closed_file, ("text", value.name, mode, value.encoding)
    inner = _Inside(value)
    try:
        cookie = value.tell() if value.seekable() else 0
        value.flush()
    except OSError:
        # "telling position disabled by next() call"; ``flush`` would enable it with a wrong answer.
        cookie = _start_of(value, inner)
    return rebuild.text_file, (
        value.buffer,
        getattr(value, "mode", None) or getattr(value.buffer, "mode", "r"),
        value.encoding,
        value.errors,
        inner.newline,
        value.line_buffering,
        cookie,
        value.write_through,
    )


class _Inside:
    """What a text file does not tell: its ``newline`` and the characters it has read ahead.

    Words of the C object are only compared with the ids of what the garbage collector says it refers
    to, never followed.
    """

    def __init__(self, value: io.TextIOWrapper) -> None:
        words = (ctypes.c_size_t * (io.TextIOWrapper.__basicsize__ // _WORD)).from_address(
            id(value)
        )
        content = list(words)
        known = {id(item): item for item in gc.get_referents(value)}
        encoding, errors = id(value.encoding), id(value.errors)
        try:
            first = content.index(encoding)
            last = content.index(errors, first + 1)
        except ValueError:
            raise Refusal("a text file of an unknown layout", CELL_ADVICE) from None
        if last != first + 4:  # encoding, encoder, decoder, readnl, errors
            raise Refusal("a text file of an unknown layout", CELL_ADVICE)
        self.decoder = known.get(content[first + 2])
        newline = known.get(content[first + 3])
        self.newline: str | None = newline if type(newline) is str else None
        self.unread = ""
        for place in range(last + 1, len(content) - 1):
            item = known.get(content[place])
            used = content[place + 1]
            if type(item) is str and 0 <= used <= len(item):
                self.unread = item[used:]
                break


def _start_of(value: io.TextIOWrapper, inner: _Inside) -> int:
    """Where the unread characters begin, in bytes of the file."""
    raw = getattr(value.buffer, "raw", None)
    if not isinstance(raw, io.FileIO) or inner.decoder is None:
        raise Refusal("an open file in the middle of a loop", CELL_ADVICE)
    pending, flags = inner.decoder.getstate()
    buffer: Any = value.buffer
    end = buffer.tell() - len(pending)
    if flags >> 1 or "\r" in str(pending[-1:], "latin-1"):
        raise Refusal("an open file in the middle of a loop (its decoder has a state)", CELL_ADVICE)
    shortest = len(inner.unread.encode(value.encoding, value.errors or "strict"))
    for more in _spreads(inner):
        begin = end - shortest - more
        if begin < 0:
            break
        raw_bytes = os.pread(raw.fileno(), end - begin, begin)
        text = raw_bytes.decode(value.encoding, "replace")
        if inner.newline is None:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if text == inner.unread:
            return begin
    raise Refusal("an open file in the middle of a loop", CELL_ADVICE)


def _spreads(inner: _Inside) -> list[int]:
    """How many bytes line ends may have lost in translation: none or all of them first."""
    lines = inner.unread.count("\n") if inner.newline is None else 0
    return list(dict.fromkeys((0, lines, *range(1, min(lines, 1000)))))


# --- binary --------------------------------------------------------------------------------------


def reduce_buffered(_pickler: Storing, value: Any) -> Any:
    """A binary file."""
    if value.closed:
        kind = "buffer+" if isinstance(value, io.BufferedRandom) else "buffer"
        return rebuild.closed_file, (kind, value.raw.name, value.raw.mode, None)
    if not isinstance(value.raw, io.RawIOBase):
        raise Refusal("a buffer over something that is not a file", CELL_ADVICE)
    if not isinstance(value, io.BufferedReader):
        value.flush()
    return rebuild.buffered, (type(value), value.raw, value.tell() if value.seekable() else None)


def reduce_raw(pickler: Storing, value: io.FileIO) -> Any:
    """The file itself: name, mode and position; content of the session's folder travels with it."""
    if value.closed:
        return rebuild.closed_file, ("raw", value.name, value.mode, None)
    descriptor = value.fileno()
    status = os.fstat(descriptor)
    path = path_of(descriptor)
    mode = _gentle(value.mode)
    if path == os.devnull:
        return rebuild.raw_file, (path, value.name, mode, 0, 0, False)
    if not stat.S_ISREG(status.st_mode):
        raise Refusal(
            f"an open pipe, terminal or device: {_shown(value.name)}", "close it before the move"
        )
    position = value.tell()
    if not _same(status, path):
        content = _content(descriptor, status, "deleted or replaced", value.name)
        return rebuild_files.deleted_file, (value.name, mode, position, content)
    if Path(path).is_relative_to(pickler.root):
        short = str(Path(path).relative_to(pickler.root))
        return rebuild.raw_file, (short, value.name, mode, position, status.st_size, True)
    if in_temporary(path):
        content = _content(descriptor, status, "a big temporary file", value.name)
        return rebuild_files.outside_file, (path, value.name, mode, position, content)
    return rebuild_files.known_file, (path, value.name, mode, position, print_of(path))


def path_of(descriptor: int) -> str:
    """What a descriptor is open on, as the system knows it."""
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115


def in_temporary(path: str) -> bool:
    """Whether it lies in the folder for temporary files."""
    return any(
        Path(path).is_relative_to(place) for place in {tempfile.gettempdir(), "/tmp", "/dev/shm"}
    )


def print_of(path: str) -> tuple[int, str]:
    """Size and hash of a file; of a big one its time in place of the hash."""
    status = os.stat(path)  # noqa: PTH116
    if status.st_size > CHECKED_BYTES:
        return status.st_size, str(status.st_mtime_ns)
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return status.st_size, hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return status.st_size, str(status.st_mtime_ns)


def _gentle(mode: str) -> str:
    """The mode to open it with again: never one that truncates or insists on a new file."""
    gentle = mode.replace("w", "r").replace("x", "r")
    return gentle + "+" if gentle != mode and "+" not in gentle else gentle


def _same(status: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(status, os.stat(path))  # noqa: PTH116
    except OSError:
        return False


def _content(descriptor: int, status: os.stat_result, why: str, name: Any) -> bytes:
    if status.st_size > SMALL_BYTES:
        raise Refusal(
            f"an open file, {why}: {_shown(name)}",
            "keep files in the session's folder, or close it",
        )
    try:
        return os.pread(descriptor, status.st_size, 0)
    except OSError:  # open for writing only
        with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # noqa: PTH123
            return file.read()


def _shown(name: Any) -> str:
    return name if type(name) is str else f"descriptor {name}" if type(name) is int else "?"


# --- memory-mapped -------------------------------------------------------------------------------


class _Buffer(ctypes.Structure):
    """``Py_buffer``: read-only memory has no other way to tell its address."""

    _fields_ = (
        ("buf", ctypes.c_void_p), ("obj", ctypes.c_void_p), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    )  # fmt: skip


_FULL_RO = 0x11C


def address_of(value: Any) -> int:
    """Where the first element of an object's memory lies."""
    made = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(value), ctypes.byref(made), _FULL_RO)
    try:
        return int(made.buf or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(made))


def reduce_mmap(pickler: Storing, value: mmap.mmap) -> Any:
    """A mapping: of the same part of the file, or of memory with its content."""
    if value.closed:
        return rebuild_files.closed_mapping, ()
    size, position, start = len(value), value.tell(), address_of(value)
    rights, offset, inode, path = _mapping(start)
    writable = "w" in rights
    if not int(inode) or path.startswith(("/dev/zero", "/SYSV")):
        return rebuild_files.memory_mapping, (bytes(memoryview(value)), position, writable)
    if "s" not in rights and writable:
        # A private copy: what was changed is in no file.
        return rebuild_files.memory_mapping, (bytes(memoryview(value)), position, writable)
    if path.endswith(" (deleted)") or not Path(path).exists():
        return rebuild_files.memory_mapping, (bytes(memoryview(value)), position, writable)
    if "s" in rights and writable:
        value.flush()
    inside = Path(path).is_relative_to(pickler.root)
    shown = str(Path(path).relative_to(pickler.root)) if inside else path
    content = None
    if not inside:
        if not in_temporary(path) or Path(path).stat().st_size > SMALL_BYTES:
            raise Refusal(f"a memory-mapped file outside the session's folder: {path}", CELL_ADVICE)
        content = Path(path).read_bytes()
    return rebuild_files.file_mapping, (shown, inside, content, size, offset, position, writable)


def _mapping(start: int) -> tuple[str, int, str, str]:
    """Rights, offset in the file, inode and path of the mapping at an address."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        for line in file:
            found = _MAPPING.match(line.rstrip("\n"))
            if found and int(found[1], 16) <= start < int(found[2], 16):
                offset = int(found[4], 16) + start - int(found[1], 16)
                return found[3], offset, found[5], found[6]
    raise Refusal("a memory mapping that is not to be found", CELL_ADVICE)
