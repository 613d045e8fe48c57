"""Variables that lie in the namespace while their stored bytes are still being verified.

Big memory is mapped, not read: a restore is over before a disk could have delivered it. The crew hashes the
chunks behind it. A cell waits for what its code can reach, anything else that could look (a capture, another
request, a cell that can reach any name) for all of it. What turns out damaged is taken out again, an older
checkpoint's state put in its place, before anybody has seen it.
"""

import ast
import io
import pickle
import threading
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild, rebuild_state, rebuild_tensors
from roost.runtime.kernel.cells import names_of
from roost.runtime.kernel.chunks import DamagedChunk, Reader
from roost.runtime.kernel.format import Entry, Group
from roost.runtime.kernel.naming import HOMES, globals_of, is_module
from roost.runtime.kernel.reach import code_names, is_atom

_LIBRARIES = (
    "numpy", "pandas", "pyarrow", "scipy.sparse", "datetime", "zoneinfo", "torch.nn.modules", "torch.optim",
)  # fmt: skip
"""They put memory into their objects as it is and look at it when they are used."""
_OWN: Mapping[str, frozenset[str]] = {
    rebuild.__name__: frozenset({"array", "same"}),
    rebuild_state.__name__: frozenset({"instance", "fill_instance"}),
    rebuild_tensors.__name__: frozenset({"storage", "tensor", "fill"}),
    "collections": frozenset({"OrderedDict", "defaultdict"}),
    "torch": frozenset({"Tensor"}),
    "torch.nn.parameter": frozenset({"Parameter"}),
}
_BUILTINS = frozenset(
    {
        "slice", "set", "frozenset", "complex", "range", "bytearray", "list", "dict", "tuple", "int",
        "float", "str", "bytes", "bool", "object",
    }
)  # fmt: skip
_WIDE = frozenset({"modules", "_getframe", "currentframe", "f_globals", "get_objects", "user_ns"})
"""Attributes through which any variable can be had."""
_WIDE_NAMES = frozenset(
    {"globals", "locals", "vars", "exec", "eval", "get_ipython", "__import__", "breakpoint", "__main__"}
)  # fmt: skip
_CONTAINERS = (list, tuple, set, dict)
_ELEMENTS = 1000
"""Of a container looked through."""
_REQUESTS = (
    "execute_request", "complete_request", "inspect_request", "comm_open", "comm_msg", "comm_close",
)  # fmt: skip
"""What may look at variables or run code of the user. Cells themselves wait when they begin."""


class Opening(pickle.Unpickler):
    """Opens a pickle over memory that is not verified yet; ``prove`` is called before anything might look
    into that memory, and ``proven`` tells whether it was."""

    def __init__(
        self, content: bytes, buffers: Iterable[Any], prove: Callable[[], None] | None
    ) -> None:
        super().__init__(io.BytesIO(content), buffers=buffers)
        self._prove = prove
        self.proven = prove is None

    def find_class(self, module: str, name: str) -> Any:
        """See the class."""
        if module == rebuild.__name__ and name == "module_attribute":
            return self._attribute
        self._asked(module, name)
        return super().find_class(module, name)

    def _attribute(self, module: str, name: str) -> Any:
        self._asked(module, name)
        return rebuild.module_attribute(module, name)

    def _asked(self, module: str, name: str) -> None:
        if not self.proven and self._prove is not None and not _blind(module, name):
            self._prove()
            self.proven = True


def _blind(module: str, name: str) -> bool:
    """Whether this never looks into the memory it is given while a pickle is opened."""
    if module == "builtins":
        return name in _BUILTINS
    if module in _OWN:
        return name in _OWN[module]
    return any(module == one or module.startswith(f"{one}.") for one in _LIBRARIES)


class Unproven:
    """What of one restore is still being verified. Main thread, unless said otherwise."""

    def __init__(self, reader: Reader, amend: Callable[[Group], list[Entry]]) -> None:
        """``amend`` takes a damaged group out and says what stands in its place."""
        self._reader = reader
        self._amend = amend
        self._groups: dict[str, Group] = {}
        self._lock = threading.RLock()

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def names(self) -> list[str]:
        """The variables."""
        return sorted(self._groups)

    def add(self, group: Group) -> None:
        """A group that was opened over memory that nobody has verified."""
        self._groups.update(dict.fromkeys(group.names, group))

    @property
    def bytes(self) -> int:
        """How much memory that is."""
        groups = {id(group): group for group in self._groups.values()}
        return sum(buffer.size for group in groups.values() for buffer in group.buffers)

    def then(self, work: Callable[[], None]) -> None:
        """Have this called when all is verified, from another thread."""
        self._reader.then(work)

    def settle(self, names: Iterable[str] | None = None) -> list[Entry]:
        """These variables (None: all) are what was captured when it returns; what had to be amended."""
        told: list[Entry] = []
        with self._lock:
            wanted = self._groups if names is None else self._groups.keys() & set(names)
            for group in {id(g): g for g in map(self._groups.__getitem__, wanted)}.values():
                try:
                    self._reader.prove(group.buffers)
                except DamagedChunk:
                    told += self._amend(group)
                for name in group.names:
                    self._groups.pop(name, None)
        return told

    def needs(self, source: str, space: dict[str, Any], root: str) -> set[str] | None:
        """Which of the variables a cell can reach; None: any."""
        names = names_of(source)
        if names is None or _reaches_wide(source):
            return None
        todo, seen = list(names), set[str]()
        while todo:
            name = todo.pop()
            if name in _WIDE_NAMES:
                return None
            if name in seen or name in self._groups or name not in space:
                seen.add(name)
                continue
            seen.add(name)
            below = _below(space[name], space, root)
            if below is None:
                return None
            todo += below
        return seen & self._groups.keys()


def _reaches_wide(source: str) -> bool:
    """Whether a cell can come to variables that it does not name."""
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        return any(
            isinstance(node, ast.Attribute) and node.attr in _WIDE
            for node in ast.walk(ast.parse(source))
        )
    return True


def _below(value: Any, space: dict[str, Any], root: str) -> Iterable[str] | None:
    """Global names that using a value can reach; None: any."""
    if is_atom(value) or _plain(value):
        return ()
    if is_module(value):
        inside = globals_of(value)
        file = inside.get("__file__")
        local = isinstance(file, str) and Path(file).is_relative_to(root)
        library = isinstance(file, str) and not local
        built_in = file is None and inside.get("__name__") in _BUILT_IN
        return () if (library or built_in) and id(inside) not in HOMES else None
    if type(value) is types.FunctionType and value.__globals__ is space:
        held = (value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__)
        names = code_names(value.__code__)
        return None if any(held) or names & (_WIDE | _WIDE_NAMES) else names
    return None


_BUILT_IN = frozenset({"math", "time", "itertools", "cmath", "errno", "zlib", "array"})


def _plain(value: Any) -> bool:
    """A small container of numbers and words, or of such."""
    todo, looked = [value], 0
    while todo:
        one = todo.pop()
        looked += 1
        if is_atom(one):
            continue
        if looked > _ELEMENTS or not any(type(one) is kind for kind in _CONTAINERS):
            return False
        todo += [*one.keys(), *one.values()] if type(one) is dict else list(one)[: _ELEMENTS + 1]
    return True


def guard(
    kernel: Any, settle: Callable[[], None], comms: Callable[[Callable[[], Any]], Any]
) -> None:
    """Have requests that are no cells wait too, and those that are more than a cell. ``comms`` calls what
    handles a message to a comm."""
    handlers = getattr(kernel, "shell_handlers", {})

    def guarded(kind: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        def handle(stream: Any, identity: Any, message: Any) -> Any:
            content = message.get("content", {})
            cell = kind == "execute_request" and content.get("code", "").strip()
            if not cell or content.get("user_expressions"):
                settle()
            if kind.startswith("comm_"):
                return comms(lambda: handler(stream, identity, message))
            return handler(stream, identity, message)

        return handle

    for kind in _REQUESTS:
        if kind in handlers:
            handlers[kind] = guarded(kind, handlers[kind])
