"""Tasks as containers of a Docker engine: see README.md."""

from roost.adapters.drivers.docker.driver import DockerDriver

__all__ = ["DockerDriver"]
