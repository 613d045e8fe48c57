"""A service's route at one edge: its hosts as backends of the proxy, reached through their data connections.

The proxy balances, retries and ejects as for any other backends; a host without a data connection is no
backend now. With nobody to ask, requests are held. Never decides which hosts there are.
"""

from collections.abc import Callable
from typing import Literal

from roost.gateway.counting import Counts
from roost.gateway.model import Hosts, Route
from roost.proxy import policy
from roost.proxy.address import Contexts, Made
from roost.proxy.plan import Plan
from roost.proxy.pool import Backend, Dial
from roost.proxy.rewrite import RouteRewriter
from roost.proxy.upstream import Upstream, Upstreams

CONNECT_S = 3.0
"""For a host to have a data connection free and to open the service."""
IDLE_S = 30.0
"""Less than the time after which the balancer of a host closes an idle connection (75 s)."""
RETRIES = policy.Retries(attempts=4, budget_per_s=100.0)
"""A host that dies takes all its requests with it at once: the usual budget would be too small."""

Ready = Callable[[str], bool]
"""Whether a host has a data connection here."""


class BalancedRoute:
    """What an edge keeps of one service's route for as long as it is there."""

    def __init__(
        self, route: Route, counts: Counts, ready: Ready, dial: Callable[[str], Dial]
    ) -> None:
        """``dial`` gives the way to one host."""
        self.route = route
        self.counts = counts
        self._ready = ready
        self._dial = dial
        self.upstreams = Upstreams(self._policy(), make=self._backends)
        self._compile()

    def update(self, route: Route) -> tuple[Upstream, ...]:
        """The route has changed. Returns the backends that are no longer named: their hosts are gone, for
        one that only leaves is named as draining."""
        before = self.upstreams.members
        self.route = route
        self.look()
        self._compile()
        return tuple(member for member in before if member not in self.upstreams.members)

    def look(self) -> None:
        """Hosts have come or gone: requests under way go on where they can."""
        self.upstreams.updated(self._policy())

    def close(self) -> None:
        """The route is gone: what is in flight may end."""
        self.upstreams.updated(policy.Service(name=self.route.name))

    def plan(self, *, by_host: bool) -> Plan:
        """What is done with a request that matched by its host name, or by its path."""
        return self._whole if by_host else self._prefixed

    @property
    def held(self) -> bool:
        """There is no host to ask."""
        return not self.upstreams.anybody

    def _compile(self) -> None:
        route = self.route
        self.counts.bound_s = route.bound_s
        self._whole = self._planned(None)
        self._prefixed = self._whole
        if route.strip and route.prefix:
            # Who makes absolute links wants to know what is in front of them.
            fields = {"X-Forwarded-Prefix": route.prefix}
            stripped = policy.Rewrite(strip_prefix=route.prefix, request_headers=fields)
            self._prefixed = self._planned(RouteRewriter(stripped))

    def _planned(self, rewrite: RouteRewriter | None) -> Plan:
        return Plan(
            self.route.name,
            self.upstreams,
            retries=RETRIES,
            rewrite=rewrite,
            hold=policy.HoldPolicy(wait_s=self.route.hold_s),
            patient=True,
            arrivals=self.counts.arrivals,
            keeps_answers=True,
        )

    def _policy(self) -> policy.Service:
        target = self.route.target
        members = target.members if isinstance(target, Hosts) else ()
        specs = []
        for member in members:
            state: Literal["ready", "draining", "gone"] = (
                "ready" if self._ready(member.host_id) else "gone"
            )
            if member.draining:
                state = "draining"
            specs.append(policy.BackendSpec(address=member.host_id, state=state))
        return policy.Service(
            name=self.route.name,
            backends=tuple(specs),
            retries=RETRIES,
            connect_s=CONNECT_S,
            idle_s=IDLE_S,
        )

    def _backends(self, service: policy.Service, contexts: Contexts | None) -> Made:
        made: Made = {}
        for spec in service.backends:
            assert isinstance(spec, policy.BackendSpec)
            backend = Backend(
                host=spec.address, dial=self._dial(spec.address), connect_s=CONNECT_S, idle_s=IDLE_S
            )
            made[spec.address] = (spec, backend)
        return made
