"""The clairvoyant policy: knows every arrival and every service time, and still waits for boots.

It may let 0.3 % of the requests be late and puts them where they save most: for each minute and each number
of containers the late requests are counted by simulation, then dynamic programming finds the cheapest course
of containers for a price per late request, every rise charged with one boot and one start, and the price is
bisected until the whole course, simulated, is just within the allowance. Never used to decide anything.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roost.sim.scaling.queue import Queue
from roost.sim.scaling.scenario import MINUTE_S, START_S, Load, Scenario
from roost.sim.scaling.traces import Floats

ALLOWED = 0.003
"""Share of late requests it may have."""
STEPS = (-1, 0, 1, 2, 3, 4, 6, 9, 13)
"""Courses that are simulated: the mean load of each block and so many units more."""
LOST = 0.2
"""A minute with this share late is not tried with less: then everything in it counts as late."""
BISECTIONS = 12
CORRECTIONS = 4
SPLICES = 4
CLOSE = 0.85
"""So much of the allowance used is good enough."""
SHIFTS_S = (40.0, 20.0, 10.0)
"""By how much a rise is put off or a fall brought forward, tried one after the other."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Oracle:
    """The best there could have been."""

    host_hours: float
    late: float
    launches: int
    hosts: Floats
    """Between ``edges``, which are seconds of the axis."""
    edges: Floats


@dataclass(frozen=True)
class _Service:
    """One load cut into blocks, and what each number of containers would have made late in each."""

    load: Load
    queue: Queue
    """To simulate with; used again and again."""
    unit: int
    base: Ints
    late: Floats
    """Steps x blocks."""
    requests: Floats
    """That count, by block."""
    block_s: float

    @property
    def levels(self) -> int:
        """How many numbers of units are weighed."""
        return int(self.base.max()) + STEPS[-1] + 1

    def safe(self) -> Ints:
        """Fewest units from which on nobody is late, as far as was tried, by block."""
        good = np.cumsum(self.late[::-1], axis=0)[::-1] <= 0
        first = np.where(good.any(axis=0), good.argmax(axis=0), len(STEPS) - 1)
        safe: Ints = np.maximum(self.base + np.array(STEPS)[first], 0)
        return safe

    def table(self, levels: int) -> Floats:
        """Late requests, levels x blocks; level n is n units of containers."""
        blocks = np.arange(len(self.base))
        found = np.empty((levels, len(blocks)))
        at = np.array(STEPS, dtype=np.float64)
        for level in range(levels):
            over = level - self.base
            right = np.clip(np.searchsorted(at, over), 1, len(at) - 1)
            share = np.clip((over - at[right - 1]) / (at[right] - at[right - 1]), 0.0, 1.0)
            between = self.late[right - 1, blocks] * (1 - share) + self.late[right, blocks] * share
            # Below what was tried, everything is late, and the more so the further below.
            found[level] = np.where(over < at[0], self.requests * (at[0] - over), between)
        return found


def oracle(scenario: Scenario) -> Oracle:
    """Host-hours of the clairvoyant policy over the scored days of ``scenario``."""
    slots = scenario.machines.slots
    unit = slots if len(scenario.loads) == 1 else 1
    block_s = max(MINUTE_S, *(load.mean_s * 2.0 for load in scenario.loads))
    services = [_tried(load, unit, block_s, scenario.end_s) for load in scenario.loads]
    wait_s = sum(scenario.machines.boot_s) / 2 + sum(scenario.machines.start_s) / 2
    game = _Game(services, slots, wait_s)
    return game.result(game.trimmed(_within(game)))


def _within(game: "_Game") -> list[Ints]:
    """The cheapest courses within the allowance: priced by the table, corrected by simulation."""
    aim, kept, missed = ALLOWED, None, None
    for _ in range(CORRECTIONS):
        fit, over = game.priced(aim)
        share = game.late_share(fit)
        if share <= ALLOWED:
            kept, missed = fit, missed or over
            if share >= CLOSE * ALLOWED:
                return fit
            aim *= min(2.0, 0.95 * ALLOWED / max(share, 1e-9))
        else:
            missed = fit
            aim *= max(0.3, 0.9 * ALLOWED / share)
    if kept is None:
        kept, _ = game.priced(0.0)
    return _spliced(game, kept, missed or kept)


def _spliced(game: "_Game", kept: list[Ints], missed: list[Ints]) -> list[Ints]:
    """Where many minutes are worth the same no price divides them: the cheaper course up to a moment."""
    size = len(kept[0])
    low, high, best = 0.0, 1.0, kept
    for _ in range(SPLICES):
        share = (low + high) / 2
        cut = int(share * size)
        courses = [
            np.concatenate([cheap[:cut], safe[cut:]])
            for cheap, safe in zip(missed, kept, strict=True)
        ]
        if game.late_share(courses) <= ALLOWED:
            best, low = courses, share
        else:
            high = share
    return best


def _tried(load: Load, unit: int, block_s: float, end_s: float) -> _Service:
    edges = np.arange(START_S, end_s + 1e-6, block_s)
    places = np.searchsorted(load.at_s, edges)
    need = np.diff(_worked(load, edges)) / (block_s * load.concurrency)
    base = np.ceil(need / unit).astype(np.int64)
    counted = np.concatenate([[0.0], np.cumsum(load.takes_s <= load.bound_s)])
    requests = np.diff(counted[places])
    queue = Queue(load)
    tried = {step: np.zeros(len(base)) for step in STEPS}
    risky = np.ones(len(base), dtype=bool)
    for step in STEPS[1:]:
        tried[step] = _late(queue, np.maximum(base + step, 0) * unit, edges, risky)
        # With more, only the minutes that are not yet well can be late.
        risky = _near(tried[step] > 0)
    hopeful = tried[0] < LOST * requests
    fewer = _late(queue, np.maximum(base - 1, 0) * unit, edges, hopeful)
    tried[-1] = np.where(hopeful, fewer, requests)
    return _Service(load, queue, unit, base, np.array(list(tried.values())), requests, block_s)


def _worked(load: Load, edges: Floats) -> Floats:
    """Seconds of work done before each edge if nobody ever waited."""
    done = np.zeros(len(edges))
    for times, sign in ((load.at_s, 1.0), (np.sort(load.at_s + load.takes_s), -1.0)):
        sums = np.concatenate([[0.0], np.cumsum(times)])
        before = np.searchsorted(times, edges)
        done += sign * (edges * before - sums[before])
    return done


def _near(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Also the four before and after each: where a queue may come from and go to."""
    wide = found.copy()
    for by in range(1, 5):
        wide[:-by] |= found[by:]
        wide[by:] |= found[:-by]
    return wide


def _late(queue: Queue, containers: Ints, edges: Floats, played: NDArray[np.bool_]) -> Floats:
    """Late requests by block of arrival, with so many containers in each block.

    Only blocks that are ``played`` are simulated; the others have nobody late.
    """
    load = queue.load
    queue.again(float(edges[0]))
    places = np.searchsorted(load.at_s, edges)
    late = np.zeros(len(containers))
    before = False
    for block in np.flatnonzero(played):
        start_s, end_s = float(edges[block]), float(edges[block + 1])
        if not before or not played[block - 1]:
            _give_up(queue, late, places)
            queue.busy, queue.slots = queue.busy[:0], 0
            queue.head = queue.tail = int(places[block])
        before = True
        slots = int(containers[block]) * load.concurrency
        if slots < queue.slots:
            queue.shrink(start_s, queue.slots - slots)
        queue.slots = slots
        first = queue.head
        queue.advance(start_s, end_s)
        _count(queue, slice(first, queue.head), late, places)
    _give_up(queue, late, places)
    return late


def _count(queue: Queue, done: slice, late: Floats, places: Ints) -> None:
    over = (queue.response_s[done] > queue.load.bound_s) & queue.counted[done]
    if over.any():
        numbers = np.flatnonzero(over) + done.start
        np.add.at(late, np.searchsorted(places, numbers, side="right") - 1, 1.0)


def _give_up(queue: Queue, late: Floats, places: Ints) -> None:
    """What still waits where the simulation is left is late."""
    if queue.head < queue.tail:
        queue.response_s[queue.head : queue.tail] = np.inf
        _count(queue, slice(queue.head, queue.tail), late, places)


def _course(service: _Service, late: Floats, price_s: float, wait_s: float) -> Ints:
    """The cheapest containers by block: unit-seconds, ``price_s`` per late request, ``wait_s`` per rise."""
    least = -(-service.load.min_replicas // service.unit)
    levels = len(late)
    number = np.arange(levels)
    cost = number[:, None] * service.block_s + price_s / service.unit * late
    cost[:least] = np.inf
    rise = number * wait_s
    total = cost[:, 0].copy()
    back = np.empty(cost.shape, dtype=np.int64)
    back[:, 0] = number
    for block in range(1, cost.shape[1]):
        # From below: pay for each step up. From above: free.
        below, from_below = _running(total - rise)
        above, from_above = _running(total[::-1])
        above, from_above = above[::-1], levels - 1 - from_above[::-1]
        up = below + rise
        back[:, block] = np.where(up <= above, from_below, from_above)
        total = np.minimum(up, above) + cost[:, block]
    course = np.empty(cost.shape[1], dtype=np.int64)
    course[-1] = int(np.argmin(total))
    for block in range(cost.shape[1] - 1, 0, -1):
        course[block - 1] = back[course[block], block]
    return course * service.unit


def _running(values: Floats) -> tuple[Floats, Ints]:
    """Running minimum, and where it was."""
    low = np.minimum.accumulate(values)
    fresh = np.concatenate([[True], values[1:] < low[:-1]])
    return low, np.maximum.accumulate(np.where(fresh, np.arange(len(values)), 0))


@dataclass(frozen=True)
class _Plan:
    """Containers of each service between ``edges``, and the hosts that hold them."""

    edges: np.ndarray
    containers: list[Ints]
    hosts: Ints


class _Game:
    """Judges courses of containers by simulation."""

    def __init__(self, services: list[_Service], slots: int, wait_s: float) -> None:
        self.services = services
        self.slots = slots
        self.wait_s = wait_s
        self.tables = [one.table(one.levels) for one in services]
        self.block_s = services[0].block_s
        self.edges = START_S + self.block_s * np.arange(len(services[0].base) + 1)
        self.requests = max(1.0, sum(float(one.requests.sum()) for one in services))

    def priced(self, aim: float) -> tuple[list[Ints], list[Ints]]:
        """The cheapest courses with at most ``aim`` late by the table, and the nearest that have more."""
        low, high = -3.0, 5.0
        fit, over = self._courses(high), self._courses(low)
        for _ in range(BISECTIONS):
            price = (low + high) / 2
            courses = self._courses(price)
            if self._expected(courses) <= aim:
                fit, high = courses, price
            else:
                over, low = courses, price
        return fit, over

    def _courses(self, price: float) -> list[Ints]:
        """The best courses for a price per late request of 10^price blocks."""
        price_s = self.block_s * 10.0**price
        return [
            _course(one, table, price_s, self.wait_s)
            for one, table in zip(self.services, self.tables, strict=True)
        ]

    def _expected(self, courses: list[Ints]) -> float:
        late = 0.0
        for one, table, course in zip(self.services, self.tables, courses, strict=True):
            late += float(table[course // one.unit, np.arange(len(course))].sum())
        return late / self.requests

    def late_share(self, courses: list[Ints]) -> float:
        """Of the plan that comes of ``courses``."""
        return float(sum(late.sum() for late in self.late(self.plan(courses)))) / self.requests

    def plan(self, courses: list[Ints]) -> _Plan:
        """Hosts rounded up; spare slots go to the largest service."""
        together = np.sum(courses, axis=0)
        hosts = -(-together // self.slots)
        largest = int(np.argmax([course.sum() for course in courses]))
        given = list(courses)
        given[largest] = courses[largest] + hosts * self.slots - together
        return _Plan(self.edges, given, hosts)

    def late(self, plan: _Plan) -> list[Floats]:
        """Late requests of each service by span of the plan."""
        found = []
        for service, containers in zip(self.services, plan.containers, strict=True):
            risky = _near(containers < self._safe(service, plan.edges))
            found.append(_late(service.queue, containers, plan.edges, risky))
        return found

    def _safe(self, service: _Service, edges: Floats) -> Ints:
        """Containers with which nobody is late between ``edges``: the most of the blocks they touch."""
        blocks = (edges - START_S) / self.block_s
        first = np.floor(blocks[:-1] + 1e-9).astype(np.int64)
        last = np.ceil(blocks[1:] - 1e-9).astype(np.int64)
        safe = service.safe() * service.unit
        return np.array([safe[a:b].max() for a, b in zip(first, last, strict=True)])

    def trimmed(self, courses: list[Ints]) -> _Plan:
        """Rises put off and falls brought forward wherever that makes nobody late."""
        plan = _joined(self.plan(courses))
        late = np.sum(self.late(plan), axis=0)
        for shift_s in SHIFTS_S:
            for up in (True, False):
                moved = _moved(plan, shift_s, up, np.ones(len(plan.edges) - 2, dtype=bool))
                after = np.sum(self.late(moved), axis=0)
                better = _around(after) <= _around(late)
                moved = _moved(plan, shift_s, up, better)
                after = np.sum(self.late(moved), axis=0)
                if after.sum() <= max(late.sum(), ALLOWED * self.requests):
                    plan, late = moved, after
        return plan

    def result(self, plan: _Plan) -> Oracle:
        """What the plan costs and leaves late."""
        lengths = np.diff(plan.edges)
        rises = np.maximum(np.diff(plan.hosts), 0)
        late = float(sum(late.sum() for late in self.late(plan)))
        return Oracle(
            host_hours=float((plan.hosts * lengths).sum() + rises.sum() * self.wait_s) / 3600.0,
            late=late / self.requests,
            launches=int(rises.sum()),
            hosts=plan.hosts.astype(np.float64),
            edges=plan.edges,
        )


def _joined(plan: _Plan) -> _Plan:
    """Without edges at which nothing changes."""
    table = np.array([plan.hosts, *plan.containers])
    changes = np.concatenate([[True], (np.diff(table, axis=1) != 0).any(axis=0)])
    first = np.flatnonzero(changes)
    edges = np.concatenate([plan.edges[first], plan.edges[-1:]])
    return _Plan(edges, [one[first] for one in plan.containers], plan.hosts[first])


def _moved(plan: _Plan, shift_s: float, up: bool, which: NDArray[np.bool_]) -> _Plan:
    """Edges at which hosts rise (or fall) moved by ``shift_s``, as far as no span vanishes."""
    steps = np.diff(plan.hosts)
    chosen = which & ((steps > 0) if up else (steps < 0))
    edges = plan.edges.copy()
    lengths = np.diff(plan.edges)
    room = lengths[1:] if up else lengths[:-1]
    by = np.where(chosen & (room > 2.0 * shift_s), shift_s, 0.0)
    edges[1:-1] += by if up else -by
    return _Plan(edges, plan.containers, plan.hosts)


def _around(late: Floats) -> Floats:
    """For each inner edge: late requests of the two spans beside it and one more on each side."""
    padded = np.concatenate([[0.0], late, [0.0]])
    found: Floats = padded[:-3] + padded[1:-2] + padded[2:-1] + padded[3:]
    return found
