"""One run: a scenario, a policy, and step by step what comes of it.

The policy sees ``View`` and nothing else: the past, the present state, never a future arrival. It decides at
every step of its period, and at once when a request finds a service at zero.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np

from roost.sim.scaling.pool import Host, Pool, Spot
from roost.sim.scaling.queue import Queue, Step
from roost.sim.scaling.scenario import MINUTE_S, START_S, WARM_S, Load, Scenario
from roost.sim.scaling.traces import Floats


@dataclass(slots=True)
class ServiceView:
    """A service as its control plane sees it."""

    load: Load
    now_s: float
    wanted: int
    placed: int
    """On hosts that stay, starting ones included."""
    ready: int
    """That serve now, on whatever host."""
    staying: int
    """Of ``ready``: on hosts that stay."""
    in_flight: int
    queued: int
    step: Step
    """The step that just ended."""
    queue: Queue = field(repr=False)
    """For the past only: use the methods below."""

    def arrived(self, seconds: float) -> int:
        """Requests of the last ``seconds``."""
        return self.queue.arrived(self.now_s - seconds, self.now_s)

    def minutes(self) -> Floats:
        """Arrivals in each whole minute up to now; NaN where nothing is known."""
        return self.load.minutes[: int(self.now_s // MINUTE_S)]

    def late(self) -> tuple[Floats, Floats]:
        """(late, all that count) in each of the last 60 minutes, the present one left out.

        Without what more containers would not have helped: lost with its server, or held at zero.
        """
        until = int(self.now_s // MINUTE_S)
        seen = slice(max(0, until - 60), until)
        return self.queue.late[seen] - self.queue.spoilt[seen], self.queue.total[seen]

    def service_time(self) -> tuple[float, float, int]:
        """Mean and coefficient of variation over the last 2,000 finished, and how many they are."""
        return self.queue.service_time(self.in_flight)


@dataclass(slots=True)
class View:
    """What a policy decides on."""

    now_s: float
    seconds: float
    """Length of the step that just ended."""
    services: list[ServiceView]
    slots: int
    """Containers a host holds."""
    ready_hosts: int
    booting_hosts: int
    leaving_hosts: int
    """Drained by us."""
    noticed_hosts: int
    """To be taken by the provider."""
    used_slots: int
    """On hosts that stay."""
    boot_s: tuple[float, float]
    start_s: tuple[float, float]
    machines: list[Host]
    """Each host that is there."""
    loss_per_hour: float
    """Of a host, as its survival model knows it."""
    waking: bool = False
    """Called between two steps, because a request waits at zero."""

    @property
    def hosts(self) -> int:
        """Hosts that stay: ready and booting."""
        return self.ready_hosts + self.booting_hosts


@dataclass(slots=True)
class Want:
    """A decision: containers per service, hosts of the group."""

    replicas: list[int]
    hosts: int
    release: tuple[int, ...] = ()
    """Ids of hosts, in the order they shall go if some have to."""


class Policy(Protocol):
    """Decides. One object plays one run: it may remember."""

    name: str
    period_s: float

    def decide(self, view: View) -> Want:
        """What there shall be from now on."""
        ...


@dataclass(frozen=True)
class Result:
    """What one run came to, over the scored days."""

    scenario: str
    policy: str
    seed: int
    days: float
    host_hours: float
    late: float
    """Share of the requests that count."""
    requests: int
    launches: int
    starts: int
    """Container starts."""
    losses: int
    late_outside: float
    """``late`` without the ten minutes after each loss of many hosts at once."""
    by_service: dict[str, float]
    tracks: "Tracks" = field(repr=False)


@dataclass(frozen=True)
class Tracks:
    """By minute of the axis, from ``first_s``: for pictures."""

    first_s: float
    arrivals: list[Floats]
    containers: list[Floats]
    hosts: Floats
    late: list[Floats]
    latency_s: list[Floats]
    """The 99th percentile of the response time."""


AFTER_S = 600.0


def run(scenario: Scenario, policy: Policy, spot: Spot | None = None, salt: int = 0) -> Result:
    """Play ``scenario`` with ``policy``. Equal arguments give equal results."""
    spot = spot or Spot()
    random = np.random.default_rng([scenario.seed, 7919, salt])
    queues = [Queue(load) for load in scenario.loads]
    pool = Pool(scenario.machines, queues, spot, random)
    now_s = START_S - WARM_S
    pool.begin(now_s, [_first(queue, now_s) for queue in queues])
    steps = [Step() for _ in queues]
    size = int(scenario.end_s // MINUTE_S)
    ready_track = np.zeros((len(queues), size))
    seconds, waking = policy.period_s, False
    while now_s < scenario.end_s:
        view = _view(pool, now_s, seconds, steps, scenario, waking)
        want = policy.decide(view)
        until_s = min((now_s // policy.period_s + 1) * policy.period_s, scenario.end_s)
        pool.apply(now_s, until_s, want.replicas, want.hosts, want.release)
        until_s, waking = _wakes(pool, queues, until_s)
        minute = int(now_s // MINUTE_S)
        for number, queue in enumerate(queues):
            steps[number] = queue.advance(now_s, until_s)
            ready_track[number, minute] = queue.slots / queue.load.concurrency
        seconds, now_s = until_s - now_s, until_s
    pool.close(now_s)
    return _result(scenario, policy, pool, queues, ready_track)


def _first(queue: Queue, now_s: float) -> int:
    """Containers to begin with: half as many again as the first ten minutes need."""
    load = queue.load
    rate = queue.arrived(now_s, now_s + 600.0) / 600.0
    if load.min_replicas == 0:
        return 0
    return max(load.min_replicas, int(np.ceil(1.5 * rate * load.mean_s / load.concurrency)))


def _wakes(pool: Pool, queues: list[Queue], until_s: float) -> tuple[float, bool]:
    """The end of the step: sooner if a request comes to a service that has nothing and wants nothing."""
    waking = False
    for wanted, queue in zip(pool.wanted, queues, strict=True):
        if wanted == 0 and queue.queued == 0 and queue.next_arrival_s() < until_s:
            until_s = float(np.nextafter(queue.next_arrival_s(), np.inf))
            waking = True
    return until_s, waking


def _view(
    pool: Pool, now_s: float, seconds: float, steps: list[Step], scenario: Scenario, waking: bool
) -> View:
    placed, ready = pool.placed(), pool.ready(now_s)
    staying_ready = pool.ready(now_s, staying=True)
    services = [
        ServiceView(
            load=queue.load,
            now_s=now_s,
            wanted=pool.wanted[number],
            placed=placed[number],
            ready=ready[number],
            staying=staying_ready[number],
            in_flight=queue.in_flight(now_s),
            queued=queue.queued,
            step=steps[number],
            queue=queue,
        )
        for number, queue in enumerate(pool.queues)
    ]
    staying = pool.staying()
    booted = sum(host.ready_s <= now_s for host in staying)
    noticed = sum(host.taken_s < np.inf for host in pool.hosts)
    return View(
        now_s=now_s,
        seconds=seconds,
        services=services,
        slots=scenario.machines.slots,
        ready_hosts=booted,
        booting_hosts=len(staying) - booted,
        leaving_hosts=len(pool.hosts) - len(staying) - noticed,
        noticed_hosts=noticed,
        used_slots=sum(placed),
        boot_s=scenario.machines.boot_s,
        start_s=scenario.machines.start_s,
        machines=pool.hosts,
        loss_per_hour=pool.spot.per_host_hour,
        waking=waking,
    )


def _result(
    scenario: Scenario, policy: Policy, pool: Pool, queues: list[Queue], ready_track: np.ndarray
) -> Result:
    first = int(START_S // MINUTE_S)
    for queue in queues:
        _left_waiting(queue)
    late = np.array([queue.late[first:].sum() for queue in queues])
    total = np.array([queue.total[first:].sum() for queue in queues])
    outside = np.ones(int(scenario.end_s // MINUTE_S), dtype=bool)
    for at_s in pool.spot.together_s:
        outside[int(at_s // MINUTE_S) : int((at_s + AFTER_S) // MINUTE_S) + 1] = False
    calm = outside[first:]
    late_calm = sum(float(queue.late[first:][calm].sum()) for queue in queues)
    total_calm = sum(float(queue.total[first:][calm].sum()) for queue in queues)
    names = [load.name for load in scenario.loads]
    shares = late / np.maximum(total, 1.0)
    return Result(
        scenario=scenario.name,
        policy=policy.name,
        seed=scenario.seed,
        days=scenario.days,
        host_hours=_host_hours(pool.ended, START_S, scenario.end_s),
        late=float(late.sum() / max(total.sum(), 1.0)),
        requests=int(total.sum()),
        launches=sum(at_s >= START_S for at_s in pool.launched_s),
        starts=sum(at_s >= START_S for at_s in pool.started_s),
        losses=sum(at_s >= START_S for at_s in pool.lost_s),
        late_outside=late_calm / max(total_calm, 1.0),
        by_service=dict(zip(names, map(float, shares), strict=True)),
        tracks=_tracks(scenario, pool, queues, ready_track),
    )


def _left_waiting(queue: Queue) -> None:
    """What never began, and has waited too long by the end, is late."""
    if queue.head < queue.tail:
        rest = slice(queue.head, queue.tail)
        over = (queue.at_s[queue.tail - 1] - queue.at_s[rest] > queue.load.bound_s) & queue.counted[
            rest
        ]
        np.add.at(queue.late, queue.minute[rest][over], 1.0)


def _host_hours(ended: list[tuple[float, float]], start_s: float, end_s: float) -> float:
    spans = np.clip(np.array(ended or [(0.0, 0.0)]), start_s, end_s)
    return float((spans[:, 1] - spans[:, 0]).sum()) / 3600.0


def _tracks(scenario: Scenario, pool: Pool, queues: list[Queue], ready_track: np.ndarray) -> Tracks:
    first = int(START_S // MINUTE_S)
    size = int(scenario.end_s // MINUTE_S)
    edges = np.arange(first, size + 1) * MINUTE_S
    spans = np.array(pool.ended or [(0.0, 0.0)])
    begun = np.searchsorted(np.sort(spans[:, 0]), edges[:-1], side="right")
    gone = np.searchsorted(np.sort(spans[:, 1]), edges[:-1], side="right")
    return Tracks(
        first_s=START_S,
        arrivals=[queue.load.minutes[first:size] for queue in queues],
        containers=[ready_track[number, first:] for number in range(len(queues))],
        hosts=(begun - gone).astype(np.float64),
        late=[queue.late[first:size] for queue in queues],
        latency_s=[_percentile(queue, edges) for queue in queues],
    )


def _percentile(queue: Queue, edges: np.ndarray) -> Floats:
    """The 99th percentile of the response times of each five minutes, repeated for its minutes."""
    size = len(edges) - 1
    found = np.full(size, np.nan)
    places = np.searchsorted(queue.at_s, edges[::5])
    for number, (first, last) in enumerate(pairwise(places)):
        if last > first:
            found[number * 5 : number * 5 + 5] = np.quantile(queue.response_s[first:last], 0.99)
    return found
