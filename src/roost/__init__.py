"""Roost: a spot-native compute platform.

This module holds the IPython extension hook and the two calls for scripts, and imports nothing of Roost
itself before one of them is used, so that importing it costs nothing.
"""

import importlib
from typing import Any

_FOR_SCRIPTS = frozenset({"checkpoint", "resume", "NotCheckpointed"})


def __getattr__(name: str) -> Any:
    """``roost.checkpoint()`` and ``roost.resume()``: see ``roost.runtime.kernel.scripts``."""
    if name in _FOR_SCRIPTS:
        return getattr(importlib.import_module("roost.runtime.kernel.scripts"), name)
    raise AttributeError(f"module 'roost' has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """Load the capture engine into a plain ipykernel (``%load_ext roost``)."""
    importlib.import_module("roost.runtime.kernel.extension").load(shell)
