"""What a program and a person are shown: the endpoints over HTTP, the tables of `roost top`."""

import io
from functools import partial

import httpx
import msgspec
import pytest
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typer.testing import CliRunner

from roost.client.top import HistoryView, TopView
from roost.doors.cli import top as cli
from roost.doors.rest.plumbing import STATUS, problem
from roost.doors.rest.top import TopDoor
from roost.main.cli import app
from roost.metrics.history import History
from roost.metrics.page import text
from roost.metrics.top import view
from roost.ports.errors import Gone, RoostError
from tests.unit.metrics.test_metrics_pure import FACTS, T0, recorded


class Usage:
    """The wired room, with a made-up history."""

    def __init__(self) -> None:
        self.history: History = recorded()

    async def top(self) -> TopView:
        return view(self.history, FACTS, T0 + 11)

    async def page(self) -> str:
        return text(self.history, await self.top())

    async def id_of(self, kind: str, name_or_id: str) -> str:
        if kind == "services" and name_or_id == "web":
            return "v-1"
        if kind == "services":
            raise Gone(f"there is no service {name_or_id}")
        return name_or_id


@pytest.fixture
def client() -> httpx.AsyncClient:
    door = TopDoor(Usage())

    def typed(endpoint: object) -> object:
        async def answered(request: Request) -> Response:
            try:
                found: Response = await endpoint(door, request)  # type: ignore[operator]
            except RoostError as error:
                return problem(STATUS[error.code], error.code, error.message, error.hint)
            return found

        return answered

    routes = [
        Route(path, typed(endpoint), methods=[method])  # type: ignore[arg-type]
        for method, path, endpoint in TopDoor.table()
    ]
    transport = httpx.ASGITransport(app=Starlette(routes=routes))
    return httpx.AsyncClient(transport=transport, base_url="http://control")


async def test_what_is_asked_over_http(client: httpx.AsyncClient) -> None:
    top = msgspec.json.decode((await client.get("/api/v1/top")).content, type=TopView)
    assert [line.name for line in top.services] == ["web"]
    page = await client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "roost_service_requests_total" in page.text
    get = partial(client.get, "/api/v1/metrics/services/web")
    history = msgspec.json.decode((await get(params={"seconds": "5"})).content, type=HistoryView)
    assert (history.id, history.step_s, len(history.values["requests_s"])) == ("v-1", 1.0, 5)
    for seconds in ("0", "-3", "x", "nan", "1e9"):
        assert (await get(params={"seconds": seconds})).status_code == 400
    for path in ("services/other", "hosts/i-404", "cars/i-1"):
        assert (await client.get(f"/api/v1/metrics/{path}")).status_code == 404
    assert (await client.get("/api/v1/metrics/hosts/i-1")).status_code == 200


@pytest.mark.parametrize("width", [80, 200])
def test_the_tables_fit_their_terminal(width: int) -> None:
    shown = Console(file=io.StringIO(), width=width, color_system=None)
    shown.print(cli.screen(view(recorded(), FACTS, T0 + 11), width=width))
    found = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in found
    assert "$0.400 an hour, of which $0.350 idle (88%)" in found
    assert "i-1: 3 of 4 slots empty" in found
    assert ("p50" in found) is (width == 200)
    silent = view(History(), FACTS, T0)
    shown.print(cli.screen(silent, width=width))
    assert "no edge reports" in shown.file.getvalue()  # type: ignore[attr-defined]


def test_numbers_are_short() -> None:
    assert [cli.number(v) for v in (None, 0.0, 0.25, 12.4, 12_345.0)] == [
        "-", "0", "0.2", "12", "12k",
    ]  # fmt: skip
    assert [cli.seconds_of(v) for v in (None, 0.0421, 2.34)] == ["-", "42 ms", "2.3 s"]
    assert [cli.size(v) for v in (None, 999, 1500, 2e6, 3e12)] == [
        "-", "999 B", "2 kB", "2 MB", "3000.0 GB",
    ]  # fmt: skip
    assert cli.sparkline((0.0, None, 4.0, 2.0)) == "▁ █▅"
    assert cli.sparkline(()) == ""
    assert len(cli.sparkline(tuple(map(float, range(300))), 40)) <= 40


def test_bad_options_are_told_what_to_do() -> None:
    for args, said in ((["--sort", "age"], "one of name"), (["--every", "0.01"], "0.2 seconds")):
        done = CliRunner().invoke(app, ["top", *args])
        assert done.exit_code == 2
        assert said in done.output
