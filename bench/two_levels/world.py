"""An installation of its own with one service: what of it is looked at, and how parts of it are killed.

Everything is real: control plane, edge, local hosts, agents, and replicas as processes or containers.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.two_levels.load import Outcome, outcomes
from roost.client.api import RoostClient
from roost.client.model import HostView
from roost.client.services import CreateService, RolloutBody, ServiceBody, ServiceCalls, ServiceView
from roost.main.local import LocalInstallation
from roost.main.processes import marked
from roost.ports.errors import RoostError
from roost.ports.replicas import Health
from tools import base_image

WEB = Path(__file__).parents[2] / "examples" / "web"
NAME = "web"
LOOK_S = 0.5


@dataclass(frozen=True)
class Plan:
    """What a run is made of."""

    docker: bool = False
    policy: str = "target"
    work: str = "wait?ms=200"
    """What is asked of the service: 0.2 s in which another request may run, or ``work?ms=…`` of CPU."""
    concurrency: int = 2
    bound_s: float = 1.0
    service_s: float = 0.2
    least: int = 1
    most: int = 16
    vcpus: float = 0.5
    scale_in_s: float = 20.0
    period_s: int = 2


@dataclass(frozen=True)
class Sample:
    """What there was at a moment."""

    at_s: float
    ready: int
    starting: int
    draining: int
    wanted: int
    hosts: int
    booting: int
    noticed: int
    reason: str = ""


@dataclass
class Watched:
    """Samples, and the moments somebody did something."""

    samples: list[Sample] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)

    def mark(self, text: str) -> float:
        """Remember this moment."""
        at_s = time.time()
        self.marks.append((at_s, text))
        return at_s

    def first(self, after_s: float, good: Callable[[Sample], bool]) -> float | None:
        """Seconds from ``after_s`` to the first sample that is good; None = never."""
        found = (s.at_s - after_s for s in self.samples if s.at_s >= after_s and good(s))
        return next(found, None)


class World:
    """The installation; a context manager."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.watched = Watched()
        self._hosts: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "World":
        base = os.environ.get("ROOST_TEST_DIR", "/var/tmp")
        self.root = Path(tempfile.mkdtemp(prefix="rb-", dir=base))
        os.environ["ROOST_IMAGE"] = "minimal"
        os.environ["ROOST_SCALE_PERIOD_S"] = str(self.plan.period_s)
        self.installation = LocalInstallation(str(self.root / "s"), port=0)
        self.installation.up(lambda _text: None)
        self.client: RoostClient = self.installation.client()
        self.services = ServiceCalls(self.client)
        self._create()
        self.until(lambda: self.view().ready >= self.plan.least, "the first replica is ready", 180)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)
        with contextlib.suppress(RoostError):
            self._hosts = [host.id for host in self.client.hosts(all_=True)]
        self.installation.down(lambda _text: None, keep_hosts=False)
        if self.plan.docker:
            _remove_containers(self._hosts)
        left = marked("ROOST_CELL", str(self.installation.state.root))
        if os.environ.get("ROOST_TEST_KEEP") is None:
            shutil.rmtree(self.root, ignore_errors=True)
        if left:
            print(f"processes were left: {left}", file=sys.stderr)

    def _create(self) -> None:
        plan = self.plan
        policies: tuple[dict[str, object], ...] = ()
        if plan.policy == "target":
            target = {"type": "target", "metric": "in_flight", "target": 0.6 * plan.concurrency}
            policies = ({**target, "scale_in_s": plan.scale_in_s},)
        body = ServiceBody(
            vcpus=plan.vcpus,
            memory_mib=96.0,
            concurrency=plan.concurrency,
            health=Health(path="/health", interval_s=1.0, start_s=60.0),
            min=plan.least,
            max=plan.most,
            bound_s=plan.bound_s,
            service_s=plan.service_s,
            policies=policies,
            rollout=RolloutBody(drain_s=3.0),
        )
        if plan.docker:
            body = msgspec.structs.replace(body, image=base_image.make_web(base_image.make_base()))
        else:
            files = self.services.send(WEB).entries
            body = msgspec.structs.replace(body, command=("python3", "web.py"), files=files)
        self.services.create(CreateService(name=NAME, body=body))

    # --- looking -----------------------------------------------------------------------------------

    def view(self) -> ServiceView:
        """The service now."""
        return self.services.get(NAME)

    def hosts(self) -> list[HostView]:
        """Hosts that exist."""
        return self.client.hosts()

    def until(self, good: Callable[[], bool], what: str, limit_s: float) -> float:
        """Seconds it took; ``TimeoutError`` naming ``what``."""
        began = time.monotonic()
        while time.monotonic() - began < limit_s:
            with contextlib.suppress(RoostError):
                if good():
                    return time.monotonic() - began
            time.sleep(0.1)
        raise TimeoutError(f"never within {limit_s:.0f} s: {what}")

    def _watch(self) -> None:
        client = self.installation.client()
        services = ServiceCalls(client)
        while not self._stop.wait(LOOK_S):
            with contextlib.suppress(RoostError):
                self.watched.samples.append(_sample(services.get(NAME), client.hosts()))

    # --- load --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def load(self, profile: str, seed: int = 1) -> Iterator["Load"]:
        """Requests that follow the profile, from a process of its own; ended with the block."""
        load = Load(f"{self.view().url}{self.plan.work}", profile, self.root / "load.jsonl", seed)
        try:
            yield load
        finally:
            load.end()

    # --- killing -----------------------------------------------------------------------------------

    def busiest(self) -> str:
        """The host with most ready replicas."""
        count: dict[str, int] = {}
        for replica in self.view().replicas:
            if replica.state == "ready":
                count[replica.host_id] = count.get(replica.host_id, 0) + 1
        return max(sorted(count), key=lambda host: count[host])

    def kill_replica(self) -> str:
        """SIGKILL all processes of one ready replica, from outside. Returns which."""
        replica = next(r for r in self.view().replicas if r.state == "ready")
        pids = _with(f"ROOST_REPLICA={replica.id}")
        for pid in pids:
            _kill(pid)
        return replica.id if pids else ""

    def kill_agent(self) -> str:
        """SIGKILL the agent of the busiest host; its host starts another."""
        host = self.busiest()
        pids = [p for p in _with(f"ROOST_HOST_ID={host}") if b"roost.main.agent" in _argv(p)]
        for pid in pids:
            _kill(pid)
        return host if pids else ""

    def kill_host(self) -> str:
        """Take the busiest host away, without notice."""
        host = self.busiest()
        self.client.kill_host(host)
        return host

    def notice(self, hosts: list[str], notice_s: float) -> None:
        """Tell hosts that they go away."""
        for host in hosts:
            self.client.interrupt_host(host, notice_s, "the pool is taken")


class Load:
    """A running generator of requests."""

    def __init__(self, url: str, profile: str, out: Path, seed: int) -> None:
        self._out = out
        argv = [sys.executable, "-m", "bench.two_levels.load", url, profile, str(out)]
        self._process = subprocess.Popen([*argv, "--seed", str(seed)])

    def wait(self) -> None:
        """Until the profile is over."""
        self._process.wait()

    def end(self) -> None:
        """Stop asking."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def outcomes(self) -> list[Outcome]:
        """What has ended so far."""
        return outcomes(self._out)


def _sample(view: ServiceView, hosts: list[HostView]) -> Sample:
    states = [replica.state for replica in view.replicas]
    mine = [host for host in hosts if host.role == "group"]
    return Sample(
        at_s=time.time(),
        ready=states.count("ready"),
        starting=sum(state in ("wanted", "starting", "failing") for state in states),
        draining=states.count("draining"),
        wanted=view.wanted,
        hosts=sum(host.ready and not host.notice for host in mine),
        booting=sum(not host.ready and not host.notice for host in mine),
        noticed=sum(bool(host.notice) for host in mine),
        reason=view.reason,
    )


def _remove_containers(hosts: list[str]) -> None:
    """What ended hosts left on the engine, which an agent would remove later."""
    for host in hosts:
        listed = ["docker", "ps", "--all", "--quiet", "--filter", f"label=roost.host={host}"]
        found = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.split()
        if found:
            subprocess.run(["docker", "rm", "--force", *found], capture_output=True, check=False)


def _with(variable: str) -> list[int]:
    """Pids of processes with this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _argv(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def dump(watched: Watched, path: Path) -> None:
    """Samples and marks as JSON lines."""
    with path.open("w") as out:
        for sample in watched.samples:
            out.write(json.dumps(vars(sample)) + "\n")
