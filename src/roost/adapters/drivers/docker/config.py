"""An order as the configuration of a container, in the words of the Engine API. Never asks an engine."""

from collections.abc import Mapping
from typing import Any

from roost.ports.driver import TaskOrder
from roost.ports.errors import Invalid

OWNER = "roost.host"
TASK = "roost.task"
MIB = 1 << 20
MEMORY_LEAST_MIB = 6.0
"""The engine takes no less."""
CPU_LEAST = 0.01
PIDS_MOST = 4096
LOG_BYTES = "10m"
LOG_FILES = "2"


def container_config(
    order: TaskOrder,
    *,
    owner: str,
    marks: Mapping[str, str],
    cpus: float,
    true_path: Mapping[str, str],
) -> dict[str, Any]:
    """What the engine is asked to create. ``cpus``: what it has, for it refuses to promise more.

    ``true_path``: folders as this agent sees them -> as the engine sees them; an agent in a mount namespace
    of its own sees another name.
    """
    if not order.image:
        raise Invalid(
            f"task {order.task_id} names no image", hint="processes have a driver of their own"
        )
    environment = {**_address(order), **order.env, **marks}
    config: dict[str, Any] = {
        "Image": order.image,
        "Env": [f"{name}={value}" for name, value in sorted(environment.items())],
        "Labels": {OWNER: owner, TASK: order.task_id},
        "HostConfig": _host_config(order, cpus=cpus, true_path=true_path),
    }
    if order.argv:
        # Both: an image's entry point would else be put before the command.
        config["Entrypoint"], config["Cmd"] = [order.argv[0]], list(order.argv[1:])
    if order.cwd:
        config["WorkingDir"] = order.cwd
    if order.port and order.listens:
        config["ExposedPorts"] = {f"{order.listens}/tcp": {}}
    return config


def container_name(owner: str, task_id: str) -> str:
    """One name for one task of one host: the engine refuses a second container of the same name."""
    return f"roost-{owner}-{task_id}"


def _address(order: TaskOrder) -> dict[str, str]:
    if not order.port:
        return {}
    if order.listens:
        return {"HOST": "0.0.0.0", "PORT": str(order.listens)}
    return {"HOST": order.address, "PORT": str(order.port)}


def _host_config(order: TaskOrder, *, cpus: float, true_path: Mapping[str, str]) -> dict[str, Any]:
    host: dict[str, Any] = {
        "Init": True,  # a program that is process 1 ignores SIGTERM unless it asked for it
        "NetworkMode": "host",
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": LOG_BYTES, "max-file": LOG_FILES},
        },
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": PIDS_MOST,
    }
    if order.port and order.listens:
        where = {"HostIp": order.address, "HostPort": str(order.port)}
        host["NetworkMode"] = "bridge"
        host["PortBindings"] = {f"{order.listens}/tcp": [where]}
    if order.mounts:
        host["Binds"] = [f"{_truly(path, true_path)}:{path}" for path in order.mounts]
    limits = order.limits
    if limits.vcpus > 0:
        host["NanoCpus"] = int(min(max(limits.vcpus, CPU_LEAST), cpus) * 1e9)
    if limits.memory_mib > 0:
        # Swap included: a replica that swaps is slower than one that is started again.
        host["Memory"] = host["MemorySwap"] = int(max(limits.memory_mib, MEMORY_LEAST_MIB) * MIB)
    if limits.gpus >= 1:
        host["DeviceRequests"] = [{"Count": int(limits.gpus), "Capabilities": [["gpu"]]}]
    return host


def _truly(path: str, true_path: Mapping[str, str]) -> str:
    for seen, truly in true_path.items():
        if path == seen or path.startswith(f"{seen}/"):
            return truly + path[len(seen) :]
    return path
