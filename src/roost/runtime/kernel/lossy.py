"""Objects of libraries that leave something out when they are pickled, or refuse to be: stored as they are.

pandas' blocks say who else has their memory (a write through one must not be seen by the others), statsmodels
makes a formula's design anew with functions it hopes to find, a soup is parsed again beside its elements, an
optimizer of torch forgets its hooks.
"""

import sys
import types
from typing import Any

from roost.runtime.kernel import rebuild_data, rebuild_state
from roost.runtime.kernel.kinds_state import raw_state
from roost.runtime.kernel.naming import dict_of, is_class
from roost.runtime.kernel.refusal import Handler


def reduce_as_it_is(_pickler: Any, value: Any) -> Any:
    """Attributes and slots, whatever the class says about copies."""
    state = raw_state(value)
    return rebuild_state.instance, (type(value),), state, None, None, rebuild_state.fill_instance


def reduce_block(_pickler: Any, value: Any) -> Any:
    """Memory of a pandas object, with those that share it: pandas copies before it writes then."""
    references = getattr(value, "refs", None)
    if references is None or not references.has_reference():
        return NotImplemented
    return rebuild_data.block, (*value.__reduce__()[1], references)


def reduce_series(_pickler: Any, value: Any) -> Any:
    """The one block of a series, where that has memory of others."""
    if (
        references := getattr(value.blocks[0], "refs", None)
    ) is None or not references.has_reference():
        return NotImplemented
    return rebuild_data.series, (type(value), value.blocks[0], value.axes[0])


def reduce_references(_pickler: Any, value: Any) -> Any:
    """Who shares a block's memory. Blocks add themselves when they are made; indexes are noted here."""
    index: Any = sys.modules["pandas"].Index
    held = [reference() for reference in value.referenced_blocks]
    indexes = [one for one in held if isinstance(one, index)]
    return rebuild_data.block_references, (), indexes, None, None, rebuild_data.share_with_indexes


_patsy: dict[type, Handler] = {}


def patsy() -> dict[type, Handler]:
    """patsy's classes, whose ``__getstate__`` refuses: formulas of statsmodels hold them."""
    if "patsy.util" in sys.modules and not _patsy:
        for name, module in list(sys.modules.items()):
            if name.startswith("patsy.") and type(module) is types.ModuleType:
                for kind in list(vars(module).values()):
                    if is_class(kind) and "__getstate__" in dict_of(kind):
                        _patsy[kind] = reduce_as_it_is
    return _patsy


LATE: dict[tuple[str, str], Handler] = {
    ("pandas._libs.internals", "Block"): reduce_block,
    ("pandas._libs.internals", "BlockValuesRefs"): reduce_references,
    ("pandas.core.internals.managers", "SingleBlockManager"): reduce_series,
    ("statsmodels.base.data", "ModelData"): reduce_as_it_is,
    ("bs4", "BeautifulSoup"): reduce_as_it_is,
    ("torch.optim", "Optimizer"): reduce_as_it_is,
}
