"""The log of cells, and the names a cell can have touched. Reads source text only."""

import ast
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

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


def blocks(cells: Iterable[Cell]) -> list[bytes]:
    """The log as JSON blocks."""
    rows = [_row(cell) for cell in cells]
    parts = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    return [json.dumps(part, separators=(",", ":")).encode() for part in parts]


def from_block(content: bytes) -> list[Cell]:
    """One stored block."""
    return [Cell(**row) for row in json.loads(content)]


def _row(cell: Cell) -> dict[str, Any]:
    return {
        k: v for k, v in asdict(cell).items() if k == "code" or (v != "" and (v or k != "seconds"))
    }


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
