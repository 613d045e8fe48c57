"""What the families of process state have in common: the baseline, paths, names of pieces with objects."""

import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

PREFIX = "process: "
"""Names of groups that hold a piece of process state: ``process: signal SIGUSR1``."""


_folder = os.getcwd  # which a notebook may patch


def here() -> str:
    """The working directory."""
    return _folder()


class Baseline:
    """How the process was before the user did anything."""

    def __init__(self, shell: Any) -> None:
        self.env: dict[str, str] = {}
        self.sys_path: list[str] = []
        self.root = ""
        self.modules = frozenset(sys.modules)
        self.extensions = frozenset(shell.extension_manager.loaded)
        self.filters = list(warnings.filters)
        self.streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        """The kernel's own; what a cell puts in their place is the user's."""
        self.noted: dict[str, Any] = {}
        """What each family noted for itself."""
        self.stored: dict[str, tuple[Any, bytes]] = {}
        """Plain pieces as they were last, with their pickles."""
        self.touched: set[str] | None = None
        """Variables that this look is about; None: all."""
        self._lists: dict[str, list[Any]] = {}
        self.note()

    def note(self) -> None:
        """Take folder, paths and environment as they are now for the baseline."""
        self.env = dict(os.environ)
        self.sys_path = list(sys.path)
        self.root = here()

    def steady(self, name: str, items: Iterable[Any]) -> list[Any]:
        """A list of these items; the same list as last time while they are the same objects."""
        made = list(items)
        known = self._lists.get(name)
        if known is not None and same_items(known, made):
            return known
        self._lists[name] = made
        return made


def same_items(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether two rows hold the very same objects; tuples and lists in them are looked into."""
    left, right = list(one), list(other)
    return len(left) == len(right) and all(
        a is b
        or (type(a) in (tuple, list) and type(a) is type(b) and same_items(a, b))
        or _equal(a, b)
        for a, b in zip(left, right, strict=True)
    )


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and type(a) in (str, int, float, bool) and bool(a == b)


def relative(path: str, root: str) -> str:
    """A path relative to the session's folder where it lies in it, with a mark that says so."""
    if path == root:
        return "@"
    return f"@/{path[len(root) + 1 :]}" if path.startswith(f"{root}/") else path


def resolved(path: str, root: str) -> str:
    """The reverse of ``relative``, for the folder as it is here."""
    return f"{root}{path[1:]}" if path == "@" or path.startswith("@/") else path
