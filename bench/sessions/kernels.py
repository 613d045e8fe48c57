"""A real ipykernel driven over ZMQ, killed without a word where a case asks for it."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}")


class Kernel:
    """One kernel process in ``folder``."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder = folder
        self._manager = KernelManager()
        self._manager.kernel_spec.argv = [  # type: ignore[union-attr]
            python, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}",
        ]  # fmt: skip
        env = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "MPLBACKEND": "agg",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        env["IPYTHONDIR"] = str(folder.parent / "ipython")
        self._manager.start_kernel(
            cwd=str(folder), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.client: BlockingKernelClient = self._manager.client()  # type: ignore[assignment]
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    @property
    def pid(self) -> int:
        """Process id."""
        return int(self._manager.provisioner.pid)  # type: ignore[union-attr]

    def send(self, code: str) -> str:
        """Ask for a cell; its message id."""
        return self.client.execute(code, store_history=True, allow_stdin=False)

    def run(self, code: str, timeout: float = 60.0) -> list[str]:
        """Run a cell; what it showed."""
        return self.outputs(self.send(code), timeout)

    def outputs(self, message: str, timeout: float = 60.0) -> list[str]:
        """Wait for a cell; its outputs as lines. Raises ``TimeoutError``."""
        until = time.monotonic() + timeout
        shown: list[str] = []
        while True:
            try:
                got = self.client.get_iopub_msg(timeout=max(0.01, until - time.monotonic()))
            except Empty:
                raise TimeoutError(f"no end of the cell within {timeout:.0f} s") from None
            if got["parent_header"].get("msg_id") != message:
                continue
            kind, content = got["msg_type"], got["content"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            shown += _shown(kind, content)
        reply = self._reply(message, max(0.5, until - time.monotonic()))
        if reply.get("status") == "aborted":
            shown.append("aborted")
        return merged(shown)

    def _reply(self, message: str, timeout: float) -> dict[str, Any]:
        until = time.monotonic() + timeout
        while True:
            try:
                got = self.client.get_shell_msg(timeout=max(0.01, until - time.monotonic()))
            except Empty:
                return {}
            if got["parent_header"].get("msg_id") == message:
                found: dict[str, Any] = got["content"]
                return found

    def kill(self) -> None:
        """SIGKILL, at once, with all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(self.pid), signal.SIGKILL)
        self.client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()


def _shown(kind: str, content: dict[str, Any]) -> list[str]:
    if kind == "stream":
        return [f"{content['name']}:{content['text']}"]
    if kind in ("execute_result", "display_data"):
        return [f"{kind}:{content['data'].get('text/plain', '')}"]
    if kind == "error":
        return [f"error:{content['ename']}: {content['evalue']}"]
    return []


def merged(shown: list[str]) -> list[str]:
    """Neighbouring pieces of one stream as one, addresses blotted out."""
    found: list[str] = []
    for line in shown:
        name, _, text = line.partition(":")
        if found and name in ("stdout", "stderr") and found[-1].startswith(f"{name}:"):
            found[-1] += text
        else:
            found.append(line)
    return [_ADDRESS.sub("0x", line) for line in found]


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
