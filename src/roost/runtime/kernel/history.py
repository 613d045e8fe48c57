"""Earlier moments of a session: what is stored of them, going back to one, and branches."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from roost.runtime.kernel.cells import Cell, from_block
from roost.runtime.kernel.chunks import DamagedChunk, Reader
from roost.runtime.kernel.engine import Engine
from roost.runtime.kernel.format import (
    REFUSED,
    FormatError,
    Manifest,
    chunk_digests,
    chunk_path,
    manifest_numbers,
    manifest_path,
    read,
    variables,
)
from roost.runtime.kernel.journal import own_lines

WIDTH = 44
"""Characters of a cell that a table shows."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One stored moment."""

    number: int
    count: int
    """Number of its last cell; 0 when it had none."""
    code: str
    """The first line of that cell."""
    created_s: float
    bytes_total: int


def moments(directory: Path) -> list[Moment]:
    """All that are stored and readable, oldest first."""
    reader = Reader(directory)
    found = []
    for number in manifest_numbers(directory):
        manifest = _read(directory, number)
        if manifest is None:
            continue
        cell = _last_cell(reader, manifest)
        line = cell.code.strip().splitlines()[0] if cell and cell.code.strip() else ""
        count = cell.count if cell else 0
        found.append(Moment(number, count, line, manifest.created_s, manifest.bytes_total))
    return found


def table(directory: Path) -> list[str]:
    """The same for a person."""
    rows = [f"{'number':>6}  {'cell':>5}  {'when':8}  {'MB':>8}  "]
    for one in moments(directory):
        when = time.strftime("%H:%M:%S", time.localtime(one.created_s))
        code = one.code if len(one.code) <= WIDTH else f"{one.code[: WIDTH - 1]}…"
        size = one.bytes_total / 1e6
        rows.append(f"{one.number:>6}  {one.count or '':>5}  {when:8}  {size:8.1f}  {code}")
    return rows


def before_last(directory: Path, log: Iterable[Cell]) -> int:
    """Number of the newest moment before the last cell of a log; 0: none is stored.

    Cells that only talk to Roost do not count.
    """
    last = next((c for c in reversed([*log]) if c.msg_id and not own_lines(c.code)), None)
    if last is None:
        return 0
    for number in reversed(manifest_numbers(directory)):
        manifest = _read(directory, number)
        if manifest is not None and last.msg_id not in manifest.finished:
            return number
    return 0


def go_back(engine: Engine, directory: Path, number: int) -> list[str]:
    """Take up an earlier moment in this kernel, from inside a cell. Names made since are gone; returns those
    that were there and could not be stored, which stay as they are. Raises ``CannotRestore``.
    """
    space = engine.shell.user_ns
    before = [name for name, _ in engine.collector.variables() if name in space]
    path = manifest_path(directory, number)
    with contextlib.suppress(
        Exception
    ):  # numbers of cells come again: a new part of the stored history
        engine.shell.history_manager.writeout_cache()
        engine.shell.history_manager.new_session()
    done = engine.restore(directory, path, in_cell=True, replay=False)
    refused = {entry.name for entry in done.manifest.report if entry.outcome == REFUSED}
    known = variables(done.manifest).keys() | refused
    for name in before:
        if name not in known:
            space.pop(name, None)
    if engine.mover is not None:
        engine.mover.journal.undone()
    return sorted(refused.intersection(before))


def branch(directory: Path, number: int, target: Path) -> int:
    """Copy one moment into another directory, for a kernel of its own; the bytes it took anew.

    Raises ``OSError`` and ``FormatError``; ``FileExistsError`` when a session lives there.
    """
    if manifest_numbers(target):
        raise FileExistsError(17, "it holds another session already", str(target))
    manifest = read(manifest_path(directory, number))
    (target / "chunks").mkdir(parents=True, exist_ok=True, mode=0o700)
    new = sum(
        _same(chunk_path(directory, d), chunk_path(target, d)) for d in chunk_digests(manifest)
    )
    part = manifest_path(target, number).with_suffix(".part")
    shutil.copyfile(manifest_path(directory, number), part)
    part.rename(manifest_path(target, number))
    return new


def _same(source: Path, target: Path) -> int:
    """The file there too, as a link where the file system is the same."""
    with contextlib.suppress(FileExistsError):
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:
            shutil.copyfile(source, target)
            return source.stat().st_size
    return 0


def _read(directory: Path, number: int) -> Manifest | None:
    try:
        return read(manifest_path(directory, number))
    except (OSError, FormatError):
        return None


def _last_cell(reader: Reader, manifest: Manifest) -> Cell | None:
    try:
        for extent in reversed(manifest.cells):
            cells = [c for c in from_block(reader.content((extent,))) if not own_lines(c.code)]
            if cells:
                return cells[-1]
    except (OSError, ValueError, TypeError, DamagedChunk):
        pass
    return None
