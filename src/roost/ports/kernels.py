"""Kernels on hosts, as notebooks see them. Implemented over the agents' links; faked by the simulator."""

from typing import Protocol

import msgspec


class VariableReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one variable (or one piece of state): never silently dropped."""

    name: str
    outcome: str
    """``kept``, ``rebuilt`` or ``refused``."""
    reason: str = ""


class RestoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a restore, per variable."""

    variables: tuple[VariableReport, ...] = ()
    seconds: float = 0.0

    def names(self, outcome: str) -> tuple[str, ...]:
        """Names with this outcome, in order."""
        return tuple(v.name for v in self.variables if v.outcome == outcome)


class KernelOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Start (or adopt from standby) the kernel of a session at an epoch."""

    session_id: str
    epoch: int
    key: str
    """The Jupyter message signing key of the session: the same everywhere, so nothing is re-signed."""
    checkpoint: str = ""
    """Digest of the checkpoint to restore; empty = a fresh kernel."""
    kernel: str = ""
    """Name of an installed kernel of another language; empty = Python."""
    files: tuple["FileChange", ...] = ()
    """Changes made from the browser that the checkpoint does not have yet, in order."""


class FileChange(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the workspace made from outside the host; ``digest`` names a blob."""

    seq: int
    op: str
    """``write``, ``delete``, ``mkdir``, ``rename``."""
    path: str
    digest: str = ""
    to: str = ""
    mtime_s: float = 0.0


class KernelUp(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel accepts work at ``epoch``."""

    session_id: str
    epoch: int
    task_id: str
    warm: bool = False
    report: RestoreReport = RestoreReport()
    bytes_fetched: int = 0


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A capture that is durable off the host."""

    session_id: str
    epoch: int
    digest: str
    number: int
    """Rises within an epoch."""
    at_s: float
    bytes_total: int = 0
    bytes_moved: int = 0
    files_seq: int = 0
    """Highest browser change that the captured workspace contains."""
    imports: tuple[str, ...] = ()
    cells: int = 0
    """Cells (execution counts) whose effects it has."""
    refused: tuple[VariableReport, ...] = ()


class Kernels(Protocol):
    """Commands to the kernels of one host. Each may be repeated; an older epoch gets ``StaleEpoch``.

    All raise ``Retry`` while the host is not connected and ``Gone`` when the kernel is not there.
    """

    async def start(self, host_id: str, order: KernelOrder) -> KernelUp:
        """Start or adopt, restore, and accept work at the order's epoch."""

    async def fence(self, host_id: str, session_id: str, epoch: int) -> None:
        """Stop accepting work for every epoch up to ``epoch``: the first step of every capture."""

    async def capture(
        self, host_id: str, session_id: str, epoch: int, budget_s: float
    ) -> Checkpoint:
        """Capture what changed and make it durable within the budget (``Retry`` if it cannot: the last
        checkpoint stands)."""

    async def stop(self, host_id: str, session_id: str, epoch: int) -> None:
        """End the session's kernel on this host; ending twice is fine."""

    async def warm(self, host_id: str, imports: tuple[str, ...]) -> None:
        """Keep one standby kernel with these modules imported."""

    async def prefetch(self, host_id: str, session_id: str, checkpoint: str) -> None:
        """Bring the chunks of a durable checkpoint to the host, so that a restore there finds them."""
