"""Instances on this machine: a host process each, with isolation as far as this machine permits."""

from roost.adapters.providers.local.images import load_image
from roost.adapters.providers.local.provider import LocalProvider

__all__ = ["LocalProvider", "load_image"]
