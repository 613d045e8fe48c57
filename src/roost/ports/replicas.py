"""Replicas of services on hosts: what runs, what a host is told, what it reports.

Control tells a host the whole set it shall have (``HostReplicas``), never a step: whatever message is lost,
the next one says everything again. The host starts what is missing, stops what is not named, and reports each
replica once a second.

Requests reach the replicas of a service on a host by the data service ``svc/<service>`` (HTTP/1.1, kept
alive). Every answer of a replica carries ``Roost-Load: active=<in flight and waiting here>; slots=<of ready
replicas>; ms=<mean time inside a replica of late>``. A 503 without it is the host's own: the request
reached no replica, so it may be sent to another host whatever its method.
"""

from typing import Protocol

import msgspec


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a host knows that a replica can serve: HTTP GET of ``path``, or a TCP connect where it is empty."""

    path: str = ""
    interval_s: float = 1.0
    timeout_s: float = 2.0
    healthy: int = 1
    """So many good answers in a row make it ready."""
    unhealthy: int = 3
    """So many bad ones in a row make it unhealthy: it gets nothing and is started again."""
    start_s: float = 60.0
    """It may take so long until it is ready for the first time."""


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica runs and may use. The same for all replicas of a revision."""

    command: tuple[str, ...] = ()
    """argv; empty = the image's own."""
    image: str = ""
    """A container image; empty = a process in the host's environment."""
    env: dict[str, str] = {}
    cwd: str = ""
    files: str = ""
    """Digest of the files (``ports.jobs.JobFiles``) to run in; empty = none."""
    port: int = 0
    """Where it listens; 0 = where its variable ``PORT`` says."""
    vcpus: float = 1.0
    memory_mib: float = 512.0
    gpus: float = 0.0
    concurrency: int = 0
    """Requests one replica serves at once; 0 = no bound: more wait at the host's balancer."""
    health: Health = Health()
    stop_grace_s: float = 10.0


class ReplicaOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One replica a host shall have."""

    replica_id: str
    service_id: str
    revision: int
    spec: ReplicaSpec
    draining: bool = False
    """It gets nothing new; what is in flight may end."""


class HostReplicas(msgspec.Struct, frozen=True, kw_only=True):
    """All replicas a host shall have. An older ``generation`` than one seen gets ``StaleEpoch``."""

    generation: int
    replicas: tuple[ReplicaOrder, ...] = ()


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """A replica as its host sees it."""

    replica_id: str
    service_id: str
    revision: int
    state: str = "starting"
    """``pulling``, ``starting``, ``ready``, ``unhealthy``, ``draining``, ``backing_off``, ``ended``."""
    detail: str = ""
    """Why it is not ready: ``exit code 1, started again in 8 s``, ``image x is not here``."""
    restarts: int = 0
    failures: int = 0
    """Ends in a row, and times it could not be started at all (no such image or program)."""
    exit_code: int | None = None
    started_s: float | None = None
    ready_s: float | None = None
    cpu_percent: float | None = None
    """100 = one core; None = not measured."""
    memory_mib: float | None = None
    network_bytes: float | None = None
    """Received and sent since its start, through the host's balancer."""
    in_flight: int = 0
    queued: int = 0


class ServiceReport(msgspec.Struct, frozen=True, kw_only=True):
    """A service as one host's balancer saw it, counted since the agent began: differences count."""

    service_id: str
    began_s: float
    """Since when it counts (UTC seconds); another value = it began anew."""
    requests: int = 0
    """Finished."""
    errors: int = 0
    """5xx of the replicas, and requests the host itself had to refuse."""
    in_flight: int = 0
    queued: int = 0
    busy_s: float = 0.0
    """Sum of the time inside replicas (s), without waiting."""
    busy_s2: float = 0.0
    """Sum of squares of the same (s^2): mean and variance of service time follow."""
    waited_s: float = 0.0
    """Sum of the time waited at the balancer (s)."""
    slow: tuple[int, ...] = ()
    """Finished requests by time in system (waiting included), by ``BOUNDS_S``; one more than bounds."""


class Executed(msgspec.Struct, frozen=True, kw_only=True):
    """A command that ran beside a replica."""

    exit_code: int
    """124 = it was ended because its time was over."""
    output: str = ""
    """Standard output and error as they came, the last ``EXECUTED_MOST`` bytes."""


EXECUTED_MOST = 256 << 10

BOUNDS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
)  # fmt: skip
"""Upper bounds of the histogram of times, in seconds."""


class Replicas(Protocol):
    """Commands to the replicas of one host. May be repeated. ``Retry`` while not connected."""

    async def set(self, host_id: str, replicas: HostReplicas) -> None:
        """Accept the set; starting and stopping go on from there and show in the reports."""

    async def logs(self, host_id: str, replica_id: str, *, tail_bytes: int) -> str:
        """The newest output of a replica."""

    async def execute(
        self, host_id: str, replica_id: str, argv: tuple[str, ...], *, timeout_s: float
    ) -> Executed:
        """Run a command where the replica runs, with its environment. ``Gone`` when it does not run."""
