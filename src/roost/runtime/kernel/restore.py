"""Puts a captured moment back into this kernel, and says what became of every variable.

Runs on the main thread. One group's failure never costs the others; nothing is left out silently.
"""

import contextlib
import gc
import linecache
import pickle
import platform
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from json import loads
from pathlib import Path
from typing import Any

from roost.runtime.kernel import (
    checks,
    process,
    rebuild,
    rebuild_state,
    rebuild_tasks,
    rebuild_widgets,
)
from roost.runtime.kernel.cells import Cell, from_block
from roost.runtime.kernel.chunks import DamagedChunk, Reader, mapped
from roost.runtime.kernel.format import (
    KEPT,
    LOOP,
    REBUILT,
    REFUSED,
    Entry,
    Extent,
    FormatError,
    Group,
    Manifest,
    Rebuild,
    manifest_numbers,
    manifest_path,
    read,
)
from roost.runtime.kernel.process import libraries
from roost.runtime.kernel.proving import Opening, Unproven
from roost.runtime.kernel.quiet import quiet

DAMAGED = "stored bytes are damaged"
AGAIN = "run the cells that make it again"
_RESULT = re.compile(r"Out\[(\d+)\]")


class CannotRestore(Exception):
    """Nothing was changed; ``code`` is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Restored:
    """The outcome."""

    manifest: Manifest
    cells: list[Cell]
    report: list[Entry] = field(default_factory=list)
    seconds: float = 0.0
    in_context: dict[str, Any] = field(default_factory=dict)
    """Values of ``process.IN_CONTEXT``."""
    loops: dict[int, Any] = field(default_factory=dict)
    """Iterators of the loops that the running cell stood in, by number."""
    unproven: Unproven | None = None
    """Variables whose bytes are still being verified."""


def restore(
    directory: Path,
    manifest_file: Path,
    shell: Any,
    base: process.Baseline,
    *,
    in_cell: bool = False,
) -> Restored:
    """Restore into the namespace of ``shell``. ``in_cell``: from inside a cell, which counts as one.

    Raises ``CannotRestore`` before anything is changed: unreadable, damaged, newer, another Python.
    """
    begun = time.perf_counter()
    manifest = checked(manifest_file)
    reader = Reader(directory)
    cells, told = _log(reader, manifest)
    done = Restored(manifest, cells, told)
    rebuild.set_root(base.root)
    job = _Restore(manifest, reader, shell, base, done)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with quiet():
            job.run()
        # Not while all is quiet: that ends with the warnings' own settings as they were.
        job.state()
    finally:
        if collecting:
            gc.enable()
    _history(shell, cells, manifest.execution_count, in_cell=in_cell)
    # Last: whatever ran until now may have drawn random numbers or changed the filters.
    for name in process.AFTER:
        value = job.piece(name, process.AFTER)
        if value is not None and name in process.IN_CONTEXT:
            done.in_context[name] = value
    done.unproven = job.unproven
    done.seconds = time.perf_counter() - begun
    done.report.sort(key=lambda entry: entry.name)
    return done


def checked(path: Path) -> Manifest:
    """The manifest, when this kernel can take it. Raises ``CannotRestore``."""
    try:
        manifest = read(path)
    except OSError as error:
        raise CannotRestore("unreadable", f"{path}: {error.strerror or error}") from error
    except FormatError as error:
        code = "newer_format" if "newer" in str(error) else "damaged"
        raise CannotRestore(code, str(error)) from error
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if manifest.python != here:
        message = f"captured with Python {manifest.python}, this kernel runs {here}"
        raise CannotRestore("python_version", f"{message}: use the same minor version")
    if manifest.machine != platform.machine():
        message = f"captured on {manifest.machine}, this machine is {platform.machine()}"
        raise CannotRestore("machine", f"{message}: choose a host of the same architecture")
    return manifest


def _log(reader: Reader, manifest: Manifest) -> tuple[list[Cell], list[Entry]]:
    """The cell log, of an older checkpoint when its bytes are damaged. Raises ``CannotRestore``."""
    fault: Exception | None = None
    for one in (manifest, *_older(reader.directory, manifest.number)):
        try:
            cells = [c for extent in one.cells for c in from_block(reader.content((extent,)))]
        except (OSError, ValueError, TypeError) as error:
            fault = fault or error
            continue
        if one is manifest:
            return cells, []
        reason = f"as it was in checkpoint {one.number}: {fault}"
        return cells, [Entry("In", REBUILT, reason, "the newest cells' text is lost")]
    raise CannotRestore("damaged", f"the cell log cannot be read: {fault}")


def _older(directory: Path, number: int) -> Iterator[Manifest]:
    """The checkpoints before this one that can be read, newest first."""
    for one in reversed(manifest_numbers(directory)):
        if one < number:
            with contextlib.suppress(OSError, FormatError):
                yield read(manifest_path(directory, one))


class _Restore:
    def __init__(
        self,
        manifest: Manifest,
        reader: Reader,
        shell: Any,
        base: process.Baseline,
        done: Restored,
    ) -> None:
        self._manifest = manifest
        self._reader = reader
        self._shell = shell
        self._base = base
        self._report = done.report
        self._loops = done.loops
        self._in_context = done.in_context
        self._pieces: dict[str, Any] = {}
        self._figures: dict[int, Any] = {}
        self.unproven = Unproven(reader, self._amend)

    def run(self) -> None:
        """Everything up to the rebuilt variables."""
        for name in process.BEFORE:
            self.piece(name, process.BEFORE)
        for name in self._manifest.imports:
            process.bring_in(name)  # a variable that needs it says so
        for name, module in self._manifest.modules.items():
            reason = "" if module in rebuild_state.MODULES else process.bring_in(module)
            if reason:
                self._report.append(Entry(name, REFUSED, reason, f"install {module} and import it"))
            else:
                self._set(name, rebuild_state.module(module))
                if not name.startswith(process.PREFIX):
                    self._report.append(Entry(name, KEPT))
        for name in self._manifest.namespaces:
            self._set(name, self._shell.user_ns)
            self._report.append(Entry(name, KEPT))
        self._groups()
        for recipe in self._manifest.rebuilds:
            self._rebuild(recipe)
        self._compare()
        self._told()

    def piece(self, name: str, pieces: dict[str, tuple[process.Get, process.Set]]) -> Any:
        """One piece of process state; its value, None when there is none or it failed."""
        extents = self._manifest.state.get(name)
        if extents is None:
            return None
        try:
            value = pickle.loads(self._bytes(name, extents))
            pieces[name][1](value, self._base, self._shell)
        except Exception as error:  # one piece never costs the others
            self._report.append(Entry(f"process: {name}", REFUSED, _reason(error)))
            return None
        return value

    def _bytes(self, name: str, extents: tuple[Extent, ...]) -> bytes:
        """A piece's pickle, an older one when it is damaged: then the report says so."""
        try:
            return self._reader.content(extents)
        except DamagedChunk:
            for former in _older(self._reader.directory, self._manifest.number):
                with contextlib.suppress(DamagedChunk, KeyError):
                    content = self._reader.content(former.state[name])
                    self._report.append(Entry(f"process: {name}", REBUILT, _former(former.number)))
                    return content
            raise

    def _groups(self) -> None:
        """Open every group; one that needs another is tried again after it."""
        self._reader.begin(buffer for group in self._manifest.groups for buffer in group.buffers)
        waiting = list(self._manifest.groups)
        faults: dict[tuple[str, ...], str] = {}
        while waiting:
            failed = []
            for group in waiting:
                reason = self._open(group, later=self._later(group))
                if reason:
                    faults[group.names] = reason
                    failed.append(group)
            if len(failed) == len(waiting):
                break
            waiting = failed
        for group in waiting:
            lost = set(group.names)
            if faults[group.names].startswith(DAMAGED):
                lost -= self._former(group)
            self._report += [
                Entry(n, REFUSED, faults[group.names], AGAIN) for n in group.names if n in lost
            ]
        # What runs code of the notebook before the next cell may look at any variable.
        if self._manifest.rebuilds or any(
            name.startswith(("task ", "timer ")) for g in self._manifest.groups for name in g.names
        ):
            self.unproven.settle()

    def _later(self, group: Group) -> bool:
        """Whether the group's memory may be verified while it lies in the namespace: plain variables."""
        return all(name.isidentifier() and not name.startswith("_") for name in group.names)

    def _amend(self, group: Group) -> list[Entry]:
        """A group that lies in the namespace is damaged: nobody has seen it yet."""
        space = self._shell.user_ns
        for name in group.names:
            space.pop(name, None)
        self._report[:] = [entry for entry in self._report if entry.name not in group.names]
        told = len(self._report)
        with quiet():
            lost = set(group.names) - self._former(group)
        self._report += [Entry(n, REFUSED, DAMAGED, AGAIN) for n in group.names if n in lost]
        amended = self._report[told:]
        self._report.sort(key=lambda entry: entry.name)
        return amended

    def _former(self, group: Group) -> set[str]:
        """Open the newest older state of variables whose stored bytes are damaged; the report says so.

        Returns the variables that were there.
        """
        left, tried = set(group.names), [group]
        for manifest in _older(self._reader.directory, self._manifest.number):
            for former in manifest.groups:
                names = left.intersection(former.names)
                if not names or former in tried:
                    continue
                tried.append(former)
                told = len(self._report)
                if not self._open(former, only=names):
                    advice = "run the cells since then that change it again"
                    reason = _former(manifest.number)
                    self._report[told:] = [Entry(n, REBUILT, reason, advice) for n in sorted(names)]
                    left -= names
            if not left:
                break
        return set(group.names) - left

    def _open(self, group: Group, *, later: bool = False, only: set[str] | None = None) -> str:
        """Put a group's variables in their places (``only``: these); the reason when that fails.

        ``later``: its memory may be verified afterwards.
        """
        later = later and any(map(mapped, group.buffers))
        try:
            buffers = [self._reader.buffer(buffer, proven=not later) for buffer in group.buffers]
            content = self._reader.content(group.extents)
            if later:
                opening = Opening(content, buffers, lambda: self._reader.prove(group.buffers))
                values = opening.load()
                later = not opening.proven
            else:
                values = pickle.loads(content, buffers=buffers)
            rebuild_tasks.start()
            rebuild_widgets.start()
        except BaseException as error:  # the user's own __setstate__ may raise anything
            rebuild_tasks.forget()
            rebuild_widgets.forget()
            return _reason(error)
        if later:
            self.unproven.add(group)
        for name, value in zip(group.names, values, strict=True):
            if only is None or name in only:
                self._set(name, value)
        noted = {note.name: note for note in group.notes}
        self._report += [
            noted.get(name, Entry(name, KEPT))
            for name in group.names
            if name in noted or not name.startswith((LOOP, process.PREFIX))
        ]
        return ""

    def _set(self, name: str, value: Any) -> None:
        space, hidden = self._shell.user_ns, self._shell.user_ns_hidden
        result = _RESULT.fullmatch(name)
        if result:
            number = int(result[1])
            self._shell.history_manager.output_hist[number] = value
            space[f"_{number}"] = hidden[f"_{number}"] = value
        elif name.startswith("output "):
            # Not by setattr in a class body: the names would be mangled.
            short = name.removeprefix("output ")
            setattr(self._shell.displayhook, short, value)
            # The shell leaves these names alone for good when they are not hidden.
            space[short] = hidden[short] = value
        elif name.startswith(LOOP):
            self._loops[int(name.removeprefix(LOOP))] = value
        elif name.startswith("figure "):
            self._figures[int(name.removeprefix("figure "))] = value
        elif name.startswith(("task ", "timer ")):
            pass  # it goes on by itself
        elif not name.startswith(process.PREFIX):
            space[name] = value
        elif not process.place_module(name, value):
            self._pieces[name] = value
            if name == process.CONTEXT:  # a cell that is run again may copy the context
                process.place(name, value, self._base, self._shell)

    def state(self) -> None:
        """Pieces of process state with objects, once all of these are there."""
        libraries.place_figures(self._figures)
        for name, value in self._pieces.items():
            if name in process.IN_CONTEXT:
                self._in_context[name] = value
                continue
            try:
                process.place(name, value, self._base, self._shell)
            except Exception as error:  # one piece never costs the others
                self._report.append(Entry(name, REFUSED, _reason(error)))

    def _rebuild(self, recipe: Rebuild) -> None:
        """Run a recipe in a view over the namespace, and keep only what it is for."""
        view: dict[str, Any] = {}
        try:
            exec(compile(recipe.code, "<rebuilt>", "exec"), self._shell.user_ns, view)
            made = {name: view[name] for name in recipe.names}
        except BaseException as error:  # whatever the cell raises now
            reason = f"its cell failed: {_reason(error)}"
            self._report += [Entry(name, REFUSED, reason) for name in recipe.names]
            return
        self._shell.user_ns.update(made)
        self._report += [Entry(name, REBUILT, recipe.reason) for name in made]

    def _compare(self) -> None:
        """Tell of variables that came back without an error, but do not look as they did."""
        extents = self._manifest.state.get(checks.PIECE)
        try:
            shapes = loads(self._reader.content(extents)) if extents else {}
        except (OSError, ValueError):
            return
        told = {entry.name for entry in self._report if entry.outcome != KEPT}
        for name, noted in shapes.items():
            if name in self._shell.user_ns and name not in told:
                why = checks.difference(noted, self._shell.user_ns[name])
                if why:
                    self._report[:] = [entry for entry in self._report if entry.name != name]
                    advice = "its class leaves that out when it is pickled: make it again"
                    self._report.append(Entry(name, REFUSED, why, advice))

    def _told(self) -> None:
        """What was refused at the capture, in this report too."""
        told = {entry.name for entry in self._report}
        for entry in self._manifest.report:
            if entry.outcome == REFUSED and entry.name not in told:
                self._report.append(entry)


def _history(shell: Any, cells: list[Cell], count: int, *, in_cell: bool) -> None:
    """``In``, the counter and the source lines of tracebacks."""
    manager = shell.history_manager
    raised = int(shell.execution_count) >= len(manager.input_hist_raw)
    numbered = {cell.count: cell for cell in cells if cell.count}
    ordered = [numbered.get(n, Cell("")) for n in range(1, count)]
    manager.input_hist_raw[:] = ["", *(cell.code for cell in ordered)]
    manager.input_hist_parsed[:] = ["", *(cell.python.rstrip("\n") for cell in ordered)]
    last = [cell.code for cell in reversed(ordered[-3:])]
    for name, code in zip(("_i", "_ii", "_iii"), [*last, "", "", ""], strict=False):
        setattr(manager, {"_i": "_i00", "_ii": "_i", "_iii": "_ii"}[name], code)
    for number, cell in numbered.items():
        shell.user_ns[f"_i{number}"] = cell.code
    # Tracebacks call a function's file by the cell's number.
    places = getattr(shell.compile, "_filename_map", None)
    for cell in cells:
        if cell.file:
            lines = [f"{line}\n" for line in cell.python.splitlines()]  # as IPython notes them
            linecache.cache[cell.file] = (len(cell.python), None, lines, cell.file)
            if cell.count and type(places) is dict:
                places[cell.file] = cell.count
    # Until IPython 9.8 the cell that asked for this raises the counter once more when it ends.
    shell.execution_count = count - 1 if in_cell and not raised else count


def _former(number: int) -> str:
    return f"as it was in checkpoint {number}: its newer stored bytes are damaged"


def _reason(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"[:300]
    except Exception:  # a user's exception may fail to print itself
        text = type(error).__name__
    return f"{DAMAGED}: {error}" if isinstance(error, DamagedChunk) else text
