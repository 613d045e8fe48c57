"""The endpoints of use: ``top``, histories, and the page for Prometheus. Holds no rules, keeps no state."""

from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from roost.client.top import HistoryView, TopView
from roost.doors.rest.plumbing import answer
from roost.kit.exposition import CONTENT_TYPE
from roost.metrics.history import History
from roost.ports.errors import Invalid

DAY_S = 86400.0


class Usage(Protocol):
    """The room of metrics, as ``main`` wires it."""

    history: History

    async def top(self) -> TopView:
        """What serves, what it uses, what idles."""

    async def page(self) -> str:
        """For Prometheus."""

    async def id_of(self, kind: str, name_or_id: str) -> str:
        """The id under which something is recorded."""


class TopDoor:
    """The endpoints."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    @classmethod
    def table(cls) -> list[tuple[str, str, Any]]:
        """Method, path and endpoint of every call."""
        return [
            ("GET", "/api/v1/top", cls.top),
            ("GET", "/api/v1/metrics/{kind}/{id}", cls.history),
            ("GET", "/metrics", cls.page),
        ]

    async def top(self, _request: Request) -> Response:
        """Everything that serves, now."""
        return answer(await self._usage.top())

    async def history(self, request: Request) -> Response:
        """What was recorded of one service or host, over the last ``seconds``."""
        asked = request.query_params.get("seconds", "300")
        try:
            seconds = float(asked)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= DAY_S:
            raise Invalid(f"seconds={asked[:40]} cannot be", hint="above 0, at most 86400")
        kind = request.path_params["kind"]
        object_id = await self._usage.id_of(kind, request.path_params["id"])
        step_s, end_s, values = self._usage.history.values(kind, object_id, seconds)
        shown = {name: tuple(column) for name, column in values.items()}
        view = HistoryView(kind=kind, id=object_id, step_s=step_s, end_s=end_s, values=shown)
        return answer(view)

    async def page(self, _request: Request) -> Response:
        """Prometheus text."""
        return Response(await self._usage.page(), media_type=CONTENT_TYPE)
