"""The bridge of a session's kernel: started detached, adopted after a restart, started again when it dies.

The kernel is on a host; what runs beside this server is the bridge with five local ports that never
change. So the death of a bridge is never reported as the death of a kernel. It knows nothing about the
kernel's place or state.
"""

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Instance

from roost.kit.retry import RetryPolicy
from roost.ports.errors import Never

PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_ADDRESS = "127.0.0.1"
# Below the range from which the system gives ports to outgoing connections, so that none of ours is
# taken while a bridge is being started again.
_FIRST_PORT, _PORTS = 20_000, 12_000
_RESTART = RetryPolicy(first_s=0.2, ceiling_s=10.0)


class _Running(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies a process for good: a pid is used again, a pid with its start time is not."""

    pid: int
    ticks: str


def connection_info(file: Path, session_id: str, key: str) -> dict[str, Any]:
    """The connection file's content: the same ports and key for the whole life of a session."""
    if file.exists():
        known: dict[str, Any] = msgspec.json.decode(file.read_bytes())
        if all(name in known for name in PORT_NAMES):
            return known
    info: dict[str, Any] = dict(zip(PORT_NAMES, _free_ports(session_id), strict=True))
    info |= {
        "ip": _ADDRESS,
        "transport": "tcp",
        "key": key,
        "signature_scheme": "hmac-sha256",
        "kernel_name": "python3",
        "jupyter_session": "",
    }
    part = file.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_bytes(msgspec.json.encode(info))
    part.replace(file)
    return info


def _free_ports(session_id: str) -> list[int]:
    start = int.from_bytes(hashlib.sha256(session_id.encode()).digest()[:4], "big")
    found: list[int] = []
    for step in range(_PORTS):
        port = _FIRST_PORT + (start + step) % _PORTS
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((_ADDRESS, port))
                found.append(port)
        if len(found) == len(PORT_NAMES):
            return found
    raise Never("no five free ports between 20000 and 32000", hint="end some sessions")


class Bridge:
    """The bridge process of one session. ``command`` is its argv; ``directory`` keeps log and pid."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        self._command = command
        self._record = directory / "bridge.json"
        self._log = directory / "bridge.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._attempt = 0
        self._not_before = 0.0

    @property
    def pid(self) -> int:
        """Of the running bridge; 0 when none runs."""
        running = self._running()
        return running.pid if running else 0

    def ensure(self) -> None:
        """Adopt the running bridge or start one; quickly repeated deaths are started ever more slowly."""
        if self._running() is not None:
            self._attempt = 0
            return
        now = asyncio.get_running_loop().time()
        if now < self._not_before:
            return
        self._attempt += 1
        self._not_before = now + _RESTART.delay_s(self._attempt)
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        part = self._record.with_suffix(".part")
        part.write_bytes(
            msgspec.json.encode(_Running(pid=self._child.pid, ticks=_ticks(self._child.pid)))
        )
        part.replace(self._record)

    async def ended(self, limit_s: float = 3.0) -> None:
        """Wait until the bridge has ended by itself, at most ``limit_s``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._running() is not None:  # noqa: ASYNC110 - not our child after a restart
                    await asyncio.sleep(0.02)

    async def stop(self, limit_s: float = 5.0) -> None:
        """End the bridge: asked first, killed after ``limit_s``."""
        running = self._running()
        if running is None:
            return
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)
        await self.ended(limit_s)
        if self._running() is not None:
            with suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGKILL)
        self._not_before = 0.0

    def _running(self) -> _Running | None:
        if self._child is not None:
            self._child.poll()  # reaps it
        try:
            known = msgspec.json.decode(self._record.read_bytes(), type=_Running)
        except (OSError, msgspec.DecodeError):
            return None
        return known if known.ticks and _ticks(known.pid) == known.ticks else None


def _ticks(pid: int) -> str:
    """Start time of a living process in clock ticks since boot; empty for a dead one or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


class BridgeProvisioner(KernelProvisionerBase):
    """Jupyter's view of the bridge as a kernel process that never dies."""

    bridge = Instance(Bridge)
    _started = False

    @property
    def has_process(self) -> bool:
        """Whether the kernel was started (and not shut down)."""
        return self._started

    async def poll(self) -> int | None:
        """Never a death: a bridge that has died is started again on the same ports."""
        if not self._started:
            return 0
        self.bridge.ensure()
        return None

    async def wait(self) -> int | None:
        """After a shutdown there is nothing to wait for."""
        return 0

    async def send_signal(self, signum: int) -> None:
        """Interrupts go as messages; other signals have no meaning for a kernel elsewhere."""

    async def kill(self, restart: bool = False) -> None:
        """End the bridge; the kernel's end is asked for by message, see ``kernels``."""
        await self.terminate(restart)

    async def terminate(self, restart: bool = False) -> None:
        """End the bridge."""
        self._started = False
        await self.bridge.stop()

    async def renew(self) -> None:
        """After a restart was answered: the old bridge ends by itself, the next one starts at once."""
        await self.bridge.ended()
        await self.bridge.stop()
        self.bridge.ensure()

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """The command is the bridge's own; the rest of Jupyter's arguments are for local kernels."""
        return {"cmd": []}

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Adopt or start the bridge."""
        self._started = True
        self.bridge.ensure()
        return self.connection_info

    async def cleanup(self, restart: bool = False) -> None:
        """The connection file stays: ports and key are the session's for good."""
