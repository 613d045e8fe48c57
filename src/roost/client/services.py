"""Services over the REST door: what it takes and says, and the calls. Synchronous, like ``api``."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from roost.client.api import RoostClient
from roost.client.jobs import Folder, look, send
from roost.ports.files import TreeEntry
from roost.ports.replicas import Health

PATH = "/api/v1/services"


class RolloutBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a new revision replaces an old one; what is left out stays as it is."""

    max_surge: int | UnsetType = UNSET
    max_unavailable: int | UnsetType = UNSET
    settle_s: float | UnsetType = UNSET
    timeout_s: float | UnsetType = UNSET
    crashes: int | UnsetType = UNSET
    drain_s: float | UnsetType = UNSET
    rollback: bool | UnsetType = UNSET


class ServiceBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service as a person wishes it. In a change, what is left out stays as it is."""

    command: tuple[str, ...] | UnsetType = UNSET
    image: str | UnsetType = UNSET
    env: dict[str, str] | UnsetType = UNSET
    cwd: str | UnsetType = UNSET
    files: dict[str, TreeEntry] | UnsetType = UNSET
    """A folder by content; its chunks are stored first (``/api/v1/blobs``)."""
    port: int | UnsetType = UNSET
    vcpus: float | UnsetType = UNSET
    memory_mib: float | UnsetType = UNSET
    gpus: float | UnsetType = UNSET
    concurrency: int | UnsetType = UNSET
    health: Health | UnsetType = UNSET
    stop_grace_s: float | UnsetType = UNSET
    group: str | UnsetType = UNSET
    min: int | UnsetType = UNSET
    max: int | UnsetType = UNSET
    bound_s: float | UnsetType = UNSET
    """At most ``late`` of the requests take longer."""
    late: float | UnsetType = UNSET
    service_s: float | UnsetType = UNSET
    """What one request takes, until enough were measured."""
    policies: tuple[dict[str, Any], ...] | UnsetType = UNSET
    """``{"type": "target", "metric": "cpu", "target": 60}`` …; empty = predictive."""
    rollout: RolloutBody | UnsetType = UNSET
    where: dict[str, Any] | UnsetType = UNSET
    """``{"spread": [{"by": "zone", "share": 0.5}], "affinity": [{"service": "db"}]}`` …"""
    hosts: tuple[str, ...] | UnsetType = UNSET
    """More host names."""
    strip: bool | UnsetType = UNSET
    hold_s: float | UnsetType = UNSET


class CreateService(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/services``."""

    name: str
    body: ServiceBody
    token: str = ""
    """The same token again makes no second service."""


class ScaleService(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/services/<id>/scale``."""

    replicas: int | None
    """None = the policies decide again."""


class RollBackService(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/services/<id>/rollback``."""

    revision: int | None = None
    """None = the last good one before the present."""


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """A replica, as stored and as its host reports it."""

    id: str
    revision: int
    state: str
    host_id: str
    reason: str
    detail: str
    leaving: str
    """Why it has to leave its host; empty = it need not."""
    where: str = ""
    """Why on this host."""
    created_s: float
    ready_s: float | None
    restarts: int
    exit_code: int | None
    cpu_percent: float | None
    memory_mib: float | None
    in_flight: int
    queued: int


class RevisionView(msgspec.Struct, frozen=True, kw_only=True):
    """A revision of a service."""

    number: int
    outcome: str
    what: str
    created_s: float
    message: str


class ServiceView(msgspec.Struct, frozen=True, kw_only=True):
    """A service."""

    id: str
    name: str
    state: str
    url: str
    revision: int
    revisions: tuple[RevisionView, ...]
    group: str
    min: int
    max: int
    person: int | None
    wanted: int
    needed: int
    ready: int
    reason: str
    """Why that many."""
    command: tuple[str, ...]
    image: str
    vcpus: float
    memory_mib: float
    bound_s: float
    late: float
    policies: tuple[dict[str, Any], ...]
    replicas: tuple[ReplicaView, ...]
    created_s: float
    message: str
    warnings: tuple[str, ...] = ()


class AppliedView(msgspec.Struct, frozen=True, kw_only=True):
    """What ``PUT /api/v1/services/<name>`` did."""

    done: str
    """``created``, ``updated`` or ``unchanged``."""
    service: ServiceView


class LogsView(msgspec.Struct, frozen=True, kw_only=True):
    """The newest output of a replica."""

    replica: str
    text: str


class ExecuteInService(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/services/<id>/exec``."""

    argv: tuple[str, ...]
    replica: str = ""
    """Empty = the newest that is ready."""
    timeout_s: float = 60.0


class ExecutedView(msgspec.Struct, frozen=True, kw_only=True):
    """What a command beside a replica left."""

    replica: str
    exit_code: int
    output: str


class TellMetrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/services/<id>/metrics``: metrics of the owner's own, to scale by."""

    values: dict[str, float]


class ServiceCalls:
    """The calls of services, over a client of the installation."""

    def __init__(self, client: RoostClient) -> None:
        self._client = client

    def create(self, body: CreateService) -> ServiceView:
        """Record a service; answered at once, its address waits for the first replica."""
        return self._client.call("POST", PATH, ServiceView, body)

    def apply(self, name: str, body: ServiceBody) -> AppliedView:
        """Make it, or change what is different."""
        return self._client.call("PUT", f"{PATH}/{quote(name, safe='')}", AppliedView, body)

    def update(self, name: str, body: ServiceBody) -> AppliedView:
        """Change what the body says. ``Gone`` when there is no such service."""
        return self._client.call("PATCH", f"{PATH}/{quote(name, safe='')}", AppliedView, body)

    def list(self) -> list[ServiceView]:
        """All services, by name."""
        return self._client.call("GET", PATH, list[ServiceView])

    def get(self, name: str) -> ServiceView:
        """One service. ``Gone`` when unknown."""
        return self._client.call("GET", f"{PATH}/{quote(name, safe='')}", ServiceView)

    def scale(self, name: str, replicas: int | None) -> ServiceView:
        """A person's number of replicas; None gives it back to the policies."""
        body = ScaleService(replicas=replicas)
        return self._client.call("POST", f"{PATH}/{quote(name, safe='')}/scale", ServiceView, body)

    def rollback(self, name: str, revision: int | None) -> ServiceView:
        """An earlier revision again."""
        body = RollBackService(revision=revision)
        path = f"{PATH}/{quote(name, safe='')}/rollback"
        return self._client.call("POST", path, ServiceView, body)

    def delete(self, name: str) -> ServiceView:
        """Drain and end it."""
        return self._client.call("DELETE", f"{PATH}/{quote(name, safe='')}", ServiceView)

    def logs(self, name: str, replica: str, tail_bytes: int) -> LogsView:
        """The newest output of a replica, or of the newest one."""
        query = f"?replica={quote(replica, safe='')}&tail={tail_bytes}"
        return self._client.call("GET", f"{PATH}/{quote(name, safe='')}/logs{query}", LogsView)

    def execute(self, name: str, body: ExecuteInService) -> ExecutedView:
        """Run a command beside a replica; answered when it has ended."""
        path = f"{PATH}/{quote(name, safe='')}/exec"
        return self._client.call("POST", path, ExecutedView, body)

    def tell(self, name: str, values: dict[str, float]) -> None:
        """Send values of metrics of one's own; policies may name them while they are fresh."""
        path = f"{PATH}/{quote(name, safe='')}/metrics"
        self._client.call("POST", path, dict[str, float], TellMetrics(values=values))

    def send(self, root: Path) -> Folder:
        """Send a folder's content; its entries go into a body's ``files``."""
        folder = look(root)
        send(self._client, root, folder)
        return folder
