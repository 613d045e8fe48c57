"""Whether a group's spec makes sense, and what to do where it does not. Pure."""

import re

from roost.fleet.groups.model import PREFIX, Budget, GroupSpec, Hook
from roost.ports.errors import Invalid

MOST_HOSTS = 10_000
MOST_SLOTS = 1_000
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
REASONS = ("scale-in", "refresh", "rebalance")


def check(spec: GroupSpec) -> None:
    """``Invalid`` naming the first thing that is wrong."""
    if not NAME.fullmatch(spec.name) or spec.name.startswith(PREFIX):
        raise Invalid(
            f"{spec.name!r} is no name of a group",
            hint="small letters, digits and dashes, at most 41, not beginning with g-",
        )
    _sizes(spec)
    _shares(spec)
    if spec.ask.vcpus <= 0 or spec.ask.memory_gib <= 0 or spec.ask.gpus < 0:
        raise Invalid("a host needs vCPUs and memory above zero")
    if spec.warm.state not in ("running", "stopped"):
        raise Invalid(f"a warm pool cannot be {spec.warm.state!r}", hint="running or stopped")
    names = [hook.name for hook in spec.hooks]
    if len(set(names)) != len(names):
        raise Invalid("two hooks have the same name")
    for hook in spec.hooks:
        _hook(hook)
    for budget in spec.budgets:
        _budget(budget)


def _sizes(spec: GroupSpec) -> None:
    if not 0 <= spec.min <= spec.max:
        raise Invalid(
            f"min {spec.min} and max {spec.max} leave no size",
            hint="min must be 0 or more and not above max",
        )
    if spec.max > MOST_HOSTS:
        raise Invalid(f"max {spec.max} is too large", hint=f"at most {MOST_HOSTS} hosts")
    if not 1 <= spec.slots <= MOST_SLOTS:
        raise Invalid(f"a host cannot have {spec.slots} slots", hint=f"1 to {MOST_SLOTS}")
    if not 0 <= spec.warm.size <= MOST_HOSTS or not 0 <= (spec.spares or 0) <= MOST_HOSTS:
        raise Invalid("the warm pool and the spares cannot be below zero")
    if spec.on_demand_base < 0:
        raise Invalid(f"on-demand base {spec.on_demand_base} is below zero")


def _shares(spec: GroupSpec) -> None:
    if not 0.0 <= spec.on_demand_percent <= 100.0:
        raise Invalid(f"{spec.on_demand_percent} is no percentage", hint="0 to 100")
    for name, share in (("pool", spec.pool_share), ("region", spec.region_share)):
        if not 0.0 < share <= 1.0:
            raise Invalid(f"a {name} share of {share} is none", hint="above 0, at most 1")
    for what, seconds in (("fallback", spec.fallback_s), ("drain", spec.drain_s)):
        if not 0.0 <= seconds <= 86_400.0:
            raise Invalid(f"{what} of {seconds:g} s", hint="0 to a day")
    for tier in spec.tiers:
        if not tier.clouds or (tier.most is not None and tier.most < 0):
            raise Invalid("a tier names clouds and at most a number of hosts of 0 or more")
    known = [cloud for tier in spec.tiers for cloud in tier.clouds]
    if len(set(known)) != len(known):
        raise Invalid("a cloud stands in two tiers")


def _hook(hook: Hook) -> None:
    if not NAME.fullmatch(hook.name):
        raise Invalid(f"{hook.name!r} is no name of a hook", hint="small letters and digits")
    if hook.on not in ("launch", "terminate"):
        raise Invalid(f"a hook cannot be on {hook.on!r}", hint="launch or terminate")
    if hook.default not in ("continue", "abandon"):
        raise Invalid(f"a hook's default cannot be {hook.default!r}", hint="continue or abandon")
    if not 1.0 <= hook.timeout_s <= 172_800.0:
        raise Invalid(f"a hook cannot wait {hook.timeout_s:g} s", hint="1 s to 48 h")


def _budget(budget: Budget) -> None:
    number = budget.most.removesuffix("%")
    if not number.isdigit() or (budget.most.endswith("%") and int(number) > 100):
        raise Invalid(f"{budget.most!r} is no budget", hint="a number of hosts, or 0% to 100%")
    unknown = [reason for reason in budget.reasons if reason not in REASONS]
    if unknown:
        raise Invalid(f"{unknown[0]!r} is no reason", hint=f"one of {', '.join(REASONS)}")
    if not all(0 <= day <= 6 for day in budget.days):
        raise Invalid("days are 0 (Monday) to 6")
    if not (0 <= budget.from_hour <= 23 and 1 <= budget.to_hour <= 24):
        raise Invalid("hours go from 0 to 24")
