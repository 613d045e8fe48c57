"""The typed Python client of the REST door. Synchronous; raises the same typed errors as the server."""

from collections.abc import Sequence
from typing import Any, TypeVar

import httpx
import msgspec

from roost.client.model import (
    CostView,
    HostView,
    InterruptHost,
    MoveNotebook,
    Problem,
    SessionView,
    StartNotebook,
    StatusView,
    StoryView,
)
from roost.ports.errors import Retry, RoostError, WireError, from_wire

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

    def _call(self, method: str, path: str, type_: type[T], body: Any = None) -> T:
        content = None if body is None else msgspec.json.encode(body)
        try:
            response = self._http.request(method, path, content=content)
        except httpx.TransportError as error:
            raise Retry(
                f"Roost does not answer at {self._http.base_url}: {error}",
                hint="`roost up` starts it, `roost doctor` looks for the reason",
            ) from error
        if response.status_code >= 400:
            raise _problem(response)
        return msgspec.json.decode(response.content, type=type_)


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
