"""What a person may type of a group, and what a door makes of it."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from roost.client.groups import GroupView
from roost.doors.cli.group import body_of, budget_of, hook_of, tier_of
from roost.doors.rest.groups import GroupDoor
from roost.doors.rest.plumbing import STATUS, problem
from roost.fleet.groups.members import GroupMembers
from roost.fleet.groups.model import GroupSpec
from roost.ports.errors import Invalid, RoostError
from roost.ports.values import Ask, Image
from tests.support.groups import GroupWorld


def test_options_become_a_body() -> None:
    options = {
        "ctx": None,
        "least": 0,
        "most": 5,
        "clouds": "aws, gcp",
        "type_": ["m", "c"],
        "warm": 2,
        "warm_state": None,
        "tier": ["gcp+azure:4", "aws"],
        "hook": ["launch:bake:60:abandon", "terminate:logs"],
        "budget": ["none"],
        "near": None,
        "protect_new": False,
    }
    said = msgspec.to_builtins(body_of(options))
    assert said == {
        "min": 0,
        "max": 5,
        "clouds": ("aws", "gcp"),
        "instance_types": ("m", "c"),
        "warm": {"size": 2},
        "tiers": ({"clouds": ["gcp", "azure"], "most": 4}, {"clouds": ["aws"]}),
        "hooks": (
            {"on": "launch", "name": "bake", "timeout_s": 60, "default": "abandon"},
            {"on": "terminate", "name": "logs"},
        ),
        "budgets": (),
        "protect_new": False,
    }


def test_budgets_are_read_and_nonsense_is_refused() -> None:
    assert budget_of("10%") == {"most": "10%"}
    assert budget_of("0:refresh+scale-in:22-6") == {
        "most": "0",
        "reasons": ["refresh", "scale-in"],
        "from_hour": 22,
        "to_hour": 6,
    }
    for reader, text in ((hook_of, "bake"), (tier_of, "gcp:few"), (budget_of, "1::morning")):
        with pytest.raises(Invalid):
            reader(text)


@pytest.fixture
async def door() -> AsyncIterator[httpx.AsyncClient]:
    world = GroupWorld()

    async def check_ask(ask: Ask) -> None:
        if ask.vcpus > 1000:
            raise Invalid("no offer has 2000 vCPUs")

    made = GroupDoor(
        groups=world.groups,
        members=GroupMembers(world.store, world.clock, world.fleet, world.groups, lambda _: None),
        clock=world.clock,
        load_image=lambda name: Image(name=name, python="3.11"),
        check_ask=check_ask,
        defaults=lambda name: GroupSpec(name=name, image=Image(name="minimal", python="3.11")),
    )

    def route(endpoint: Any) -> Any:
        async def answered(request: Request) -> Response:
            try:
                found: Response = await endpoint(made, request)
            except RoostError as error:
                return problem(STATUS[error.code], error.code, error.message, error.hint)
            return found

        return answered

    routes = [Route(path, route(e), methods=[method]) for method, path, e in GroupDoor.table()]
    transport = httpx.ASGITransport(app=Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client
    await world.store.close()


async def test_a_group_over_the_door(door: httpx.AsyncClient) -> None:
    body = {"min": 1, "max": 3, "image": "new", "warm": {"size": 1}, "hooks": [{"name": "bake"}]}
    made = await door.post("/api/v1/groups", json={"name": "web", "body": body})
    assert made.status_code == 201
    view = msgspec.convert(made.json(), GroupView)
    assert (view.min, view.max, view.desired, view.image) == (1, 3, 1, "new")
    assert view.spec["warm"] == {"size": 1, "state": "running", "reuse": False}

    async def said(method: str, path: str, body: Any) -> Any:
        return (await door.request(method, f"/api/v1/groups{path}", json=body)).json()

    changed = await said("PATCH", "/g-web", {"warm": {"reuse": True}})
    assert changed["spec"]["warm"] == {"size": 1, "state": "running", "reuse": True}
    assert changed["revision"] == 1
    assert (await said("PATCH", "/web", {"vcpus": 4}))["revision"] == 2
    assert (await said("POST", "/web/desired", {"desired": 2}))["pinned"] == 2
    assert (await said("POST", "/web/refresh", {}))["refresh"]["state"] == "running"
    assert (await said("DELETE", "/web/refresh", None))["refresh"]["state"] == "cancelled"
    assert [group["name"] for group in await said("GET", "", None)] == ["web"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"min": 4, "max": 2}, 400, "min 4 and max 2"),
        ({"vcpus": 2000}, 400, "no offer has"),
        ({"hooks": [{"nam": "x"}]}, 400, "hooks knows no 'nam'"),
        ({"hooks": [{"on": "launch"}]}, 400, "missing required field `name`"),
        ({"warm": {"size": "two"}}, 400, "warm: Expected `int`"),
        ({"budgets": [{"most": "some"}]}, 400, "no budget"),
        ({"allocation": "cheapest"}, 400, "allocation 'cheapest' is unknown"),
        ({"colour": "red"}, 400, "unknown field `colour`"),
    ],
)
async def test_what_is_wrong_is_said(
    door: httpx.AsyncClient, body: dict[str, Any], status: int, says: str
) -> None:
    answer = await door.post("/api/v1/groups", json={"name": "web", "body": body})
    assert answer.status_code == status
    assert says in answer.json()["detail"]


async def test_an_unknown_host_and_an_unknown_group(door: httpx.AsyncClient) -> None:
    assert (await door.get("/api/v1/groups/nothing")).status_code == 404
    answer = await door.post(
        "/api/v1/group-hosts/i-none/protect", json={"protection": "disruption"}
    )
    assert answer.status_code == 404
    assert "in no group" in answer.json()["detail"]
    answer = await door.post("/api/v1/group-hosts/i-none/protect", json={"protection": "rain"})
    assert "one of none, scale-in, disruption" in answer.json()["hint"]
