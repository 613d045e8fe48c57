"""Tasks as detached processes of this machine."""

from roost.adapters.drivers.process.driver import ProcessDriver

__all__ = ["ProcessDriver"]
