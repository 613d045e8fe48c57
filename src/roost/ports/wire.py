"""The messages between control plane, edge, hosts and keepers.

Control connection (agent dials control):
    control -> Challenge;  agent -> Hello (signed);  control -> Welcome | Refused;
    then agent -> Heartbeat, Event, Reply and control -> Command, EventAck.
    Commands carry an id and are answered once: a repeated id gets the remembered reply. Events carry a
    rising seq and are sent again after a reconnect until acknowledged.

Data connection (agent dials the edge):
    edge -> Challenge;  agent -> DataHello;  then, by purpose,
    ``park``   the connection waits; edge -> Open(service), agent -> Opened | OpenFailed, then raw bytes
    ``blobs``  agent -> BlobsMissing | BlobPut | BlobGet, edge -> BlobsAnswer | BlobBytes | Failed

Session stream (bridge -> edge -> agent -> keeper; service ``kernel``), after the edge spliced it:
    bridge -> Attach;  keeper -> Attached | Refused;
    then bridge -> Request, Ack, Interrupt, Restart
    and keeper -> Accepted, Output, Fenced, KernelDied, Settled.
"""

import msgspec

from roost.ports.errors import WireError
from roost.ports.frames import CONTROL_LIMIT, STREAM_LIMIT, Frames
from roost.ports.jobs import JobOrder
from roost.ports.kernels import Checkpoint, KernelOrder, KernelUp, VariableReport
from roost.ports.replicas import Executed, HostReplicas
from roost.ports.values import HostReport, Notice

PROTOCOL = 1


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base: the msgpack map carries the class name as its tag."""


# --- handshake -------------------------------------------------------------------------------------


class Challenge(_Message, frozen=True, kw_only=True):
    """Sent by the listening side at once; the caller signs ``nonce``."""

    nonce: bytes
    protocol: int = PROTOCOL


class Hello(_Message, frozen=True, kw_only=True):
    """An agent introduces itself. The join token is bound to the first public key that uses it."""

    host_id: str
    join_token: str
    public_key: bytes
    """Ed25519, raw 32 bytes."""
    signature: bytes
    """Of the challenge's nonce followed by the host id."""
    protocol: int = PROTOCOL
    agent_pid: int = 0
    agent_started_s: float = 0.0


class Welcome(_Message, frozen=True, kw_only=True):
    """The agent is in."""

    heartbeat_s: float
    data_addresses: tuple[str, ...]
    """``host:port`` of every edge's data listener."""
    data_credential: str
    """HMAC-SHA256 hex of the host id under the cell's data secret; presented to edges."""
    events_seen: int = 0
    """Highest event seq control has; the agent drops up to here."""
    now_s: float = 0.0
    certificate: bytes = b""
    """PEM of the host's client certificate (over TLS only): shown on every later connection."""


class Refused(_Message, frozen=True, kw_only=True):
    """The handshake failed; ``hint`` says what to do."""

    reason: str
    hint: str = ""
    final: bool = False
    """True: do not try again with these credentials."""


class DataHello(_Message, frozen=True, kw_only=True):
    """An agent opens a data connection."""

    host_id: str
    credential: str
    purpose: str
    """``park`` or ``blobs``."""
    protocol: int = PROTOCOL


# --- control connection ----------------------------------------------------------------------------


class StartKernel(_Message, frozen=True, kw_only=True):
    """Kernels.start."""

    order: KernelOrder


class Fence(_Message, frozen=True, kw_only=True):
    """Kernels.fence."""

    session_id: str


class CaptureNow(_Message, frozen=True, kw_only=True):
    """Kernels.capture."""

    session_id: str
    budget_s: float


class StopKernel(_Message, frozen=True, kw_only=True):
    """Kernels.stop."""

    session_id: str


class Warm(_Message, frozen=True, kw_only=True):
    """Kernels.warm."""

    imports: tuple[str, ...] = ()


class Prefetch(_Message, frozen=True, kw_only=True):
    """Kernels.prefetch."""

    session_id: str
    checkpoint: str


class StartJob(_Message, frozen=True, kw_only=True):
    """Jobs.start."""

    order: JobOrder


class StopJob(_Message, frozen=True, kw_only=True):
    """Jobs.stop."""

    job_id: str
    grace_s: float


class SetReplicas(_Message, frozen=True, kw_only=True):
    """Replicas.set. The command's epoch is 0: ``generation`` orders the sets."""

    replicas: HostReplicas


class ReadReplicaLogs(_Message, frozen=True, kw_only=True):
    """Replicas.logs."""

    replica_id: str
    tail_bytes: int


class ExecuteInReplica(_Message, frozen=True, kw_only=True):
    """Replicas.execute."""

    replica_id: str
    argv: tuple[str, ...]
    timeout_s: float


class Drain(_Message, frozen=True, kw_only=True):
    """Stop everything and leave: sent before a planned termination."""


CommandBody = (
    StartKernel
    | Fence
    | CaptureNow
    | StopKernel
    | Warm
    | Prefetch
    | StartJob
    | StopJob
    | SetReplicas
    | ReadReplicaLogs
    | ExecuteInReplica
    | Drain
)


class Command(_Message, frozen=True, kw_only=True):
    """Control asks; ``epoch`` fences."""

    id: str
    body: CommandBody
    epoch: int = 0


class Done(_Message, frozen=True, kw_only=True):
    """A reply's body when there is nothing to say."""


class Started(_Message, frozen=True, kw_only=True):
    up: KernelUp


class CaptureDone(_Message, frozen=True, kw_only=True):
    checkpoint: Checkpoint


class ReplicaLogs(_Message, frozen=True, kw_only=True):
    """The newest output of a replica."""

    text: str


class ReplicaExecuted(_Message, frozen=True, kw_only=True):
    """What a command beside a replica left."""

    executed: Executed


ReplyBody = Done | Started | CaptureDone | ReplicaLogs | ReplicaExecuted


class Reply(_Message, frozen=True, kw_only=True):
    """The one answer to a command."""

    id: str
    body: ReplyBody = Done()
    error: WireError | None = None


class Heartbeat(_Message, frozen=True, kw_only=True):
    report: HostReport


class Noticed(_Message, frozen=True, kw_only=True):
    """The cloud told this host that it goes away."""

    notice: Notice


class Checkpointed(_Message, frozen=True, kw_only=True):
    """A background capture became durable."""

    checkpoint: Checkpoint


class TaskEnded(_Message, frozen=True, kw_only=True):
    """A kernel ended by itself."""

    session_id: str
    epoch: int
    exit_code: int


class CaptureFailed(_Message, frozen=True, kw_only=True):
    """A background capture could not be made durable (disk full, unpicklable): the session goes on."""

    session_id: str
    epoch: int
    reason: str
    refused: tuple[VariableReport, ...] = ()


EventBody = Noticed | Checkpointed | TaskEnded | CaptureFailed


class Event(_Message, frozen=True, kw_only=True):
    seq: int
    body: EventBody


class EventAck(_Message, frozen=True, kw_only=True):
    seq: int


# --- data connections ------------------------------------------------------------------------------


class Open(_Message, frozen=True, kw_only=True):
    """The edge takes a parked connection: connect it to ``service``.

    Services: ``kernel/<session>`` (session stream), ``files/<session>`` (workspace protocol),
    ``port/<n>`` (a TCP port of the host's own loopback address), ``svc/<service>`` (the host's
    balancer: HTTP/1.1 to the replicas of a service), ``shell`` (a terminal).
    """

    service: str
    epoch: int = 0
    stream_id: str = ""


class Opened(_Message, frozen=True, kw_only=True):
    pass


class OpenFailed(_Message, frozen=True, kw_only=True):
    error: WireError


class BlobsMissing(_Message, frozen=True, kw_only=True):
    digests: tuple[str, ...]


class BlobsAnswer(_Message, frozen=True, kw_only=True):
    digests: tuple[str, ...] = ()


class BlobPut(_Message, frozen=True, kw_only=True):
    digest: str
    content: bytes


class BlobGet(_Message, frozen=True, kw_only=True):
    digest: str


class BlobBytes(_Message, frozen=True, kw_only=True):
    content: bytes


class Failed(_Message, frozen=True, kw_only=True):
    error: WireError


# --- session stream --------------------------------------------------------------------------------


class Attach(_Message, frozen=True, kw_only=True):
    """A bridge takes its place at a kernel's keeper (a later Attach replaces an earlier one)."""

    session_id: str
    seen_epoch: int = 0
    seen_seq: int = 0
    """The last output the bridge has journaled: the keeper sends what comes after, drops what is before."""


class Attached(_Message, frozen=True, kw_only=True):
    epoch: int
    fresh: bool
    """True: this kernel has no memory of earlier cells."""
    finished: tuple[str, ...] = ()
    """msg_ids of requests whose effects this kernel has: never send them again."""
    received: tuple[str, ...] = ()
    """msg_ids this keeper has queued or running."""


class Request(_Message, frozen=True, kw_only=True):
    channel: str
    """``shell``, ``control`` or ``stdin``."""
    msg_id: str
    frames: tuple[bytes, ...]
    """The ZMQ parts as received from the client, identity first."""


class Accepted(_Message, frozen=True, kw_only=True):
    """The keeper holds the request."""

    msg_id: str


class Output(_Message, frozen=True, kw_only=True):
    """One message of the kernel, numbered within its epoch."""

    epoch: int
    seq: int
    channel: str
    """``iopub``, ``shell``, ``control`` or ``stdin``."""
    frames: tuple[bytes, ...]


class Ack(_Message, frozen=True, kw_only=True):
    epoch: int
    seq: int


class Interrupt(_Message, frozen=True, kw_only=True):
    pass


class Restart(_Message, frozen=True, kw_only=True):
    """Replace the kernel by a fresh one (the user asked to restart)."""


class Fenced(_Message, frozen=True, kw_only=True):
    """The session is moving: requests not yet accepted stay with the bridge, which attaches again."""

    epoch: int


class KernelDied(_Message, frozen=True, kw_only=True):
    exit_code: int
    restarting: bool = True


class Settled(_Message, frozen=True, kw_only=True):
    """The effects of these requests are in a durable checkpoint: the bridge may forget them."""

    msg_ids: tuple[str, ...]


# --- codecs ----------------------------------------------------------------------------------------

ToControl = Hello | Heartbeat | Event | Reply
ToAgent = Challenge | Welcome | Refused | Command | EventAck
DataToEdge = DataHello | Opened | OpenFailed | BlobsMissing | BlobPut | BlobGet
DataToAgent = Challenge | Refused | Open | BlobsAnswer | BlobBytes | Failed
ToKeeper = Attach | Request | Ack | Interrupt | Restart
ToBridge = Attached | Refused | Accepted | Output | Fenced | KernelDied | Settled


def to_control() -> Frames[ToControl]:
    """Codec of what agents send to control."""
    return Frames(ToControl, limit=CONTROL_LIMIT)


def to_agent() -> Frames[ToAgent]:
    """Codec of what control sends to agents."""
    return Frames(ToAgent, limit=CONTROL_LIMIT)


def data_to_edge() -> Frames[DataToEdge]:
    """Codec of what agents send on data connections."""
    return Frames(DataToEdge, limit=STREAM_LIMIT)


def data_to_agent() -> Frames[DataToAgent]:
    """Codec of what edges send on data connections."""
    return Frames(DataToAgent, limit=STREAM_LIMIT)


def to_keeper() -> Frames[ToKeeper]:
    """Codec of what bridges send on a session stream."""
    return Frames(ToKeeper, limit=STREAM_LIMIT)


def to_bridge() -> Frames[ToBridge]:
    """Codec of what keepers send on a session stream."""
    return Frames(ToBridge, limit=STREAM_LIMIT)
