"""The files of the working directory, by content, beside the captures of a kernel that tracks on its own.

An index says how every file stood at one moment between cells. A restore writes what is missing; before a
cell is run again, what its first run changed is put back as it was, and the later version is kept aside.
Runs on a thread of its own; a cell waits at most a few milliseconds for it. Bounded, never follows links.
"""

import contextlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from typing import Any

from roost.runtime.kernel.chunks import Reader, Writer
from roost.runtime.kernel.format import KEPT, REBUILT, REFUSED, Entry, Extent, FormatError

FOLDER = "files"
"""In the store: indexes, chunks, and versions kept aside."""
FILES = 5_000
FILE_BYTES = 64 << 20
TOTAL_BYTES = 512 << 20
"""What travels at most: so many files, each and all together up to so many bytes."""
QUICK_S = 0.02
QUICK_BYTES = 4 << 20
"""What a beginning cell waits for at most when cells follow each other."""
BUSY = 10
"""On a busy machine, so many times that of the clock."""
FRESH_NS = 20_000_000
"""A file as young as this may change again without another time stamp: it is read again."""
KEEP = 8
"""Indexes kept."""
NAMED = 8
"""Files a report names one by one."""

_SKIPPED = frozenset({"__pycache__", "node_modules", "restore-report.json"})
_OPEN_ELSEWHERE = (".ipynb",)
"""Saved by the page at any time: never put back over a newer one."""


@dataclass(frozen=True, slots=True)
class Known:
    """One file as it stood."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int
    chunks: tuple[tuple[str, int], ...] | None = None
    """Digest and size of its chunks; None: its content was not stored."""

    def looks_like(self, other: "Known") -> bool:
        """The same by its stamps."""
        return (self.size, self.mtime_ns, self.ctime_ns, self.inode) == (
            other.size, other.mtime_ns, other.ctime_ns, other.inode,
        )  # fmt: skip


@dataclass(slots=True)
class Index:
    """All files at one moment."""

    number: int = 0
    files: dict[str, Known] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Path -> why its content does not travel."""


class Stopped(Exception):
    """A cell has begun, or the time is over: the look is void."""


class Workfiles:
    """Looks at one working directory. ``before``, ``at_pause`` and ``rests`` on the main thread."""

    def __init__(self, store: Path, root: Path) -> None:
        self._folder = store / FOLDER
        self._root = root
        self._store = store
        self._writer = Writer(self._folder)
        self._last: Index | None = newest(store)
        self._current = False
        """The last index is how the files stand now: no cell has run since."""
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._stop = threading.Event()
        """A cell runs."""
        self._closed = False
        self._held = -1
        threading.Thread(target=self._run, name="roost-files", daemon=True).start()

    # --- cells ---------------------------------------------------------------------------------------

    def before(self) -> int:
        """A cell begins: number of the index of how the files stand; -1 when that took too long."""
        self._stop.set()
        with self._lock:
            if not self._current:
                self._look(BUSY * QUICK_S, QUICK_BYTES, cpu_s=QUICK_S)
            number = self._last.number if self._current and self._last else -1
            self._held = number
            self._current = False
            return number

    def at_pause(self, seconds: float) -> int:
        """The same inside a cell that stands still, with more time."""
        with self._lock:
            self._look(seconds, TOTAL_BYTES)
            number = self._last.number if self._current and self._last else -1
            self._current = False
            return number

    def rests(self) -> None:
        """No cell runs, and none has come for a moment: look."""
        self._stop.clear()
        self._wanted.set()

    def close(self) -> None:
        """No more looks."""
        self._closed = True
        self._stop.set()
        self._wanted.set()

    # --- looking -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._closed:
                return
            with self._lock:
                if not self._stop.is_set() and not self._current:
                    self._look(float("inf"), TOTAL_BYTES, self._stop.is_set)
                    self._collect()

    def _look(
        self,
        seconds: float,
        limit: int,
        stopped: Callable[[], bool] = lambda: False,
        cpu_s: float = float("inf"),
    ) -> None:
        """Bring the index up to date; whether that worked is in ``_current``."""
        until, until_cpu = time.monotonic() + seconds, time.thread_time() + cpu_s

        def check() -> None:
            # On a busy machine the same work takes longer: without an index files cannot be put back.
            if stopped() or time.monotonic() > until or time.thread_time() > until_cpu:
                raise Stopped

        try:
            made = self._index(limit, check)
            if self._last is None or _differ(made, self._last):
                made.number = (self._last.number if self._last else 0) + 1
                _write(self._folder, made)
                self._last = made
            self._current = True
        except (OSError, Stopped, RecursionError):
            self._current = False  # a full disk costs the files, never the cell

    def _index(self, limit: int, check: Callable[[], None]) -> Index:
        made = Index()
        former = self._last.files if self._last else {}
        total, now = 0, time.time_ns()
        for path, found in _walk(self._root, self._store, made, check):
            known = former.get(path)
            total += found.size
            if found.size > FILE_BYTES or total > TOTAL_BYTES:
                each = found.size > FILE_BYTES
                bound = f"{FILE_BYTES >> 20} MiB" if each else f"{TOTAL_BYTES >> 20} MiB in all"
                made.left_out[path] = f"larger than {bound}"
                total -= found.size
            elif known and known.looks_like(found) and known.chunks is not None:
                made.files[path] = known
                continue
            elif found.size <= limit:
                limit -= found.size
                stored = self._content(path, found, check)
                if stored is not None and now - found.mtime_ns < FRESH_NS:
                    stored = Known(found.size, 0, 0, 0, found.mode, stored.chunks)
                found = stored or found
            made.files[path] = found
        return made

    def _content(self, path: str, found: Known, check: Callable[[], None]) -> Known | None:
        """Store a file's content; None when it changes meanwhile or may not be read."""
        chunks = []
        try:
            with (self._root / path).open("rb", buffering=0) as file:
                while part := file.read(4 << 20):
                    check()
                    chunks.append((self._writer.put(part), len(part)))
                after = _known(os.fstat(file.fileno()))
        except PermissionError:
            return None
        if not found.looks_like(after) or sum(size for _, size in chunks) != found.size:
            return None
        return Known(
            found.size, found.mtime_ns, found.ctime_ns, found.inode, found.mode, tuple(chunks)
        )

    def _collect(self) -> None:
        """Delete old indexes, and the chunks no other needs."""
        numbers = _numbers(self._folder)
        kept = {*numbers[-KEEP:], self._held}
        if len(numbers) <= KEEP:
            return
        needed: set[str] = set()
        for number in numbers:
            index = read_index(self._store, number) if number in kept else None
            if index is None:
                _index_path(self._folder, number).unlink(missing_ok=True)
            else:
                for known in index.files.values():
                    needed.update(digest for digest, _ in known.chunks or ())
        with contextlib.suppress(OSError), os.scandir(self._folder / "chunks") as entries:
            for entry in entries:
                if entry.name not in needed:
                    Path(entry.path).unlink(missing_ok=True)


def _known(status: os.stat_result) -> Known:
    return Known(
        status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino,
        stat.S_IMODE(status.st_mode),
    )  # fmt: skip


def _walk(
    root: Path, store: Path, made: Index, check: Callable[[], None]
) -> Iterator[tuple[str, Known]]:
    """Every plain file below the root with its stamps; what is left out goes into ``made``."""
    todo, count = [""], 0
    own = str(store)
    while todo:
        folder = todo.pop()
        check()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError:
            made.left_out[folder] = "it cannot be read"
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name in _SKIPPED or entry.path == own:
                continue
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith("."):
                    made.folders.append(path)
                    todo.append(path)
            elif entry.is_file(follow_symlinks=False):
                count += 1
                if count > FILES:
                    made.left_out["..."] = f"more than {FILES} files"
                    return
                with contextlib.suppress(OSError):  # gone meanwhile
                    yield path, _known(entry.stat(follow_symlinks=False))


# --- indexes on disk ---------------------------------------------------------------------------------


def _differ(one: Index, other: Index) -> bool:
    return (one.files, one.folders, one.left_out) != (other.files, other.folders, other.left_out)


def _index_path(folder: Path, number: int) -> Path:
    return folder / f"index-{number}.json"


def _numbers(folder: Path) -> list[int]:
    found = []
    for path in folder.glob("index-*.json"):
        with contextlib.suppress(ValueError):
            found.append(int(path.stem.removeprefix("index-")))
    return sorted(found)


def _write(folder: Path, index: Index) -> None:
    rows = {
        path: [k.size, k.mtime_ns, k.ctime_ns, k.inode, k.mode, k.chunks]
        for path, k in index.files.items()
    }
    content = {"files": rows, "folders": index.folders, "left_out": index.left_out}
    path = _index_path(folder, index.number)
    part = path.with_suffix(".part")
    part.write_text(dumps(content, separators=(",", ":")))
    part.rename(path)


def read_index(store: Path, number: int) -> Index | None:
    """One stored index; None when there is none or it is damaged."""
    try:
        content = loads(_index_path(store / FOLDER, number).read_text())
        files = {str(path): _row(row) for path, row in content["files"].items()}
        return Index(number, files, list(content["folders"]), dict(content["left_out"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _row(row: list[Any]) -> Known:
    size, mtime_ns, ctime_ns, inode, mode, chunks = row
    stored = None if chunks is None else tuple((str(d), int(n)) for d, n in chunks)
    return Known(int(size), int(mtime_ns), int(ctime_ns), int(inode), int(mode), stored)


def newest(store: Path) -> Index | None:
    """The newest index of a store."""
    for number in reversed(_numbers(store / FOLDER)):
        index = read_index(store, number)
        if index is not None:
            return index
    return None


# --- putting back ------------------------------------------------------------------------------------


class Return:
    """Brings the files of a store back into a working directory."""

    def __init__(self, store: Path, root: Path) -> None:
        self._store = store
        self._root = root
        self._reader = Reader(store / FOLDER)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self._aside = store / FOLDER / "aside" / f"{stamp}-{os.getpid()}"
        self.report: list[Entry] = []

    def missing(self) -> None:
        """Write the files that are not there, as the newest index has them."""
        index = newest(self._store)
        if index is None:
            return
        written = []
        for path, known in index.files.items():
            if not _safe(path) or os.path.lexists(self._root / path):
                continue
            if self._write(path, known):
                written.append(path)
        for folder in index.folders:
            if _safe(folder):
                with contextlib.suppress(OSError):
                    (self._root / folder).mkdir(parents=True, exist_ok=True)
        for path, why in index.left_out.items():
            if path != "..." and not os.path.lexists(self._root / path):
                self._refuse(path, f"not here, and its content did not travel: {why}")
        if written:
            self.report.append(Entry("files", KEPT, f"written: {_some(written)}"))

    def before(self, number: int, since_s: float) -> None:
        """Put everything back as index ``number`` has it: what changed after ``since_s`` is undone."""
        index = read_index(self._store, number)
        if index is None:
            why = "how the files stood before the cell that is run again is not known"
            self.report.append(Entry("files", REFUSED, why, "look whether it wrote any twice"))
            return
        now = Index()
        there = dict(_walk(self._root, self._store, now, lambda: None))
        restored = [
            path
            for path, known in index.files.items()
            if _safe(path) and self._restore(path, known, there.get(path))
        ]
        removed = []
        since_ns = int(since_s * 1e9) - FRESH_NS
        for path, found in there.items():
            known_before = path in index.files or path in index.left_out
            if known_before or found.ctime_ns < since_ns or path.endswith(_OPEN_ELSEWHERE):
                continue
            if self._put_aside(path):
                removed.append(path)
        for folder in sorted(set(now.folders) - set(index.folders), reverse=True):
            with contextlib.suppress(OSError):
                (self._root / folder).rmdir()  # only when it is empty
        said = []
        if restored:
            said.append(f"put back as before the cell: {_some(restored)}")
        if removed:
            said.append(f"taken away, the cell had made them: {_some(removed)}")
        if said:
            if self._aside.exists():
                said.append(f"later versions are kept in {self._aside}")
            self.report.append(Entry("files", REBUILT, "; ".join(said)))

    def _restore(self, path: str, known: Known, found: Known | None) -> bool:
        if found is not None and (
            known.looks_like(found) or path.endswith(_OPEN_ELSEWHERE) or self._equal(path, known)
        ):
            return False
        if known.chunks is None:
            self._refuse(
                path, "changed by the cell that is run again, and its content was not stored"
            )
            return False
        if found is not None and not self._put_aside(path):
            return False
        return self._write(path, known)

    def _equal(self, path: str, known: Known) -> bool:
        """Whether the file has this content whatever its stamps are."""
        try:
            return (
                known.chunks is not None
                and (self._root / path).stat().st_size == known.size
                and (self._root / path).read_bytes() == self._content(known)
            )
        except (OSError, ValueError):
            return False

    def _content(self, known: Known) -> bytes:
        extents = tuple(Extent(digest, 0, size) for digest, size in known.chunks or ())
        return self._reader.content(extents) if extents else b""

    def _put_aside(self, path: str) -> bool:
        target = self._aside / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(self._root / path, target)
        except OSError as error:
            self._refuse(path, f"not put back: {error.strerror or error}")
            return False
        return True

    def _write(self, path: str, known: Known) -> bool:
        target = self._root / path
        part = target.with_name(f".{target.name}.roost-part")
        try:
            if known.chunks is None:
                raise ValueError("its content was not stored")
            target.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(self._content(known))
            part.chmod(known.mode)
            if known.mtime_ns:
                os.utime(part, ns=(known.mtime_ns, known.mtime_ns))
            part.rename(target)
        except (OSError, ValueError, FormatError) as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._refuse(path, f"not written: {error}")
            return False
        return True

    def _refuse(self, path: str, why: str) -> None:
        self.report.append(Entry(f"file {path}", REFUSED, why, "copy it yourself"))


def _safe(path: str) -> bool:
    """Below the working directory: an index is only a file."""
    return not path.startswith("/") and ".." not in path.split("/")


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(sorted(paths)[:NAMED]) + more
