"""A plain reactive policy: the present load over a target utilisation, held for a while on the way down."""

from collections import deque
from math import ceil

from roost.sim.scaling.world import View, Want


class Reactive:
    """Containers = offered load of the last minute / target; the highest of the last ``hold_s`` counts."""

    period_s = 10.0

    def __init__(self, target: float = 0.7, hold_s: float = 300.0) -> None:
        self.name = f"reactive {target:g}"
        self.target = target
        self.hold_s = hold_s
        self._asked: list[deque[tuple[float, int]]] = []

    def decide(self, view: View) -> Want:
        """As many hosts as hold the containers."""
        if not self._asked:
            self._asked = [deque() for _ in view.services]
        replicas = []
        for asked, seen in zip(self._asked, view.services, strict=True):
            load = seen.load
            # What waits shall be gone in a minute.
            offered = (seen.arrived(60.0) + seen.queued) / 60.0 * seen.service_time()[0]
            need = ceil(offered / (load.concurrency * self.target))
            asked.append((view.now_s, need))
            while asked[0][0] < view.now_s - self.hold_s:
                asked.popleft()
            most = max(count for _, count in asked)
            replicas.append(min(max(most, load.min_replicas), load.max_replicas))
        return Want(replicas, ceil(sum(replicas) / view.slots))
