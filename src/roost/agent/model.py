"""Words of the agent: tasks as it knows them, what it remembers, where things lie.

Pure values; it does no I/O and reads no clock.
"""

from collections.abc import Callable
from pathlib import PurePosixPath

import msgspec

from roost.ports.kernels import Checkpoint
from roost.ports.wire import EventBody


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One keeper with its kernel."""

    task_id: str
    session_id: str = ""
    """Empty = a standby kernel."""
    epoch: int = 0
    state: str = "starting"
    """``starting``, ``ready``, ``busy``, ``fenced``, ``dead``."""
    imports: tuple[str, ...] = ()
    keeper_pid: int = 0
    kernel_pid: int = 0
    exit_code: int | None = None

    @property
    def standby(self) -> bool:
        """Whether it waits for a session."""
        return not self.session_id

    @property
    def dead(self) -> bool:
        return self.state == "dead"


class SessionMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What a host remembers of a session over a restart of its agent."""

    session_id: str
    over: int = 0
    """Epochs up to this one were fenced or stopped here: they never start again."""
    checkpoint: Checkpoint | None = None
    """The last capture from here that is durable off the host."""


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where a host's agent keeps things, as absolute paths."""

    instance: str
    """The instance's own folder."""
    run: str
    """Short folder for unix sockets."""
    environment: str = ""
    """The virtual environment of kernels; empty = none to compare or install into."""

    def workspace(self, session_id: str) -> str:
        """The kernel's working directory."""
        return str(PurePosixPath(self.instance, "work", session_id))

    def captures(self, session_id: str) -> str:
        """Where the engine writes captures and reads chunks."""
        return str(PurePosixPath(self.instance, "captures", session_id))

    def log(self, task_id: str) -> str:
        """What a keeper and its kernel print outside of cells."""
        return str(PurePosixPath(self.instance, "logs", f"{task_id}.log"))

    def keeper_socket(self, task_id: str) -> str:
        """Where the keeper of a task listens."""
        return str(PurePosixPath(self.run, f"k-{task_id}.sock"))


Emit = Callable[[EventBody], None]
"""Tell control; delivered once, also after a reconnect."""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine below says of this instance, as the agent last read it."""

    ready: bool = False
    """The package environment is in place."""
    detail: str = ""
    isolation: tuple[str, ...] = ()
    memory_limit_mib: float = 0.0
    """0 = none known."""
    memory_used_mib: float = 0.0
