"""The balancing of ``proxy/upstream.py`` in an event simulation: its real code, virtual time.

Backends with a few slots each and a queue, lognormal service times, Poisson arrivals, up to two retries,
a time limit of 2 s. Prints p50 / p99 / p99.9 in ms and the share of failed requests for each
algorithm and scenario:

    python bench/gateway/balance_sim.py --load 0.6 --seconds 40 --seeds 3
"""

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from roost.proxy import policy
from roost.proxy.upstream import Outcome, Upstream, Upstreams

MEAN_S = 0.010
SIGMA = 1.0
LIMIT_S = 2.0
FAIL_S = 0.001
"""How fast a failing backend answers."""
ALGORITHMS: tuple[policy.Balance, ...] = (
    "round-robin",
    "least-requests",
    "p2c-ewma",
    "least-work",
)


@dataclass(slots=True, eq=False)
class Server:
    """A backend: slots, a queue, and what is wrong with it now."""

    slots: int
    speed: float = 1.0
    crashed: bool = False
    hanging: bool = False
    failing: bool = False
    running: set["Attempt"] = field(default_factory=set)
    queue: deque["Attempt"] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Request:
    """One client request."""

    began_s: float
    worker: int
    tried: list[Upstream] = field(default_factory=list)
    open: list["Attempt"] = field(default_factory=list)
    hedged: bool = False
    done: bool = False


@dataclass(slots=True, eq=False)
class Attempt:
    """One request at one backend."""

    request: Request
    upstream: Upstream
    server: Server
    began_s: float
    over: bool = False


@dataclass(slots=True)
class Result:
    """What came of a run."""

    latencies: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    """When each failed request ended."""
    attempts: list[tuple[float, int]] = field(default_factory=list)
    """When each attempt began, and at which backend."""
    hedges: int = 0

    def quantile(self, share: float) -> float:
        """A quantile of the latencies, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def shares(self, backends: int, from_s: float, to_s: float) -> list[float]:
        """The share of attempts each backend got in a span of time."""
        counts = [0] * backends
        for at_s, index in self.attempts:
            if from_s <= at_s < to_s:
                counts[index] += 1
        return [n / max(1, sum(counts)) for n in counts]


class Simulation:
    """One run: workers in front of servers."""

    def __init__(
        self,
        service: policy.Service,
        *,
        slots: int = 4,
        rate: float,
        seed: int = 1,
        workers: int = 1,
        reports: bool = False,
        hedging: bool = False,
    ) -> None:
        self.now_s = 0.0
        self.rng = random.Random(seed)
        self.result = Result()
        self.servers = [Server(slots) for _ in service.backends]
        self.workers = [Upstreams(service, rng=random.Random(seed + n)) for n in range(workers)]
        self._rate = rate
        self._reports = reports
        self._hedging = hedging
        self._index = {m.address: i for i, m in enumerate(self.workers[0].members)}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._mu = math.log(MEAN_S) - SIGMA * SIGMA / 2

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Do something at a time."""
        self._serial += 1
        heapq.heappush(self._events, (when_s, self._serial, what))

    def run(self, seconds: float) -> Result:
        """Requests arrive for this long; all of them are followed to their end."""

        def arrive() -> None:
            if self.now_s < seconds:
                self.at(self.now_s + self.rng.expovariate(self._rate), arrive)
                self._send(Request(self.now_s, self.rng.randrange(len(self.workers))))

        arrive()
        events = self._events
        while events:
            self.now_s, _, what = heapq.heappop(events)
            what()
        return self.result

    # --- clients ---

    def _send(self, request: Request) -> bool:
        upstream = self.workers[request.worker].pick(self.now_s, tried=request.tried)
        if upstream is None:
            return False
        upstream.begin()
        request.tried.append(upstream)
        index = self._index[upstream.address]
        attempt = Attempt(request, upstream, self.servers[index], self.now_s)
        request.open.append(attempt)
        self.result.attempts.append((self.now_s, index))
        self._accept(attempt)
        if not attempt.over:
            self.at(request.began_s + LIMIT_S, lambda: self._end(attempt, Outcome.TIMED_OUT))
            if self._hedging and not request.hedged:
                after_s = self.workers[request.worker].hedge_after_s()
                self.at(self.now_s + after_s, lambda: self._hedge(attempt))
        return True

    def _hedge(self, attempt: Attempt) -> None:
        request = attempt.request
        if attempt.over or request.hedged or not self.workers[request.worker].may_hedge(self.now_s):
            return
        request.hedged = True
        self.result.hedges += 1
        self._send(request)

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        if attempt.over:
            return
        attempt.over = True
        request = attempt.request
        request.open.remove(attempt)
        server = attempt.server
        if self._reports and outcome in (Outcome.OK, Outcome.FAILED):
            load = len(server.running) + len(server.queue)
            attempt.upstream.report(load + 1, server.slots, self.now_s)
        attempt.upstream.end(outcome, self.now_s - attempt.began_s, self.now_s)
        if request.done:
            return
        if outcome is Outcome.OK:
            self._finish(request, failed=False)
            first = attempt.upstream is request.tried[0]
            for other in list(request.open):
                # A hedge that comes second says nothing bad of its backend.
                self._end(other, Outcome.CANCELLED if first else Outcome.OUTRUN)
        elif not request.open:
            worker = self.workers[request.worker]
            late = self.now_s - request.began_s >= LIMIT_S
            again = not late and len(request.tried) < 3 and worker.may_retry(self.now_s)
            if not again or not self._send(request):
                self._finish(request, failed=True)

    def _finish(self, request: Request, *, failed: bool) -> None:
        request.done = True
        self.result.latencies.append(self.now_s - request.began_s)
        if failed:
            self.result.failed.append(self.now_s)

    # --- servers ---

    def _accept(self, attempt: Attempt) -> None:
        server = attempt.server
        if server.crashed:
            self._end(attempt, Outcome.REFUSED)
        elif server.failing:
            self.at(self.now_s + FAIL_S, lambda: self._end(attempt, Outcome.FAILED))
        elif len(server.running) < server.slots and not server.hanging:
            self._work(attempt)
        else:
            server.queue.append(attempt)

    def _work(self, attempt: Attempt) -> None:
        server = attempt.server
        server.running.add(attempt)
        seconds = self.rng.lognormvariate(self._mu, SIGMA) / server.speed
        self.at(self.now_s + seconds, lambda: self._worked(attempt))

    def _worked(self, attempt: Attempt) -> None:
        server = attempt.server
        if attempt not in server.running:
            return  # its backend crashed
        if server.hanging:
            self.at(self.now_s + 0.05, lambda: self._worked(attempt))
            return
        server.running.discard(attempt)
        self._end(attempt, Outcome.OK)
        self._next(server)

    def _next(self, server: Server) -> None:
        while server.queue and len(server.running) < server.slots and not server.hanging:
            attempt = server.queue.popleft()
            if not attempt.over:
                self._work(attempt)

    # --- what goes wrong ---

    def slow(self, index: int, speed: float) -> None:
        """From now on a backend works at this speed."""
        self.servers[index].speed = speed

    def hang(self, index: int, hanging: bool) -> None:
        """A backend accepts and never answers (or is awake again)."""
        server = self.servers[index]
        server.hanging = hanging
        self._next(server)

    def fail(self, index: int, failing: bool) -> None:
        """A backend answers 500 at once."""
        self.servers[index].failing = failing

    def crash(self, index: int) -> None:
        """A backend loses what it has and refuses."""
        server = self.servers[index]
        server.crashed = True
        lost = [*server.running, *server.queue]
        server.running.clear()
        server.queue.clear()
        for attempt in lost:
            self._end(attempt, Outcome.RESET)

    def recover(self, index: int) -> None:
        """A crashed backend is there again."""
        self.servers[index].crashed = False


def _plan(simulation: Simulation, scenario: str, seconds: float) -> None:
    """Put what goes wrong into the run."""
    s = simulation
    third, half = seconds / 4, seconds / 2
    if scenario == "hetero":
        for index, share in enumerate(HETERO):
            s.slow(index, share)
    elif scenario == "degrade":
        s.at(third, lambda: s.slow(0, 1 / 8))
        s.at(third + half, lambda: s.slow(0, 1.0))
    elif scenario == "antag":
        for index in range(5):
            when_s = s.rng.random() * 12
            while when_s < seconds:
                s.at(when_s, partial(s.slow, index, 1 / 3))
                s.at(when_s + 2, partial(s.slow, index, 1.0))
                when_s += 2 + s.rng.expovariate(1 / 10)
    elif scenario == "hang":
        s.at(third, lambda: s.hang(0, True))
        s.at(third + 10, lambda: s.hang(0, False))
    elif scenario == "crash":
        s.at(third, lambda: s.crash(0))
        s.at(third + 10, lambda: s.recover(0))
    elif scenario == "churn":
        _churn(s, seconds)
    elif scenario == "failing":
        s.at(third, lambda: s.fail(0, True))
        s.at(third + seconds / 4, lambda: s.fail(0, False))


def _churn(s: Simulation, seconds: float) -> None:
    """One after the other crashes, and comes back cold."""
    for turn, when_s in enumerate(range(5, int(seconds), 10)):
        index = turn % 5
        s.at(when_s, partial(s.crash, index))
        s.at(when_s + 4, partial(s.recover, index))
        for step in range(7):
            speed = 1 / (4 - step / 2)
            s.at(when_s + 4 + step / 2, partial(s.slow, index, speed))


HETERO = (1.0, 1.0, 1.0, 0.5, 0.25)
SCENARIOS = ("equal", "hetero", "degrade", "antag", "hang", "crash", "churn", "failing")


def simulate(
    scenario: str,
    balance: policy.Balance,
    *,
    load: float = 0.6,
    seconds: float = 40.0,
    seed: int = 1,
    workers: int = 1,
    reports: bool = False,
    hedging: bool = False,
    slow_start_s: float = 0.0,
) -> Result:
    """One scenario with five backends of four slots each; ``load`` is of what they can do at best."""
    capacity = sum(HETERO) if scenario == "hetero" else 5.0
    service = policy.Service(
        name="sim",
        backends=tuple(f"127.0.0.1:{8001 + n}" for n in range(5)),
        balance=balance,
        slow_start_s=slow_start_s,
    )
    simulation = Simulation(
        service,
        rate=load * capacity * 4 / MEAN_S,
        seed=seed,
        workers=workers,
        reports=reports,
        hedging=hedging,
    )
    _plan(simulation, scenario, seconds)
    return simulation.run(seconds)


def _cell(results: Sequence[Result]) -> str:
    merged = Result()
    for result in results:
        merged.latencies += result.latencies
        merged.failed += result.failed
    figures = " / ".join(f"{merged.quantile(q) * 1000:.3g}" for q in (0.5, 0.99, 0.999))
    errors = 100 * len(merged.failed) / len(merged.latencies)
    return figures + (f" {errors:.3f} %" if errors else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Balancing algorithms in an event simulation.")
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--reports", action="store_true", help="backends report their load")
    parser.add_argument("--hedging", action="store_true")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS)
    parser.add_argument("--balance", action="append", choices=ALGORITHMS)
    given = parser.parse_args()
    scenarios = given.scenario or SCENARIOS
    print("p50 / p99 / p99.9 in ms, failed requests")
    print(f"{'':16}" + "".join(f"{name:>28}" for name in scenarios))
    for balance in given.balance or ALGORITHMS:
        cells = []
        for scenario in scenarios:
            results = [
                simulate(
                    scenario,
                    balance,
                    load=given.load,
                    seconds=given.seconds,
                    seed=seed + 1,
                    workers=given.workers,
                    reports=given.reports,
                    hedging=given.hedging,
                )
                for seed in range(given.seeds)
            ]
            cells.append(f"{_cell(results):>28}")
        print(f"{balance:16}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
