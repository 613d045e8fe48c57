"""What a person may ask of a service. Pure: raises ``Invalid`` that says what to do."""

import re
from collections.abc import Iterable

from roost.placement.model import Ask
from roost.placement.model import check as check_rules
from roost.ports.errors import Conflict, Invalid
from roost.ports.replicas import Health, ReplicaSpec
from roost.services.model import Goal, Pool, Rollout, Service, Where, Wish

MOST_REPLICAS = 10_000
MOST_SECONDS = 86_400.0
LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
HOST = re.compile(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check(name: str, wish: Wish) -> None:
    """``Invalid`` for what can never work."""
    if not LABEL.fullmatch(name):
        raise Invalid(
            f"{name[:80]!r} is no name of a service",
            hint="lower case letters, digits and hyphens, a letter first, 63 at most: my-web",
        )
    _spec(wish.spec)
    _health(wish.spec.health)
    _limits(wish.min, wish.max)
    _rollout(wish.rollout)
    _goal(wish.goal)
    _where(name, wish.where)
    for host in wish.endpoint.hosts:
        _host(host.lower())
    _seconds("how long requests are held", wish.endpoint.hold_s, least=0.0)


def check_hosts(service_id: str, wish: Wish, others: Iterable[Service]) -> None:
    """``Conflict`` for a host name that another service has: its requests would go astray."""
    asked = {host.lower() for host in wish.endpoint.hosts}
    for other in others:
        if other.id == service_id or other.deleted:
            continue
        taken = {f"{other.name}.localhost", *map(str.lower, other.wish.endpoint.hosts)}
        for host in sorted(asked & taken):
            raise Conflict(f"{host} leads to service {other.name} already", hint="choose another")


def _host(host: str) -> None:
    """A name of its own: with an address or ``localhost`` a service would take everybody's requests."""
    if not HOST.fullmatch(host):
        raise Invalid(f"{host[:80]!r} is no host name", hint="for example shop.example.org")
    if host == "localhost" or host.rpartition(".")[2].isdecimal():
        raise Invalid(
            f"{host[:80]} is how everything here is reached", hint="for example shop.example.org"
        )


def check_fits(wish: Wish, pool: Pool) -> None:
    """``Invalid`` when no host of the group could ever take a replica."""
    spec = wish.spec
    asks = (
        ("vCPUs", spec.vcpus, pool.vcpus),
        ("MiB of memory", spec.memory_mib, pool.memory_mib),
        ("GPUs", spec.gpus, pool.gpus),
    )
    for what, asked, have in asks:
        if pool.vcpus and asked > have:
            raise Invalid(
                f"a replica of {asked:g} {what} fits no host of group {pool.id}, which have {have:g}",
                hint="a smaller replica, or `roost group set` with larger hosts",
            )


def _spec(spec: ReplicaSpec) -> None:
    if not spec.command and not spec.image:
        raise Invalid("a service needs a command or an image", hint="--command or --image")
    if spec.image and (spec.image != spec.image.strip() or " " in spec.image):
        raise Invalid(f"{spec.image[:80]!r} is no image", hint="for example nginx:1.27")
    if not 0 < spec.vcpus <= 1024 or not 1 <= spec.memory_mib <= 64 << 20:
        raise Invalid(
            f"{spec.vcpus:g} vCPUs and {spec.memory_mib:g} MiB are no size of a container",
            hint="for example --cpu 0.5 --memory 256",
        )
    if not 0 <= spec.gpus <= 1024:
        raise Invalid(f"{spec.gpus:g} GPUs are no number of GPUs", hint="0 or more")
    if spec.gpus > 1 and spec.gpus != int(spec.gpus):
        raise Invalid(
            f"{spec.gpus:g} GPUs are no number of GPUs",
            hint="whole ones, or a share below 1 of one",
        )
    if not 0 <= spec.port <= 65_535:
        raise Invalid(f"port {spec.port} is none", hint="1 to 65535, or 0: the variable PORT says")
    if not 0 <= spec.concurrency <= 1_000_000:
        raise Invalid("concurrency is a number of requests", hint="0 = no bound")
    for key in spec.env:
        if not VARIABLE.fullmatch(key):
            raise Invalid(f"{key[:80]!r} is no name of a variable", hint="for example DEBUG=1")
    _seconds("the grace before a replica is killed", spec.stop_grace_s, least=0.0)


def _health(health: Health) -> None:
    if health.path and not health.path.startswith("/"):
        raise Invalid(f"the health path {health.path[:80]!r} does not begin with /", hint="/health")
    _seconds("the health interval", health.interval_s)
    _seconds("the health timeout", health.timeout_s)
    _seconds("the time to start", health.start_s)
    if health.healthy < 1 or health.unhealthy < 1:
        raise Invalid("healthy and unhealthy count answers", hint="1 or more")


def _limits(least: int, most: int) -> None:
    if least < 0 or most < 1:
        raise Invalid(
            f"between {least} and {most} replicas are none", hint="min is 0 or more, max 1 or more"
        )
    if most < least:
        raise Invalid(
            f"max {most} is below min {least}", hint=f"max {least} or more, or a smaller min"
        )
    if most > MOST_REPLICAS:
        raise Invalid(f"a service has {MOST_REPLICAS} replicas at most", hint="a smaller max")


def _rollout(rollout: Rollout) -> None:
    if rollout.max_surge < 0 or rollout.max_unavailable < 0:
        raise Invalid("max_surge and max_unavailable count replicas", hint="0 or more")
    if rollout.max_surge == 0 and rollout.max_unavailable == 0:
        raise Invalid(
            "with max_surge 0 and max_unavailable 0 no replica could ever be replaced",
            hint="set one of them to 1",
        )
    if rollout.crashes < 1:
        raise Invalid("crashes counts restarts", hint="1 or more")
    _seconds("settle_s", rollout.settle_s, least=0.0)
    _seconds("timeout_s", rollout.timeout_s)
    _seconds("drain_s", rollout.drain_s, least=0.0)


def _where(name: str, where: Where) -> None:
    check_rules(Ask(service=name, spread=where.spread, affinity=where.affinity))
    if not 0 <= where.min_survival <= 1 or not 0 <= where.loss <= 1:
        raise Invalid("min_survival and loss lie between 0 and 1", hint="for example 0.95 and 0.5")


def _goal(goal: Goal) -> None:
    _seconds("the latency bound", goal.bound_s)
    _seconds("what one request takes", goal.service_s)
    if not 0 < goal.late < 1:
        raise Invalid(
            f"{goal.late:g} is no share of late requests", hint="above 0, below 1: 0.01 is 1 %"
        )


def _seconds(what: str, value: float, *, least: float = 0.001) -> None:
    if not least <= value <= MOST_SECONDS:
        raise Invalid(f"{what}: {value:g} s is not between {least:g} and {MOST_SECONDS:g} s")
