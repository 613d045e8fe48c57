"""Loops of a cell that can go on elsewhere: where they may pause, and the code that continues them.

Only the iterable of a ``for`` is wrapped, so an iteration costs nothing. A loop pauses at the first
instruction of its body, in a trace callback: nothing is raised through the user's code. What this module
does not understand is not resumable; it never guesses.
"""

import ast
import copy
import dis
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

NOTE = "__roost_iter__"
"""The builtin around the iterable of every loop that may be continued."""
SAVED = "__roost_saved__"
"""The builtin that gives the iterator of a loop as it stood."""

Block = list[ast.stmt]
Step = tuple[str, int]
"""Into ``body`` or ``orelse`` of a statement, and there to the statement of this index."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop of the cell: the way to it from its top-level statement, and its number when it iterates."""

    path: tuple[Step, ...]
    number: int
    """-1: a ``while``."""


@dataclass(slots=True)
class Plan:
    """The loops of one cell, with the cell as it was before anything was wrapped."""

    tree: ast.Module
    loops: list[list[Loop]] = field(default_factory=list)
    """By top-level statement, in the order of their code."""

    def __bool__(self) -> bool:
        return any(self.loops)


def wrap(tree: ast.Module, first: int = 0) -> Plan:
    """Wrap the iterables of loops that may be continued, in place; the plan keeps a copy from before.

    ``first``: the first number to give; those below belong to iterators of an earlier place.
    """
    plan = Plan(copy.deepcopy(tree))
    count = first
    for statement in tree.body:
        found: list[Loop] = []
        if not _awaits(statement):
            count = _visit(statement, (), found, count)
        plan.loops.append(found)
    return plan


def _visit(statement: ast.stmt, path: tuple[Step, ...], found: list[Loop], count: int) -> int:
    if isinstance(statement, ast.For):
        found.append(Loop(path, count))
        call = ast.Call(ast.Name(NOTE, ast.Load()), [ast.Constant(count), statement.iter], [])
        for node in (call, call.func, call.args[0]):
            ast.copy_location(node, statement.iter)
        statement.iter = call
        count += 1
    elif isinstance(statement, ast.While):
        found.append(Loop(path, -1))
    elif not isinstance(statement, ast.If) and not (
        isinstance(statement, ast.With) and transparent(statement)
    ):
        return count
    for part in ("body", "orelse"):
        for index, inner in enumerate(getattr(statement, part, ())):
            count = _visit(inner, (*path, (part, index)), found, count)
    return count


_HARMLESS = frozenset({"suppress", "errstate", "catch_warnings", "no_grad", "inference_mode"})


def transparent(statement: ast.With) -> bool:
    """A ``with`` that may simply be entered again: nothing was acquired and nothing is owed at its end."""
    for item in statement.items:
        call = item.context_expr
        if item.optional_vars is not None or not isinstance(call, ast.Call):
            return False
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if isinstance(call.func, ast.Name):
            name = call.func.id
        if name not in _HARMLESS or any(k.arg == "record" for k in call.keywords):
            return False
    return True


def _awaits(statement: ast.stmt) -> bool:
    """Whether awaiting happens at the level of the cell itself (functions have frames of their own)."""
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            return True
        if isinstance(node, ast.comprehension) and node.is_async:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))
    return False


# --- where a loop may pause --------------------------------------------------------------------------


def boundaries(code: types.CodeType, statement: ast.stmt, loops: list[Loop]) -> dict[int, Loop]:
    """Offset of the first instruction of a loop's body -> the loop. ``code`` is the wrapped statement's."""
    spots = [(i.offset, i.positions) for i in dis.get_instructions(code) if i.positions is not None]
    numbers = _numbered(code)
    found: dict[int, Loop] = {}
    cursor = 0
    for loop in loops:
        node = at(statement, loop.path)
        if loop.path and loop.path[-1][0] == "orelse":
            outer = next((spot for spot, o in found.items() if o.path == loop.path[:-1]), None)
            if outer is not None:
                cursor = max(cursor, _exit(code, outer))
        start = numbers.get(loop.number, cursor) if loop.number >= 0 else cursor
        first = node.body[0]
        spot = _first_in(spots, start, first)
        if spot is None or _same_line(first, node):
            continue
        found[spot] = loop
        cursor = spot
    return found


def _same_line(first: ast.stmt, node: Any) -> bool:
    header = node.iter if isinstance(node, ast.For) else node.test
    return bool(first.lineno <= (header.end_lineno or header.lineno))


def _first_in(spots: list[tuple[int, Any]], start: int, first: ast.stmt) -> int | None:
    """Offset of the first instruction from ``start`` on that lies in the text of a statement."""
    low = (_line(first), 0)
    high = (first.end_lineno or first.lineno, first.end_col_offset or 0)
    for offset, spot in spots:
        if offset <= start or spot.lineno is None or spot.col_offset is None:
            continue
        if low <= (spot.lineno, spot.col_offset) < high:
            return offset
    return None


def _line(first: ast.stmt) -> int:
    decorators = getattr(first, "decorator_list", ())
    return min([first.lineno, *(d.lineno for d in decorators)])


def _numbered(code: types.CodeType) -> dict[int, int]:
    """Number of a wrapped loop -> offset of the constant that says it."""
    found: dict[int, int] = {}
    named = False
    for instruction in dis.get_instructions(code):
        if instruction.argval == NOTE and instruction.opname.startswith("LOAD_"):
            named = True
        elif named and instruction.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            found.setdefault(int(instruction.argval), instruction.offset)
            named = False
    return found


def _exit(code: types.CodeType, spot: int) -> int:
    """Where the loop whose body begins at ``spot`` goes when it is exhausted; ``spot`` for a ``while``."""
    headers = (i for i in dis.get_instructions(code) if i.opname == "FOR_ITER" and i.offset < spot)
    return max(((i.offset, int(i.argval)) for i in headers), default=(0, spot))[1]


def at(statement: ast.stmt, path: tuple[Step, ...]) -> Any:
    """The statement at the end of a path."""
    node: Any = statement
    for part, index in path:
        node = getattr(node, part)[index]
    return node


# --- how it goes on ----------------------------------------------------------------------------------


def resumed(plan: Plan, top: int, loop: Loop) -> ast.Module:
    """The rest of the cell, from the beginning of the body of ``loop`` in statement ``top`` on.

    The iterators of the loops around are asked for by number (``SAVED``).
    """
    numbers = {known.path: known.number for known in plan.loops[top]}
    tree = copy.deepcopy(plan.tree)
    block = [*_rest_of(tree.body[top], (), loop.path, numbers), *tree.body[top + 1 :]]
    made = ast.Module(block, [])
    ast.fix_missing_locations(made)
    return made


def _rest_of(
    statement: Any,
    here: tuple[Step, ...],
    path: tuple[Step, ...],
    numbers: dict[tuple[Step, ...], int],
) -> Block:
    """What is left of a statement when execution stands at the end of ``path``, below it."""
    looping = isinstance(statement, ast.For | ast.While)
    if here == path:  # the loop itself, at the beginning of its body
        return [_open(statement, copy.deepcopy(statement.body), numbers[here])]
    part, index = path[len(here)]
    block = getattr(statement, part)
    below = (*here, (part, index))
    rest = [*_rest_of(block[index], below, path, numbers), *copy.deepcopy(block[index + 1 :])]
    if looping and part == "body":
        return [_open(statement, rest, numbers[here])]
    if isinstance(statement, ast.With):
        return [ast.copy_location(ast.With(statement.items, rest), statement)]
    return rest


def _open(loop: Any, body: Block, number: int) -> ast.stmt:
    """The open iteration as a loop of one round, then the rest: break and continue keep their meaning."""
    loop = copy.deepcopy(loop)  # its parts stand in the tree twice from now on
    if isinstance(loop, ast.For):
        saved = ast.Call(ast.Name(SAVED, ast.Load()), [ast.Constant(number)], [])
        for node in ast.walk(saved):
            ast.copy_location(node, loop.iter)
        rest: ast.stmt = ast.For(loop.target, saved, loop.body, loop.orelse)
    else:
        rest = ast.While(loop.test, loop.body, loop.orelse)
    ast.copy_location(rest, loop)
    anchor = loop.iter if isinstance(loop, ast.For) else loop.test
    once = ast.Tuple([ast.Tuple([], ast.Load())], ast.Load())
    nothing = ast.Tuple([], ast.Store())  # binds no name
    for node in (*ast.walk(once), nothing):
        ast.copy_location(node, anchor)
    return ast.copy_location(ast.For(nothing, once, body, [rest]), loop)


# --- while it runs -----------------------------------------------------------------------------------


class Running:
    """The loops of the cell that runs: its plan, its open iterators."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.iterators: dict[int, Iterator[Any]] = {}
        self.saved: dict[int, Any] = {}
        """Restored iterators, by the number they had."""

    def note(self, number: int, iterable: Any) -> Iterator[Any]:
        """``NOTE``: the iterator of a loop, remembered."""
        made = self.iterators[number] = iter(iterable)
        return made

    def give(self, number: int) -> Iterator[Any]:
        """``SAVED``: the iterator as it stood."""
        found: Iterator[Any] = self.saved.pop(number)
        return found

    def install(self, space: dict[str, Any]) -> None:
        """Put both functions among the builtins: the user's namespace stays the user's."""
        space[NOTE] = self.note
        space[SAVED] = self.give

    def clear(self) -> None:
        """The cell has ended."""
        self.plan = None
        self.iterators = {}
        self.saved = {}

    def place(self, frame: types.FrameType | None, space: dict[str, Any]) -> "Place | None":
        """Where the cell stands: its top-level statement and the loops it may pause in."""
        found = None
        while frame is not None:
            if frame.f_globals is space and frame.f_code.co_name == "<module>":
                found = frame  # the outermost: a cell may run others
            frame = frame.f_back
        return None if found is None else self.place_of(found)

    def place_of(self, frame: types.FrameType) -> "Place | None":
        """The same for the frame of one top-level statement."""
        if self.plan is None:
            return None
        line = frame.f_lineno or frame.f_code.co_firstlineno
        for top, statement in enumerate(self.plan.tree.body):
            if _line(statement) <= line <= (statement.end_lineno or statement.lineno):
                spots = boundaries(frame.f_code, statement, self.plan.loops[top])
                return Place(frame, top, spots) if spots else None
        return None

    def open_at(self, top: int, loop: Loop) -> dict[int, Any]:
        """The iterators that the rest of the cell needs, by number."""
        if self.plan is None:
            return {}
        known = {other.path: other.number for other in self.plan.loops[top]}
        needed = dict(self.saved)
        for depth in range(len(loop.path) + 1):
            inside = depth == len(loop.path) or loop.path[depth][0] == "body"
            number = known.get(loop.path[:depth], -1)
            if inside and number >= 0:
                needed[number] = self.iterators[number]
        return needed


@dataclass(slots=True)
class Place:
    """Where a cell stands."""

    frame: types.FrameType
    top: int
    spots: dict[int, Loop]


class Pause:
    """Stops the cell at the next beginning of a loop's body. On the main thread; a debugger goes first."""

    def __init__(
        self,
        running: Running,
        space: dict[str, Any],
        reached: Callable[[int, Loop], None],
    ) -> None:
        self._running = running
        self._space = space
        self._reached = reached
        self._places: dict[int, Place] = {}

    def arm(self, frame: types.FrameType | None) -> bool:
        """Wait for a boundary below ``frame`` or in a statement that follows."""
        if sys.gettrace() is not None:
            return False
        place = self._running.place(frame, self._space)
        if place is not None:
            self._places[id(place.frame)] = place
            place.frame.f_trace = self._line
        sys.settrace(self._call)
        return True

    def disarm(self) -> None:
        """No longer."""
        if sys.gettrace() == self._call:
            sys.settrace(None)
        for place in self._places.values():
            place.frame.f_trace = None
        self._places = {}

    def _call(self, frame: types.FrameType, _event: str, _argument: Any) -> Any:
        """The next statements of the cell have frames of their own."""
        if frame.f_globals is not self._space or frame.f_code.co_name != "<module>":
            return None
        place = self._running.place_of(frame)
        if place is None:
            return None
        self._places[id(frame)] = place
        return self._line

    def _line(self, frame: types.FrameType, event: str, _argument: Any) -> Any:
        place = self._places.get(id(frame))
        if event == "line" and place is not None and frame.f_lasti in place.spots:
            loop = place.spots[frame.f_lasti]
            self.disarm()
            self._reached(place.top, loop)
            return None
        return self._line
