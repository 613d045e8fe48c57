"""Cells that surely do nothing but change variables they name: after them the process needs no look.

Read from the syntax tree and from the kinds of the values that are bound just before the cell runs; nothing
is run and no object is asked. Whatever is not listed here may do anything: no call of code that is not
Python's own, no attribute of an unknown object, nothing dropped whose end could run code, no output that
the notebook's own code could format.
"""

import ast
import builtins
import types
from collections.abc import Iterable
from itertools import islice
from typing import Any

ATOM, PLAIN, OTHER = 1, 2, 3
"""A number or text; a list, dictionary or set; anything, which may be bound but not worked with."""
_LOOKED = 1000
"""Elements of a container looked at; longer ones may hold anything."""
_ATOMS = frozenset(id(kind) for kind in (type(None), bool, int, float, complex, str, bytes))
_PURE = frozenset({"len", "abs", "int", "float", "str", "bool", "round", "ord", "chr"})
_METHODS: dict[type, frozenset[str]] = {
    list: frozenset({"append", "insert", "reverse"}),
    dict: frozenset(),
    set: frozenset({"add"}),
}
_SPECIAL = frozenset({"In", "Out", "exit", "quit", "open", "get_ipython", "display"})


def calm(tree: ast.Module, space: dict[str, Any]) -> bool:
    """Whether this cell can change nothing but its variables. Just before it runs."""
    reader = _Reader(space)
    return len(tree.body) <= _LOOKED and all(reader.statement(node) for node in tree.body)


class _Reader:
    """Reads one cell from its beginning to its end."""

    def __init__(self, space: dict[str, Any]) -> None:
        self._space = space
        self._kinds: dict[str, int] = {}
        """Of the names that the cell has bound or changed so far."""

    def statement(self, node: ast.stmt) -> bool:
        """Whether a statement is harmless."""
        if isinstance(node, ast.Pass):
            return True
        if isinstance(node, ast.Expr):
            return isinstance(node.value, ast.Constant) or self._method(node.value)
        if isinstance(node, ast.Assign):
            kind = self._kind(node.value)
            return kind > 0 and all(self._bound(target, kind) for target in node.targets)
        if isinstance(node, ast.AugAssign):
            both = (self._kind(node.value), self._old(node.target))
            return both == (ATOM, ATOM) and self._bound(node.target, ATOM)
        return False

    def _method(self, node: ast.expr) -> bool:
        """``name.append(value)`` and its like, of Python's own containers."""
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return False
        holder = node.func.value
        if not isinstance(holder, ast.Name) or holder.id in self._kinds or node.keywords:
            return False
        kind = type(self._space.get(holder.id))
        if kind not in (list, set) or node.func.attr not in _METHODS[kind]:
            return False
        wanted = (ATOM,) if kind is set else (ATOM, PLAIN, OTHER)
        self._kinds[holder.id] = OTHER
        return all(self._kind(argument) in wanted for argument in node.args)

    def _bound(self, target: ast.expr, kind: int) -> bool:
        """Whether a target can be bound without anything else happening; remembers its kind."""
        if isinstance(target, ast.Name):
            name = target.id
            if name.startswith("_") or name in _SPECIAL:
                return False
            fine = name in self._kinds or name not in self._space or _inert(self._space[name])
            if self._kinds.get(name, ATOM) == OTHER:
                return False
            self._kinds[name] = kind
            return fine
        if not self._known_container(target):
            return False
        self._kinds[target.value.id] = OTHER  # type: ignore[attr-defined]  # it is a subscript of a name
        return True

    def _old(self, target: ast.expr) -> int:
        """The kind of what an augmented assignment changes."""
        if isinstance(target, ast.Name):
            return self._name(target.id)
        return ATOM if self._known_container(target) else 0

    def _known_container(self, node: ast.expr) -> bool:
        """Whether it is ``name[key]`` of a list or dictionary that holds only atoms."""
        if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name):
            return False
        name = node.value.id
        if name in self._kinds or self._kind(node.slice) != ATOM:
            return False
        value = self._space.get(name)
        return type(value) in (list, dict) and _inert(value)

    def _name(self, name: str) -> int:
        if name in self._kinds:
            return self._kinds[name]
        return _kind_of(self._space[name]) if name in self._space else 0

    def _kind(self, node: ast.expr) -> int:
        """Kind of an expression's value; 0: working it out may do anything."""
        if isinstance(node, ast.Constant):
            return ATOM
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.List | ast.Tuple):
            return PLAIN if all(self._kind(one) for one in node.elts) else 0
        if isinstance(node, ast.Dict):
            keys = all(key is not None and self._kind(key) == ATOM for key in node.keys)
            return PLAIN if keys and all(self._kind(one) for one in node.values) else 0
        if isinstance(node, ast.Subscript):
            return ATOM if self._known_container(node) else 0
        if isinstance(node, ast.Call):
            return self._call(node)
        return self._worked_out(node)

    def _worked_out(self, node: ast.expr) -> int:
        """Of operators: numbers and texts only."""
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Mult) and isinstance(node.left, ast.List):
                atoms = all(self._kind(one) == ATOM for one in node.left.elts)
                return PLAIN if atoms and self._kind(node.right) == ATOM else 0
            parts: Iterable[ast.expr] = (node.left, node.right)
        elif isinstance(node, ast.UnaryOp):
            parts = (node.operand,)
        elif isinstance(node, ast.Compare):
            parts = (node.left, *node.comparators)
        elif isinstance(node, ast.BoolOp):
            parts = node.values
        else:
            return 0
        return ATOM if all(self._kind(part) == ATOM for part in parts) else 0

    def _call(self, node: ast.Call) -> int:
        """Of Python's own functions, with numbers, texts and containers of them."""
        if not isinstance(node.func, ast.Name) or node.keywords:
            return 0
        name = node.func.id
        own = builtins.__dict__.get(name)
        shadowed = name in self._space or name in self._kinds
        if shadowed or name not in _PURE or type(own) not in (type, types.BuiltinFunctionType):
            return 0
        if getattr(own, "__module__", "") != "builtins":
            return 0
        for argument in node.args:
            held = isinstance(argument, ast.Name) and argument.id not in self._kinds
            inert = held and _inert(self._space.get(argument.id))  # type: ignore[attr-defined]
            if self._kind(argument) != ATOM and not inert:
                return 0
        return ATOM


def _kind_of(value: Any) -> int:
    kind = type(value)
    if id(kind) in _ATOMS:
        return ATOM
    return PLAIN if kind is list or kind is dict or kind is set else OTHER


def _inert(value: Any) -> bool:
    """Whether nothing happens when it goes away: an atom, or a small container of atoms."""
    kind = type(value)
    if id(kind) in _ATOMS:
        return True
    if kind is dict:
        parts: Iterable[Any] = (one for pair in islice(value.items(), _LOOKED) for one in pair)
    elif kind is list or kind is tuple or kind is set:
        parts = islice(value, _LOOKED)
    else:
        return False
    return len(value) < _LOOKED and all(id(type(part)) in _ATOMS for part in parts)
