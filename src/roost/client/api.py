"""The typed Python client of the REST door. Synchronous; raises the same typed errors as the server."""

from collections.abc import Sequence
from typing import Any, TypeVar

import httpx
import msgspec

from roost.client.model import (
    CostView,
    HostView,
    InterruptHost,
    JobView,
    MissingBlobs,
    MoveNotebook,
    Problem,
    SessionView,
    StartJob,
    StartNotebook,
    StatusView,
    StoryView,
)
from roost.ports.errors import Retry, RoostError, WireError, from_wire
from roost.ports.files import TreeEntry

T = TypeVar("T")


class RoostClient:
    """Calls one installation. ``base_url`` is the control or public address, ``token`` the owner's."""

    def __init__(self, base_url: str, token: str, *, timeout_s: float = 30.0) -> None:
        self._http = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def status(self) -> StatusView:
        """The installation at a glance."""
        return self._call("GET", "/api/v1/status", StatusView)

    def start_notebook(self, body: StartNotebook) -> SessionView:
        """Ask for a session; answered at once, its URL waits until the kernel is up."""
        return self._call("POST", "/api/v1/notebooks", SessionView, body)

    def notebooks(self) -> list[SessionView]:
        """All sessions, oldest first."""
        return self._call("GET", "/api/v1/notebooks", list[SessionView])

    def notebook(self, name_or_id: str) -> SessionView:
        """One session. ``Gone`` when unknown."""
        return self._call("GET", f"/api/v1/notebooks/{name_or_id}", SessionView)

    def stop_notebook(self, name_or_id: str) -> SessionView:
        """End a session."""
        return self._call("DELETE", f"/api/v1/notebooks/{name_or_id}", SessionView)

    def move_notebook(self, name_or_id: str, reason: str) -> SessionView:
        """Move a session now."""
        body = MoveNotebook(reason=reason)
        return self._call("POST", f"/api/v1/notebooks/{name_or_id}/move", SessionView, body)

    def start_job(self, body: StartJob) -> JobView:
        """Submit a job whose files are stored; from here it is run to its end."""
        return self._call("POST", "/api/v1/jobs", JobView, body)

    def jobs(self) -> list[JobView]:
        """All jobs, oldest first."""
        return self._call("GET", "/api/v1/jobs", list[JobView])

    def job(self, name_or_id: str) -> JobView:
        """One job. ``Gone`` when unknown."""
        return self._call("GET", f"/api/v1/jobs/{name_or_id}", JobView)

    def stop_job(self, name_or_id: str) -> JobView:
        """End a job; its files and output stay."""
        return self._call("DELETE", f"/api/v1/jobs/{name_or_id}", JobView)

    def job_output(self, name_or_id: str, offset: int) -> bytes:
        """What the job has printed from byte ``offset`` on, up to a megabyte; empty = nothing more yet."""
        return self._send("GET", f"/api/v1/jobs/{name_or_id}/output?offset={offset}").content

    def job_files(self, name_or_id: str) -> dict[str, TreeEntry]:
        """The newest durable files of a job, by content."""
        return self._call("GET", f"/api/v1/jobs/{name_or_id}/files", dict[str, TreeEntry])

    def missing_blobs(self, body: MissingBlobs) -> MissingBlobs:
        """Those of the digests that are not stored."""
        return self._call("POST", "/api/v1/blobs/missing", MissingBlobs, body)

    def put_blob(self, digest: str, content: bytes) -> None:
        """Store a blob under the BLAKE3 digest of its content."""
        self._send("PUT", f"/api/v1/blobs/{digest}", content)

    def blob(self, digest: str) -> bytes:
        """The content of a blob. ``Gone`` when it is not stored."""
        return self._send("GET", f"/api/v1/blobs/{digest}").content

    def hosts(self, *, all_: bool = False) -> list[HostView]:
        """Live hosts (``all_``: ended ones too)."""
        return self._call("GET", f"/api/v1/hosts?all={int(all_)}", list[HostView])

    def interrupt_host(self, host_id: str, notice_s: float | None, detail: str) -> HostView:
        """Deliver an interruption notice in the dialect of the host's cloud."""
        body = InterruptHost(notice_s=notice_s, detail=detail)
        return self._call("POST", f"/api/v1/hosts/{host_id}/interrupt", HostView, body)

    def kill_host(self, host_id: str) -> HostView:
        """Take a host away at once."""
        return self._call("POST", f"/api/v1/hosts/{host_id}/kill", HostView)

    def story(self, object_id: str, *, after: int = 0) -> list[StoryView]:
        """The story of a session (with its hosts), a host or a claim."""
        return self._call("GET", f"/api/v1/story/{object_id}?after={after}", list[StoryView])

    def cost(self) -> CostView:
        """The bill so far."""
        return self._call("GET", "/api/v1/cost", CostView)

    def call(self, method: str, path: str, type_: type[T], body: Any = None) -> T:
        """One call of the REST door, for those that are grouped elsewhere (``services``)."""
        return self._call(method, path, type_, body)

    def _call(self, method: str, path: str, type_: type[T], body: Any = None) -> T:
        content = None if body is None else msgspec.json.encode(body)
        return msgspec.json.decode(self._send(method, path, content).content, type=type_)

    def _send(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        try:
            response = self._http.request(method, path, content=content)
        except httpx.TransportError as error:
            raise Retry(
                f"Roost does not answer at {self._http.base_url}: {error}",
                hint="`roost up` starts it, `roost doctor` looks for the reason",
            ) from error
        if response.status_code >= 400:
            raise _problem(response)
        return response


def _problem(response: httpx.Response) -> RoostError:
    try:
        found = msgspec.json.decode(response.content, type=Problem)
    except msgspec.DecodeError:
        return RoostError(f"the server answered {response.status_code}: {response.text[:200]}")
    wire = WireError(code=found.code, message=found.detail or found.title, hint=found.hint)
    return from_wire(wire)


def newest(views: Sequence[SessionView]) -> SessionView | None:
    """The newest session that has not stopped."""
    alive = [v for v in views if v.state != "stopped"]
    return max(alive, key=lambda v: v.created_s, default=None)
