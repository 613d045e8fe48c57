"""The log of cells, and the names a cell can have touched. Reads source text only."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, fields
from json import dumps, loads

BLOCK = 64
"""Cells per stored block; full blocks never change and are stored once."""

_WIDE = frozenset(
    {"globals", "locals", "vars", "exec", "eval", "get_ipython", "__main__", "__builtins__"}
)
_NAMED = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar,
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
    seconds: float = 0.0
    """How long it took."""

    @property
    def python(self) -> str:
        """Its Python source."""
        return self.parsed or self.code


_FIELDS = tuple(one.name for one in fields(Cell))


class Blocks:
    """The log as JSON blocks. Remembers the text of each cell: a log only grows, mostly."""

    def __init__(self) -> None:
        self._cells: list[Cell] = []
        self._rows: list[bytes] = []
        self._full: list[bytes] = []

    def of(self, cells: Sequence[Cell]) -> list[bytes]:
        """The blocks of this log."""
        same = 0
        for one, other in zip(self._cells, cells, strict=False):
            if one is not other:
                break
            same += 1
        del self._rows[same:], self._full[same // BLOCK :]
        self._rows += [_row(cell) for cell in cells[same:]]
        self._cells = list(cells)
        while len(self._rows) >= (len(self._full) + 1) * BLOCK:
            start = len(self._full) * BLOCK
            self._full.append(_joined(self._rows[start : start + BLOCK]))
        rest = self._rows[len(self._full) * BLOCK :]
        return [*self._full, _joined(rest)] if rest else list(self._full)


def _joined(rows: list[bytes]) -> bytes:
    return b"[%s]" % b",".join(rows)


def from_block(content: bytes) -> list[Cell]:
    """One stored block."""
    return [Cell(**row) for row in loads(content)]


def _row(cell: Cell) -> bytes:
    fields = {name: getattr(cell, name) for name in _FIELDS}
    kept = {k: v for k, v in fields.items() if k == "code" or (v != "" and (v or k != "seconds"))}
    return dumps(kept, separators=(",", ":")).encode()


def tree_of(source: str) -> ast.Module | None:
    """The syntax tree of a cell's Python; None when it is none."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def names_of(source: str) -> set[str] | None:
    """Every name in a cell's Python; None when it can reach any name at all."""
    return names_in(tree_of(source))


def names_in(tree: ast.Module | None) -> set[str] | None:
    """The same of its syntax tree."""
    if tree is None:
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
