"""What a forked child may store: plain data. Everything with a side to it belongs to its own process.

To store a file, flushing it comes first: in a child that would write the buffer a second time. So a child
stores containers, instances of the notebook's classes and of the libraries listed here, and leaves the rest.
"""

import types
from collections.abc import Collection

from roost.runtime.kernel.naming import CLASS, flags_of, importable_class, module_of, mro_of
from roost.runtime.kernel.orders import Ordered

_PLAIN = frozenset(
    {
        "_collections", "array", "builtins", "collections", "copyreg", "datetime", "decimal", "enum",
        "fractions", "functools", "itertools", "joblib", "lightgbm", "networkx", "numpy", "operator",
        "pandas", "pathlib", "patsy", "polars", "pyarrow", "pytz", "re", "scipy", "shapely", "signal",
        "sklearn", "statsmodels", "sympy", "torch", "types", "typing", "uuid", "xgboost", "zoneinfo",
    }
)  # fmt: skip
_SHARED = frozenset(
    {
        ("pandas._libs.internals", "Block"),
        ("pandas._libs.internals", "BlockValuesRefs"),
        ("pandas.core.internals.managers", "SingleBlockManager"),
        ("torch", "Tensor"),
        ("torch._C", "Generator"),
        ("torch.storage", "TypedStorage"),
        ("torch.storage", "UntypedStorage"),
    }
)
"""Kinds with handlers of their own that are plain data all the same."""


class AtHome(BaseException):
    """A forked child met something that only its parent can store. No handler of errors is to catch it."""


def at_home(error: BaseException) -> bool:
    """Whether this is why a group was not stored."""
    return isinstance(error, AtHome)


def check(kind: type, handled: Collection[int]) -> None:
    """Raises ``AtHome`` for a kind with a side. ``handled``: ids of kinds with handlers of their own."""
    if flags_of(kind) & CLASS or kind in (types.FunctionType, types.CellType, Ordered):
        return
    mro = mro_of(kind)
    if any(id(base) in handled or base.__name__ == "memmap" for base in mro) and not any(
        (module_of(base), base.__name__) in _SHARED for base in mro
    ):
        raise AtHome(kind)
    if any(base is types.ModuleType for base in mro) or not importable_class(kind):
        return
    if module_of(kind).partition(".")[0] not in _PLAIN:
        raise AtHome(kind)
