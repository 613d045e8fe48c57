"""What may happen to an instance. Pure: events in, a new value out; never reads a clock or the world."""

import msgspec

from roost.fleet.model import Instance, InstanceState, Span
from roost.ports.provider import InstanceState as Seen
from roost.ports.provider import ProviderInstance
from roost.ports.values import HostReport, Notice

S = InstanceState

TRANSITIONS: dict[InstanceState, dict[InstanceState, str]] = {
    S.PLANNED: {
        S.REQUESTED: "the launch call is about to be made, with its token",
        S.FAILED: "the pool refused, or nobody wants it any more before the call",
    },
    S.REQUESTED: {
        S.BOOTING: "the provider lists an instance with our token: billing starts",
        S.FAILED: "the provider refused for good",
        S.DRAINING: "released while the launch call was under way",
        S.LOST: "it ended before we saw it boot",
    },
    S.BOOTING: {
        S.READY: "its agent joined and reports that the environment is in place",
        S.DRAINING: "released before it was ready",
        S.LOST: "the provider took it or it died",
        S.FAILED: "it did not become ready in time",
    },
    S.READY: {
        S.DRAINING: "released: its tasks leave, then it is terminated",
        S.STOPPING: "a person stops it to keep its disk",
        S.LOST: "interrupted, or died without notice",
    },
    S.DRAINING: {
        S.TERMINATED: "the provider confirms its end: billing stops",
        S.LOST: "it died before we ended it",
    },
    S.STOPPING: {
        S.STOPPED: "the provider confirms: billing pauses",
        S.LOST: "it died instead",
    },
    S.STOPPED: {
        S.BOOTING: "started again: a new span",
        S.DRAINING: "released while stopped",
        S.LOST: "its disk is gone",
    },
    S.TERMINATED: {},
    S.FAILED: {},
    S.LOST: {},
}
"""Every edge with when it happens. Nothing is billed outside booting..draining."""


class InvalidTransition(Exception):
    """A step the table does not know."""


def step(instance: Instance, to: InstanceState) -> Instance:
    """``instance`` in state ``to``; raises ``InvalidTransition`` for an edge that is not in the table."""
    if to not in TRANSITIONS[instance.state]:
        raise InvalidTransition(f"{instance.id}: {instance.state} -> {to}")
    return msgspec.structs.replace(instance, state=to)


def observe(
    instance: Instance, seen: ProviderInstance | None, report: HostReport | None, now_s: float
) -> Instance:
    """Fold what the provider lists and the host reports into ``instance``. Idempotent.

    ``seen`` None means that the provider's list, read after the launch call returned, lacks it.
    """
    if instance.ended or instance.state is S.PLANNED:
        return instance
    if seen is None:
        # Until it was seen once, its launch may still be on its way: absence proves nothing.
        return _end(instance, S.LOST, now_s, "vanished") if instance.provider_id else instance
    if seen.state is Seen.TERMINATED:
        return _ended(instance, seen, now_s)
    if seen.state is Seen.STOPPED:
        return _stopped(instance, seen, now_s)
    return _running(instance, seen, report)


def _running(instance: Instance, seen: ProviderInstance, report: HostReport | None) -> Instance:
    unseen = instance.state is S.DRAINING and not instance.provider_id
    if unseen or instance.state in (S.REQUESTED, S.STOPPED):
        if not unseen:
            instance = step(instance, S.BOOTING)
        span = Span(
            started_s=seen.launched_s,
            ended_s=None,
            price_usd_hour=instance.offer.price_usd_hour,
            on_demand_usd_hour=instance.offer.on_demand_usd_hour,
        )
        instance = msgspec.structs.replace(
            instance, spans=(*instance.spans, span), provider_id=seen.provider_id
        )
    if report is None:
        return instance
    if instance.state is S.BOOTING and report.ready:
        instance = msgspec.structs.replace(step(instance, S.READY), ready_s=report.at_s)
    if _stronger(report.notice, instance.notice):
        instance = msgspec.structs.replace(instance, notice=report.notice)
    return instance


def _stronger(new: Notice | None, old: Notice | None) -> bool:
    """Whether ``new`` says more than ``old``: a deadline is news even after a recommendation."""
    if new is None or old is None:
        return new is not None
    return new.deadline_s is not None and (
        old.deadline_s is None or new.deadline_s < old.deadline_s
    )


def _ended(instance: Instance, seen: ProviderInstance, now_s: float) -> Instance:
    asked = instance.state is S.DRAINING
    if instance.state is S.REQUESTED or (asked and not instance.provider_id):
        # It lived and died before we looked: bill what the provider bills.
        instance = _running(instance, seen, None)
    to = S.TERMINATED if asked else S.LOST
    return _end(instance, to, seen.ended_s if seen.ended_s is not None else now_s, seen.reason)


def _stopped(instance: Instance, seen: ProviderInstance, now_s: float) -> Instance:
    if instance.state is S.READY:
        instance = step(instance, S.STOPPING)
    if instance.state is S.STOPPING:
        at_s = seen.ended_s if seen.ended_s is not None else now_s
        return _close_span(step(instance, S.STOPPED), at_s)
    return instance


def _end(instance: Instance, to: InstanceState, at_s: float, reason: str) -> Instance:
    ended = _close_span(step(instance, to), at_s)
    return msgspec.structs.replace(ended, ended_s=at_s, ended_reason=reason or str(to))


def _close_span(instance: Instance, at_s: float) -> Instance:
    if not instance.spans or instance.spans[-1].ended_s is not None:
        return instance
    last = msgspec.structs.replace(
        instance.spans[-1], ended_s=max(at_s, instance.spans[-1].started_s)
    )
    return msgspec.structs.replace(instance, spans=(*instance.spans[:-1], last))
