"""The one knob: how likely late requests may be, corrected by how many there were.

It never sees what capacity cannot mend: the caller leaves out cold starts, failures and requests longer than
the bound by themselves.
"""

from roost.scaling.arrivals import Floats

START = 0.8
"""Careful, as long as nothing is known: what is too careful is given back soon."""
LEAST, MOST = -0.3, 1.2
GAIN, JUMP = 0.00025, 0.08
"""Of ``z`` per minute: for a late share of twice what is steered to, and at most."""
YOUNG, STEADY, YOUNG_S = 2.0, 6.0, 86400.0
"""The gain of a service that is not yet so old: up to so many times, for ``START`` is a guess; more where
history has no surges that could spend the objective: there a day without late requests says enough."""
NOW = 0.2
"""What is there already is served as if replicas cost no more than this."""
STARTED = 2.0
"""What a replica costs that has to be started first, relative to one that is there, where surges are
harmless: most new needs are over when it is ready. What can spend the objective is not waited out."""
TARGET = 0.6
"""Of the objective's late share: what the correction steers to."""
TARGET_AWAKE = 0.3
"""The same of a service that may sleep, whose starts from zero use the rest."""


def price(z: float) -> float:
    """What the replicas of a service's usual load are worth, as a share of its requests.

    ``z`` = how careful to be: the cheaper replicas are taken to be, the fewer requests are late.
    """
    return float(10.0 ** -(0.2 + 1.5 * z))


def gain(age_s: float, sudden: float) -> float:
    """How fast to learn ``age_s`` after the first decision.

    ``sudden`` = what a service that only reacts would have had late, relative to its objective; at most 1.
    """
    young = STEADY + (YOUNG - STEADY) * sudden
    return GAIN * min(young, max(1.0, YOUNG_S / max(age_s, 1.0)))


def started(sudden: float) -> float:
    """What a replica costs that has to be started first, relative to one that is there."""
    return STARTED + (1.0 - STARTED) * sudden


def corrected(
    z: float, late: Floats, total: Floats, mean: float, target: float, gain: float
) -> float:
    """``z`` after some judged minutes: up quickly by late requests, down slowly by their absence.

    ``mean`` = requests of an average minute, ``target`` = the late share to steer to.
    """
    if mean > 0:
        for bad, every in zip(late.tolist(), total.tolist(), strict=True):
            if bad >= 0 and every >= 0:
                step = (bad / target - max(every, 0.2 * mean)) / mean
                z += min(JUMP, gain * step)
                z = min(MOST, max(LEAST, z))
    return min(MOST, max(LEAST, z))
