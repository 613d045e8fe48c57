"""The supervisor: owns the listening sockets, keeps control, edges and Jupyter servers running.

What should run is files: ``run/desired/<name>.json`` for what control wants, plus its own fixed list.
It may be killed at any moment: its children run on, and the next one adopts them by pid and start
time. Sockets are bound with SO_REUSEPORT and listen only once their child is started, so that a
supervisor that adopts can bind the same ports while its children still serve on the old sockets.
"""

import argparse
import contextlib
import fcntl
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from roost.main.processes import ProcessFile, spawn
from roost.main.settings import Settings, StateDir, settings
from roost.ports.errors import Invalid

TICK_S = 0.1
STOP_GRACE_S = 5.0
BACKLOG = 512
FAST_DEATH_S = 2.0
LONGEST_PAUSE_S = 5.0


@dataclass
class Child:
    """One process to keep running."""

    name: str
    argv: list[str]
    sockets: tuple[socket.socket, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    pause_s: float = 0.0
    """Back-off after deaths soon after a start."""
    not_before_s: float = 0.0


def bind(host: str, port: int, what: str, *, shared: bool) -> socket.socket:
    """A bound, not yet listening socket. ``Invalid`` names a port that is taken.

    ``shared``: our own children of an earlier supervisor may be listening there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if port and not shared:
            # SO_REUSEPORT would let us share the port with any other process of this user.
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise Invalid(
            f"port {port} on {host} for {what} cannot be used: {error.strerror}",
            hint="stop what uses it, or choose another with ROOST_PORT (0 = any free one)",
        ) from error
    return sock


class Supervisor:
    """Keeps the children of one installation running."""

    def __init__(self, chosen: Settings) -> None:
        self.settings = chosen
        self.state = StateDir(chosen.state_dir).prepare()
        self.children: dict[str, Child] = {}
        self.stopping = False
        self.env = {**os.environ, "ROOST_STATE_DIR": str(self.state.root)}
        self.lock = (self.state.run / "supervisor.lock").open("w")

    def acquire(self) -> bool:
        """Become the one supervisor; False when another runs."""
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        ProcessFile(self.state.run, "supervisor").write(os.getpid())
        return True

    def open_sockets(self) -> None:
        """Bind every listener (the ports of the last run again) and record the addresses."""
        last = self.state.endpoints()
        host, local = self.settings.host, "127.0.0.1"
        if not ipaddress.ip_address(host).is_loopback:
            raise Invalid(
                f"the public listener would serve {host} without encryption",
                hint="listen on a loopback address (ROOST_HOST) and put a TLS proxy in front",
            )
        shared = self._adopts()
        # Children that still serve keep their address, whatever is asked for now.
        port = (
            self._port(last, "public_url")
            if shared or not self.settings.port
            else self.settings.port
        )
        publics = [bind(host, port, "the public address", shared=shared)]
        port = publics[0].getsockname()[1]
        publics += [
            bind(host, port, "the public address", shared=True)
            for _ in range(1, self.settings.edges)
        ]
        known = last.get("data_addresses", [])
        data = []
        for index in range(self.settings.edges):
            number = int(known[index].rsplit(":", 1)[1]) if index < len(known) else 0
            data.append(bind(local, number, "data connections", shared=shared))
        control_port = self._port(last, "control_url")
        control = bind(local, control_port, "the control plane", shared=shared)
        link = bind(local, self._port(last, "link_address"), "agents", shared=shared)
        addresses = [f"{local}:{s.getsockname()[1]}" for s in data]
        self.state.write_endpoints(
            {
                "public_url": f"http://{host}:{port}",
                "control_url": f"http://{local}:{control.getsockname()[1]}",
                "link_address": f"{local}:{link.getsockname()[1]}",
                "data_addresses": addresses,
                "edges": self.settings.edges,
            }
        )
        python = [sys.executable, "-m"]
        state = ["--state", str(self.state.root)]
        rest_fd, link_fd = str(control.fileno()), str(link.fileno())
        argv = [*python, "roost.main.control", *state, "--rest-fd", rest_fd, "--link-fd", link_fd]
        self.children["control"] = Child("control", argv, (control, link))
        for index, (public, parked) in enumerate(zip(publics, data, strict=True)):
            fds = ["--public-fd", str(public.fileno()), "--data-fd", str(parked.fileno())]
            argv = [*python, "roost.main.edge", "--index", str(index), *state, *fds]
            self.children[f"edge-{index}"] = Child(f"edge-{index}", argv, (public, parked))

    def _adopts(self) -> bool:
        names = ["control", *(f"edge-{i}" for i in range(self.settings.edges))]
        return any(ProcessFile(self.state.run, n).pid() is not None for n in names)

    @staticmethod
    def _port(last: dict[str, str], name: str) -> int:
        text = last.get(name, "").rsplit(":", 1)[-1]
        return int(text) if text.isdigit() else 0

    def tick(self) -> None:
        """One look at everything: what should run and does not is started."""
        self._read_desired()
        for child in list(self.children.values()):
            if not self._alive(child) and time.monotonic() >= child.not_before_s:
                self._start(child)

    def _read_desired(self) -> None:
        wanted = {}
        for path in sorted(self.state.desired.glob("*.json")):
            with contextlib.suppress(ValueError, OSError, KeyError):
                found = json.loads(path.read_text())
                wanted[path.stem] = Child(path.stem, found["argv"], env=found.get("env", {}))
        for name, child in wanted.items():
            self.children.setdefault(name, child)
        for name in list(self.children):
            if name not in wanted and not self._fixed(name):
                self._stop(self.children.pop(name))

    @staticmethod
    def _fixed(name: str) -> bool:
        return name == "control" or name.startswith("edge-")

    def _alive(self, child: Child) -> bool:
        if child.process is not None:
            return child.process.poll() is None
        return ProcessFile(self.state.run, child.name).pid() is not None

    def _start(self, child: Child) -> None:
        lived_s = time.monotonic() - child.started_s
        if child.started_s and lived_s < FAST_DEATH_S:
            child.pause_s = min(LONGEST_PAUSE_S, max(TICK_S, child.pause_s * 2))
        else:
            child.pause_s = 0.0
        for sock in child.sockets:
            # Before the child is ready its callers wait in the backlog instead of being refused.
            sock.listen(BACKLOG)
        fds = [s.fileno() for s in child.sockets]
        log = self.state.logs / f"{child.name}.log"
        child.process = spawn(child.argv, log=log, env={**self.env, **child.env}, pass_fds=fds)
        child.started_s = time.monotonic()
        child.not_before_s = child.started_s + child.pause_s
        ProcessFile(self.state.run, child.name).write(child.process.pid)
        print(f"started {child.name} as {child.process.pid}", flush=True)

    def _stop(self, child: Child) -> None:
        record = ProcessFile(self.state.run, child.name)
        record.signal(signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_GRACE_S
        while self._alive(child) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        if self._alive(child):
            record.signal(signal.SIGKILL)
        if child.process is not None:
            child.process.wait()
        record.forget()
        print(f"stopped {child.name}", flush=True)

    def run(self) -> None:
        """Tick until told to stop; then stop every child, control first."""

        def stop(_signal: int, _frame: FrameType | None) -> None:
            self.stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        while not self.stopping:
            self.tick()
            time.sleep(TICK_S)
        for name in sorted(self.children, key=lambda n: (n != "control", n)):
            self._stop(self.children[name])
        ProcessFile(self.state.run, "supervisor").forget()


def main() -> None:
    """``python -m roost.main.supervisor --state DIR``"""
    parser = argparse.ArgumentParser(description="Keep one Roost installation running.")
    parser.add_argument("--state", type=Path, required=True)
    chosen = settings(str(parser.parse_args().state))
    try:
        supervisor = Supervisor(chosen)
        if not supervisor.acquire():
            print("another supervisor runs", flush=True)
            return
        supervisor.open_sockets()
    except Invalid as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
    supervisor.run()


if __name__ == "__main__":
    main()
