"""The log of cells, the names a cell can have touched, and which cell may be run again.

Reads source text only. Says no whenever it is not sure: a cell with effects outside is never re-run.
"""

import ast
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from roost.runtime.kernel.reach import code_names

BLOCK = 64
"""Cells per stored block; full blocks never change and are stored once."""

# Calls without effects outside whatever their arguments are.
_PURE = frozenset(
    {
        "abs", "bool", "bytes", "dict", "enumerate", "filter", "float", "frozenset", "int", "iter", "len",
        "list", "map", "max", "min", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple",
        "zip",
    }
)  # fmt: skip
_WIDE = frozenset(
    {"globals", "locals", "vars", "exec", "eval", "get_ipython", "__main__", "__builtins__"}
)
_NAMED = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar,
)  # fmt: skip
_STATEMENTS = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.Pass, ast.Module)
_EXPRESSIONS = (
    ast.Constant, ast.Name, ast.Load, ast.Store, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare,
    ast.IfExp, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.GeneratorExp, ast.comprehension, ast.operator,
    ast.unaryop, ast.boolop, ast.cmpop, ast.keyword, ast.Slice, ast.Subscript, ast.JoinedStr,
    ast.FormattedValue, ast.ListComp, ast.SetComp, ast.DictComp, ast.Starred,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One executed cell."""

    code: str
    count: int = 0
    """Its number in the notebook; 0 for one without a place in the history."""
    msg_id: str = ""
    ok: bool = True
    parsed: str = ""
    """The Python it became; empty when that is the code itself."""
    file: str = ""
    """The name its code objects carry, for tracebacks and ``inspect``."""

    @property
    def python(self) -> str:
        """Its Python source."""
        return self.parsed or self.code


def blocks(cells: Iterable[Cell]) -> list[bytes]:
    """The log as JSON blocks."""
    rows = [_row(cell) for cell in cells]
    parts = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    return [json.dumps(part, separators=(",", ":")).encode() for part in parts]


def from_block(content: bytes) -> list[Cell]:
    """One stored block."""
    return [Cell(**row) for row in json.loads(content)]


def _row(cell: Cell) -> dict[str, Any]:
    return {k: v for k, v in asdict(cell).items() if v != "" or k == "code"}


def names_of(source: str) -> set[str] | None:
    """Every name in a cell's Python; None when it can reach any name at all."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            names.update(node.names)
        elif isinstance(node, _NAMED):
            names.add(str(node.name))  # "None" where it is optional and absent: harmless here
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.add(node.rest)
        elif isinstance(node, ast.alias):
            if node.name == "*":
                return None
            names.add((node.asname or node.name).split(".")[0])
    return None if names & _WIDE else names


def stores_of(source: str) -> set[str] | None:
    """Names that a cell binds or deletes anywhere in it; None when that cannot be told."""
    if names_of(source) is None:
        return None
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.Global):
            names.update(node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


@dataclass(frozen=True, slots=True)
class Values:
    """What is known of the present values of names."""

    generators: frozenset[str]
    """Functions of the notebook whose call runs nothing yet."""
    settled: frozenset[str]
    """Atoms, modules and functions: only rebinding the name changes them."""
    plain: frozenset[str]
    """Lists, dictionaries and the like: no code of the notebook runs when they are read."""
    bound: frozenset[str]
    """Every name of the namespace (a builtin of that name is hidden)."""


def recipe(name: str, cells: list[Cell], values: Values) -> str | None:
    """The Python of the one cell that makes ``name`` again, when running it is surely the same.

    The cell must bind ``name`` by harmless assignments; no other cell may mention it (a generator moves
    on when it is used), and what the cell reads must be what it was then.
    """
    mentions = [n for n, cell in enumerate(cells) if _mentions(cell, name)]
    if len(mentions) != 1 or not cells[mentions[0]].ok:
        return None
    cell = cells[mentions[0]]
    if names_of(cell.python) is None:
        return None
    tree = ast.parse(cell.python)
    bound = _bound(tree)
    # Only global names: what a comprehension or a function calls its own is no input.
    reads = code_names(compile(tree, "<cell>", "exec")) & values.bound
    pure = _PURE - values.bound
    if name not in bound or not _harmless(tree, pure | (values.generators - bound)):
        return None
    later = cells[mentions[0] + 1 :]
    if all(_unchanged(other, later, values) for other in reads - bound):
        return cell.python
    return None


def _mentions(cell: Cell, name: str) -> bool:
    names = names_of(cell.python)
    return names is None or name in names


def _unchanged(name: str, later: list[Cell], values: Values) -> bool:
    """Whether the value of ``name`` is surely what it was before these cells."""
    for cell in later:
        stores = stores_of(cell.python)
        if stores is None or name in stores:
            return False
    return name in values.settled or (
        name in values.plain
        and all(name not in (names_of(cell.python) or {name}) for cell in later)
    )


def _bound(tree: ast.Module) -> set[str]:
    """Names that the cell's own statements bind."""
    names: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Assign):
            names.update(t.id for t in statement.targets if isinstance(t, ast.Name))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names.add(statement.target.id)
    return names


def _harmless(tree: ast.Module, callable_names: frozenset[str]) -> bool:
    """Only assignments of expressions that touch nothing outside."""
    for statement in tree.body:
        if not isinstance(statement, _STATEMENTS):
            return False
        if isinstance(statement, ast.FunctionDef):
            # Nothing of a definition runs but its decorators and defaults.
            if statement.decorator_list or statement.args.defaults or statement.args.kw_defaults:
                return False
            continue
        if isinstance(statement, ast.Assign) and not all(
            isinstance(target, ast.Name) for target in statement.targets
        ):
            return False
        if not all(_pure(node, callable_names) for node in ast.walk(statement)):
            return False
    return True


def _pure(node: ast.AST, callable_names: frozenset[str]) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in callable_names
    return isinstance(node, (*_EXPRESSIONS, ast.Assign, ast.AnnAssign))
