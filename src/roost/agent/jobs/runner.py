"""The parent of one script: starts it, passes SIGTERM on, writes down how it ended.

It outlives the agent; the file ``exit.json`` is the one truth on the exit code. The script dies with it:
what nobody waits for would compute for nobody. It knows nothing of epochs, and never starts it again.
"""

import ctypes
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

PR_SET_PDEATHSIG = 1
CANNOT_START = 127
"""As a shell says it: there is no such command."""


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """``run.json``: what to run."""

    argv: tuple[str, ...]
    env: dict[str, str]
    """Added to the runner's own."""
    cwd: str
    output: str


class ExitFile(msgspec.Struct, frozen=True, kw_only=True):
    """``exit.json``: how it ended."""

    exit_code: int
    """Negative: the signal."""
    told: bool
    """SIGTERM was passed on before it ended."""


class Runner:
    """One script."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = False
        self._told = False

    def run(self) -> int:
        """Run the script of ``run.json`` to its end; returns its exit code."""
        signal.signal(signal.SIGTERM, self._pass_on)
        signal.signal(signal.SIGINT, self._pass_on)
        order = msgspec.json.decode((self._folder / "run.json").read_bytes(), type=RunFile)
        code = self._wait(order)
        content = msgspec.json.encode(ExitFile(exit_code=code, told=self._told))
        write_durably(self._folder / "exit.json", content)
        return code

    def _wait(self, order: RunFile) -> int:
        with Path(order.output).open("ab") as output:
            try:
                self._child = subprocess.Popen(
                    order.argv,
                    cwd=order.cwd,
                    env={**os.environ, **order.env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=0,
                    preexec_fn=_begin,
                )
            except OSError as error:
                output.write(f"{order.argv[0]}: {error.strerror or error}\n".encode())
                return CANNOT_START
        if self._asked:  # while it was being started
            self._pass_on()
        # Looked at first and reaped after: until then its pid is its own.
        os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return self._child.wait()

    def _pass_on(self, *_: Any) -> None:
        child = self._child
        if child is None:
            self._asked = True
        elif not os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            self._told = True
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)


def _begin() -> None:
    """In the child: it dies with its parent, and begins with the usual signals."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def write_durably(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step, on the disk when it returns."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
