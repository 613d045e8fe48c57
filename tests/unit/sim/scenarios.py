"""Small made-up scenarios for the tests of the scaling simulator."""

import numpy as np

from roost.sim.scaling.scenario import MINUTE_S, START_S, WARM_S, Load, Machines, Scenario


def steady(
    rate: float = 2.0,
    mean_s: float = 1.0,
    hours: float = 1.0,
    seed: int = 1,
    least: int = 1,
    burst: float = 0.0,
    machines: Machines | None = None,
) -> Scenario:
    """One service with ``rate`` requests a second; ``burst`` times as many in ten minutes of the middle."""
    random = np.random.default_rng(seed)
    end_s = START_S + hours * 3600.0
    seconds = np.full(int(end_s - START_S + WARM_S), rate)
    if burst:
        middle = int(WARM_S + hours * 1800.0)
        seconds[middle : middle + 600] *= burst
    counts = random.poisson(seconds)
    at_s = START_S - WARM_S + np.repeat(np.arange(len(counts)), counts) + 0.0
    at_s = np.sort(at_s + random.random(len(at_s)))
    minutes = np.full(int(end_s / MINUTE_S), rate * MINUTE_S)
    played = int((START_S - WARM_S) / MINUTE_S)
    minutes[played:] = counts.reshape(-1, 60).sum(axis=1)
    load = Load(
        name="web",
        mean_s=mean_s,
        bound_s=4.0 * mean_s,
        concurrency=1,
        min_replicas=least,
        max_replicas=200,
        at_s=at_s,
        takes_s=random.gamma(1.0, mean_s, len(at_s)),
        minutes=minutes,
        peak_before=rate,
    )
    return Scenario("made up", (load,), end_s, seed, machines or Machines())
