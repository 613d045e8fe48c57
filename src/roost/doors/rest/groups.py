"""The endpoints of groups of hosts. Holds no rules and keeps no state."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from roost.client.groups import (
    CreateGroup,
    DesiredGroup,
    DrainHost,
    GroupBody,
    GroupHostView,
    GroupView,
    HookAnswer,
    ProtectHost,
    RefreshGroup,
    RefreshView,
)
from roost.doors.rest.plumbing import answer, one_of, read
from roost.doors.rest.views import offer_view
from roost.fleet.groups.members import GroupMembers
from roost.fleet.groups.model import (
    Budget,
    Group,
    GroupSpec,
    Hook,
    Member,
    MemberState,
    MemberView,
    Protection,
    Tier,
    WarmPool,
)
from roost.fleet.groups.service import Groups, RefreshWish
from roost.ports.clock import Clock
from roost.ports.errors import Invalid
from roost.ports.values import Allocation, Ask, Image

ASK = ("vcpus", "memory_gib", "gpus", "clouds", "regions", "instance_types", "max_usd_hour", "near")
PARTS: dict[str, Any] = {"tiers": Tier, "hooks": Hook, "budgets": Budget}


class GroupDoor:
    """The endpoints of ``/api/v1/groups`` and ``/api/v1/group-hosts``."""

    def __init__(
        self,
        *,
        groups: Groups,
        members: GroupMembers,
        clock: Clock,
        load_image: Callable[[str], Image],
        check_ask: Callable[[Ask], Awaitable[None]],
        defaults: Callable[[str], GroupSpec],
    ) -> None:
        self._groups = groups
        self._members = members
        self._clock = clock
        self._load_image = load_image
        self._check_ask = check_ask
        self._defaults = defaults

    @classmethod
    def table(cls) -> list[tuple[str, str, Any]]:
        """Method, path and endpoint of every call."""
        return [
            ("POST", "/api/v1/groups", cls.create),
            ("GET", "/api/v1/groups", cls.list_all),
            ("GET", "/api/v1/groups/{id}", cls.show),
            ("PATCH", "/api/v1/groups/{id}", cls.change),
            ("DELETE", "/api/v1/groups/{id}", cls.delete),
            ("POST", "/api/v1/groups/{id}/desired", cls.desired),
            ("POST", "/api/v1/groups/{id}/refresh", cls.refresh),
            ("DELETE", "/api/v1/groups/{id}/refresh", cls.end_refresh),
            ("POST", "/api/v1/group-hosts/{host}/protect", cls.protect),
            ("POST", "/api/v1/group-hosts/{host}/drain", cls.drain),
            ("POST", "/api/v1/group-hosts/{host}/hooks/{hook}", cls.hook),
        ]

    async def create(self, request: Request) -> Response:
        """A group of hosts, kept between min and max at desired."""
        body = await read(request, CreateGroup)
        spec = self._spec(self._defaults(body.name), body.body)
        await self._check_asks(spec)
        return answer(await self._view(await self._groups.create(spec)), status=201)

    async def list_all(self, _request: Request) -> Response:
        """All groups."""
        return answer([await self._view(g) for g in await self._groups.list_all()])

    async def show(self, request: Request) -> Response:
        """One group with its hosts, by name or id."""
        return answer(await self._view(await self._groups.get(request.path_params["id"])))

    async def change(self, request: Request) -> Response:
        """Change what the body says; hosts that run stay until a refresh."""
        body = await read(request, GroupBody)
        name = request.path_params["id"]
        await self._check_asks(self._spec((await self._groups.get(name)).spec, body))
        changed = await self._groups.change(name, lambda spec: self._spec(spec, body))
        return answer(await self._view(changed))

    async def delete(self, request: Request) -> Response:
        """End a group with all its hosts; ``?force=1`` though containers stand there."""
        force = request.query_params.get("force") == "1"
        group = await self._groups.delete(request.path_params["id"], force=force)
        return answer(await self._view(group))

    async def desired(self, request: Request) -> Response:
        """A person's number of hosts, or none any more."""
        body = await read(request, DesiredGroup)
        group = await self._groups.pin(request.path_params["id"], body.desired)
        return answer(await self._view(group))

    async def refresh(self, request: Request) -> Response:
        """Replace the hosts of older revisions, within bounds, rolled back when too many fail."""
        body = await read(request, RefreshGroup)
        wish = msgspec.convert(msgspec.to_builtins(body), RefreshWish)
        group = await self._groups.refresh(request.path_params["id"], wish)
        return answer(await self._view(group))

    async def end_refresh(self, request: Request) -> Response:
        """Stop a refresh where it is; ``?rollback=1`` turns it back."""
        back = request.query_params.get("rollback") == "1"
        group = await self._groups.end_refresh(request.path_params["id"], roll_back=back)
        return answer(await self._view(group))

    async def protect(self, request: Request) -> Response:
        """Protect a host from scale-in or any disruption."""
        body = await read(request, ProtectHost)
        protection = one_of(Protection, body.protection, "protection")
        members = await self._members.protect([request.path_params["host"]], protection)
        return await self._of(members[0])

    async def drain(self, request: Request) -> Response:
        """Take a host out of its group."""
        body = await read(request, DrainHost)
        return await self._of(
            await self._members.drain(request.path_params["host"], smaller=body.smaller)
        )

    async def hook(self, request: Request) -> Response:
        """Answer a lifecycle hook, or ask for more time."""
        body = await read(request, HookAnswer)
        host, hook = request.path_params["host"], request.path_params["hook"]
        if body.result == "extend":
            return await self._of(await self._members.extend(host, hook))
        return await self._of(await self._members.answer(host, hook, body.result))

    async def _of(self, member: Member) -> Response:
        return answer(await self._view(await self._groups.get(member.parent.split("/")[0])))

    async def _check_asks(self, spec: GroupSpec) -> None:
        """``Invalid`` naming the constraint that leaves nothing to buy."""
        ask = msgspec.structs.replace(
            spec.ask, purchase_options=spec.purchase_options, allocation=spec.allocation
        )
        await self._check_ask(ask)

    def _spec(self, base: GroupSpec, body: GroupBody) -> GroupSpec:
        """``base`` with what the body says. ``Invalid`` for parts that are none."""
        said = {n: v for n in body.__struct_fields__ if (v := getattr(body, n)) is not UNSET}
        ask = {name: said.pop(name) for name in ASK if name in said}
        fields: dict[str, Any] = {"ask": msgspec.structs.replace(base.ask, **ask)}
        if "image" in said:
            fields["image"] = self._load_image(said.pop("image"))
        if "allocation" in said:
            fields["allocation"] = one_of(Allocation, said.pop("allocation"), "allocation")
        for name, type_ in PARTS.items():
            if name in said:
                fields[name] = tuple(_part(given, type_, name) for given in said.pop(name))
        if "warm" in said:
            old = msgspec.structs.asdict(base.warm)
            fields["warm"] = _part({**old, **said.pop("warm")}, WarmPool, "warm")
        return msgspec.structs.replace(base, **fields, **said)

    async def _view(self, group: Group) -> GroupView:
        views = await self._groups.views(group)
        return group_view(group, views, self._clock.now_s())


def _part(given: dict[str, Any], type_: Any, what: str) -> Any:
    """A part of a spec. ``Invalid`` names a field that is missing, unknown or of the wrong kind."""
    known = type_.__struct_fields__
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise Invalid(f"{what} knows no {unknown[0]!r}", hint=f"one of {', '.join(known)}")
    try:
        return msgspec.convert(given, type_)
    except msgspec.ValidationError as error:
        raise Invalid(f"{what}: {error}") from error


def group_view(group: Group, views: Sequence[MemberView], now_s: float) -> GroupView:
    """A group as clients see it."""
    spec = group.spec
    running = [v for v in views if v.claim is not None and v.claim.instance is not None]
    usd, idle = 0.0, 0.0
    for view in running:
        price, free = _cost(view, spec.slots)
        usd += price
        idle += price * free
    return GroupView(
        id=group.id,
        name=spec.name,
        state=str(group.state),
        min=spec.min,
        max=spec.max,
        desired=group.wanted,
        pinned=group.pinned,
        reason=group.reason,
        spares=group.spares,
        slots=spec.slots,
        slots_used=sum(v.use.slots_used for v in views),
        image=spec.image.name,
        allocation=str(spec.allocation),
        revision=group.revision,
        refresh=_refresh(group, views),
        usd_hour=usd,
        idle_usd_hour=idle,
        message=group.message,
        created_s=group.created_s,
        hosts=tuple(_host(view, spec.slots, now_s) for view in views),
        spec=msgspec.to_builtins(msgspec.structs.replace(spec, image=_named(spec.image))),
    )


def _named(image: Image) -> Image:
    """Its name alone: a lock of packages is no reading."""
    return msgspec.structs.replace(image, requirements=(), imports=())


def _cost(view: MemberView, slots: int) -> tuple[float, float]:
    """What a host costs an hour, and the share of it that nothing uses."""
    instance = view.claim.instance if view.claim is not None else None
    if instance is None or not instance.spans or instance.spans[-1].ended_s is not None:
        return 0.0, 0.0
    return instance.offer.price_usd_hour, max(0.0, 1.0 - view.use.slots_used / slots)


def _refresh(group: Group, views: Sequence[MemberView]) -> RefreshView | None:
    now = group.refresh
    if now is None:
        return None
    serving = [v for v in views if v.member.state is MemberState.SERVING]
    return RefreshView(
        state=str(now.state),
        done=sum(1 for v in serving if v.member.revision == group.revision),
        of=group.wanted,
        failures=now.failures,
        reason=now.reason,
        started_s=now.started_s,
        ended_s=now.ended_s,
    )


def _host(view: MemberView, slots: int, now_s: float) -> GroupHostView:
    member, claim = view.member, view.claim
    instance = claim.instance if claim is not None else None
    return GroupHostView(
        host_id=view.host_id,
        member_id=member.id,
        state="noticed" if view.noticed else str(member.state),
        offer=None if instance is None else offer_view(instance.offer),
        option=str(member.option),
        slots=slots,
        slots_used=view.use.slots_used,
        idle_s=max(0.0, now_s - (view.use.idle_since_s or now_s)),
        connected=claim is not None and claim.connected,
        survival=view.survival,
        risk=view.risk,
        protection=str(member.protection),
        revision=member.revision,
        stand_in=member.stand_in,
        hooks=member.hooks,
        keep=view.use.keep,
        reason=member.reason,
        created_s=member.created_s,
    )
