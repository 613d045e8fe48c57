"""How a variable that cannot be pickled is made again: the smallest part of the session that yields it.

The log is read as a list of top-level statements. From the last one that binds the variable on, every
statement that can have touched it, or a name it may have been given, belongs to the recipe, and so does what
makes their inputs where the kept value is not surely the same. A recipe is run in a view over the namespace,
from which only the missing variable is taken. Reads source text only, and says no whenever it is not sure:
a wrong variable is worse than a missing one.
"""

import ast
import builtins
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from roost.runtime.kernel.cells import Cell

LONGEST_S = 20.0
"""A recipe whose cells took longer is not run silently at a restore: it is named instead."""
MOST_STEPS = 60
"""A longer recipe is hardly the same session any more."""

_PURE = frozenset(
    {
        "abs", "all", "any", "ascii", "bin", "bool", "bytearray", "bytes", "chr", "complex", "dict", "divmod",
        "enumerate", "filter", "float", "format", "frozenset", "hex", "int", "isinstance", "iter", "len",
        "list", "map", "max", "memoryview", "min", "next", "object", "oct", "ord", "pow", "print", "range",
        "repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "type", "zip",
    }
)  # fmt: skip
"""Builtins without effects outside (what a recipe prints is dropped)."""
_MODULES = frozenset(
    {
        "array", "base64", "binascii", "bisect", "calendar", "collections", "contextvars", "copy", "ctypes",
        "dataclasses", "decimal", "difflib", "enum", "fractions", "functools", "hashlib", "heapq", "hmac",
        "html", "io", "ipaddress", "itertools", "json", "math", "numpy", "operator", "pandas", "re", "scipy",
        "sklearn", "statistics", "string", "struct", "textwrap", "types", "typing", "unicodedata", "unittest",
        "xml", "zlib", "lzma", "bz2", "networkx", "sympy",
    }
)  # fmt: skip
"""Libraries whose calls have no effects outside, but for ``_OUTSIDE``."""
_OUTSIDE = frozenset(
    {
        "random", "seed", "default_rng", "open", "open_code", "FileIO", "fromfile", "memmap", "DataSource",
        "load", "loadtxt", "genfromtxt", "save", "savez", "savez_compressed", "savetxt", "tofile", "dump",
        "now", "today", "utcnow", "time", "parse", "iterparse", "CDLL", "PyDLL", "cdll", "pythonapi",
        "string_at", "memmove", "memset", "patch", "main", "file_digest", "show", "plot", "savefig",
        "write", "run", "system", "fit", "shuffle", "permutation", "rvs", "set_printoptions", "seterr",
        "set_option", "purge", "lib", "setcontext", "getcontext", "register", "datasets",
        "train_test_split", "choice",
    }
)  # fmt: skip
"""Parts of names that reach the outside, the clock, or a random state."""
_OUTSIDE_STARTS = ("read_", "to_", "fetch_", "load_", "make_", "save", "set_", "rand")
_WIDE = frozenset(
    {"globals", "locals", "vars", "exec", "eval", "get_ipython", "__import__", "setattr", "delattr"}
)
_HARMLESS_MAGICS = frozenset(
    {
        "load_ext",
        "matplotlib",
        "roost",
        "pip",
        "config",
        "autoreload",
        "who",
        "whos",
        "pwd",
        "ls",
        "env",
    }
)
_PLAIN = (
    ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.For, ast.If, ast.Pass, ast.Delete, ast.Import,
    ast.ImportFrom, ast.FunctionDef, ast.While, ast.Break, ast.Continue, ast.Return, ast.Raise,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the present values of names."""

    modules: dict[str, str]
    """Names bound to modules."""
    atoms: frozenset[str]
    """Numbers, strings and the like: only rebinding the name changes them."""
    functions: frozenset[str]
    """Functions of the notebook, kept."""
    kept: frozenset[str]
    """Every name that is kept."""


@dataclass(slots=True)
class Step:
    """One top-level statement of the session."""

    node: ast.stmt
    cell: Cell
    reads: set[str] = field(default_factory=set)
    """Global names it uses, also in functions it defines."""
    nested: set[str] = field(default_factory=set)
    """Those used in scopes of their own."""
    binds: set[str] = field(default_factory=set)
    wide: bool = False
    """It can touch any name."""

    @property
    def names(self) -> set[str]:
        """All it mentions."""
        return self.reads | self.binds


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to run, and the cells it is from."""

    code: str
    cells: tuple[int, ...]
    seconds: float


class CannotRebuild(Exception):
    """There is no sure way; the message says why."""


class Log:
    """The statements of a session, read once."""

    def __init__(self) -> None:
        self._cells: list[Cell] = []
        self._ends: list[int] = []
        self.steps: list[Step] = []
        self.inside: dict[str, set[str]] = {}
        """Function or class -> the global names its body uses."""
        self.made_by: dict[str, set[str]] = {}
        """Name -> the functions and classes of the notebook that its value may be an object of."""

    def update(self, cells: list[Cell]) -> None:
        """Take the log as it is now: mostly the former one and a cell more."""
        same = 0
        for one, other in zip(self._cells, cells, strict=False):
            if one is not other:
                break
            same += 1
        if same == len(self._cells) == len(cells):
            return
        del self._cells[same:], self._ends[same:]
        del self.steps[self._ends[-1] if self._ends else 0 :]
        for cell in cells[same:]:
            self.steps.extend(_steps(cell))
            self._cells.append(cell)
            self._ends.append(len(self.steps))
        self._learn()

    def _learn(self) -> None:
        self.inside, self.made_by = {}, {}
        for step in self.steps:
            if isinstance(step.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = step.node.name
                self.inside[name] = self.inside.get(name, set()) | step.reads
        for step in self.steps:
            made = step.reads & self.inside.keys()
            if made:
                for name in step.binds:
                    self.made_by[name] = self.made_by.get(name, set()) | made

    def reach(self, step: Step) -> set[str]:
        """What a statement mentions, itself or in functions and classes of the notebook behind its names."""
        found, todo = set(step.names), list(step.names)
        while todo:
            name = todo.pop()
            new = (self.inside.get(name, set()) | self.made_by.get(name, set())) - found
            found |= new
            todo.extend(new)
        return found

    def bound(self, name: str) -> bool:
        """Whether any statement binds the name."""
        return any(name in step.binds for step in self.steps)


def _steps(cell: Cell) -> Iterator[Step]:
    try:
        tree = ast.parse(cell.python)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield Step(ast.Pass(), cell, wide=True)
        return
    for node in tree.body:
        step = Step(node, cell)
        try:
            table = symtable.symtable(ast.unparse(node), "<cell>", "exec")
        except (SyntaxError, ValueError, RecursionError):
            step.wide = True
            yield step
            continue
        for symbol in table.get_symbols():
            if symbol.is_referenced():
                step.reads.add(symbol.get_name())
            if symbol.is_assigned() or symbol.is_imported():
                step.binds.add(symbol.get_name())
        for child in table.get_children():
            _inner(child, step)
        step.reads |= step.nested
        step.wide = _star(node) or (bool(step.reads & _WIDE) and not _magic(node))
        yield step


def _inner(table: symtable.SymbolTable, step: Step) -> None:
    for symbol in table.get_symbols():
        if symbol.is_global():
            step.nested.add(symbol.get_name())
            if symbol.is_assigned():
                step.binds.add(symbol.get_name())
    for child in table.get_children():
        _inner(child, step)


def _star(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)


def _magic(node: ast.stmt) -> bool:
    """A line magic that touches no name of the user, or a shell command without an answer."""
    call = node.value if isinstance(node, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr == "system":
        return True
    first = call.args[0] if call.args else None
    return (
        call.func.attr == "run_line_magic"
        and isinstance(first, ast.Constant)
        and first.value in _HARMLESS_MAGICS
    )


def recipe(name: str, log: Log, known: Known, shared: Iterable[str] = ()) -> Recipe:
    """How to make ``name`` again. ``shared``: other names that reach an object it reaches too.

    Raises ``CannotRebuild``.
    """
    others = sorted({*shared} - {name})
    if others:
        raise CannotRebuild(f"it shares an object with {', '.join(others[:3])}")
    return _Slice(name, log, known).made()


def cells_of(name: str, log: Log) -> tuple[int, ...]:
    """Numbers of the cells that made a variable what it is, as far as their text says."""
    steps = log.steps
    last = _last_binding(name, steps, len(steps))
    if last is None:
        return ()
    first = steps[last].cell
    found = {s.cell.count for s in steps[last:] if name in s.binds or s.cell is first}
    return tuple(sorted(found - {0}))


class _Slice:
    def __init__(self, name: str, log: Log, known: Known) -> None:
        self._name = name
        self._log = log
        self._steps = log.steps
        self._known = known
        self._chosen: set[int] = set()
        self._kept: set[str] = set()
        """Names whose kept value is used."""

    def made(self) -> Recipe:
        self._take(self._name, len(self._steps))
        order = sorted(self._chosen)
        if len(order) > MOST_STEPS:
            raise CannotRebuild("too many statements have touched it")
        made_here = {n for i in order for n in self._steps[i].binds}
        both = {n for n in made_here & self._kept if not self._fixed(n)}
        if both:
            raise CannotRebuild(f"{', '.join(sorted(both))} has had several values")
        purity = _Purity(self._log, self._known, made_here - self._kept)
        for index in order:
            step = self._steps[index]
            if step.nested & made_here - self._kept:
                raise CannotRebuild("a function in it uses what would be made again")
            purity.check(step.node)
        return self._told(order)

    def _told(self, order: list[int]) -> Recipe:
        cells = {id(cell): cell for cell in (self._steps[i].cell for i in order)}
        if not all(cell.ok for cell in cells.values()):
            raise CannotRebuild("a cell it needs failed")
        seconds = sum(cell.seconds for cell in cells.values())
        if seconds > LONGEST_S:
            raise CannotRebuild(f"making it again takes {seconds:.0f} s")
        numbers = tuple(sorted({cell.count for cell in cells.values()} - {0}))
        return Recipe("\n".join(ast.unparse(self._steps[i].node) for i in order), numbers, seconds)

    def _take(self, name: str, before: int) -> None:
        """All statements that make ``name`` what it was before statement ``before``."""
        begin = _last_binding(name, self._steps, before)
        if begin is None:
            raise CannotRebuild(f"no cell says how {name} was made")
        tainted = {name}
        for index in range(begin, before):
            step = self._steps[index]
            if step.wide:
                raise CannotRebuild("a cell may have changed it without naming it")
            if index != begin and not (self._log.reach(step) & tainted):
                continue
            new = index not in self._chosen
            self._chosen.add(index)
            tainted |= step.binds
            if index != begin:
                tainted |= {n for n in step.reads if self._may_hold(n)}
            if new:
                self._inputs(index, step)

    def _fixed(self, name: str) -> bool:
        return name in self._known.modules or self._imported(name)

    def _may_hold(self, name: str) -> bool:
        """Whether this value may have been given a reference to the variable."""
        known = self._known
        settled = name in known.atoms or name in known.functions or self._fixed(name)
        return not settled and (self._log.bound(name) or not hasattr(builtins, name))

    def _inputs(self, index: int, step: Step) -> None:
        for name in sorted(step.reads):
            if name in step.binds and not _reads_first(step.node, name):
                continue
            if hasattr(builtins, name) and not self._log.bound(name):
                continue
            if self._same_now(name, index, frozenset()):
                self._kept.add(name)
            else:
                self._take(name, index)

    def _same_now(self, name: str, index: int, above: frozenset[str]) -> bool:
        """Whether the kept value of ``name`` is surely what it was at this statement."""
        known = self._known
        later = self._steps[index:]
        if any(step.wide for step in later):
            return False
        if name in known.modules or self._imported(name):
            return self._imported(name)
        if any(name in step.binds for step in later):
            return False
        if name in known.atoms or name in above:
            return True
        return name in known.functions and all(
            self._same_now(other, index, above | {name})
            for other in self._log.inside.get(name, set())
            if self._log.bound(other) or not hasattr(builtins, other)
        )

    def _imported(self, name: str) -> bool:
        binding = [step.node for step in self._steps if name in step.binds]
        return bool(binding) and all(isinstance(n, ast.Import | ast.ImportFrom) for n in binding)


def _last_binding(name: str, steps: list[Step], before: int) -> int | None:
    """The last statement that surely binds a name to something that does not depend on its former value."""
    for index in range(before - 1, -1, -1):
        step = steps[index]
        if name not in step.binds:
            continue
        if isinstance(step.node, ast.FunctionDef | ast.Import | ast.ImportFrom):
            return index
        if isinstance(step.node, ast.Assign | ast.AnnAssign) and name not in step.reads:
            return index
    return None


def _reads_first(node: ast.stmt, name: str) -> bool:
    """Whether a statement that binds a name needs its former value too (it may, unless it is plain)."""
    if isinstance(node, ast.For):
        used = {n.id for n in ast.walk(node.iter) if isinstance(n, ast.Name)}
        target = {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
        return name in used or name not in target
    return True


class _Purity:
    """Refuses statements that could reach outside, or change what is kept."""

    def __init__(self, log: Log, known: Known, own: set[str]) -> None:
        self._log = log
        self._known = known
        self._own = own
        """Names the recipe makes itself: their objects are nobody else's."""
        self._imports: dict[str, str] = {}
        for step in log.steps:
            if isinstance(step.node, ast.ImportFrom) and step.node.module and not step.node.level:
                for alias in step.node.names:
                    self._imports[alias.asname or alias.name] = f"{step.node.module}.{alias.name}"
        self._checked: set[str] = set()

    def check(self, node: ast.stmt) -> None:
        """Raises ``CannotRebuild``."""
        if isinstance(node, ast.FunctionDef):
            raise CannotRebuild(f"the function {node.name} is not what it was")
        for inner in ast.walk(node):
            if isinstance(inner, ast.stmt) and not isinstance(inner, _PLAIN):
                what = type(inner).__name__.lower()
                raise CannotRebuild(f"a cell it needs has a statement of the kind {what}")
            if isinstance(inner, ast.Await | ast.NamedExpr):
                raise CannotRebuild("a cell it needs awaits or assigns within an expression")
            if isinstance(inner, ast.Call):
                self._call(inner)
            elif isinstance(inner, ast.Import | ast.ImportFrom):
                self._import(inner)
            elif isinstance(inner, ast.Attribute | ast.Subscript):
                if not isinstance(inner.ctx, ast.Load):
                    self._changed(inner)
                elif isinstance(inner.value, ast.Name):
                    self._looked_up(inner.value.id)
            elif isinstance(inner, ast.Name) and inner.id in self._known.functions:
                self._function(inner.id)

    def _function(self, name: str) -> None:
        """A function of the notebook may be called: its body must be as harmless."""
        if name in self._checked:
            return
        self._checked.add(name)
        found = [s.node for s in self._log.steps if name in s.binds]
        node = found[-1] if found else None
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            raise CannotRebuild(f"a cell it needs calls {name}")
        defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        if not all(isinstance(default, ast.Constant) for default in defaults):
            raise CannotRebuild(f"a cell it needs calls {name}, which has defaults that may change")
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        local = {argument.arg for argument in arguments}
        local |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _stored(n)}
        inside = _Purity(self._log, self._known, local)
        inside._checked = self._checked
        for statement in node.body:
            inside.check(statement)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        whole = isinstance(node, ast.Import)
        for name in (
            [a.name for a in node.names] if whole else [getattr(node, "module", None) or ""]
        ):
            if name.partition(".")[0] not in _MODULES:
                raise CannotRebuild(f"a cell it needs imports {name}")

    def _looked_up(self, name: str) -> None:
        """Something of a module: ``os.environ`` is not what it was."""
        home = self._known.modules.get(name)
        if home is not None and home.partition(".")[0] not in _MODULES:
            raise CannotRebuild(f"a cell it needs uses {name}")

    def _changed(self, node: ast.expr) -> None:
        root = _root(node)
        if root not in self._own:
            raise CannotRebuild(f"a cell it needs changes {root or 'something'}")

    def _call(self, call: ast.Call) -> None:
        function = call.func
        if isinstance(function, ast.Name):
            self._by_name(function.id)
            return
        if not isinstance(function, ast.Attribute):
            raise CannotRebuild("a cell it needs calls something unknown")
        parts, root = _parts(function), _root(function)
        if _outside(parts):
            raise CannotRebuild(f"a cell it needs calls {parts[-1]}, which may reach outside")
        if root == "" or root in self._own or root in self._known.atoms:
            return
        home = self._known.modules.get(root or "") or self._imports.get(root or "", "")
        if home.partition(".")[0] not in _MODULES:
            raise CannotRebuild(f"a cell it needs calls {parts[-1]} of {root or 'something'}")

    def _by_name(self, name: str) -> None:
        if name in self._imports:
            parts = self._imports[name].split(".")
            if parts[0] in _MODULES and not _outside(parts[1:]):
                return
        elif name in self._known.functions and name not in self._own:
            self._function(name)
            return
        elif name in _PURE and name not in self._known.kept and name not in self._own:
            return
        raise CannotRebuild(f"a cell it needs calls {name}")


def _stored(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _outside(parts: list[str]) -> bool:
    return any(part in _OUTSIDE or part.startswith(_OUTSIDE_STARTS) for part in parts)


_FRESH = (
    ast.Constant, ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.DictComp,
    ast.SetComp, ast.GeneratorExp, ast.BinOp,
)  # fmt: skip


def _root(node: ast.expr) -> str | None:
    """The name that attributes, subscripts and calls begin with; "" for a new object, None: not known."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name):
        return node.id
    return "" if isinstance(node, _FRESH) else None


def _parts(node: ast.expr) -> list[str]:
    """All attributes on the way from the root."""
    found: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        if isinstance(node, ast.Attribute):
            found.insert(0, node.attr)
        node = node.func if isinstance(node, ast.Call) else node.value
    return found
