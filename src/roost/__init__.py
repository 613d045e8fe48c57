"""Roost: a spot-native compute platform.

This module holds the IPython extension hook and nothing else, so that importing it costs nothing.
"""

from typing import Any


def load_ipython_extension(shell: Any) -> None:
    """Load the capture engine into a plain ipykernel (``%load_ext roost``)."""
    from roost.runtime.kernel.extension import load

    load(shell)
