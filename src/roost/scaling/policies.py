"""The scaling policies a person may give a service. Values only; never imports numpy.

Several may be set. Each names a number of replicas with a reason; the largest wins, limits come last.
"""

import msgspec


class TargetTracking(msgspec.Struct, frozen=True, kw_only=True, tag="target"):
    """Keep a metric per replica near a target, as ``ceil(replicas x value / target)``."""

    metric: str
    """``cpu`` (percent of the container's limit), ``in_flight`` (per replica), ``latency_s``, ``queue_age_s``
    or any name in the observation's ``metrics``."""
    target: float
    tolerance: float = 0.1
    """No change while value / target is within 1 ± this."""
    scale_in_s: float = 300.0
    """Follows the highest answer of so many seconds downwards (stabilisation)."""
    scale_in: bool = True


class StepRule(msgspec.Struct, frozen=True, kw_only=True):
    """One step: from ``above`` on, ``add`` replicas (or percent of them, see ``Step.percent``)."""

    above: float
    add: float


class Step(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """Adds (or takes, negative) replicas by how far a metric is over a threshold."""

    metric: str
    steps: tuple[StepRule, ...]
    """Ascending by ``above``; the highest reached applies."""
    percent: bool = False
    """``add`` is percent of the present replicas, rounded away from zero."""
    cooldown_s: float = 120.0
    """Between two changes by this policy."""


class Scheduled(msgspec.Struct, frozen=True, kw_only=True, tag="scheduled"):
    """From each time of a cron expression on, other limits, until another schedule's time or ``lasts_s``."""

    cron: str
    """Five fields: minute hour day month weekday."""
    timezone: str = "UTC"
    min: int | None = None
    max: int | None = None
    lasts_s: float = 0.0
    """0 = until another schedule of this service begins."""
    name: str = ""


class Predictive(msgspec.Struct, frozen=True, kw_only=True, tag="predictive"):
    """The default: forecast, queueing model and risk; see ``scaling/README.md``."""

    scale: bool = True
    """False = forecast only: its number is said in the reason and moves nothing."""


Policy = TargetTracking | Step | Scheduled | Predictive
