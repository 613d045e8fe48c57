"""What the REST door says: the views clients see. Shared by the door (which makes them) and the client."""

from typing import Any

import msgspec

from roost.ports.files import TreeEntry


class OfferView(msgspec.Struct, frozen=True, kw_only=True):
    """An offer as a person reads it."""

    key: str
    provider: str
    region: str
    zone: str
    instance_type: str
    purchase_option: str
    price_usd_hour: float
    on_demand_usd_hour: float
    vcpus: float
    memory_gib: float
    interruption_bucket: str | None = None


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """An instance and its host."""

    id: str
    state: str
    role: str
    session_id: str
    offer: OfferView
    connected: bool
    ready: bool
    created_s: float
    ended_s: float | None = None
    ended_reason: str = ""
    notice: str = ""
    notice_deadline_s: float | None = None
    cpu_percent: float = 0.0
    memory_used_mib: float = 0.0
    memory_total_mib: float = 0.0
    tasks: tuple[str, ...] = ()
    detail: str = ""
    isolation: tuple[str, ...] = ()
    reason: str = ""


class PartView(msgspec.Struct, frozen=True, kw_only=True):
    """One variable that was rebuilt or refused, and why."""

    name: str
    reason: str


class MoveView(msgspec.Struct, frozen=True, kw_only=True):
    """A finished move."""

    cause: str
    reason: str
    epoch: int
    at_s: float
    frozen_s: float
    from_host: str
    to_host: str
    from_offer: str
    to_offer: str
    bytes_moved: int
    kept: tuple[str, ...]
    rebuilt: tuple[PartView, ...]
    refused: tuple[PartView, ...]
    warm: bool
    rerun: bool


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """A notebook session."""

    id: str
    name: str
    state: str
    desired: str
    epoch: int
    url: str
    """JupyterLab, with its token: the stable address; empty without a page of its own."""
    token: str
    """Bearer token of the session's own routes."""
    key: str
    """Jupyter message signing key."""
    host_id: str
    offer: OfferView | None
    standby: HostView | None
    standby_warm: bool
    checkpoint_number: int
    checkpoint_epoch: int
    checkpoint_at_s: float | None
    checkpoint_cells: int
    """Cells whose effects the last durable checkpoint has."""
    phase: str
    moves: tuple[MoveView, ...]
    created_s: float
    message: str


class StartNotebook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/notebooks``."""

    name: str = ""
    vcpus: float = 2.0
    memory_gib: float = 8.0
    gpus: float = 0.0
    clouds: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    instance_types: tuple[str, ...] = ()
    purchase_options: tuple[str, ...] = ("spot",)
    max_usd_hour: float | None = None
    near: str = ""
    spread: str = "pool"
    """How far a move goes: ``pool``, ``region`` or ``provider`` (another cloud)."""
    kernel: str = ""
    """A kernel of another language that is installed on hosts, e.g. ``bash``; empty = Python."""
    start_clouds: tuple[str, ...] = ()
    """Clouds for the first host only."""
    standby: bool = True
    stay: bool = False
    """Move only when it must, never because another place is better."""
    page: bool = True
    """Whether it gets a JupyterLab of its own; a bridge that another Jupyter started asks for none."""
    key: str = ""
    image: str = ""


class MoveNotebook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/notebooks/<id>/move``."""

    reason: str = "asked by a person"


class InterruptHost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/hosts/<id>/interrupt``."""

    notice_s: float | None = None
    """None = the cloud's own notice."""
    detail: str = "by hand"


class StartJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/jobs``."""

    name: str = ""
    argv: tuple[str, ...]
    """``python train.py …``, run in the workspace."""
    workspace: dict[str, TreeEntry] = {}
    """Its files by content; their chunks are stored first (``/api/v1/blobs``)."""
    vcpus: float = 2.0
    memory_gib: float = 8.0
    gpus: float = 0.0
    clouds: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    instance_types: tuple[str, ...] = ()
    purchase_options: tuple[str, ...] = ("spot",)
    max_usd_hour: float | None = None
    near: str = ""
    spread: str = "pool"
    retries: int = 0
    """How often it is run again after an exit code other than 0."""
    deadline_s: float | None = None
    """UTC seconds by which it shall have ended: on demand when spot would be too late."""
    work_s: float = 0.0
    """How long it takes on a host that is never taken away; needed with a deadline."""
    token: str = ""
    """The same token again makes no second job."""
    image: str = ""


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a job that has ended."""

    epoch: int
    host_id: str
    offer: str
    started_s: float
    ended_s: float
    reason: str
    exit_code: int | None


class DeadlineView(msgspec.Struct, frozen=True, kw_only=True):
    """How a job stands to its deadline, and what follows from that."""

    at_s: float
    left_s: float
    """Work left, by the owner's word for all of it."""
    spare_s: float
    """Time to spare: it could begin so much later and still be in time, undisturbed."""
    where: str
    """What was decided last: ``wait``, ``spot`` or ``on_demand``; empty = nothing yet."""
    why: str
    on_demand_at_s: float | None
    """When it goes on demand at the latest, should no pool give a host until then; None while it runs,
    and where it is decided."""


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job."""

    id: str
    name: str
    state: str
    desired: str
    epoch: int
    argv: tuple[str, ...]
    host_id: str
    offer: OfferView | None
    retries: int
    failures: int
    exit_code: int | None
    runs: tuple[RunView, ...]
    saved_at_s: float | None
    """When its files were last made durable off its host."""
    output_bytes: int
    created_s: float
    ended_s: float | None
    message: str
    deadline: DeadlineView | None = None


class MissingBlobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/blobs/missing``, and its answer: those that are not stored."""

    digests: tuple[str, ...]


class StoryView(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a story."""

    seq: int
    at_s: float
    object_id: str
    event: str
    reason: str


class CostLineView(msgspec.Struct, frozen=True, kw_only=True):
    """The charge of one instance."""

    host_id: str
    session_id: str
    role: str
    offer: str
    purchase_option: str
    seconds: int
    price_usd_hour: float
    usd: float
    on_demand_usd: float
    running: bool
    started_s: float = 0.0
    """UTC seconds at which the first charged second began."""


class CostView(msgspec.Struct, frozen=True, kw_only=True):
    """The bill so far, by the second."""

    at_s: float
    usd: float
    on_demand_usd: float
    saved_usd: float
    lines: tuple[CostLineView, ...]
    differences: tuple[str, ...] = ()
    """Where the provider's ledger says otherwise."""


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """The installation at a glance."""

    version: str
    state_dir: str
    public_url: str
    sessions: dict[str, int]
    hosts: dict[str, int]
    edges: int
    uptime_s: float
    usd_hour: float
    jobs: dict[str, int] = {}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error (RFC 9457 problem details; ``hint`` says what to do next)."""

    title: str
    status: int
    detail: str = ""
    code: str = "error"
    hint: str = ""
    extra: dict[str, Any] = {}
