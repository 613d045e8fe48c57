"""The one knob: how likely late requests may be, corrected by how many there were.

It never sees what capacity cannot mend: the caller leaves out cold starts, failures and requests longer than
the bound by themselves.
"""

from roost.scaling.arrivals import Floats

START = 0.4
LEAST, MOST, USED = 0.0, 3.0, 1.2
GAIN, JUMP = 0.001, 0.5
TARGET = 0.8
"""Of the objective's late share: what the correction steers to."""


def allowed(z: float) -> float:
    """Request-weighted odds of being late that the capacity is chosen for; ``z`` is how careful to be."""
    return float(10.0 ** -(0.2 + 2.3 * min(z, USED)))


def corrected(z: float, late: Floats, total: Floats, mean: float, target: float) -> float:
    """``z`` after some judged minutes: up quickly by late requests, down slowly by their absence.

    ``mean`` = requests of an average minute, ``target`` = the late share to steer to.
    """
    if mean > 0:
        for bad, every in zip(late.tolist(), total.tolist(), strict=True):
            if bad >= 0 and every >= 0:
                step = (bad / target - max(every, 0.2 * mean)) / mean
                z += min(JUMP, GAIN * step)
                z = min(MOST, max(LEAST, z))
    return min(MOST, max(LEAST, z))
