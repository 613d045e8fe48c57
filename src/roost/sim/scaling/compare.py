"""Plays policies on scenarios and judges them against the oracle; the best setting of each baseline.

"Met" = at most 1 % late. Of several settings the best is the cheapest that meets it, or, where none does,
the one with the fewest late. Roost has one setting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from roost.ports.errors import Invalid
from roost.sim.scaling.oracle import Oracle, oracle
from roost.sim.scaling.policies.nodes import ClusterAutoscaler, Karpenter, ToFit
from roost.sim.scaling.policies.others import (
    AwsTargetTracking,
    Fixed,
    Gcp,
    Hpa,
    Kpa,
    Layered,
    SkyServe,
)
from roost.sim.scaling.policies.reactive import Reactive
from roost.sim.scaling.policies.roost import Roost
from roost.sim.scaling.pool import Spot
from roost.sim.scaling.scenario import Scenario
from roost.sim.scaling.world import Policy, Result, run

MET = 0.01
Maker = Callable[[], Policy]


def _fixed(headroom: float) -> Maker:
    return lambda: Fixed(headroom)


def _reactive(target: float) -> Maker:
    return lambda: Reactive(target)


def _hpa(target: float) -> Maker:
    return lambda: Layered(f"hpa {target:g} + ca", lambda: Hpa(target), ClusterAutoscaler())


def _hpa_karpenter(target: float, after_s: float) -> Maker:
    return lambda: Layered(
        f"hpa {target:g} + karpenter {after_s:g}s", lambda: Hpa(target), Karpenter(after_s)
    )


def _kpa(target: float, retention_s: float) -> Maker:
    return lambda: Layered(
        f"kpa {target:g} keep {retention_s:g}s",
        lambda: Kpa(target, retention_s),
        ClusterAutoscaler(),
        period_s=2.0,
    )


def _aws(target: float, cooldown_s: float) -> Maker:
    return lambda: Layered(
        f"aws {target:g} cool {cooldown_s:g}s",
        lambda: AwsTargetTracking(target, cooldown_s),
        ToFit(),
    )


def _gcp(target: float) -> Maker:
    return lambda: Layered(f"gcp {target:g}", lambda: Gcp(target), ToFit())


def _skyserve(target: float, up_s: float, down_s: float) -> Maker:
    return lambda: Layered(
        f"skyserve {target:g} {up_s:g}/{down_s:g}s",
        lambda: SkyServe(target, up_s, down_s),
        ToFit(extra=0),
    )


SHARES = (0.85, 0.7, 0.55, 0.4)
"""Targets that are tried: the share of capacity in use, the cheapest first."""
POLICIES: Mapping[str, Sequence[Maker]] = {
    "fixed": [_fixed(headroom) for headroom in (1.0, 1.25, 1.6)],
    "reactive": [_reactive(target) for target in SHARES],
    "hpa": [_hpa(target) for target in SHARES],
    "karpenter": [_hpa_karpenter(target, 30.0) for target in SHARES],
    "knative": [_kpa(target, 600.0) for target in SHARES],
    "aws": [_aws(target, 60.0) for target in SHARES],
    "gcp": [_gcp(target) for target in SHARES],
    "skyserve": [_skyserve(target, 60.0, 600.0) for target in SHARES],
    "roost": [Roost],
}
"""Name -> settings, the cheapest first."""


@dataclass(frozen=True)
class Row:
    """One policy on one scenario and seed."""

    scenario: str
    policy: str
    setting: str
    seed: int
    met: bool
    cost: float
    """Host-hours relative to the oracle's; NaN without one."""
    host_hours: float
    late: float
    worst_late: float
    """Of the service of a mix that has most."""
    late_outside: float
    launches_day: float
    launches_oracle: float
    """Times the oracle's."""
    starts_day: float
    losses: int
    result: Result = field(repr=False, compare=False)

    def plain(self) -> dict[str, object]:
        """Without the tracks."""
        return {name: value for name, value in self.__dict__.items() if name != "result"}


def row(name: str, result: Result, best: Oracle | None) -> Row:
    """``result`` beside the oracle's."""
    launches = result.launches / result.days
    theirs = best.launches / result.days if best is not None else np.nan
    return Row(
        scenario=result.scenario,
        policy=name,
        setting=result.policy,
        seed=result.seed,
        met=result.late_outside <= MET,
        cost=result.host_hours / best.host_hours if best is not None else float("nan"),
        host_hours=result.host_hours,
        late=result.late,
        worst_late=max(result.by_service.values()),
        late_outside=result.late_outside,
        launches_day=launches,
        launches_oracle=float(launches / theirs) if theirs else float("nan"),
        starts_day=result.starts / result.days,
        losses=result.losses,
        result=result,
    )


def play(scenario: Scenario, name: str, best: Oracle | None, spot: Spot | None = None) -> Row:
    """The best setting of the policy ``name``: tried from the cheapest on until one meets the objective."""
    if name not in POLICIES:
        raise Invalid(f"no policy {name}", hint=f"one of {', '.join(POLICIES)}")
    rows: list[Row] = []
    for make in POLICIES[name]:
        rows.append(row(name, run(scenario, make(), spot), best))
        if rows[-1].met:
            break
    return chosen(rows)


def chosen(rows: Sequence[Row]) -> Row:
    """The cheapest that meets the objective; else the one with the fewest late."""
    met = [one for one in rows if one.met]
    if met:
        return min(met, key=lambda one: one.host_hours)
    return min(rows, key=lambda one: one.late_outside)


def remembered(scenario: Scenario, folder: Path | None) -> Oracle:
    """The oracle of ``scenario``, read from ``folder`` where it was worked out before."""
    if folder is None:
        return oracle(scenario)
    path = folder / f"oracle-{scenario.name}-{scenario.seed}-{scenario.days:g}d.json"
    if path.exists():
        kept = msgspec.json.decode(path.read_bytes())
        kept["hosts"], kept["edges"] = np.array(kept["hosts"]), np.array(kept["edges"])
        return Oracle(**kept)
    found = oracle(scenario)
    folder.mkdir(parents=True, exist_ok=True)
    plain = asdict(found)
    plain["hosts"], plain["edges"] = found.hosts.tolist(), found.edges.tolist()
    path.write_bytes(msgspec.json.encode(plain))
    return found


@dataclass(frozen=True)
class Summary:
    """A policy over all that was played."""

    policy: str
    met: int
    played: int
    cost: float
    """Geometric mean."""
    late: float
    """Mean."""
    launches_oracle: float
    starts_day: float


def summary(rows: Sequence[Row]) -> list[Summary]:
    """One line a policy, in the order of ``rows``."""
    found = []
    for name in dict.fromkeys(one.policy for one in rows):
        own = [one for one in rows if one.policy == name]
        found.append(
            Summary(
                policy=name,
                met=sum(one.met for one in own),
                played=len(own),
                cost=float(np.exp(np.mean([np.log(one.cost) for one in own]))),
                late=float(np.mean([one.late for one in own])),
                launches_oracle=float(np.mean([one.launches_oracle for one in own])),
                starts_day=float(np.mean([one.starts_day for one in own])),
            )
        )
    return found
