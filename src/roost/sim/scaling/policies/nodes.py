"""How other systems grow and shrink the nodes under containers; defaults are those of their documentation."""

from math import ceil
from typing import Protocol

from roost.sim.scaling.pool import Host
from roost.sim.scaling.world import View, Want


class Nodes(Protocol):
    """Hosts for containers that are wanted."""

    def want(self, view: View, replicas: list[int]) -> Want:
        """The hosts, and which may go."""
        ...


class ClusterAutoscaler:
    """Kubernetes cluster-autoscaler: pending pods get nodes at the next scan (10 s).

    A node less than half requested, whose pods fit elsewhere, goes after 10 minutes of that; none within 10
    minutes of a scale-up.
    """

    name = "cluster-autoscaler"

    def __init__(
        self, scan_s: float = 10.0, unneeded_s: float = 600.0, after_add_s: float = 600.0
    ) -> None:
        self.threshold = 0.5
        self.scan_s = scan_s
        self.unneeded_s = unneeded_s
        self.after_add_s = after_add_s
        self._next_s = -1.0
        self._added_s = -1e9
        self._hosts = 0
        self._since: dict[int, float] = {}

    def want(self, view: View, replicas: list[int]) -> Want:
        """Grow for what does not fit; shrink slowly."""
        if view.now_s < self._next_s:
            return Want(replicas, max(self._hosts, 0))
        self._next_s = view.now_s + self.scan_s
        need = ceil(sum(replicas) / view.slots)
        if need > view.hosts:
            self._added_s = view.now_s
            self._since.clear()
            self._hosts = need
            return Want(replicas, need)
        removable = _removable(view, self.threshold)
        self._since = {host.id: self._since.get(host.id, view.now_s) for host in removable}
        ripe = [
            id_ for id_, since_s in self._since.items() if view.now_s - since_s >= self.unneeded_s
        ]
        if view.now_s - self._added_s < self.after_add_s:
            ripe = []
        ripe = ripe[: view.hosts - need]
        self._hosts = view.hosts - len(ripe)
        return Want(replicas, self._hosts, tuple(ripe))


class Karpenter(ClusterAutoscaler):
    """Karpenter: pending pods get nodes after the batch window (1-10 s); a node whose pods fit elsewhere
    goes once nothing has changed on it for ``consolidate_after_s``."""

    name = "karpenter"

    def __init__(self, consolidate_after_s: float = 30.0) -> None:
        super().__init__(scan_s=5.0, unneeded_s=consolidate_after_s, after_add_s=0.0)
        self.threshold = 1.01


def _removable(view: View, threshold: float) -> list[Host]:
    """Hosts, the emptiest first, that could go together because their containers fit on the others."""
    there = [host for host in view.machines if host.leaving_s is None]
    there.sort(key=lambda host: (len(host.containers), -host.launched_s))
    spare = sum(view.slots - len(host.containers) for host in there)
    found = []
    for host in there:
        used = len(host.containers)
        # It takes its own spare slots with it, and needs room for its containers.
        if used / view.slots >= threshold or spare < view.slots:
            break
        if host.ready_s <= view.now_s:
            spare -= view.slots
            found.append(host)
    return found


class ToFit:
    """As many hosts as hold the containers, at once and both ways, and ``extra`` more."""

    name = "to fit"

    def __init__(self, extra: int = 0) -> None:
        self.extra = extra

    def want(self, view: View, replicas: list[int]) -> Want:
        """No hysteresis: that is the containers' business."""
        hosts = ceil(sum(replicas) / view.slots)
        return Want(replicas, hosts + (self.extra if hosts else 0))
