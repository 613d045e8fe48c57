"""Management of a keeper by its host's agent, over the keeper's unix socket ``k-<task>.sock``.

The first frame of a connection decides what it is: ``wire.Attach`` makes it a session stream,
``Ask`` a management connection, on which asks are answered by id and events come unasked. An event
that matters (``CaptureReady``) is kept by the keeper and sent again to the next connection.
Local to one host; never crosses machines.
"""

import msgspec

from roost.ports.errors import WireError
from roost.ports.frames import STREAM_LIMIT, Frames
from roost.ports.kernels import RestoreReport, VariableReport
from roost.ports.wire import Attach, Output


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base: the msgpack map carries the class name as its tag."""


class RunningCell(msgspec.Struct, frozen=True, kw_only=True):
    """A cell that was captured while it stood in a loop, and how the next kernel goes on with it."""

    frames: tuple[bytes, ...]
    """Its request, as the client sent it."""
    tail: str
    """What is left of it, in the engine's words: opened by kernels only."""


# --- asks ------------------------------------------------------------------------------------------


class GetStatus(_Message, frozen=True, kw_only=True):
    """What the keeper and its kernel are doing."""


class WarmKernel(_Message, frozen=True, kw_only=True):
    """Import modules in the standby kernel."""

    imports: tuple[str, ...] = ()


class Adopt(_Message, frozen=True, kw_only=True):
    """Make the standby kernel the kernel of a session at an epoch. Repeating it is fine.

    Given again with a higher epoch to a keeper that already has the session (a move called off), the
    kernel is kept as it is, takes the new epoch and accepts work again.
    """

    session_id: str
    epoch: int
    key: str
    cwd: str
    env: dict[str, str] = {}
    kernel: str = ""
    """Name of an installed kernel of another language; empty = Python with the engine."""
    captures_dir: str = ""
    """Where captures are written; empty = this kernel is not captured."""
    restore_manifest: str = ""
    """Path of the engine's manifest to restore; empty = a fresh kernel."""
    chunks_dir: str = ""
    """Where the chunks of that manifest lie; empty = ``captures_dir``."""
    spool: tuple[Output, ...] = ()
    """Outputs of the checkpoint that the bridge may not have."""
    finished: tuple[str, ...] = ()
    """msg_ids whose effects the checkpoint contains."""
    running: RunningCell | None = None
    """The cell the checkpoint was made in: it goes on here."""
    running_epoch: int = 0
    """The epoch of that checkpoint."""


class FenceOff(_Message, frozen=True, kw_only=True):
    """Accept no more work for every epoch up to ``epoch``; outputs keep flowing."""

    epoch: int


class CaptureKernel(_Message, frozen=True, kw_only=True):
    """Capture what changed, within the budget (a running cell may end meanwhile)."""

    budget_s: float


class Durable(_Message, frozen=True, kw_only=True):
    """The checkpoint with this number is durable off the host: the bridge may forget its requests."""

    number: int


class StopKeeper(_Message, frozen=True, kw_only=True):
    """End the kernel and the keeper."""

    grace_s: float = 2.0


AskBody = GetStatus | WarmKernel | Adopt | FenceOff | CaptureKernel | Durable | StopKeeper


class Ask(_Message, frozen=True, kw_only=True):
    """The agent asks; answered once, by id."""

    id: int
    body: AskBody


# --- answers ---------------------------------------------------------------------------------------


class KeeperStatus(_Message, frozen=True, kw_only=True):
    task_id: str
    session_id: str = ""
    """Empty while standby."""
    epoch: int = 0
    state: str = "starting"
    """``starting``, ``standby``, ``ready``, ``busy``, ``fenced`` or ``dead``."""
    kernel_pid: int = 0
    keeper_pid: int = 0
    execution_count: int = 0
    imports: tuple[str, ...] = ()
    attached: bool = False
    """A bridge is connected."""


class Warmed(_Message, frozen=True, kw_only=True):
    """Imported so far; ``failed`` could not be imported."""

    imports: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    seconds: float = 0.0


class Adopted(_Message, frozen=True, kw_only=True):
    """The kernel accepts work."""

    report: RestoreReport = RestoreReport()
    seconds: float = 0.0


class KeeperCapture(_Message, frozen=True, kw_only=True):
    """A capture of the kernel with what belongs to it: all of one moment."""

    manifest_path: str
    number: int
    """Rises within an epoch, also over restarts of the kernel."""
    epoch: int
    spool: tuple[Output, ...] = ()
    """Outputs the bridge had not acknowledged."""
    finished: tuple[str, ...] = ()
    """msg_ids whose effects the capture contains."""
    bytes_new: int = 0
    bytes_total: int = 0
    refused: tuple[VariableReport, ...] = ()
    seconds: float = 0.0
    running: RunningCell | None = None
    """The cell that stands in a loop; without one the capture is of a moment between cells."""


class DoneAsked(_Message, frozen=True, kw_only=True):
    """Nothing to say but: done."""


AnswerBody = KeeperStatus | Warmed | Adopted | KeeperCapture | DoneAsked


class Answer(_Message, frozen=True, kw_only=True):
    """The one answer to an ask."""

    id: int
    body: AnswerBody = DoneAsked()
    error: WireError | None = None


# --- events ----------------------------------------------------------------------------------------


class CaptureReady(_Message, frozen=True, kw_only=True):
    """The engine finished a background capture; the last one is sent again to a new agent."""

    capture: KeeperCapture


class CaptureNotMade(_Message, frozen=True, kw_only=True):
    """A background capture failed (disk full ...); the session goes on."""

    reason: str
    refused: tuple[VariableReport, ...] = ()


class KernelEnded(_Message, frozen=True, kw_only=True):
    """The kernel ended by itself; the keeper starts a fresh one when ``restarting``."""

    exit_code: int
    restarting: bool = True


class StateChanged(_Message, frozen=True, kw_only=True):
    status: KeeperStatus


KeeperEvent = CaptureReady | CaptureNotMade | KernelEnded | StateChanged

FirstFrame = Attach | Ask
FromKeeper = Answer | CaptureReady | CaptureNotMade | KernelEnded | StateChanged


def first_frame() -> Frames[FirstFrame]:
    """Codec of the first frame on a keeper's socket (later asks of a management connection too)."""
    return Frames(FirstFrame, limit=STREAM_LIMIT)


def from_keeper() -> Frames[FromKeeper]:
    """Codec of what a keeper sends on a management connection."""
    return Frames(FromKeeper, limit=STREAM_LIMIT)
