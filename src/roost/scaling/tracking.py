"""Target tracking and step scaling on any metric. Missing values never change direction.

Each answers with a number of replicas and a reason, or with None when it has nothing to say.
"""

import math

from roost.scaling.arrivals import Floats
from roost.scaling.policies import Step, TargetTracking

STALE = 3
"""Periods after which a metric that does not arrive is missing."""


def newest(values: Floats | None) -> float | None:
    """The newest value of the last periods; None if all are missing."""
    if values is None:
        return None
    for value in reversed(values[-STALE:].tolist()):
        if not math.isnan(value):
            return float(value)
    return None


def track(policy: TargetTracking, value: float | None, ready: int, wanted: int) -> int | None:
    """Replicas that bring a per-replica metric to its target; None while it is missing.

    ``ready`` replicas were measured; ``wanted`` is what is on its way already: inside the tolerance it stays.
    """
    if value is None or ready == 0 or not policy.target > 0:
        return None
    ratio = value / policy.target
    if abs(ratio - 1.0) <= policy.tolerance:
        return wanted
    found = math.ceil(ready * ratio - 1e-9)
    return found if ratio > 1.0 or policy.scale_in else max(found, wanted)


def step(policy: Step, value: float | None, ready: int) -> int | None:
    """Replicas after the highest step the metric has reached; None while it is missing or below all steps."""
    if value is None:
        return None
    reached = [rule for rule in policy.steps if value >= rule.above]
    if not reached:
        return None
    add = max(reached, key=lambda rule: rule.above).add
    if policy.percent:
        part = ready * add / 100.0
        add = math.ceil(part) if part > 0 else math.floor(part)
    return max(0, ready + int(add))
