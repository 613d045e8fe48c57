"""The endpoints of services. Holds no rules and keeps no state."""

import math
import re
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from roost.client.services import (
    AppliedView,
    CreateService,
    ExecutedView,
    ExecuteInService,
    LogsView,
    ReplicaView,
    RevisionView,
    RollBackService,
    ScaleService,
    ServiceBody,
    ServiceView,
    TellMetrics,
)
from roost.doors.rest.plumbing import answer, read
from roost.ports.errors import Gone, Invalid
from roost.ports.replicas import ReplicaSpec
from roost.scaling.policies import Policy
from roost.services.controller import ServiceController
from roost.services.model import ReplicaState, Service, Where, Wish
from roost.services.rollout import Facts
from roost.services.scaler import Scaler
from roost.services.service import ServiceService

LARGEST = 16 << 20
"""A body may name every file of a folder."""
DEFAULT = Wish(spec=ReplicaSpec(vcpus=0.5, memory_mib=256.0))
TAIL = 64 << 10
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
SPEC = (
    "command",
    "image",
    "env",
    "cwd",
    "port",
    "vcpus",
    "memory_mib",
    "gpus",
    "concurrency",
    "health",
    "stop_grace_s",
)


class ServiceDoor:
    """The endpoints of ``/api/v1/services``."""

    def __init__(
        self, *, services: ServiceService, loop: ServiceController, scaler: Scaler, public_url: str
    ) -> None:
        self._services = services
        self._loop = loop
        self._scaler = scaler
        self._public_url = public_url

    @classmethod
    def table(cls) -> list[tuple[str, str, Any]]:
        """Method, path and endpoint of every call."""
        return [
            ("POST", "/api/v1/services", cls.create),
            ("GET", "/api/v1/services", cls.list_all),
            ("GET", "/api/v1/services/{id}", cls.show),
            ("PUT", "/api/v1/services/{id}", cls.apply),
            ("PATCH", "/api/v1/services/{id}", cls.update),
            ("DELETE", "/api/v1/services/{id}", cls.delete),
            ("POST", "/api/v1/services/{id}/scale", cls.scale),
            ("POST", "/api/v1/services/{id}/rollback", cls.rollback),
            ("GET", "/api/v1/services/{id}/logs", cls.logs),
            ("POST", "/api/v1/services/{id}/exec", cls.execute),
            ("POST", "/api/v1/services/{id}/metrics", cls.metrics),
        ]

    async def create(self, request: Request) -> Response:
        """Record a service; its address holds requests until a replica is ready."""
        body = await read(request, CreateService, LARGEST)
        wish = await self._wish(DEFAULT, body.body)
        service = await self._services.create(body.name, wish, body.token)
        return answer(await self._view(service), status=201)

    async def list_all(self, _request: Request) -> Response:
        """All services."""
        return answer([await self._view(s) for s in await self._services.list_all()])

    async def show(self, request: Request) -> Response:
        """One service by id or name."""
        return answer(await self._view(await self._service(request)))

    async def apply(self, request: Request) -> Response:
        """Make it as the body says, what is left out at its default; or change it to that."""
        body = await read(request, ServiceBody, LARGEST)
        wish = await self._wish(DEFAULT, body)
        service, done = await self._services.apply(request.path_params["id"], wish)
        return answer(AppliedView(done=done, service=await self._view(service)))

    async def update(self, request: Request) -> Response:
        """Change what the body says."""
        body = await read(request, ServiceBody, LARGEST)
        before = await self._service(request)
        wish = await self._wish(before.wish, body)
        service, different = await self._services.update(before.id, wish)
        done = "updated" if different else "unchanged"
        return answer(AppliedView(done=done, service=await self._view(service)))

    async def scale(self, request: Request) -> Response:
        """A person's number of replicas."""
        body = await read(request, ScaleService)
        service = await self._service(request)
        return answer(await self._view(await self._services.scale(service.id, body.replicas)))

    async def rollback(self, request: Request) -> Response:
        """An earlier revision again."""
        body = await read(request, RollBackService)
        service = await self._service(request)
        return answer(await self._view(await self._services.rollback(service.id, body.revision)))

    async def delete(self, request: Request) -> Response:
        """Drain and end it."""
        service = await self._service(request)
        return answer(await self._view(await self._services.delete(service.id)))

    async def logs(self, request: Request) -> Response:
        """The newest output of ``?replica=`` (or the newest one), the last ``?tail=`` bytes."""
        tail = request.query_params.get("tail", str(TAIL))
        if not tail.isdigit():
            raise Invalid("tail must be a whole number of bytes")
        service = await self._service(request)
        replica = request.query_params.get("replica", "")
        replica_id, text = await self._loop.logs(service, replica, int(tail))
        return answer(LogsView(replica=replica_id, text=text))

    async def execute(self, request: Request) -> Response:
        """Run a command beside a replica."""
        body = await read(request, ExecuteInService)
        service = await self._service(request)
        replica_id, done = await self._loop.execute(
            service, body.replica, body.argv, body.timeout_s
        )
        view = ExecutedView(replica=replica_id, exit_code=done.exit_code, output=done.output)
        return answer(view)

    async def metrics(self, request: Request) -> Response:
        """Values of metrics of the owner's own."""
        body = await read(request, TellMetrics)
        service = await self._service(request)
        for name, value in body.values.items():
            if not NAME.fullmatch(name) or not math.isfinite(value):
                raise Invalid(
                    f"{name[:80]}={value} is no metric", hint="for example queue_length=7"
                )
        self._scaler.tell(service.id, body.values)
        return answer(body.values)

    async def _service(self, request: Request) -> Service:
        return await self._services.get(request.path_params["id"])

    async def _wish(self, base: Wish, body: ServiceBody) -> Wish:
        """``base`` with what the body says. ``Invalid`` for policies that are none."""
        fields: dict[str, Any] = {n: getattr(body, n) for n in SPEC}
        if body.files is not UNSET:
            files = body.files
            fields["files"] = await self._services.store_files(files) if files else ""
        top = {"group": body.group, "min": body.min, "max": body.max}
        goal = {"bound_s": body.bound_s, "late": body.late, "service_s": body.service_s}
        ends = {"hosts": body.hosts, "strip": body.strip, "hold_s": body.hold_s}
        rollout = body.rollout
        rules = {} if rollout is UNSET else msgspec.structs.asdict(rollout)
        policies = base.policies if body.policies is UNSET else policies_of(body.policies)
        return msgspec.structs.replace(
            base,
            spec=_with(base.spec, fields),
            goal=_with(base.goal, goal),
            endpoint=_with(base.endpoint, ends),
            rollout=_with(base.rollout, rules),
            policies=policies,
            where=base.where if body.where is UNSET else where_of(body.where),
            **{k: v for k, v in top.items() if v is not UNSET},
        )

    async def _view(self, service: Service) -> ServiceView:
        try:
            facts = await self._loop.facts(service)
        except Gone:
            facts = []
        warnings = self._scaler.warnings.get(service.id, ())
        return service_view(service, facts, f"{self._public_url}/s/{service.name}/", warnings)


def _with(value: Any, fields: dict[str, Any]) -> Any:
    """``value`` with those of the fields that were given."""
    return msgspec.structs.replace(value, **{k: v for k, v in fields.items() if v is not UNSET})


def policies_of(raw: tuple[dict[str, Any], ...]) -> tuple[Policy, ...]:
    """Policies as typed values. ``Invalid`` says which of them is wrong and how."""
    found = []
    for number, one in enumerate(raw, 1):
        try:
            found.append(msgspec.convert(one, type=Policy, strict=False))
        except msgspec.ValidationError as error:
            raise Invalid(
                f"policy {number} is not understood: {error}",
                hint='for example {"type": "target", "metric": "cpu", "target": 60}',
            ) from error
    return tuple(found)


def where_of(raw: dict[str, Any]) -> Where:
    """Rules of placement as typed values. ``Invalid`` says what is wrong."""
    try:
        return msgspec.convert(raw, type=Where, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(
            f"where is not understood: {error}",
            hint='for example {"spread": [{"by": "zone", "share": 0.5}]}',
        ) from error


def service_view(
    service: Service, facts: list[Facts], url: str, warnings: tuple[str, ...] = ()
) -> ServiceView:
    """A service as clients see it."""
    wish, spec = service.wish, service.current.spec
    updating = any(f.replica.revision != service.revision for f in facts)
    return ServiceView(
        id=service.id,
        name=service.name,
        state=str(service.state),
        url=url,
        revision=service.revision,
        revisions=tuple(
            RevisionView(
                number=r.number,
                outcome=str(r.outcome),
                what=" ".join(x for x in (r.spec.image, *r.spec.command) if x)[:200],
                created_s=r.created_s,
                message=r.message,
            )
            for r in service.revisions
        ),
        group=wish.group,
        min=wish.min,
        max=wish.max,
        person=service.person,
        wanted=service.wanted(only_needed=updating),
        needed=service.needed,
        ready=sum(1 for f in facts if f.replica.state is ReplicaState.READY),
        reason=service.reason,
        command=spec.command,
        image=spec.image,
        vcpus=spec.vcpus,
        memory_mib=spec.memory_mib,
        bound_s=wish.goal.bound_s,
        late=wish.goal.late,
        policies=tuple(msgspec.to_builtins(p) for p in wish.policies),
        replicas=tuple(replica_view(f) for f in facts),
        created_s=service.created_s,
        message=service.message,
        warnings=warnings,
    )


def replica_view(facts: Facts) -> ReplicaView:
    """A replica as clients see it."""
    replica, report = facts.replica, facts.report
    return ReplicaView(
        id=replica.id,
        revision=replica.revision,
        state=str(replica.state),
        host_id=replica.host_id,
        reason=replica.reason,
        detail=report.detail if report else facts.waits,
        where=replica.where,
        leaving=facts.outgoing,
        created_s=replica.created_s,
        ready_s=replica.ready_s,
        restarts=report.restarts if report else 0,
        exit_code=report.exit_code if report else None,
        cpu_percent=report.cpu_percent if report else None,
        memory_mib=report.memory_mib if report else None,
        in_flight=report.in_flight if report else 0,
        queued=report.queued if report else 0,
    )
