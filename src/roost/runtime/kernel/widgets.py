"""Widgets and what they are made of: objects with traits, their observers, comms to the page.

A widget is stored as it stands, with whoever observes it: its constructor would open a second model on the
page. After a restore the page's models go on, with the same comm ids. ``rebuild_widgets`` is the other half.
"""

import sys
from collections.abc import Iterator
from typing import Any

from roost.runtime.kernel import rebuild_widgets as rebuild
from roost.runtime.kernel.kinds_state import raw_state
from roost.runtime.kernel.naming import dict_of, foreign, importable_class
from roost.runtime.kernel.refusal import Handler, Refusal

_KERNEL_SIDE = ("kernel", "parent", "config")
"""Traits of a comm that the new kernel answers by itself."""


def reduce_traits(_pickler: Any, value: Any) -> Any:
    """An object with traits: values, observers and validators as they are."""
    own, slots = raw_state(value)
    traits = own.get("_trait_values")
    log = sys.modules.get("traitlets.log")
    if log is not None and type(traits) is dict and traits.get("log") is log.get_logger():
        own["_trait_values"] = {k: v for k, v in traits.items() if k != "log"}
    listed = any(one is value for one in rebuild.listed().values())
    state = (own, slots, listed)
    return rebuild.with_traits, (type(value),), state, None, None, rebuild.fill_with_traits


def reduce_configurable(pickler: Any, value: Any) -> Any:
    """The notebook's own are like any object with traits."""
    if not foreign(value):
        raise Refusal("a part of the kernel itself", "ask get_ipython() for it")
    return reduce_traits(pickler, value)


def reduce_descriptor(_pickler: Any, value: Any) -> Any:
    """What a class has for a trait or an observer: known by the class that a library defines."""
    place = place_of(value)
    return NotImplemented if place is None else (rebuild.member, place)


def place_of(value: Any) -> tuple[type, str] | None:
    """A library's class and the name there of a trait or an observer."""
    own = object.__getattribute__(value, "__dict__")
    cls, name = own.get("this_class"), own.get("name")
    if not isinstance(cls, type) or type(name) is not str or not importable_class(cls):
        return None
    return (cls, name) if dict_of(cls).get(name) is value else None


def descriptor_kind() -> type | None:
    """The class of all traits and observers, when it is loaded."""
    return getattr(sys.modules.get("traitlets.traitlets"), "BaseDescriptor", None)


def reduce_comm(_pickler: Any, value: Any) -> Any:
    """One end of a comm: the page keeps the other, under the same id."""
    state, _slots = raw_state(value)
    if state.get("kernel") is not None:
        state["kernel"] = rebuild.THIS_KERNEL
    if type(state.get("_trait_values")) is dict:
        kept = {k: v for k, v in state["_trait_values"].items() if k not in (*_KERNEL_SIDE, "log")}
        state["_trait_values"] = kept
    known = rebuild.known().get(state.get("comm_id", state.get("_trait_values", {}).get("comm_id")))
    told = (state, known is value)
    return rebuild.comm, (type(value),), told, None, None, rebuild.fill_comm


def roots() -> Iterator[tuple[str, Any]]:
    """Every widget and comm that the page can speak to, and who answers new comms, under names."""
    widgets = rebuild.listed()
    for key, widget in list(widgets.items()):
        yield f"widget {type(widget).__name__} {key}", widget
    for key, comm in list(rebuild.known().items()):
        if key not in widgets:
            yield f"comm {key}", comm
    manager = rebuild.manager()
    for name, function in list(manager.targets.items()) if manager is not None else ():
        if foreign(function):
            yield f"target {name}", function


def place(name: str, value: Any, _base: Any, _shell: Any) -> None:
    """Answer new comms again; widgets and comms are where they belong since their pickle was opened."""
    word, _, target = name.partition(" ")
    manager = rebuild.manager()
    if word == "target" and manager is not None:
        manager.register_target(target, value)


LATE: dict[tuple[str, str], Handler] = {
    ("traitlets.traitlets", "HasTraits"): reduce_traits,
    ("traitlets.traitlets", "BaseDescriptor"): reduce_descriptor,
    ("traitlets.config.configurable", "Configurable"): reduce_configurable,
    ("comm.base_comm", "BaseComm"): reduce_comm,
}
