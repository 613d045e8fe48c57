"""What is done to a service under load, and what is measured of it.

Each scenario takes a world with a service that serves and returns what happened; it decides nothing that
control should decide. A time that never came is None.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bench.two_levels.load import Outcome
from bench.two_levels.world import Sample, World

SLOTS = 4
CALM_S = 10.0
"""Of steady load before anything is done to it."""
RESTORE_S = 60.0
SHARE = 0.35
"""Of what all replicas can carry: what is left of two hosts after a loss is not full."""
EMPTY_S = 240.0


@dataclass
class Result:
    """What a scenario showed."""

    name: str
    outcomes: list[Outcome]
    bound_s: float
    times: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Outcome]:
        """Requests without a 200."""
        return [one for one in self.outcomes if one.status != 200]

    @property
    def late(self) -> float:
        """Share of requests over the bound; failed ones are late."""
        late = [one.status != 200 or one.latency_s > self.bound_s for one in self.outcomes]
        return sum(late) / max(1, len(late))

    def latency(self, percent: float) -> float:
        """Seconds; NaN without requests."""
        values = [one.latency_s for one in self.outcomes]
        return float(np.percentile(values, percent)) if values else float("nan")


def burst(world: World) -> Result:
    """A rate that grows tenfold, stays and falls: containers, then hosts, then down to the minimum."""
    profile = "20x5,10x5-50,60x50,10x50-5,20x5"
    with world.load(profile) as load:
        time.sleep(20.0)
        began = world.watched.mark("burst")
        time.sleep(70.0)
        calm = world.watched.mark("over")
        load.wait()
        least = world.plan.least
        # The spare slots of the one host that is left are filled: they are paid for.
        _await(world, lambda s: s.ready + s.starting + s.draining <= SLOTS, EMPTY_S)
        _await(world, lambda s: s.hosts + s.booting <= 1, EMPTY_S)
        outcomes = load.outcomes()
    first = world.watched.first
    most = max(s.ready for s in world.watched.samples)
    result = Result("burst", outcomes, world.plan.bound_s)
    result.times = {
        "more containers are wanted": first(began, lambda s: s.wanted > SLOTS * least),
        "a second host is ready": first(began, lambda s: s.hosts > 1),
        "most containers are ready": first(began, lambda s: s.ready == most),
        "after the load: containers of one host": first(
            calm, lambda s: s.ready + s.starting + s.draining <= SLOTS
        ),
        "after the load: one host": first(calm, lambda s: s.hosts + s.booting <= 1),
    }
    result.notes.append(
        f"at most {most} containers on {max(s.hosts for s in world.watched.samples)} hosts"
    )
    return result


def kill_container(world: World) -> Result:
    """SIGKILL one of four containers."""
    return _disturbed(world, "kill a container", 4, lambda: world.kill_replica())


def kill_agent(world: World) -> Result:
    """SIGKILL the agent of a host: its containers run on and are adopted."""
    return _disturbed(world, "kill an agent", 8, lambda: world.kill_agent())


def kill_host(world: World) -> Result:
    """Take one of two hosts away, without notice."""
    return _disturbed(world, "kill a host", 8, lambda: world.kill_host())


def lose_pool(world: World) -> Result:
    """All hosts but one get 30 s of notice within ten seconds."""

    def take() -> str:
        ready = [h.id for h in world.hosts() if h.role == "group" and h.ready and not h.notice]
        gone = sorted(ready)[:-1]
        for number, host in enumerate(gone):
            if number:
                time.sleep(10.0 / len(gone))
            world.notice([host], 30.0)
        return f"{len(gone)} of {len(ready)} hosts"

    return _disturbed(world, "lose a pool", 12, take, seconds=90)


SCENARIOS: dict[str, Callable[[World], Result]] = {
    "burst": burst,
    "kill-container": kill_container,
    "kill-agent": kill_agent,
    "kill-host": kill_host,
    "lose-pool": lose_pool,
}


def _disturbed(
    world: World, name: str, replicas: int, act: Callable[[], str], seconds: int = 50
) -> Result:
    """A person's number of replicas under a steady load that ``SHARE`` of them can carry."""
    world.services.scale("web", replicas)
    _await(world, lambda s: s.ready == replicas and not s.starting, RESTORE_S)
    began = world.watched.samples[-1]
    rate = SHARE * replicas * world.plan.concurrency / world.plan.service_s
    with world.load(f"{seconds}x{rate:g}") as load:
        time.sleep(CALM_S)
        what = act()
        at_s = world.watched.mark(name)
        load.wait()
        outcomes = load.outcomes()
    _await(world, lambda s: s.ready == replicas and not s.noticed, RESTORE_S)
    result = Result(name, outcomes, world.plan.bound_s)
    fewer = world.watched.first(at_s, lambda s: s.ready < replicas)
    seen = at_s + (fewer or 0.0)
    again = world.watched.first(seen, lambda s: s.ready >= replicas and not s.noticed)
    result.times = {
        "fewer containers are seen": fewer,
        "all are ready again": None if again is None else again + (fewer or 0.0),
    }
    away = world.watched.first(at_s, lambda s: s.hosts < began.hosts)
    if away is not None:
        back = world.watched.first(at_s + away, lambda s: s.hosts >= began.hosts)
        result.times["fewer hosts are seen"] = away
        result.times["as many hosts again"] = None if back is None else back + away
    result.notes.append(f"{what} at {rate:g} requests/s" if what else "nothing was there to kill")
    result.notes.append(f"{began.ready} of {replicas} containers on {began.hosts} hosts before")
    world.services.scale("web", None)
    return result


def _await(world: World, good: Callable[[Sample], bool], limit_s: float) -> None:
    """Until the newest sample is good, or the time is over: the result says which."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        samples = world.watched.samples
        if samples and good(samples[-1]):
            return
        time.sleep(0.2)
