"""How an agent runs tasks on its host. Contract test: ``roost.testing.driver``."""

from typing import Protocol

import msgspec


class TaskOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A process to run on the host."""

    task_id: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str = ""
    log_path: str = ""


class TaskHandle(msgspec.Struct, frozen=True, kw_only=True):
    """Enough to find the task again after the agent was restarted: pid and start time, not a parent."""

    task_id: str
    pid: int
    started_ticks: int
    """Field 22 of /proc/<pid>/stat: a recycled pid has another value."""


class Driver(Protocol):
    """Starts tasks that outlive the agent, and finds them again."""

    async def start(self, order: TaskOrder) -> TaskHandle:
        """Start, or return the handle of the running task with this id."""

    async def recover(self) -> list[TaskHandle]:
        """The tasks that still run, whoever started them."""

    async def stop(self, task_id: str, *, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after the grace. Unknown ids are fine."""

    async def alive(self, task_id: str) -> bool:
        """Whether the task runs."""
