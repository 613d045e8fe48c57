"""Hosts that boot, containers that start on them, drains and losses: the machinery under every policy.

What a policy asks for is carried out as the control plane would: containers go to the fullest host with a
free slot, a host that leaves keeps its containers until their replacements are ready, cost runs from launch
to the end of the last request. Never decides how many of anything there shall be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from roost.sim.scaling.queue import Queue
from roost.sim.scaling.scenario import Machines

LONGEST_DRAIN_S = 120.0
"""A released host waits so long for the replacements of its containers."""
LAST_REQUESTS = 3.0
"""A host that will be taken stops accepting so many mean service times before."""


@dataclass(slots=True)
class Container:
    """One replica. It serves from ``ready_s`` on."""

    service: int
    ready_s: float


@dataclass(slots=True, eq=False)
class Host:
    """A machine, billed from ``launched_s`` until it is gone."""

    id: int
    launched_s: float
    ready_s: float
    containers: list[Container] = field(default_factory=list)
    leaving_s: float | None = None
    """Since when it is to go; nothing new is placed on it."""
    taken_s: float = np.inf
    """When the provider takes it."""


@dataclass(frozen=True)
class Spot:
    """How hosts are lost: each on its own, and a share of all at once at given times."""

    per_host_hour: float = 0.0
    together_s: tuple[float, ...] = ()
    share: float = 1 / 3
    notice_s: float = 120.0


class Pool:
    """The hosts of one group and what runs on them."""

    def __init__(
        self, machines: Machines, queues: list[Queue], spot: Spot, random: np.random.Generator
    ) -> None:
        self.machines = machines
        self.queues = queues
        self.spot = spot
        self.random = random
        self.hosts: list[Host] = []
        self.ended: list[tuple[float, float]] = []
        """(launched, gone) of hosts that are no more."""
        self.wanted = [0] * len(queues)
        self.launched_s: list[float] = []
        self.started_s: list[float] = []
        self.lost_s: list[float] = []
        """When notices came."""
        self._together = sorted(spot.together_s)
        self._ids = count()

    def staying(self) -> list[Host]:
        """Hosts that are not on their way out, booting ones included."""
        return [host for host in self.hosts if host.leaving_s is None]

    def begin(self, now_s: float, containers: list[int]) -> None:
        """The state of before: so many containers of each service, ready, on as few hosts as hold them."""
        for service, number in enumerate(containers):
            self.wanted[service] = number
            self.queues[service].slots = number * self.queues[service].load.concurrency
        waiting = [service for service, number in enumerate(containers) for _ in range(number)]
        slots = self.machines.slots
        for first in range(0, len(waiting), slots):
            inside = [Container(service, now_s - 1.0) for service in waiting[first : first + slots]]
            self.hosts.append(Host(next(self._ids), now_s, now_s - 1.0, inside))

    def apply(
        self,
        now_s: float,
        until_s: float,
        wanted: list[int],
        hosts: int,
        release: Sequence[int] = (),
    ) -> None:
        """Carry out a decision made at ``now_s``; hosts that get ready before ``until_s`` are used then.

        ``release``: ids of the hosts to go first, if any has to.
        """
        self.wanted = list(wanted)
        self._lose(now_s, until_s)
        self._hosts(now_s, hosts, release)
        placed = self.placed()
        for service, number in enumerate(placed):
            if number > wanted[service]:
                self._stop(now_s, service, number - wanted[service])
        if any(have < want for have, want in zip(placed, wanted, strict=True)):
            self._place(now_s, until_s, placed)
        self._leave(now_s)

    def placed(self) -> list[int]:
        """Containers of each service on hosts that stay, starting ones included."""
        counts = [0] * len(self.queues)
        for host in self.hosts:
            if host.leaving_s is None:
                for container in host.containers:
                    counts[container.service] += 1
        return counts

    def ready(self, now_s: float, staying: bool = False) -> list[int]:
        """Containers of each service that serve now; ``staying``: without those on hosts that leave."""
        counts = [0] * len(self.queues)
        for host in self.hosts:
            if not staying or host.leaving_s is None:
                for container in host.containers:
                    counts[container.service] += container.ready_s < now_s
        return counts

    def close(self, now_s: float) -> None:
        """The end of the run: everything still there ends."""
        self.ended += [(host.launched_s, now_s) for host in self.hosts]
        self.hosts = []

    def _lose(self, now_s: float, until_s: float) -> None:
        spot = self.spot
        if spot.per_host_hour > 0.0 and self.hosts:
            chance = spot.per_host_hour * (until_s - now_s) / 3600.0
            drawn = self.random.random(len(self.hosts))
            for place in np.flatnonzero(drawn < chance):
                self._notice(now_s, self.hosts[place])
        while self._together and self._together[0] < until_s:
            self._together.pop(0)
            number = int(np.ceil(len(self.hosts) * spot.share))
            for place in self.random.permutation(len(self.hosts))[:number]:
                self._notice(now_s, self.hosts[place])

    def _notice(self, now_s: float, host: Host) -> None:
        if host.taken_s == np.inf:
            host.taken_s = now_s + self.spot.notice_s
            host.leaving_s = now_s if host.leaving_s is None else host.leaving_s
            self.lost_s.append(now_s)

    def _hosts(self, now_s: float, wanted: int, release: Sequence[int]) -> None:
        wanted = min(max(wanted, self.machines.min_hosts), self.machines.max_hosts)
        staying = self.staying()
        for _ in range(wanted - len(staying)):
            low, high = self.machines.boot_s
            boot_s = float(self.random.uniform(low, high))
            self.hosts.append(Host(next(self._ids), now_s, now_s + boot_s))
            self.launched_s.append(now_s)
        if len(staying) > wanted:
            order = {named: place for place, named in enumerate(release)}
            staying.sort(key=lambda host: (order.get(host.id, len(order)), _release(host, now_s)))
            for host in staying[: len(staying) - wanted]:
                host.leaving_s = now_s

    def _stop(self, now_s: float, service: int, number: int) -> None:
        """Stop ``number`` containers of a service: starting ones first, then on the emptiest hosts."""
        found = [
            (container.ready_s < now_s, len(host.containers), place, host, container)
            for place, host in enumerate(self.hosts)
            if host.leaving_s is None
            for container in host.containers
            if container.service == service
        ]
        found.sort(key=lambda one: one[:3])
        for _, _, _, host, container in found[:number]:
            host.containers.remove(container)
            self._close(now_s, container)

    def _close(self, now_s: float, container: Container) -> np.ndarray:
        queue = self.queues[container.service]
        if container.ready_s >= now_s:
            queue.opening.remove(container.ready_s)
            return np.empty(0)
        return queue.shrink(now_s, queue.load.concurrency)

    def _place(self, now_s: float, until_s: float, placed: list[int]) -> None:
        slots = self.machines.slots
        open_hosts = [
            host
            for host in self.hosts
            if host.leaving_s is None and host.ready_s < until_s and len(host.containers) < slots
        ]
        # The fullest first, so that hosts empty out when load goes.
        open_hosts.sort(key=lambda host: (-len(host.containers), host.ready_s))
        for host in open_hosts:
            while len(host.containers) < slots:
                service = self._neediest(placed)
                if service < 0:
                    return
                self._start(max(now_s, host.ready_s), service, host)
                placed[service] += 1

    def _neediest(self, placed: list[int]) -> int:
        """The service that has the smallest share of what it should have; -1 if none lacks any."""
        shares = [
            (placed[service] / wanted, service)
            for service, wanted in enumerate(self.wanted)
            if placed[service] < wanted
        ]
        return min(shares)[1] if shares else -1

    def _start(self, at_s: float, service: int, host: Host) -> None:
        low, high = self.machines.start_s
        ready_s = at_s + float(self.random.uniform(low, high))
        host.containers.append(Container(service, ready_s))
        self.queues[service].opening.append(ready_s)
        self.started_s.append(at_s)

    def _leave(self, now_s: float) -> None:
        leaving = [host for host in self.hosts if host.leaving_s is not None]
        if not leaving:
            return
        enough = self.ready(now_s, staying=True)
        for host in leaving:
            if host.containers and not self._may_stop(now_s, host, enough):
                continue
            gone_s = now_s
            for container in host.containers:
                ends = self._close(now_s, container)
                if len(ends):
                    gone_s = max(gone_s, min(float(ends.max()), host.taken_s))
                    killed = int((ends > max(host.taken_s, now_s)).sum())
                    self.queues[container.service].spoil(now_s, killed)
            self.hosts.remove(host)
            self.ended.append((host.launched_s, gone_s))

    def _may_stop(self, now_s: float, host: Host, enough: list[int]) -> bool:
        services = {container.service for container in host.containers}
        longest_s = max(self.queues[service].load.mean_s for service in services)
        if now_s >= host.taken_s - LAST_REQUESTS * longest_s:
            return True
        if all(enough[service] >= self.wanted[service] for service in services):
            return True
        return host.leaving_s is not None and (
            host.taken_s == np.inf and now_s - host.leaving_s > LONGEST_DRAIN_S
        )


def _release(host: Host, now_s: float) -> tuple[bool, float]:
    """Sorts hosts to release: booting ones, the last launched first; then the emptiest."""
    booted = host.ready_s <= now_s
    return booted, len(host.containers) if booted else -host.launched_s
