"""Looks at the kernel and pickles what has changed: the half of a capture that needs the main thread.

Written as a generator that yields between groups, so that a cell that comes meanwhile is not kept
waiting. Writes nothing to disk and changes nothing in the namespace.
"""

import builtins
import re
import sys
import time
import types
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from json import dumps
from typing import Any, TypeVar

from roost.runtime.kernel import cells, checks, frames, process, recipes, tasks
from roost.runtime.kernel.format import LOOP, REBUILT, REFUSED, Entry, Rebuild
from roost.runtime.kernel.homing import AtHome, at_home
from roost.runtime.kernel.kinds import Handler, Refusal, advice_for
from roost.runtime.kernel.naming import HOMES, Singletons, globals_of, is_module, real_module
from roost.runtime.kernel.orders import with_orders
from roost.runtime.kernel.pickling import Surroundings, dump
from roost.runtime.kernel.quiet import quiet
from roost.runtime.kernel.reach import Reach, Walker, group, is_atom
from roost.runtime.kernel.snapshot import Fresh, Snapshot

SMALL_ATOM_BYTES = 1024
"""Numbers and strings up to this size share one pickle."""
BATCH_S = 0.005
"""Small groups are pickled together for so long before the main thread may do something else."""
UNDERSCORES = ("_", "__", "___")
_HISTORY = re.compile(r"_i+|_i\d+|_ih|_oh|_dh|In|Out")
_ODD = frozenset({"_", "I", "O"})
"""First letters of names that may be the shell's own."""
_COMPILED = ("__builtins_dict__", "__compiled_fn_", "__resume_at_", "__import_torch_")
"""What ``torch.compile`` puts into the namespace for code that it compiles anew elsewhere."""
_NUMBERED = re.compile(r"_(\d+)")
_CONTAINERS = frozenset(id(kind) for kind in (list, dict, tuple, set, frozenset))


Made = TypeVar("Made")


class Dear(Exception):
    """The look takes longer than it may; nothing was noted."""


@dataclass(slots=True)
class Learned:
    """What a look has taught, for the collector of another process."""

    ids: dict[str, int]
    uses: dict[str, set[str]]
    costs: dict[str, float]
    walks: dict[str, float]
    bad: dict[str, int]


@dataclass(slots=True)
class _Names:
    """The namespace, sorted by how each name is stored."""

    modules: dict[str, str] = field(default_factory=dict)
    namespaces: list[str] = field(default_factory=list)
    atoms: dict[str, Any] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Process:
    """The process as a look found it: nothing in it moves by itself or runs with the next cell."""

    state: dict[str, bytes]
    objects: list[tuple[str, Any]]


class Collector:
    """Knows what was captured last, and finds what has changed since."""

    def __init__(self, shell: Any, kernel: Any, base: process.Baseline) -> None:
        self._shell = shell
        self._kernel = kernel
        self._base = base
        self._singletons = Singletons()
        self._hidden = dict(shell.user_ns_hidden)
        self._history: dict[str, bool] = {}
        """Names that were asked about in ``_is_history``."""
        self._groups: dict[tuple[str, ...], None] = {}
        """Names of the groups that are stored, or on their way."""
        self._mates: dict[str, tuple[str, ...]] = {}
        """Every stored name with all names of its group."""
        self._ids: dict[str, int] = {}
        """Where the values lay at the last look."""
        self._former_ids: dict[str, int] = {}
        """The same at the look before it."""
        self._uses: dict[str, set[str]] = {}
        self._costs: dict[str, float] = {}
        self._walks: dict[str, float] = {}
        self._bad: dict[str, int] = {}
        self._streams: dict[int, str] = {}
        self._recipes = recipes.Log()
        self._blocks = cells.Blocks()
        self._reducers: tuple[dict[type, Any], dict[int, Handler]] = ({}, {})
        """Of the last look."""
        self._before: _Process | None = None
        self._objects: list[tuple[str, Any]] | None = None
        """What the look under way found of the process that holds objects."""
        self._shapes: dict[str, checks.Shape] = {}
        self.home: set[str] = set()
        """Names that a forked child cannot store: files, connections, whatever has a side to it."""
        self.give_all = False
        """A child met some of these where none was expected: it gets all of them from now on."""
        self.loops: dict[int, Any] = {}
        """Iterators of the loops the running cell stands in, by number."""

    def cost_s(self, touched: set[str] | None) -> float:
        """How long a look at these names (None: all) took last time, in seconds."""
        if touched is None:
            return sum(self._costs.values())
        return sum(self._costs.get(name, 0.0) for name in touched)

    def stored(self, groups: Iterable[tuple[str, ...]]) -> None:
        """These groups are stored, or on their way: what has not changed need not be pickled again."""
        groups = dict.fromkeys(groups)
        if groups.keys() != self._groups.keys():
            self._groups = groups
            self._mates = {name: names for names in groups for name in names}

    def unseen(self) -> None:
        """What the last look found is not stored: names bound anew before it are so still."""
        self._ids = self._former_ids

    def learned(self) -> Learned:
        """See the class."""
        return Learned(self._ids, self._uses, self._costs, self._walks, self._bad)

    def learn(self, learned: Learned) -> None:
        """Take over what the collector of a forked child has found."""
        self._ids, self._uses, self._bad = learned.ids, learned.uses, learned.bad
        self._costs, self._walks = learned.costs, learned.walks

    def give(self, touched: set[str] | None, log: list[cells.Cell]) -> Snapshot:
        """What a forked child that looks at these names needs of its parent."""
        given = Snapshot()
        process.prepare(self._base, self._shell, log, touched)
        self._begin()
        around = self._around()
        self._process(given, around)
        rest = self._sort(Snapshot()).rest if self.home else {}
        if self.home and (self.give_all or self.home & self._expected(rest, touched)):
            reaches = drained(self._walk(rest, set(self.home), None, only=True))
            with quiet():
                for names in group(reaches):
                    self._store(names, rest, reaches, given, around)
        return given

    def collect(
        self,
        touched: set[str] | None,
        log: list[cells.Cell],
        *,
        limit_s: float | None = None,
        given: Snapshot | None = None,
        calm: bool = False,
    ) -> Generator[None, None, Snapshot]:
        """Look at the names a cell can have touched (None: all) and whatever belongs to them.

        ``limit_s``: raises ``Dear`` when that takes longer. ``given``: this is a forked child. ``calm``:
        nothing but variables can have changed since the last look, which says the rest.
        """
        until = None if limit_s is None else time.perf_counter() + limit_s
        # Inside a cell the counter may have been raised already (IPython 9.8): the log knows better.
        following = next((cell.count for cell in reversed(log) if cell.count), 0) + 1
        made = Snapshot(execution_count=min(int(self._shell.execution_count), following))
        before = self._calm_before(touched) if calm and given is None else None
        if given is None:
            if before is None:
                process.prepare(self._base, self._shell, log, touched)
            self._begin()
        names = self._sort(made, before)
        touched = process.widen(touched, names.modules)
        made.modules, made.namespaces = names.modules, tuple(names.namespaces)
        reaches = yield from self._walk(names.rest, touched, until)
        # A group with a name that is gone or was looked at is pickled anew or not at all.
        still = names.rest.keys() - reaches.keys()
        made.kept = [group for group in self._groups if still.issuperset(group)]
        around = self._around(forked=given is not None, calm=before is not None)
        if names.atoms:
            with quiet():
                self._store(tuple(sorted(names.atoms)), names.atoms, {}, made, around)
        groups = _without(group(reaches), given, made)
        while groups:
            batch = time.perf_counter() + BATCH_S
            with quiet():
                while groups and time.perf_counter() < batch:
                    self._store(groups.pop(), names.rest, reaches, made, around)
            if until is not None and groups and time.perf_counter() > until:
                raise Dear
            yield
        self._former_ids = self._ids
        self._ids = {name: id(value) for name, value in names.rest.items()}
        self._explain(made, names, log)
        if given is not None:
            made.state = given.state
        elif before is None:
            self._process(made, around)
        else:
            made.state.update(before.state)
        self._note(made, names)
        made.imports = process.imports(self._base)
        made.log = self._blocks.of(log)
        return made

    def _begin(self) -> None:
        self._singletons.update(self._base.root, self._shell.user_ns)
        self._streams = {id(stream): name for name, stream in self._base.streams.items()}

    # --- names -----------------------------------------------------------------------------------

    def _calm_before(self, touched: set[str] | None) -> "_Process | None":
        """The process as it was at the last look, where that still holds after calm cells."""
        before = self._before
        if before is None or touched is None or tasks.live():
            return None
        space = self._shell.user_ns
        return None if any(process.names_files(space.get(name)) for name in touched) else before

    def _sort(self, made: Snapshot, before: "_Process | None" = None) -> _Names:
        names, space = _Names(), self._shell.user_ns
        for name, value in self.variables(before):
            if value is space:
                names.namespaces.append(name)
            elif is_module(value):
                if (key := HOMES.get(id(globals_of(value)))) is not None:
                    names.modules[name] = key
                elif real_module(value):
                    names.modules[name] = globals_of(value)["__name__"]
                else:
                    why = "a module made at run time"
                    advice = "put its code into a file of the session's folder"
                    made.refused.append(Entry(name, REFUSED, why, advice))
            elif is_atom(value) and sys.getsizeof(value, 0) <= SMALL_ATOM_BYTES:
                names.atoms[name] = value
            else:
                names.rest[name] = value
        return names

    def variables(self, before: "_Process | None" = None) -> Iterator[tuple[str, Any]]:
        """Every variable of the user, and results and figures under names of their own."""
        space = self._shell.user_ns
        results = self._shell.history_manager.output_hist
        hook = self._shell.displayhook
        shown = {name: getattr(hook, name, "") for name in UNDERSCORES}
        for name, value in list(space.items()):
            if type(name) is not str or (name[:1] in _ODD and self._is_history(name)):
                continue
            if name in self._hidden and self._hidden[name] is value:
                continue
            number = _NUMBERED.fullmatch(name) if name[:1] == "_" else None
            if number and results.get(int(number[1]), None) is value:
                continue
            if name not in shown or shown[name] is not value:
                yield name, value
        for key, value in list(results.items()):
            yield f"Out[{key}]", value
        for name, value in shown.items():
            if type(value) is not str or value:
                yield f"output {name}", value
        for place, iterator in self.loops.items():
            yield f"{LOOP}{place}", iterator
        self._objects = (
            list(process.objects(self._base, self._shell)) if before is None else before.objects
        )
        yield from self._objects
        yield from tasks.roots()
        figures = sys.modules.get("matplotlib._pylab_helpers")
        if figures is not None:
            for key, manager in list(figures.Gcf.figs.items()):
                yield f"figure {key}", manager.canvas.figure

    def _is_history(self, name: str) -> bool:
        """Whether the shell keeps its inputs or outputs under this name (there is one more with each cell),
        or a compiler what it made."""
        known = self._history.get(name)
        if known is None:
            found = _HISTORY.fullmatch(name) is not None or name.startswith(_COMPILED)
            known = self._history[name] = found
        return known

    # --- groups ----------------------------------------------------------------------------------

    def _walk(
        self,
        rest: dict[str, Any],
        touched: set[str] | None,
        until: float | None,
        *,
        only: bool = False,
    ) -> Generator[None, None, dict[str, Reach]]:
        """Reach of every name that must be looked at (``only``: of these and what belongs to them)."""
        stops = (
            self._shell,
            self._kernel,
            self._shell.user_ns_hidden,
            *self._base.streams.values(),
            builtins,
        )
        walker = Walker(self._shell.user_ns, self._singletons, stops)
        todo = sorted(touched or ()) if only else self._first(rest, touched)
        reaches: dict[str, Reach] = {}
        while todo:
            name = todo.pop()
            if name in reaches or name not in rest:
                continue
            begun = time.perf_counter()
            found = reaches[name] = walker.reach(rest[name], until)
            if found.cut:
                raise Dear
            self._walks[name] = time.perf_counter() - begun
            self._uses[name] = found.names
            # What its functions use, they may have changed; what it shares, is changed with it.
            todo.extend(found.names)
            todo.extend(self._mates.get(name, ()))
            if len(found.ids) > 10_000:
                yield
        return reaches

    def _expected(self, rest: dict[str, Any], touched: set[str] | None) -> set[str]:
        """The names a look will meet, as far as the last one can tell."""
        todo, found = self._first(rest, touched), set[str]()
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += [*self._uses.get(name, ()), *self._mates.get(name, ())]
        return found

    def _first(self, rest: dict[str, Any], touched: set[str] | None) -> list[str]:
        if touched is None:
            return list(rest)
        known, mates = self._ids, self._mates
        todo = [
            name
            for name, value in rest.items()
            if name in touched or name not in mates or known.get(name) != id(value)
        ]
        for name, members in mates.items():
            if name not in rest:
                todo.extend(members)
        return todo

    def _store(
        self,
        names: tuple[str, ...],
        values: dict[str, Any],
        reaches: dict[str, Reach],
        made: Snapshot,
        around: Surroundings,
    ) -> None:
        """Pickle a group; when it fails, only the names at fault are left out."""
        faults: dict[str, BaseException] = {}
        for name in names:
            if name in reaches and reaches[name].namespace:
                faults[name] = Refusal("the namespace dictionary", "keep its values instead")
            elif self._bad.get(name) == id(values[name]):
                self._try([name], values, reaches, faults, around)
        good = [name for name in names if name not in faults]
        done = self._try(good, values, reaches, faults, around)
        if done is None and len(good) > 1:
            for name in good:
                self._try([name], values, reaches, faults, around)
            good = [n for n in good if n not in faults]
            done = self._try(good, values, reaches, faults, around)
        if done is not None:
            made.fresh.append(done)
        for name in names:
            self._bad.pop(name, None)
            if name in faults and around.forked and at_home(faults[name]):
                made.home.add(name)
            elif name in faults:
                self._bad[name] = id(values[name])
                made.refused.append(Entry(name, REFUSED, *advice_for(faults[name])))
                made.shared[name] = names

    def _try(
        self,
        names: list[str],
        values: dict[str, Any],
        reaches: dict[str, Reach],
        faults: dict[str, BaseException],
        around: Surroundings,
    ) -> Fresh | None:
        if not names:
            return None
        try:
            known = [reaches[name] for name in names if name in reaches]
            sets = (one for reach in known for one in reach.sets)
            shared = (one for reach in known for one in reach.memory)
            ordered = with_orders([values[name] for name in names], sets)
            done = dump(ordered, around, shared=shared)
        except AtHome as error:
            faults.update(dict.fromkeys(names, error))
            return None
        except BaseException as error:  # the user's own __reduce__ may raise anything
            if len(names) == 1:
                faults[names[0]] = self._blamed(values[names[0]], around) or error
            return None
        for name in names:
            self._costs[name] = done.seconds / len(names) + self._walks.get(name, 0.0)
        notes = tuple(Entry(n, REBUILT, "; ".join(done.notes)) for n in names if done.notes)
        return Fresh(tuple(names), done, notes)

    def _blamed(self, value: Any, around: Surroundings) -> BaseException | None:
        def fails(held: Any) -> BaseException | None:
            try:
                dump(held, around)
            except BaseException as error:  # the user's own __reduce__ may raise anything
                return error
            return None

        return frames.culprit(value, fails)

    def _around(self, *, forked: bool = False, calm: bool = False) -> Surroundings:
        table, bases = self._reducers if calm else ({}, {})
        around = Surroundings(
            forked=forked,
            root=self._base.root,
            namespace=self._shell.user_ns,
            singletons=self._singletons,
            shell=self._shell,
            streams=self._streams,
            table=table,
            bases=bases,
        )
        self._reducers = around.table, around.bases
        return around

    # --- what could not be pickled ---------------------------------------------------------------

    def _explain(self, made: Snapshot, names: _Names, log: list[cells.Cell]) -> None:
        """Refused variables that a harmless part of the session makes again are rebuilt instead."""
        if not any(entry.name in names.rest for entry in made.refused):
            return
        self._recipes.update(log)
        known = self._known(names, {entry.name for entry in made.refused})
        refused = []
        for entry in made.refused:
            if entry.name not in self._shell.user_ns or entry.name not in names.rest:
                refused.append(entry)
                continue
            try:
                if _begun(names.rest[entry.name]):
                    raise recipes.CannotRebuild("it has moved on")
                found = recipes.recipe(
                    entry.name, self._recipes, known, made.shared.get(entry.name, ())
                )
            except recipes.CannotRebuild as error:
                refused.append(replace(entry, advice=self._advice(entry, str(error))))
                continue
            where = "cell" if len(found.cells) < 2 else "cells"
            numbers = ", ".join(map(str, found.cells))
            reason = f"made again as in {where} {numbers}, without effects outside"
            made.rebuilds.append(Rebuild((entry.name,), found.code, reason))
        made.refused = refused

    def _advice(self, entry: Entry, why: str) -> str:
        made_in = ", ".join(map(str, recipes.cells_of(entry.name, self._recipes)))
        if not made_in:
            return entry.advice
        told = f"made in cell {made_in}, which is not run again by itself: {why}"
        return f"{entry.advice}; {told}" if entry.advice else told

    def _known(self, names: _Names, refused: set[str]) -> recipes.Known:
        atoms, functions = set(names.atoms), set()
        for name, value in names.rest.items():
            if type(value) is types.FunctionType:
                if value.__globals__ is self._shell.user_ns and name not in refused:
                    functions.add(name)
            elif is_atom(value):
                atoms.add(name)
        return recipes.Known(
            modules=dict(names.modules),
            atoms=frozenset(atoms),
            functions=frozenset(functions),
            kept=frozenset({*names.modules, *names.atoms, *names.rest} - refused),
        )

    # --- the process -----------------------------------------------------------------------------

    def _note(self, made: Snapshot, names: _Names) -> None:
        """What the variables that were pickled look like, for whoever restores them."""
        for one in made.fresh:
            for name in one.names:
                shape = checks.note(names.rest[name]) if name in names.rest else None
                if shape is None:
                    self._shapes.pop(name, None)
                else:
                    self._shapes[name] = shape
        there = {n: s for n, s in self._shapes.items() if n in names.rest}
        if there:
            made.state[checks.PIECE] = dumps(there, separators=(",", ":")).encode()

    def _process(self, made: Snapshot, around: Surroundings) -> None:
        def stored(value: Any) -> bytes:
            return dump(value, around, in_band=True).content

        state: dict[str, bytes] = {}
        refused: list[Entry] = []
        for name, value, error in process.pieces(self._base, self._shell):
            try:
                if error is not None:
                    raise error
                state[name] = process.stored(self._base, name, value, stored)
            except Exception as fault:  # one piece never costs the others
                refused.append(Entry(f"process: {name}", REFUSED, *advice_for(fault)))
        made.state.update(state)
        made.refused += refused
        objects, self._objects = self._objects, None  # the user's are not to live longer for a look
        if objects is None:
            objects = list(process.objects(self._base, self._shell))
        still = process.still(state, objects) and not refused
        self._before = _Process(state, objects) if still else None


def drained(generator: Generator[None, None, Made]) -> Made:
    """Run it to its end at once."""
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            made: Made = stop.value
            return made


def _without(
    groups: list[tuple[str, ...]], given: Snapshot | None, made: Snapshot
) -> list[tuple[str, ...]]:
    """The groups that are not given; those that are, with their refusals, are taken over."""
    if given is None:
        return groups
    made.refused += given.refused
    stored = {one.names: one for one in given.fresh}
    refused = {entry.name for entry in given.refused}
    made.fresh += [stored[names] for names in groups if names in stored]
    return [names for names in groups if names not in stored and not refused.issuperset(names)]


def _begun(value: Any) -> bool:
    """What has moved on since it was made cannot be had by making it again."""
    return frames.begun(value) or tasks.is_future(value)
