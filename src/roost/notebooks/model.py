"""The words of notebooks: sessions, moves, their records. Pure values; never does I/O."""

from enum import StrEnum
from typing import Protocol

import msgspec

from roost.fleet.model import Spread
from roost.ports.kernels import Checkpoint, RestoreReport, VariableReport
from roost.ports.store import DEFAULT_TENANT
from roost.ports.values import Ask, Image, Offer

RECORDS_KEPT = 100
"""Move records kept on a session; older ones stay in its story."""


class SessionState(StrEnum):
    """Where a session is; ``machine.TRANSITIONS`` says what may follow what."""

    REQUESTED = "requested"
    STARTING = "starting"
    RUNNING = "running"
    MOVING = "moving"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Phase(StrEnum):
    """Where a move is. The kernel works on until ``capturing``; from there it is frozen."""

    PREPARING = "preparing"
    CAPTURING = "capturing"
    RESTORING = "restoring"


class Cause(StrEnum):
    """Why a session moves."""

    NOTICE = "notice"
    LOST = "lost"
    ASKED = "asked"
    MARKET = "market"
    """Another place is better; nothing forces it."""
    KERNEL_LOST = "kernel_lost"
    UNREACHABLE = "unreachable"


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A move under way."""

    cause: Cause
    reason: str
    phase: Phase
    started_s: float
    from_host: str
    from_epoch: int
    from_offer: Offer | None = None
    deadline_s: float | None = None
    frozen_s: float | None = None
    """Since when no new work is accepted."""
    to_host: str = ""
    bytes_moved: int = 0
    captured: bool = False
    """The old kernel was captured after the fence: nothing is lost."""
    capture_attempts: int = 0


class MoveRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished move, for reports."""

    cause: Cause
    reason: str
    epoch: int
    started_s: float
    ended_s: float
    frozen_s: float
    """Duration without a kernel that accepts work, in seconds."""
    from_host: str
    to_host: str
    from_offer: str
    to_offer: str
    bytes_moved: int
    kept: tuple[str, ...]
    rebuilt: tuple[VariableReport, ...]
    refused: tuple[VariableReport, ...]
    warm: bool
    rerun: bool
    """The state came from an earlier checkpoint: cells after it are run again."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A notebook session: durable intent (``desired``) and where it is."""

    id: str
    name: str
    state: SessionState
    epoch: int
    key: str
    """Jupyter message signing key, the same wherever the kernel is."""
    token: str
    """Bearer token of the session's own routes and of its Jupyter server."""
    ask: Ask
    image: Image
    spread: Spread = Spread.POOL
    kernel: str = ""
    """Name of a kernel of another language (``bash``); empty = Python."""
    start_clouds: tuple[str, ...] = ()
    """Clouds for the first host only; moves may go wherever ``ask`` allows. Empty = as ``ask``."""
    standby: bool = True
    stay: bool = False
    """It does not move because another place is better."""
    page: bool = True
    """It has a Jupyter server of its own. Not when a person's own Jupyter started it: one bridge a kernel."""
    desired: str = "running"
    """``running`` or ``stopped``."""
    move_asked: str = ""
    """A person's reason to move now; cleared when the move begins."""
    claim_id: str = ""
    standby_claim_id: str = ""
    old_claims: tuple[str, ...] = ()
    """Claims to release."""
    host_id: str = ""
    kernel_since_s: float = 0.0
    checkpoint: Checkpoint | None = None
    move: Move | None = None
    moves: tuple[MoveRecord, ...] = ()
    report: RestoreReport = RestoreReport()
    created_s: float = 0.0
    message: str = ""
    """What a person should know now (nothing fits, disk full while checkpointing, ...)."""
    tenant: str = DEFAULT_TENANT

    @property
    def imports(self) -> tuple[str, ...]:
        """What a standby kernel should have imported."""
        if self.kernel:  # it turns into another program
            return ()
        recorded = self.checkpoint.imports if self.checkpoint else ()
        return tuple(dict.fromkeys((*self.image.imports, *recorded)))


class Routes(Protocol):
    """Where a session's stable addresses point; an older epoch is refused with ``StaleEpoch``."""

    async def point(self, session: Session, host_id: str, epoch: int) -> None:
        """Kernel and files of the session are on ``host_id``; returns when every edge knows."""

    async def hold(self, session: Session, epoch: int) -> None:
        """Keep requests waiting."""

    async def remove(self, session: Session) -> None:
        """The session has ended: its addresses are unknown from now on."""


class Servers(Protocol):
    """The Jupyter server of each session."""

    async def ensure(self, session: Session) -> None:
        """It runs, or will be started; cheap to repeat."""

    async def remove(self, session: Session) -> None:
        """It ends; cheap to repeat."""
