"""The package reads no clock, no random source and nothing of the machine."""

import ast
from pathlib import Path

import roost.placement

BANNED = {"asyncio", "time", "random", "os", "socket", "subprocess", "threading", "logging", "uuid"}


def test_placement_imports_nothing_that_acts() -> None:
    found = []
    for path in Path(roost.placement.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [name.name for name in node.names if name.name in BANNED]
            elif isinstance(node, ast.ImportFrom) and node.module in BANNED:
                found.append(node.module)
    assert not found
