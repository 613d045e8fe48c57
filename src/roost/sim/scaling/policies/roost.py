"""Roost's own policy: ``services.plan.decide``, called as the controller calls it. Decides nothing itself."""

from collections.abc import Callable

import numpy as np

from roost.services.observation import (
    GroupState,
    HostPhase,
    HostState,
    Objective,
    Observation,
    Plan,
    ServiceState,
)
from roost.services.plan import decide as production
from roost.sim.scaling.pool import Host
from roost.sim.scaling.scenario import HISTORY_DAYS
from roost.sim.scaling.traces import Floats
from roost.sim.scaling.world import ServiceView, View, Want

GROUP = "default"
RECENT_S = 10.0
RECENT = 180
HISTORY = HISTORY_DAYS * 1440
P50, P95 = 0.5, 0.95


class Roost:
    """Builds the observation, keeps the memory records between calls, hands the plan on."""

    name = "roost"

    def __init__(
        self, decide: Callable[[Observation], Plan] = production, period_s: float = 10.0
    ) -> None:
        self.period_s = period_s
        self.plan: Plan | None = None
        """The last plan, with its reasons."""
        self._decide = decide
        self._services: dict[str, bytes] = {}
        self._group: bytes | None = None

    def decide(self, view: View) -> Want:
        """One call of ``decide``."""
        names = [f"{number}-{seen.load.name}" for number, seen in enumerate(view.services)]
        services = [
            self._service(name, seen, view) for name, seen in zip(names, view.services, strict=True)
        ]
        plan = self._decide(
            Observation(
                now_s=view.now_s,
                period_s=self.period_s,
                services=tuple(services),
                groups=(self._hosts(view),),
            )
        )
        self.plan = plan
        self._services = {name: found.memory for name, found in plan.services.items()}
        group = plan.groups[GROUP]
        self._group = group.memory
        replicas = [plan.services[name].replicas for name in names]
        return Want(replicas, group.hosts, tuple(map(int, group.release)))

    def _service(self, name: str, seen: ServiceView, view: View) -> ServiceState:
        load = seen.load
        late, total = seen.late()
        return ServiceState(
            id=name,
            group=GROUP,
            min=load.min_replicas,
            max=load.max_replicas,
            objective=Objective(bound_s=load.bound_s, late=0.01),
            minutes=seen.minutes()[-HISTORY:],
            recent=_recent(seen),
            recent_s=RECENT_S,
            in_flight=seen.in_flight,
            queued=seen.queued,
            service_times=seen.queue.samples(seen.in_flight),
            service_mean_s=load.mean_s,
            concurrency=load.concurrency,
            ready=seen.staying,
            starting=max(0, seen.wanted - seen.staying),
            draining=seen.ready - seen.staying,
            start_p50_s=_between(view.start_s, P50),
            start_p95_s=_between(view.start_s, P95),
            late=late,
            total=total,
            memory=self._services.get(name),
        )

    def _hosts(self, view: View) -> GroupState:
        return GroupState(
            id=GROUP,
            slots=view.slots,
            hosts=tuple(_host(host, view) for host in view.machines),
            boot_p50_s=_between(view.boot_s, P50),
            boot_p95_s=_between(view.boot_s, P95),
            memory=self._group,
        )


def _host(host: Host, view: View) -> HostState:
    if host.taken_s < np.inf:
        phase = HostPhase.NOTICED
    elif host.leaving_s is not None:
        phase = HostPhase.DRAINING
    else:
        phase = HostPhase.READY if host.ready_s <= view.now_s else HostPhase.BOOTING
    return HostState(
        id=str(host.id),
        phase=phase,
        used=len(host.containers),
        age_s=view.now_s - host.launched_s,
        survival=float(np.exp(-view.loss_per_hour)),
        price_usd_hour=1.0,
    )


def _recent(seen: ServiceView) -> Floats:
    edges = seen.now_s + RECENT_S * np.arange(-RECENT, 1)
    return np.diff(np.searchsorted(seen.queue.at_s, edges)).astype(np.float64)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + share * (bounds[1] - bounds[0])
