"""Context variables of the notebook with their values in the cells' own context."""

import contextvars
import sys
from collections.abc import Iterator
from typing import Any

from roost.runtime.kernel.naming import BY_VALUE, IN_C, globals_of, is_module
from roost.runtime.kernel.process.base import Baseline


def note(_shell: Any) -> dict[int, Any]:
    """Variables of libraries that had a value before the user's first cell."""
    return {id(variable): variable for variable in contextvars.copy_context()}


def objects(base: Baseline) -> Iterator[tuple[str, Any]]:
    """The user's variables that have a value."""
    known = base.noted["context"]
    parts: list[Any] = []
    for variable, value in contextvars.copy_context().items():
        if id(variable) not in known and not _owned(variable, base):
            parts.append((variable, value))
    if parts:
        yield "contextvars", base.steady("contextvars", parts)


def _owned(variable: Any, base: Baseline) -> bool:
    """Whether a library holds it; looked up once per variable."""
    answers: dict[int, tuple[Any, bool]] = base.noted.setdefault("context owners", {})
    known = answers.get(id(variable))
    if known is None:
        found = variable.name in IN_C or any(
            value is variable
            for name, module in list(sys.modules.items())
            if name not in ("__main__", "__mp_main__")
            and name not in BY_VALUE
            and is_module(module)
            for value in list(globals_of(module).values())
        )
        known = answers[id(variable)] = (variable, found)
    return known[1]


def place(_name: str, value: Any, _base: Baseline, _shell: Any) -> None:
    """Give them their values, in the context of whoever calls this."""
    for variable, content in value:
        variable.set(content)
