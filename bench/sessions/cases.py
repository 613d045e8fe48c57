"""The cases: small notebooks whose last cells tell whether their state came back.

A ``.cells`` file holds one family. ``#### name [kind=state|running|death] [needs=LIBRARY,...]`` begins a
case (skipped where a library is not installed), ``# %%`` a cell; ``# %% check`` marks cells run after the
move, ``# %% running`` the cell under way at the notice, ``# %% queued`` cells waiting behind it. The right
outputs are those of a plain kernel left alone.
"""

import ast
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent / "cases"
_CASE = re.compile(r"^#### (\S+)(?: kind=(\w+))?(?: needs=([\w,]+))?\s*$", re.MULTILINE)
_CELL = re.compile(r"^# %%(?: (\w+))?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One case."""

    name: str
    kind: str
    setup: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    queued: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    asked: frozenset[str] = field(default=frozenset())
    """Names the check cells mention."""
    needs: tuple[str, ...] = ()
    """Libraries that must be installed for it."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of its libraries that are not installed."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)


def load(directory: Path = HERE) -> list[Case]:
    """All cases, in order of files and lines."""
    return [case for path in sorted(directory.glob("*.cells")) for case in _file(path)]


def _file(path: Path) -> list[Case]:
    parts = _CASE.split(path.read_text())[1:]
    return [
        _case(f"{path.stem}/{name}", kind or "state", needs or "", body)
        for name, kind, needs, body in zip(*(parts[n::4] for n in range(4)), strict=True)
    ]


def _case(name: str, kind: str, needs: str, body: str) -> Case:
    parts = _CELL.split(body)[1:]
    cells: dict[str, list[str]] = {"": [], "running": [], "queued": [], "check": []}
    for role, code in zip(parts[::2], parts[1::2], strict=True):
        cells[role or ""].append(code.strip("\n"))
    return Case(
        name,
        kind,
        tuple(cells[""]),
        tuple(cells["running"]),
        tuple(cells["queued"]),
        tuple(cells["check"]),
        frozenset(n for code in cells["check"] for n in _names(code)),
        tuple(filter(None, needs.split(","))),
    )


def _names(code: str) -> set[str]:
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return set(re.findall(r"\w+", code))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
