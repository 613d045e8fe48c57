"""What an edge counts of services: requests when they come, how they ended, how long they took.

An observer of the proxy. Counters only grow; who reads them takes differences. Never looks at a field or
a body of a request.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from roost.gateway.model import Seen, ServiceSeen, service_of
from roost.ports.replicas import BOUNDS_S
from roost.proxy.plan import Arrivals, Finished
from roost.proxy.upstream import Upstream

SWITCHED = 101
"""A WebSocket: how long it lasts says nothing of how quickly it was answered."""
PER_MESSAGE = 1000
"""Most services in one message: it stays far below the largest frame."""
ALL_EVERY = 10
"""Each so many reports name all services: what was lost on the way is made good."""


class Counts:
    """One service's counters."""

    __slots__ = (
        "arrivals",
        "bound_s",
        "errors",
        "finished",
        "held_finished",
        "held_late",
        "late",
        "retried",
        "seconds",
        "slow",
        "upstreams",
    )

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.bound_s = 0.0
        self.finished = self.errors = self.late = self.retried = 0
        self.seconds = 0.0
        self.held_finished = self.held_late = 0
        self.slow = [0] * (len(BOUNDS_S) + 1)

    def ended(
        self, status: int, seconds: float, *, held: bool = False, broken: bool = False
    ) -> None:
        """One more is over."""
        self.finished += 1
        self.errors += broken or status >= 500
        self.held_finished += held
        if status == SWITCHED:
            return
        self.seconds += seconds
        self.slow[bisect_left(BOUNDS_S, seconds)] += 1
        if 0 < self.bound_s < seconds:
            if held:
                self.held_late += 1
            else:
                self.late += 1


class Counting:
    """All services of one edge. Implements ``plan.Observer``; ``tally`` is a ``plan.Tally``."""

    def __init__(self) -> None:
        self._by_route: dict[str, Counts] = {}
        self._said: dict[str, ServiceSeen] = {}
        self._reports = 0

    def of(self, route: str) -> Counts:
        """The counters of a route; they begin when first asked for."""
        known = self._by_route.get(route)
        if known is None:
            known = self._by_route[route] = Counts()
        return known

    def forget(self, route: str) -> None:
        """The route is gone."""
        self._by_route.pop(route, None)
        self._said.pop(route, None)

    def done(self, record: Finished) -> None:
        """See ``Observer``."""
        counts = self._by_route.get(record.route)
        if counts is not None:
            counts.retried += record.retries
            broken = record.outcome == "cut"
            counts.ended(record.status, record.seconds, held=record.held, broken=broken)

    def tally(self, route: str, upstream: Upstream, status: int, seconds: float, size: int) -> None:
        """See ``Tally``."""
        counts = self._by_route.get(route)
        if counts is not None:
            counts.ended(status, seconds)

    def report(
        self, states: Iterable[tuple[str, int, int]], *, edge: int, began_s: float, at_s: float
    ) -> Iterator[Seen]:
        """Messages with what has changed since the last report; one at least, which says that this edge
        counts. ``states``: route, in flight, held."""
        whole = self._reports % ALL_EVERY == 0
        self._reports += 1
        changed = []
        for route, in_flight, held in states:
            seen = _seen(route, self.of(route), in_flight, held)
            if whole or self._said.get(route) != seen:
                self._said[route] = seen
                changed.append(seen)
        for at in range(0, max(1, len(changed)), PER_MESSAGE):
            services = tuple(changed[at : at + PER_MESSAGE])
            yield Seen(edge=edge, began_s=began_s, at_s=at_s, services=services)


def _seen(route: str, counts: Counts, in_flight: int, held: int) -> ServiceSeen:
    return ServiceSeen(
        service_id=service_of(route),
        arrived=counts.arrivals.count,
        finished=counts.finished,
        errors=counts.errors,
        late=counts.late,
        held_finished=counts.held_finished,
        held_late=counts.held_late,
        retried=counts.retried,
        in_flight=in_flight,
        held=held,
        seconds=counts.seconds,
        slow=tuple(counts.slow),
    )
