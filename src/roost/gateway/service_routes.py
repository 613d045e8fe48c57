"""Routes of services: which hosts serve one, under which path and host names its clients find it.

What ``services/controller`` calls on each change; the same again costs a look-up and publishes nothing.
Never decides which hosts should serve, and never waits for an edge longer than ``GatewayService`` does.
"""

from collections.abc import Callable, Iterable

from roost.gateway.model import (
    HOLD_S,
    SERVICE_KIND,
    EdgeEvent,
    HoldWaiting,
    HostMember,
    Hosts,
    Route,
    Seen,
    service_of,
)
from roost.gateway.service import GatewayService

PREFIX = "/s"
DOMAINS = ("localhost",)
"""Under which services are host names too: ``web.localhost`` is the own machine on most systems."""


def route_name(service_id: str) -> str:
    """The name of a service's route, and what its hosts open."""
    return f"{SERVICE_KIND}{service_id}"


def path_of(name: str) -> str:
    """The public path of a service called ``name``, without a slash at its end."""
    return f"{PREFIX}/{name}"


class ServiceRoutes:
    """The routes of this cell's services."""

    def __init__(self, gateway: GatewayService, *, domains: tuple[str, ...] = DOMAINS) -> None:
        self._gateway = gateway
        self._domains = domains

    async def point(
        self,
        service_id: str,
        members: Iterable[HostMember] = (),
        *,
        name: str,
        epoch: int = 0,
        strip: bool = True,
        hosts: tuple[str, ...] = (),
        tokens: tuple[str, ...] = (),
        hold_s: float = HOLD_S,
        bound_s: float = 0.0,
    ) -> None:
        """Send the requests of a service to ``members``; with none, they wait up to ``hold_s``.

        ``name`` is the public one (``/s/<name>/...`` and ``<name>.localhost``), ``hosts`` are more host
        names, ``strip`` takes ``/s/<name>`` off the path that replicas see, ``bound_s`` is what counts
        as late, ``tokens`` are SHA-256 (hex) of the bearer tokens that may pass.
        """
        service = route_name(service_id)
        ordered = tuple(sorted(members, key=lambda member: member.host_id))
        await self._gateway.point(
            service,
            Hosts(service=service, members=ordered),
            epoch=epoch,
            prefix=path_of(name),
            tokens=tokens,
            hold_s=hold_s,
            hosts=(*(f"{name}.{domain}" for domain in self._domains), *map(str.lower, hosts)),
            strip=strip,
            bound_s=bound_s,
        )

    async def remove(self, service_id: str) -> None:
        """The service is deleted: its requests get 404."""
        await self._gateway.remove(route_name(service_id))

    def route(self, service_id: str) -> Route | None:
        """What edges are told of it."""
        return self._gateway.route(route_name(service_id))


class EdgeEvents:
    """What edges tell, to whom it concerns (``Publisher(run, EdgeEvents(...))``)."""

    def __init__(
        self, wake: Callable[[str], None], seen: Callable[[Seen], None] = lambda seen: None
    ) -> None:
        """``wake`` gets the id of a service whose requests wait for a host."""
        self._wake = wake
        self._seen = seen

    def __call__(self, event: EdgeEvent) -> None:
        """Tell."""
        if isinstance(event, Seen):
            self._seen(event)
        elif isinstance(event, HoldWaiting):
            service_id = service_of(event.name)
            if service_id:
                self._wake(service_id)
