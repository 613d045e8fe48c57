"""Which pages of big buffers were written since they were last read, from Linux itself (6.7 and later).

A page is write-protected asynchronously (userfaultfd): the first write to it costs about a microsecond and
takes the protection away, nobody is woken. A scan of the page map then tells the pages that still have it;
only these count as unchanged. Whatever the scan does not vouch for is read: new mappings at an old address,
memory given back, pages that were never there. Memory that others could write behind the page tables (shared
mappings, devices, io_uring) is never watched. Where the kernel does not offer this, or a trial shows that it
does not work, nothing is watched and everything is read.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

WATCH_BYTES = 1 << 20
"""Buffers from this size are worth it."""
PAGE = mmap.PAGESIZE

_NUMBERS = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_API, _API_IOCTL = 0xAA, 0xC018AA3F
_FEATURES = 1 << 13 | 1 << 15
"""Pages that are not there yet are protected too; asynchronously."""
_REGISTER, _UNREGISTER, _PROTECT = 0xC020AA00, 0x8010AA01, 0xC018AA06
_MODE_WP, _WP_ON = 2, 1
_SCAN, _SCAN_BYTES, _ASYNC_ONLY = 0xC0606610, 96, 2
_ALLOWED, _WRITTEN, _PRESENT, _SWAPPED, _ZERO = 1, 2, 8, 16, 32
_REGIONS = 4096
"""Regions that one scan tells."""
_ENTRY = 8
"""Bytes of a page in the page map; the last says: present, of a file, no other process maps it."""
_OWN = bytes(byte not in (0x80, 0xA0, 0xA1) for byte in range(256))
"""That last byte -> 0 where the page is shared with another process or still the file's, else 1."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_CHUNK_FILE = re.compile(r"/chunks/[0-9a-f]{64}")

Range = tuple[int, int]


class Unwatched(Exception):
    """This memory is not, or no longer, watched: all of it may have changed."""


class Pages:
    """The watched memory of this process. From any thread; in a forked child nothing is watched."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._handle = self._map = -1
        self._mark = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._mark[0] = 1
        try:
            self._open()
            self.works = _trial(self)
        except (OSError, KeyError, Unwatched):
            self.works = False
        if not self.works:
            self._close()

    def alone(self) -> bool:
        """Whether nobody writes past the page tables of this process: devices and io_uring may hold pages of
        it and write to them at any time."""
        if not self._here or _DEVICE.search(Path("/proc/self/maps").read_bytes()):
            return False
        return not _direct()

    def watch(self, start: int, size: int) -> bool:
        """Watch a range from now on; whether that is possible. What it holds is to be read after this."""
        low, high = _around(start, size)
        if not self._here or not _private(low, high):
            return False
        try:
            # With the pages at both ends, which allocators own too: a mapping that is cut in pieces could
            # not be moved or grown any more.
            self._ioctl(_REGISTER, struct.pack("QQQQ", low, high - low, _MODE_WP, 0))
            self._protect(*_whole(start, size))
        except OSError:
            return False
        return True

    def leave(self, start: int, size: int) -> None:
        """Watch a range no more."""
        low, high = _around(start, size)
        if self._here:
            with contextlib.suppress(OSError):  # it is gone
                self._ioctl(_UNREGISTER, struct.pack("QQ", low, high - low))

    def changed(self, start: int, size: int) -> list[Range]:
        """Parts of a range (as offsets) that may have been written since ``watch`` or this call; they are to
        be read after it. Raises ``Unwatched``."""
        low, high = _whole(start, size)
        if not self._here:
            raise Unwatched
        with self._lock:
            try:
                wanted = _ALLOWED | _WRITTEN
                same = list(_scan(self._map, low, high, (_WRITTEN, wanted, _PRESENT | _SWAPPED)))
                rest = _between(same, low, high)
                for first, last in rest:
                    self._protect(first, last)
            except OSError as error:
                raise Unwatched from error
        # The pages at both ends belong to others too.
        edges = [(start, low), *rest, (high, start + size)]
        return [(first - start, last - start) for first, last in edges if first < last]

    def own(self, start: int, size: int) -> list[Range]:
        """In a forked child: parts of a range (as offsets, whole pages) that it may have written since the
        fork. Pages that it shares with its parent are as they were then; those that the parent has written
        meanwhile cannot be told from its own."""
        low, high = _whole(start, size)
        try:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as map_:
                handle = map_.fileno()
                if not self._tells(handle):
                    return [(low - start, high - start)]
                return [(first - start, last - start) for first, last in _own(handle, low, high)]
        except OSError:
            return [(low - start, high - start)]

    def _tells(self, handle: int) -> bool:
        """Whether a shared page and one of its own can be told apart here, by their effects."""
        with mmap.mmap(-1, 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[0] = 1
            start = address_of(memory)
            own = _own(handle, start, start + 2 * PAGE)
        mark = address_of(self._mark)
        return own == [(start, start + 2 * PAGE)] and not _own(handle, mark, mark + PAGE)

    @property
    def _here(self) -> bool:
        return self.works and os.getpid() == self._pid

    def _open(self) -> None:
        number = _NUMBERS[platform.machine()]
        flags = os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY
        self._handle = _LIBC.syscall(number, flags)
        if self._handle < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        self._ioctl(_API_IOCTL, struct.pack("QQQ", _API, _FEATURES, 0))
        self._map = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def _close(self) -> None:
        for handle in (self._handle, self._map):
            if handle >= 0:
                os.close(handle)
        self._handle = self._map = -1

    def _ioctl(self, number: int, argument: bytes) -> None:
        fcntl.ioctl(self._handle, number, bytearray(argument))

    def _protect(self, low: int, high: int) -> None:
        while True:
            try:
                self._ioctl(_PROTECT, struct.pack("QQQ", low, high - low, _WP_ON))
                return
            except OSError as error:
                if error.errno != errno.EAGAIN:  # the mappings change at this moment
                    raise


def _scan(handle: int, low: int, high: int, categories: tuple[int, int, int]) -> Iterator[Range]:
    """Ranges of pages in these categories: inverted ones, all of which, any of which (PAGEMAP_SCAN)."""
    found = (ctypes.c_uint64 * (3 * _REGIONS))()
    inverted, every, some = categories
    while low < high:
        argument = bytearray(
            struct.pack(
                "12Q", _SCAN_BYTES, _ASYNC_ONLY if every & _ALLOWED else 0, low, high, 0,
                ctypes.addressof(found), _REGIONS, 0, inverted, every, some, every,
            )
        )  # fmt: skip
        count = fcntl.ioctl(handle, _SCAN, argument)
        for index in range(0, 3 * count, 3):
            yield found[index], found[index + 1]
        low = struct.unpack_from("Q", argument, 32)[0]


def _own(handle: int, low: int, high: int) -> list[Range]:
    """Pages of this process that no other one maps, or that are not there."""
    count = (high - low) // PAGE
    entries = os.pread(handle, count * _ENTRY, low // PAGE * _ENTRY)
    if len(entries) < count * _ENTRY:
        return [(low, high)]
    bad = bytearray(entries[_ENTRY - 1 :: _ENTRY].translate(_OWN))
    # The page of zeros is everybody's: memory that was given back reads like it.
    filled = list(_scan(handle, low, high, (_ZERO, _PRESENT | _ZERO, _PRESENT)))
    for first, last in _between(filled, low, high):
        at, end = (first - low) // PAGE, (last - low) // PAGE
        bad[at:end] = b"\1" * (end - at)
    runs = []
    end = 0
    while (at := bad.find(1, end)) >= 0:
        end = bad.find(0, at)
        end = count if end < 0 else end
        runs.append((low + at * PAGE, low + end * PAGE))
    return runs


def _whole(start: int, size: int) -> Range:
    """The whole pages inside a range."""
    low = -(-start // PAGE) * PAGE
    return low, max(low, (start + size) // PAGE * PAGE)


def _around(start: int, size: int) -> Range:
    """All pages that hold something of a range."""
    return start // PAGE * PAGE, -(-(start + size) // PAGE) * PAGE


def _between(same: Sequence[Range], low: int, high: int) -> list[Range]:
    """What lies between parts in order."""
    found = []
    for first, last in (*same, (high, high)):
        if low < first:
            found.append((low, first))
        low = max(low, last)
    return found


def _private(low: int, high: int) -> bool:
    """Whether only this process, by its own page tables, can write there."""
    at = low
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        fields = line.split(None, 5)
        first, _, last = fields[0].partition("-")
        begin, end = int(first, 16), int(last, 16)
        if end <= at or begin >= high:
            continue
        plain = fields[4] == "0" or _CHUNK_FILE.search(fields[5]) is not None
        if begin > at or fields[1][3] != "p" or not plain:
            return False
        at = end
    return at >= high


_DEVICE = re.compile(rb" (/dev/(?!shm/|zero)|anon_inode:\[io_uring\])")


def _direct() -> bool:
    """Whether a file is open past the page cache: the disk itself writes into memory then."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # that of the listing is gone
            if fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_DIRECT:
                return True
    return False


def _trial(pages: Pages) -> bool:
    """Whether it works here, by its effects."""
    pages.works = True
    with mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"x" * (8 * PAGE)
        start = address_of(memory)
        if not pages.watch(start, 8 * PAGE) or pages.changed(start, 8 * PAGE):
            return False
        memory[2 * PAGE] = 1
        with Path("/proc/self/stat").open("rb", buffering=0) as file:
            file.readinto(memoryview(memory)[4 * PAGE : 4 * PAGE + 16])
        memory.madvise(mmap.MADV_DONTNEED, 6 * PAGE, PAGE)
        told = pages.changed(start, 8 * PAGE)
        pages.leave(start, 8 * PAGE)
        return told == [(n * PAGE, (n + 1) * PAGE) for n in (2, 4, 6)]


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
        ("rest", ctypes.c_char * 80),
    )  # fmt: skip


def address_of(view: object) -> int:
    """Where the memory of a buffer lies, of a read-only one too."""
    found = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(found), 0)
    try:
        return int(found.buf or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))


pages = Pages()
"""Those of this process."""
