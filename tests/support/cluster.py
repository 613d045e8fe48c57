"""A whole Roost of its own for a test: real processes, own state directory, everything ended afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from roost.client.api import RoostClient
from roost.client.model import HostView, SessionView, StartNotebook
from roost.main.local import LocalInstallation
from roost.main.page import CellResult, Page
from roost.main.processes import ProcessFile, marked
from roost.ports.errors import Retry

T = TypeVar("T")
ASK = StartNotebook(vcpus=2, memory_gib=4, near="Seoul", image="minimal", spread="provider")


def eventually(
    look: Callable[[], T | None], what: str, timeout_s: float = 60.0, every_s: float = 0.05
) -> T:
    """The first true value of ``look``; fails naming ``what`` when it never comes."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        found = look()
        if found:
            return found
        time.sleep(every_s)
    raise AssertionError(f"never: {what} (waited {timeout_s:.0f} s)")


class Cluster:
    """One installation, started on demand."""

    def __init__(self) -> None:
        # Not /tmp: hosts' environments are hard links into uv's cache, which must be on one file system.
        base = os.environ.get("ROOST_TEST_DIR", "/var/tmp")
        self.root = Path(tempfile.mkdtemp(prefix="rt-", dir=base))
        self.installation = LocalInstallation(str(self.root / "s"), port=0)
        self.state = self.installation.state
        self.pages: list[Page] = []

    def up(self) -> "Cluster":
        self.installation.up(lambda _text: None)
        return self

    @property
    def client(self) -> RoostClient:
        return self.installation.client()

    def end_sessions(self) -> None:
        """Stop every session and wait for the end of its hosts."""
        for page in self.pages:
            page.close()
        self.pages.clear()
        for view in self.client.notebooks():
            if view.state != "stopped":
                self.client.stop_notebook(view.id)

        def ended() -> bool:
            return not self.client.hosts()

        eventually(ended, "all hosts ended")

    def close(self) -> None:
        """End everything; a process left behind fails the test."""
        for page in self.pages:
            page.close()
        self.installation.down(lambda _text: None, keep_hosts=False)
        left = marked("ROOST_CELL", str(self.state.root))
        hosts = [p for p in (self.state.root / "instances").glob("*/env") if p.exists()]
        if os.environ.get("ROOST_TEST_KEEP") is None:
            shutil.rmtree(self.root, ignore_errors=True)
        assert not left, f"processes were left running: {left}"
        assert not hosts, f"environments of hosts were left: {hosts}"

    def roost(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the ``roost`` command against this installation."""
        argv = [str(Path(sys.executable).with_name("roost")), "--state", str(self.state.root)]
        env = {**os.environ, "COLUMNS": "160"}
        done = subprocess.run(
            [*argv, *arguments], capture_output=True, text=True, timeout=120, env=env, check=False
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.roost(*arguments, "--json").stdout)

    # --- sessions ------------------------------------------------------------------------------

    def start(self, body: StartNotebook = ASK) -> SessionView:
        """A session that runs."""
        view = self.client.start_notebook(body)
        return self.until(view.id, lambda v: v.state == "running", "the session runs", 120)

    def until(
        self, session_id: str, good: Callable[[SessionView], bool], what: str, timeout_s: float = 60
    ) -> SessionView:
        """The session's view once it is ``good``."""

        def look() -> SessionView | None:
            try:
                view = self.client.notebook(session_id)
            except Retry:  # control is being restarted
                return None
            return view if good(view) else None

        return eventually(look, what, timeout_s)

    def warm(self, session_id: str) -> SessionView:
        """Wait for a warm standby host."""
        return self.until(session_id, lambda v: v.standby_warm, "the standby is warm", 120)

    def saved(self, session_id: str, cell: CellResult) -> SessionView:
        """Wait until a checkpoint with this cell's effects is durable."""
        return self.until(
            session_id, lambda v: v.checkpoint_cells >= cell.count, "the cell is in a checkpoint"
        )

    def moved(self, before: SessionView, timeout_s: float = 150) -> SessionView:
        """Wait until the session runs at a higher epoch."""
        return self.until(
            before.id,
            lambda v: v.state == "running" and v.epoch > before.epoch,
            "the session moved",
            timeout_s,
        )

    def page(self, view: SessionView, notebook: str = "test.ipynb") -> Page:
        """A connected Jupyter page of the session."""
        page = Page(view.url)
        self.pages.append(page)
        page.wait_open()
        page.connect(notebook)
        return page

    def host(self, host_id: str) -> HostView:
        """One host."""
        return next(h for h in self.client.hosts(all_=True) if h.id == host_id)

    def shell(self, host_id: str, typed: str) -> str:
        """What a shell on a host prints for ``typed``."""
        argv = [str(Path(sys.executable).with_name("roost")), "--state", str(self.state.root)]
        done = subprocess.run(
            [*argv, "host", "connect", host_id],
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # --- processes -----------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """The pid of a process of the control plane's machine."""
        pid = ProcessFile(self.state.run, name).pid()
        assert pid is not None, f"{name} does not run"
        return pid

    def restarted(self, name: str, old: int) -> int:
        """The pid of the process that replaced ``old``."""

        def look() -> int | None:
            pid = ProcessFile(self.state.run, name).pid()
            return pid if pid != old else None

        return eventually(look, f"{name} runs again")

    def kill9(self, name: str) -> int:
        """SIGKILL a process of the control plane's machine; returns its pid."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def pids(self, module: str, **environment: str) -> list[int]:
        """Pids of ``python -m <module>`` of this installation, filtered by environment."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            wanted = [f"{k}={v}".encode() for k, v in environment.items()]
            if argv[2:3] == [module.encode()] and all(w in variables for w in wanted):
                joined = b" ".join(argv) + b" " + b" ".join(variables)
                if str(self.state.root).encode() in joined:
                    found.append(int(entry.name))
        return sorted(found)
