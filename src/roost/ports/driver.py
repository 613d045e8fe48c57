"""How an agent runs tasks on its host. Contract test: ``roost.testing.driver``."""

from typing import Protocol

import msgspec

from roost.ports.replicas import Executed


class TaskLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The most a task may use. 0 = no limit of its own. What a driver cannot hold it says (``held``)."""

    vcpus: float = 0.0
    memory_mib: float = 0.0
    gpus: float = 0.0
    """Whole devices; a part of one cannot be held by any driver and counts as none."""


class TaskOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A process or a container to run on the host."""

    task_id: str
    argv: tuple[str, ...]
    """With an image it may be empty: the image's own command."""
    env: dict[str, str] = {}
    cwd: str = ""
    """With an image: inside it."""
    mounts: tuple[str, ...] = ()
    """Folders of the host that an image sees at the same paths."""
    log_path: str = ""
    """Where a process writes; a container's output is kept by its engine (``Driver.logs`` reads both)."""
    image: str = ""
    """A container image; a driver of processes refuses it, a driver of containers needs it."""
    limits: TaskLimits = TaskLimits()
    address: str = ""
    port: int = 0
    """Where others reach it on this host: the task gets ``HOST`` and ``PORT``; 0 = it listens nowhere."""
    listens: int = 0
    """The port inside an image that cannot be told: ``address:port`` leads there. 0 = it obeys ``PORT``."""


class TaskHandle(msgspec.Struct, frozen=True, kw_only=True):
    """Enough to find the task again after the agent was restarted: pid and start time, not a parent."""

    task_id: str
    pid: int
    """Of a container: as its engine sees it, which an agent in a PID namespace of its own does not."""
    started_ticks: int
    """Field 22 of /proc/<pid>/stat: a recycled pid has another value. Of a container: microseconds UTC."""


class TaskUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a running task has used. None = not measured."""

    cpu_s: float | None = None
    """Since its start, all its processes together."""
    memory_mib: float | None = None


class Driver(Protocol):
    """Starts tasks that outlive the agent, and finds them again."""

    async def start(self, order: TaskOrder) -> TaskHandle:
        """Start, or return the handle of the running task with this id.

        ``Invalid`` for an order that it cannot run at all, ``Never`` for what is not on this host (program,
        image), ``Retry`` while its engine does not answer.
        """

    async def recover(self) -> list[TaskHandle]:
        """The tasks that still run, whoever started them."""

    async def stop(self, task_id: str, *, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after the grace. Unknown ids are fine."""

    async def alive(self, task_id: str) -> bool:
        """Whether the task runs."""

    async def ended(self, task_id: str) -> int | None:
        """Exit status of an ended task (128 + n for signal n, -1 where nobody knows); None while it runs."""

    async def usage(self, task_id: str) -> TaskUsage:
        """What it uses now; all None when it does not run or cannot be measured."""

    async def logs(self, task_id: str, *, tail_bytes: int) -> str:
        """The newest output, also of an ended task until it is stopped; empty for unknown ids."""

    async def execute(self, task_id: str, argv: tuple[str, ...], *, timeout_s: float) -> Executed:
        """Run a command beside a running task, in its folder and environment, until its time is over.

        ``Gone`` when the task does not run, ``Never`` for a program that is not there.
        """

    @property
    def held(self) -> tuple[str, ...]:
        """Which limits are held by the system here: ``vcpus``, ``memory_mib``, ``gpus``."""
