"""The installation on this machine, as the command line uses it: up, down, doctor, env, shell."""

import asyncio
import dataclasses
import importlib.util
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from roost.adapters.clock import SystemClock
from roost.adapters.providers.local import LocalProvider
from roost.client.api import RoostClient
from roost.doors.cli.context import Check
from roost.doors.jupyter.kernelspec import install_kernelspec
from roost.main.processes import ProcessFile, marked, spawn
from roost.main.settings import Settings, StateDir, settings
from roost.main.terminal import connect
from roost.ports.errors import Invalid, Retry

UP_S = 60.0
GRACE_S = 8.0
MARK = "ROOST_CELL"
"""Environment mark of all processes of one installation (never set in a person's shell)."""


class LocalInstallation:
    """Implements ``doors.cli.context.Installation``."""

    def __init__(self, state_dir: str | None = None, *, port: int | None = None) -> None:
        """``port``: overrides the public port (0 = any free one)."""
        chosen: Settings = settings(state_dir)
        self.settings = chosen if port is None else dataclasses.replace(chosen, port=port)
        self.state = StateDir(self.settings.state_dir)

    # --- up and down ---------------------------------------------------------------------------

    def up(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Start a supervisor unless one runs, and wait until everything answers."""
        self.state.prepare()
        record = ProcessFile(self.state.run, "supervisor")
        log = self.state.logs / "supervisor.log"
        process = None
        if record.pid() is None:
            argv = [sys.executable, "-m", "roost.main.supervisor", "--state", str(self.state.root)]
            log.write_bytes(b"")
            process = spawn(argv, log=log, env=self._env())
        deadline_s = time.monotonic() + UP_S
        while time.monotonic() < deadline_s:
            if process is not None and process.poll() not in (None, 0):
                raise Invalid(_last_line(log), hint="`roost doctor` looks for the reason")
            missing = self._missing()
            if not missing:
                return self.state.endpoints()
            say(f"waiting for {', '.join(missing)}")
            time.sleep(0.05)
        raise Retry("Roost did not come up in time", hint=f"see {self.state.logs}")

    def _env(self) -> dict[str, str]:
        """The environment of everything we start; the mark lets `down` find what is left."""
        root = str(self.state.root)
        port = str(self.settings.port)
        return {**os.environ, "ROOST_STATE_DIR": root, "ROOST_PORT": port, MARK: root}

    def _missing(self) -> list[str]:
        """Parts that do not answer yet."""
        found = self.state.endpoints()
        if not found or ProcessFile(self.state.run, "supervisor").pid() is None:
            return ["supervisor"]
        parts = {
            "control": f"{found['control_url']}/api/v1/status",
            "edge": f"{found['public_url']}/_roost/health",
            "routes": f"{found['public_url']}/api/v1/status",
        }
        return [name for name, url in parts.items() if not self._answers(url)]

    def _answers(self, url: str) -> bool:
        headers = {"Authorization": f"Bearer {self.state.read_secret('owner.token')}"}
        try:
            response = httpx.get(url, headers=headers, timeout=2.0, trust_env=False)
        except httpx.TransportError:
            return False
        return response.status_code == 200

    def down(self, say: Callable[[str], None], *, keep_hosts: bool) -> list[str]:
        """Stop the supervisor (which stops control, edges, servers), then hosts, then what is left."""
        stopped = []
        record = ProcessFile(self.state.run, "supervisor")
        if record.signal(signal.SIGTERM):
            say("stopping the control plane")
            _wait(lambda: record.pid() is None, GRACE_S)
            record.signal(signal.SIGKILL)
            stopped.append("control plane")
        hosts = [] if keep_hosts else self._end_hosts(say)
        stopped += hosts
        mine = set(marked(MARK, str(self.state.root)))
        if keep_hosts:
            mine -= {pid for pid in mine if _has_mark(pid, "ROOST_INSTANCE")}
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in sorted(mine):
                _signal(pid, number)
            _wait(lambda: not any(_alive(p) for p in mine), 2.0)
        for path in self.state.run.glob("*.json"):
            path.unlink(missing_ok=True)
        return stopped

    def _end_hosts(self, say: Callable[[str], None]) -> list[str]:
        argv = (sys.executable, "-m", "roost.main.agent")
        provider = LocalProvider(self.state.root, clock=SystemClock(), agent_argv=argv)

        async def end() -> list[str]:
            alive = [i for i in await provider.instances() if i.ended_s is None]
            for instance in alive:
                say(f"ending {instance.host_id}")
                await provider.terminate(instance.provider_id)
            return [i.host_id for i in alive]

        return asyncio.run(end())

    # --- looking -------------------------------------------------------------------------------

    def client(self) -> RoostClient:
        """A client of this installation; a dead supervisor is started again first."""
        if not self.state.endpoints():
            raise Invalid(f"Roost was never started in {self.state.root}", hint="run `roost up`")
        self.state.prepare()
        if ProcessFile(self.state.run, "supervisor").pid() is None:
            if ProcessFile(self.state.run, "control").pid() is None:
                raise Invalid("Roost is not running", hint="run `roost up`")
            self.up(lambda _text: None)
        url = self.state.endpoints()["control_url"]
        return RoostClient(url, self.state.read_secret("owner.token"))

    def env(self) -> dict[str, str]:
        """Variables for a shell."""
        found = self.state.endpoints()
        if not found:
            raise Invalid(f"Roost was never started in {self.state.root}", hint="run `roost up`")
        return {
            "ROOST_STATE_DIR": str(self.state.root),
            "ROOST_URL": found["public_url"],
            "ROOST_TOKEN": self.state.read_secret("owner.token"),
        }

    def install_kernel(self, *, user: bool, prefix: str | None) -> str:
        """Install the kernelspec."""
        return str(install_kernelspec(Path(prefix) if prefix else None))

    def shell(self, host_id: str) -> int:
        """A terminal on a host."""
        self.client().close()
        found = self.state.endpoints()
        token = self.state.read_secret("owner.token")
        return asyncio.run(connect(found["public_url"], host_id, token))

    def doctor(self) -> list[Check]:
        """Look at everything that could be wrong."""
        checks = [self._check_state(), _check_python(), _check_uv(), _check_isolation()]
        checks.append(_check_containers())
        checks += [_check_space(self.settings.state_dir), self._check_port()]
        checks += [self._check_process(n) for n in self._processes()]
        return checks

    def _check_state(self) -> Check:
        try:
            self.state.prepare()
        except Invalid as error:
            return Check("state directory", False, error.message, error.hint)
        return Check("state directory", True, str(self.state.root))

    def _check_port(self) -> Check:
        if ProcessFile(self.state.run, "edge-0").pid() is not None:
            return Check("public address", True, self.state.endpoints().get("public_url", "?"))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.settings.host, self.settings.port))
            except OSError as error:
                detail = f"port {self.settings.port}: {error.strerror}"
                return Check("public address", False, detail, "set ROOST_PORT to another port")
        return Check("public address", True, f"port {self.settings.port} is free")

    def _processes(self) -> list[str]:
        if not self.state.endpoints() or not self.state.run.exists():
            return []
        desired = [p.stem for p in sorted(self.state.desired.glob("*.json"))]
        edges = [f"edge-{i}" for i in range(self.state.endpoints().get("edges", 1))]
        return ["supervisor", "control", *edges, *desired]

    def _check_process(self, name: str) -> Check:
        pid = ProcessFile(self.state.run, name).pid()
        if pid is None:
            return Check(name, False, "does not run", "`roost up` starts it; see logs/")
        return Check(name, True, f"pid {pid}")


def _check_containers() -> Check:
    """Never a fault: only services with an image need an engine."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    uds = address.removeprefix("unix://") if address.startswith("unix://") else None
    base = "http://docker" if uds else address.replace("tcp://", "http://")
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=uds), timeout=2.0) as client:
            version = client.get(f"{base}/version").json()["Version"]
    except (httpx.HTTPError, ValueError, KeyError):
        return Check("containers", True, f"no engine at {address}: services with an image wait")
    if importlib.util.find_spec("aiodocker") is None:
        return Check("containers", False, f"Docker {version}", "pip install 'roost[docker]'")
    return Check("containers", True, f"Docker {version} at {address}")


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Check("Python", good, version, "Roost needs Python 3.11 or newer")


def _check_uv() -> Check:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    return Check("uv", found is not None, found or "not found", "run `make setup` again")


def _check_isolation() -> Check:
    root = os.geteuid() == 0
    detail = "PID namespaces and cgroups" if root else "as far as this user may (marks otherwise)"
    return Check("isolation of hosts", True, detail)


def _check_space(folder: Path) -> Check:
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    hint = "checkpoints need room: free some, or move ROOST_STATE_DIR"
    return Check("disk", free_gib > 2, f"{free_gib:.1f} GiB free", hint)


def _last_line(log: Path) -> str:
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.strip()]
    return lines[-1].removeprefix("error: ") if lines else "the supervisor ended at once"


def _wait(done: Callable[[], bool], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while not done() and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _has_mark(pid: int, name: str) -> bool:
    try:
        return f"\0{name}=".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
