"""The REST door: translate, authorise, call. Holds no rules and keeps no state."""

import hmac
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from roost.client.model import (
    InterruptHost,
    MoveNotebook,
    StartNotebook,
    StatusView,
    StoryView,
)
from roost.doors.rest.groups import GroupDoor
from roost.doors.rest.jobs import JobDoor
from roost.doors.rest.plumbing import STATUS, answer, ask_of, kernel_of, one_of, problem, read
from roost.doors.rest.services import ServiceDoor
from roost.doors.rest.top import TopDoor
from roost.doors.rest.views import Views
from roost.fleet.model import Spread
from roost.fleet.service import FleetService
from roost.notebooks.service import NotebookService
from roost.ports.clock import Clock
from roost.ports.errors import Invalid, RoostError
from roost.ports.store import Store
from roost.ports.values import Ask, Image

Endpoint = Callable[[Request], Awaitable[Response]]


class RestDoor:
    """The endpoints of ``/api/v1``."""

    def __init__(
        self,
        *,
        notebooks: NotebookService,
        fleet: FleetService,
        store: Store,
        clock: Clock,
        views: Views,
        load_image: Callable[[str], Image],
        check_ask: Callable[[Ask], Awaitable[None]],
        jobs: JobDoor,
        services: ServiceDoor,
        groups: GroupDoor,
        top: TopDoor,
        owner_token: str,
    ) -> None:
        self._notebooks = notebooks
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._views = views
        self._load_image = load_image
        self._check_ask = check_ask
        self._jobs = jobs
        self._services = services
        self._groups = groups
        self._top = top
        self._owner_token = owner_token
        self._started_s = clock.monotonic_s()

    @classmethod
    def table(cls) -> list[tuple[str, str, Any]]:
        """Method, path and endpoint of every call."""
        return [
            ("GET", "/api/v1/status", cls.status),
            ("POST", "/api/v1/notebooks", cls.start),
            ("GET", "/api/v1/notebooks", cls.list_notebooks),
            ("GET", "/api/v1/notebooks/{id}", cls.show),
            ("DELETE", "/api/v1/notebooks/{id}", cls.stop),
            ("POST", "/api/v1/notebooks/{id}/move", cls.move),
            ("GET", "/api/v1/hosts", cls.hosts),
            ("POST", "/api/v1/hosts/{id}/interrupt", cls.interrupt),
            ("POST", "/api/v1/hosts/{id}/kill", cls.kill),
            ("GET", "/api/v1/story/{id}", cls.story),
            ("GET", "/api/v1/cost", cls.cost),
        ]

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route(path, self._guarded(partial(endpoint, self)), methods=[method])
            for method, path, endpoint in self.table()
        ]
        routes += [
            Route(path, self._guarded(partial(endpoint, self._jobs)), methods=[method])
            for method, path, endpoint in JobDoor.table()
        ]
        routes += [
            Route(path, self._guarded(partial(endpoint, self._services)), methods=[method])
            for method, path, endpoint in ServiceDoor.table()
        ]
        routes += [
            Route(path, self._guarded(partial(endpoint, self._groups)), methods=[method])
            for method, path, endpoint in GroupDoor.table()
        ]
        routes += [
            Route(path, self._guarded(partial(endpoint, self._top)), methods=[method])
            for method, path, endpoint in TopDoor.table()
        ]
        return Starlette(routes=routes)

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._owner_token.encode()):
                return problem(401, "denied", "a valid bearer token is needed", "see `roost env`")
            try:
                return await endpoint(request)
            except RoostError as error:
                return problem(STATUS.get(error.code, 500), error.code, error.message, error.hint)
            except ClientDisconnect:
                return Response(status_code=499)

        return guarded

    async def status(self, _request: Request) -> Response:
        """The installation at a glance."""
        view: StatusView = await self._views.status(self._clock.monotonic_s() - self._started_s)
        return answer(view)

    async def start(self, request: Request) -> Response:
        """Record a session; its URL holds until the kernel is up."""
        body = await read(request, StartNotebook)
        ask = ask_of(body)
        await self._check_ask(ask)
        if body.start_clouds:
            await self._check_ask(msgspec.structs.replace(ask, clouds=body.start_clouds))
        session = await self._notebooks.start(
            name=body.name or "notebook",
            ask=ask,
            image=self._load_image(body.image),
            key=body.key,
            spread=one_of(Spread, body.spread, "spread"),
            kernel=kernel_of(body.kernel),
            start_clouds=body.start_clouds,
            standby=body.standby,
            stay=body.stay,
            page=body.page,
        )
        return answer(await self._views.session(session), status=201)

    async def list_notebooks(self, _request: Request) -> Response:
        """All sessions."""
        sessions = await self._notebooks.list_all()
        return answer([await self._views.session(s) for s in sessions])

    async def show(self, request: Request) -> Response:
        """One session by id or name."""
        session = await self._notebooks.get(request.path_params["id"])
        return answer(await self._views.session(session))

    async def stop(self, request: Request) -> Response:
        """End a session."""
        session = await self._notebooks.get(request.path_params["id"])
        return answer(await self._views.session(await self._notebooks.stop(session.id)))

    async def move(self, request: Request) -> Response:
        """Move a session now."""
        body = await read(request, MoveNotebook)
        session = await self._notebooks.get(request.path_params["id"])
        moving = await self._notebooks.move(session.id, body.reason)
        return answer(await self._views.session(moving))

    async def hosts(self, request: Request) -> Response:
        """Hosts; ``?all=1`` includes ended ones."""
        return answer(await self._views.hosts(ended=request.query_params.get("all") == "1"))

    async def interrupt(self, request: Request) -> Response:
        """Deliver an interruption notice."""
        body = await read(request, InterruptHost)
        if body.notice_s is not None and not 0 <= body.notice_s <= 86_400:
            raise Invalid("notice_s must be between 0 and 86400 seconds")
        host_id = request.path_params["id"]
        await self._fleet.interrupt(host_id, body.notice_s, body.detail)
        return answer(await self._views.host(host_id))

    async def kill(self, request: Request) -> Response:
        """Take a host away at once."""
        host_id = request.path_params["id"]
        await self._fleet.kill(host_id)
        return answer(await self._views.host(host_id))

    async def story(self, request: Request) -> Response:
        """The story of an object; a session's story includes its hosts'."""
        after = request.query_params.get("after", "0")
        if not after.isdigit():
            raise Invalid("after must be a whole number")
        lines: list[StoryView] = await self._views.story(request.path_params["id"], int(after))
        return answer(lines)

    async def cost(self, _request: Request) -> Response:
        """The bill so far."""
        return answer(await self._views.cost())
