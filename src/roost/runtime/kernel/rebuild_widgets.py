"""The halves of ``widgets`` that stored pickles call. Names and arguments here are part of the format.

Until ``start`` nothing that was made here is known to the kernel, or says good-bye to the page when it goes.
"""

import contextlib
import sys
from typing import Any

THIS_KERNEL = "this kernel"
_comms: list[tuple[Any, bool, bool]] = []
"""Comms made from the pickle that is being opened: closed, known to the kernel."""
_widgets: list[Any] = []
"""Widgets made from it that the page can ask for."""


def manager() -> Any:
    """Who hands the page's messages to comms; None without any."""
    comm = sys.modules.get("comm")
    return None if comm is None else comm.get_comm_manager()


def known() -> dict[str, Any]:
    """The comms of this kernel by their ids."""
    around = manager()
    return {} if around is None else around.comms


def listed() -> dict[str, Any]:
    """The widgets of this kernel by their models' ids."""
    module = sys.modules.get("ipywidgets.widgets.widget")
    found = getattr(module, "_instances", None)
    return found if type(found) is dict else {}


def with_traits(kind: type) -> Any:
    """An object with traits before it has any."""
    made = object.__new__(kind)
    made.__dict__.update(
        _trait_values={}, _trait_notifiers={}, _trait_validators={}, _cross_validation_lock=False
    )
    return made


def fill_with_traits(made: Any, state: tuple[dict[str, Any], dict[str, Any], bool]) -> None:
    """Second half of ``with_traits``: nobody is told."""
    own, slots, is_listed = state
    made.__dict__.update(own)
    for name, value in slots.items():
        object.__setattr__(made, name, value)
    if is_listed:
        _widgets.append(made)


def member(cls: type, name: str) -> Any:
    """What a class has under a name, itself."""
    return cls.__dict__[name]


def comm(kind: type) -> Any:
    """A comm that says nothing."""
    made = object.__new__(kind)
    made.__dict__["_closed"] = True
    return made


def fill_comm(made: Any, told: tuple[dict[str, Any], bool]) -> None:
    """Second half of ``comm``."""
    state, is_known = told
    made.__dict__.update({**state, "_closed": True})
    if state.get("kernel") == THIS_KERNEL:
        made.__dict__["kernel"] = sys.modules["ipykernel.kernelbase"].Kernel.instance()
    _comms.append((made, bool(state.get("_closed")), is_known))


def start() -> None:
    """The pickle is open: the page's messages come here."""
    around, widgets = known(), listed()
    former = []
    for made, closed, is_known in _comms:
        if is_known:
            before = around.get(made.comm_id)
            if before is not None:
                before.__dict__["_closed"] = True  # it goes, its other end stays
            around[made.comm_id] = made
            if made.target_name == "jupyter.widget.control":
                sys.modules["ipywidgets.widgets.widget"].Widget._control_comm = made
        made.__dict__["_closed"] = closed
    for widget in _widgets:
        key = widget.__dict__["_trait_values"]["comm"].comm_id
        before = widgets.get(key)
        if before is not None:
            before.__dict__["_trait_values"]["comm"] = None
            former.append(widget)
        widgets[key] = widget
    forget()
    for widget in former:  # the page shows what was after this moment
        with contextlib.suppress(Exception):  # a serializer of the notebook's may raise anything
            widget.send_state()


def forget() -> None:
    """The pickle could not be opened."""
    _comms.clear()
    _widgets.clear()
